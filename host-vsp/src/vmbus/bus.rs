//! The control plane as a state machine without I/O.
//!
//! [`Bus::handle`] takes one message of the guest and [`Bus::poll`] gives out what has to be done
//! about it, in order. Who carries the actions out (the [`VmBus`](super::VmBus)) reports the ones
//! with an outcome back by [`Bus::opened`]. A guest may do everything twice, in any order: what
//! makes no sense is counted and answered where the guest would wait for an answer.
#![warn(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::collections::VecDeque;
use std::sync::Arc;

use vmbus_proto::hv::synic::{EVENT_FLAG_COUNT, VMBUS_SINT};
use vmbus_proto::message::{
    ChannelId, Encoded, GpadlCreated, GpadlId, GpadlTeardown, InitiateContact, Message,
    ModifyChannel, ModifyChannelResponse, OfferChannel, OpenChannel, OpenResult, TlConnectResult,
    VersionResponse,
};
use vmbus_proto::version::Version;

use super::gpadl::{GpadlError, Gpadls, Outcome};
pub use super::state::{BusState, OpenRequest};
use super::state::{Channel, ChannelState, Connection};
use crate::memory::GuestMemory;

/// NTSTATUS values that responses carry.
mod status {
    pub const SUCCESS: u32 = 0;
    pub const UNSUCCESSFUL: u32 = 0xC000_0001;
    pub const INVALID_PARAMETER: u32 = 0xC000_000D;
    pub const INSUFFICIENT_RESOURCES: u32 = 0xC000_009A;
    pub const CONNECTION_REFUSED: u32 = 0xC000_0236;
}

/// Connection id of channel `relid`'s doorbell. KVM serves ids of up to 24 bits.
pub const fn doorbell_id(relid: u32) -> u32 {
    0x1_0000_u32.saturating_add(relid)
}

/// The `connection_state` of a refused contact: failed, for no better known reason.
const CONNECTION_FAILED: u8 = 2;

/// VP index by which a guest asks for a channel without interrupts.
const NO_INTERRUPT_VP: u32 = u32::MAX;

/// What has to be done, in order.
#[derive(Debug)]
pub enum Action {
    /// Drop the messages that still wait for the guest: their connection has ended, and whoever
    /// makes contact now (after a kexec, or a crash) must not get them.
    ForgetMessages,
    /// Send a message to the guest.
    Send {
        /// VP index it goes to.
        vp: u32,
        /// Its bytes.
        message: Encoded,
    },
    /// Start a channel and report by [`Bus::opened`].
    Open(OpenRequest),
    /// Stop a channel: when this is done, nothing of it touches guest memory.
    Close {
        /// Which.
        relid: u32,
    },
    /// Interrupt another processor for a channel; when this is done, the old one gets no more.
    Retarget {
        /// Which.
        relid: u32,
        /// VP index, or `None` for no interrupts.
        vp: Option<u32>,
    },
    /// Interrupt the processor of a channel once, whatever its event flag says.
    Kick {
        /// Which.
        relid: u32,
    },
}

/// The control plane of one guest.
pub struct Bus {
    state: BusState,
    memory: Arc<dyn GuestMemory>,
    vp_count: u32,
    actions: VecDeque<Action>,
}

impl Bus {
    /// A bus without channels for a guest with `vp_count` processors.
    pub fn new(memory: Arc<dyn GuestMemory>, vp_count: u32) -> Self {
        Self::restore(memory, vp_count, BusState::default())
    }

    /// A bus that goes on from `state`.
    pub fn restore(memory: Arc<dyn GuestMemory>, vp_count: u32, state: BusState) -> Self {
        Self {
            state,
            memory,
            vp_count,
            actions: VecDeque::new(),
        }
    }

    /// The state, to be saved. All actions must have been polled and carried out.
    pub fn state(&self) -> &BusState {
        &self.state
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The version agreed on.
    pub fn version(&self) -> Option<Version> {
        match self.state.connection {
            Connection::Connected { version, .. } => Some(Version(version)),
            Connection::Disconnected => None,
        }
    }

    /// Messages that made no sense since the bus was made.
    pub fn refused(&self) -> u64 {
        self.state.refused
    }

    /// The guest's GPADLs.
    pub fn gpadls(&self) -> &Gpadls {
        &self.state.gpadls
    }

    /// The channels that are open, with what they were opened with.
    pub fn open_channels(&self) -> impl Iterator<Item = &OpenRequest> {
        self.state
            .channels
            .values()
            .filter_map(|channel| match &channel.state {
                ChannelState::Open(open) => Some(open),
                _ => None,
            })
    }

    /// The relids of all channels whose device is there, in order.
    pub fn relids(&self) -> impl Iterator<Item = u32> {
        let there = |channel: &Channel| !matches!(channel.state, ChannelState::Rescinded);
        self.state
            .channels
            .iter()
            .filter(move |(_, c)| there(c))
            .map(|(&relid, _)| relid)
    }

    /// Offers a device; its relid, or `None` where all are taken.
    pub fn offer(&mut self, mut offer: OfferChannel) -> Option<u32> {
        let relid = (1..EVENT_FLAG_COUNT).find(|relid| !self.state.channels.contains_key(relid))?;
        offer.relid = relid.into();
        offer.connection_id = doorbell_id(relid).into();
        offer.dedicated_interrupt = 1.into();
        let channel = Channel {
            offer: zerocopy::IntoBytes::as_bytes(&offer).to_vec(),
            state: ChannelState::Closed,
        };
        self.state.channels.insert(relid, channel);
        if matches!(
            self.state.connection,
            Connection::Connected {
                offers_requested: true,
                ..
            }
        ) {
            self.send(&Message::OfferChannel(offer));
        }
        Some(relid)
    }

    /// Takes a device away. The channel stops at once.
    pub fn rescind(&mut self, relid: u32) {
        let Some(channel) = self.state.channels.get_mut(&relid) else {
            return;
        };
        let was = std::mem::replace(&mut channel.state, ChannelState::Rescinded);
        match was {
            ChannelState::Open(open) => self.stop(&open),
            ChannelState::Opening(open) => self.send_open_result(&open, status::UNSUCCESSFUL),
            ChannelState::Rescinded => return,
            ChannelState::Closed => {}
        }
        if matches!(
            self.state.connection,
            Connection::Connected {
                offers_requested: true,
                ..
            }
        ) {
            self.send(&Message::RescindChannelOffer(ChannelId::new(relid)));
        } else {
            self.release(relid);
        }
    }

    /// The guest was reset: forget it.
    pub fn reset(&mut self) {
        self.disconnect();
        self.actions
            .retain(|action| matches!(action, Action::Close { .. }));
    }

    /// The outcome of [`Action::Open`].
    pub fn opened(&mut self, relid: u32, success: bool) {
        let Some(channel) = self.state.channels.get_mut(&relid) else {
            return;
        };
        let ChannelState::Opening(open) = &channel.state else {
            return;
        };
        let open = open.clone();
        if success {
            channel.state = ChannelState::Open(open.clone());
            self.send_open_result(&open, status::SUCCESS);
            // An interrupt raised before the guest was ready for it may have been lost.
            self.actions.push_back(Action::Kick { relid });
        } else {
            channel.state = ChannelState::Closed;
            self.send_open_result(&open, status::UNSUCCESSFUL);
        }
    }

    /// Handles a message that the guest posted from VP `vp`.
    pub fn handle(&mut self, vp: u32, payload: &[u8]) {
        let Ok(message) = Message::parse(payload) else {
            return self.refuse();
        };
        match (message, self.state.connection) {
            (Message::InitiateContact(contact), _) => self.initiate_contact(vp, &contact),
            (Message::Unload, connection) => self.unload(vp, connection),
            (_, Connection::Disconnected) => self.refuse(),
            (Message::RequestOffers, _) => self.request_offers(),
            (Message::GpadlHeader(header, ranges), _) => {
                let memory = Arc::clone(&self.memory);
                let outcome = if self.is_usable(header.relid.get()) {
                    self.state.gpadls.header(&header, ranges, &*memory)
                } else {
                    Some(Outcome {
                        relid: header.relid.get(),
                        gpadl: header.gpadl.get(),
                        result: Err(GpadlError::Invalid),
                    })
                };
                self.gpadl_outcome(outcome);
            }
            (Message::GpadlBody(header, pfns), _) => {
                let memory = Arc::clone(&self.memory);
                match self.state.gpadls.body(&header, pfns, &*memory) {
                    Ok(outcome) => self.gpadl_outcome(outcome),
                    Err(_) => self.refuse(),
                }
            }
            (Message::GpadlTeardown(teardown), _) => self.gpadl_teardown(&teardown),
            (Message::OpenChannel(open), _) => self.open_channel(&open),
            (Message::CloseChannel(channel), _) => self.close_channel(channel.relid.get()),
            (Message::ModifyChannel(modify), Connection::Connected { version, .. }) => {
                self.modify_channel(&modify, Version(version));
            }
            (Message::RelidReleased(channel), _) => self.relid_released(channel.relid.get()),
            (Message::TlConnectRequest(connect), _) => {
                self.send(&Message::TlConnectResult(TlConnectResult {
                    endpoint: connect.endpoint,
                    service: connect.service,
                    status: status::CONNECTION_REFUSED.into(),
                }));
            }
            // Reserved channels are firmware's; and the rest is what only a host sends.
            _ => self.refuse(),
        }
    }

    fn initiate_contact(&mut self, vp: u32, contact: &InitiateContact) {
        // A guest that makes contact anew (kexec, a crash kernel) starts from nothing.
        self.disconnect();
        self.actions.push_back(Action::ForgetMessages);
        let target_vp = contact.target_vp.get();
        let acceptable = contact.version().is_supported()
            && contact.sint().is_none_or(|sint| sint == VMBUS_SINT)
            && contact.vtl().is_none_or(|vtl| vtl == 0)
            && target_vp < self.vp_count;
        let mut response = VersionResponse {
            supported: u8::from(acceptable),
            connection_state: if acceptable { 0 } else { CONNECTION_FAILED },
            padding: 0.into(),
            message_connection_id: 0.into(),
        };
        if acceptable {
            if contact.version() >= Version::V5_0 {
                response.message_connection_id = vmbus_proto::message::CONNECTION_ID_MESSAGE.into();
            }
            self.state.connection = Connection::Connected {
                version: contact.version().0,
                target_vp,
                offers_requested: false,
            };
            tracing::info!(version = %contact.version(), "contact accepted");
        } else {
            tracing::info!(version = %contact.version(), "contact refused");
        }
        let to = if target_vp < self.vp_count {
            target_vp
        } else {
            vp
        };
        self.send_to(to, &Message::VersionResponse(response));
    }

    fn unload(&mut self, vp: u32, connection: Connection) {
        let to = match connection {
            Connection::Connected { target_vp, .. } => target_vp,
            Connection::Disconnected => vp,
        };
        tracing::info!("unload");
        self.disconnect();
        self.actions.push_back(Action::ForgetMessages);
        self.send_to(to, &Message::UnloadResponse);
    }

    fn request_offers(&mut self) {
        let Connection::Connected {
            offers_requested, ..
        } = &mut self.state.connection
        else {
            return;
        };
        if std::mem::replace(offers_requested, true) {
            return self.refuse();
        }
        let offers: Vec<OfferChannel> = self
            .state
            .channels
            .values()
            .filter_map(|channel| zerocopy::FromBytes::read_from_bytes(&channel.offer).ok())
            .collect();
        for offer in offers {
            self.send(&Message::OfferChannel(offer));
        }
        self.send(&Message::AllOffersDelivered);
    }

    fn gpadl_outcome(&mut self, outcome: Option<Outcome>) {
        let Some(Outcome {
            relid,
            gpadl,
            result,
        }) = outcome
        else {
            return;
        };
        let status = match result {
            Ok(()) => status::SUCCESS,
            Err(GpadlError::TooMany) => status::INSUFFICIENT_RESOURCES,
            Err(_) => status::INVALID_PARAMETER,
        };
        if result.is_err() {
            self.refuse();
        }
        self.send(&Message::GpadlCreated(GpadlCreated {
            relid: relid.into(),
            gpadl: gpadl.into(),
            status: status.into(),
        }));
    }

    fn gpadl_teardown(&mut self, teardown: &GpadlTeardown) {
        let gpadl = teardown.gpadl.get();
        let Some(found) = self.state.gpadls.get(gpadl) else {
            return self.refuse();
        };
        if found.relid != teardown.relid.get() || found.teardown_requested {
            return self.refuse();
        }
        if self.open_channels().any(|open| open.gpadl == gpadl) {
            // The rings are still in it: it is given back when the channel closes.
            self.state.gpadls.request_teardown(gpadl);
        } else {
            self.give_back(gpadl);
        }
    }

    fn give_back(&mut self, gpadl: u32) {
        if self.state.gpadls.remove(gpadl) {
            self.send(&Message::GpadlTorndown(GpadlId {
                gpadl: gpadl.into(),
            }));
        }
    }

    fn open_channel(&mut self, message: &OpenChannel) {
        let relid = message.relid.get();
        let closed = matches!(
            self.state.channels.get(&relid),
            Some(Channel {
                state: ChannelState::Closed,
                ..
            })
        );
        let request = self.open_request(message).filter(|_| closed);
        match (request, self.state.channels.get_mut(&relid)) {
            (Some(request), Some(channel)) => {
                channel.state = ChannelState::Opening(request.clone());
                self.actions.push_back(Action::Open(request));
            }
            _ => {
                self.refuse();
                self.send(&Message::OpenChannelResult(OpenResult {
                    relid: message.relid,
                    open_id: message.open_id,
                    status: status::INVALID_PARAMETER.into(),
                }));
            }
        }
    }

    /// The rings that an OPENCHANNEL describes, if they can be.
    fn open_request(&self, message: &OpenChannel) -> Option<OpenRequest> {
        let gpadl = self.state.gpadls.get(message.ring_gpadl.get())?;
        let [range] = gpadl.ranges.as_slice() else {
            return None;
        };
        if gpadl.relid != message.relid.get() || range.byte_offset != 0 {
            return None;
        }
        let split = usize::try_from(message.downstream_page_offset.get()).ok()?;
        let (to_host, to_guest) = range.pages.split_at_checked(split)?;
        // A control page and a data page each, at least.
        if to_host.len() < 2 || to_guest.len() < 2 {
            return None;
        }
        Some(OpenRequest {
            relid: message.relid.get(),
            open_id: message.open_id.get(),
            target_vp: self.target(message.target_vp.get())?,
            gpadl: message.ring_gpadl.get(),
            to_host: to_host.into(),
            to_guest: to_guest.into(),
        })
    }

    /// A target as a guest names it; `None` where there is no such processor.
    fn target(&self, vp: u32) -> Option<Option<u32>> {
        match vp {
            NO_INTERRUPT_VP => Some(None),
            vp if vp < self.vp_count => Some(Some(vp)),
            _ => None,
        }
    }

    fn close_channel(&mut self, relid: u32) {
        let Some(channel) = self.state.channels.get_mut(&relid) else {
            return self.refuse();
        };
        let ChannelState::Open(open) = &channel.state else {
            // A rescinded channel was stopped already; guests close it all the same.
            if !matches!(channel.state, ChannelState::Rescinded) {
                self.refuse();
            }
            return;
        };
        let open = open.clone();
        channel.state = ChannelState::Closed;
        self.stop(&open);
    }

    /// Stops an open channel, and gives its rings back where the guest has asked for that.
    fn stop(&mut self, open: &OpenRequest) {
        let relid = open.relid;
        self.actions.push_back(Action::Close { relid });
        let gpadl = self.state.gpadls.get(open.gpadl);
        if gpadl.is_some_and(|gpadl| gpadl.teardown_requested) {
            self.give_back(open.gpadl);
        }
    }

    fn modify_channel(&mut self, message: &ModifyChannel, version: Version) {
        let relid = message.relid.get();
        let target = self.target(message.target_vp.get());
        let open = match self
            .state
            .channels
            .get_mut(&relid)
            .map(|channel| &mut channel.state)
        {
            Some(ChannelState::Open(open)) if version >= Version::V4_1 => Some(open),
            _ => None,
        };
        let done = if let (Some(open), Some(vp)) = (open, target) {
            open.target_vp = vp;
            self.actions.push_back(Action::Retarget { relid, vp });
            true
        } else {
            self.refuse();
            false
        };
        if version >= Version::V5_3 {
            let status = if done {
                status::SUCCESS
            } else {
                status::INVALID_PARAMETER
            };
            self.send(&Message::ModifyChannelResponse(ModifyChannelResponse {
                relid: message.relid,
                status: status.into(),
            }));
        }
        if done {
            self.actions.push_back(Action::Kick { relid });
        }
    }

    fn relid_released(&mut self, relid: u32) {
        match self
            .state
            .channels
            .get(&relid)
            .map(|channel| &channel.state)
        {
            Some(ChannelState::Rescinded) => self.release(relid),
            _ => self.refuse(),
        }
    }

    fn release(&mut self, relid: u32) {
        self.state.gpadls.remove_channel(relid);
        self.state.channels.remove(&relid);
    }

    /// Whether the guest may build on channel `relid`.
    fn is_usable(&self, relid: u32) -> bool {
        self.state
            .channels
            .get(&relid)
            .is_some_and(|channel| !matches!(channel.state, ChannelState::Rescinded))
    }

    /// Ends the connection: closes what is open and forgets what the guest established.
    fn disconnect(&mut self) {
        self.state.connection = Connection::Disconnected;
        self.state.gpadls = Gpadls::default();
        self.state.channels.retain(|&relid, channel| {
            let was = std::mem::replace(&mut channel.state, ChannelState::Closed);
            if matches!(was, ChannelState::Open(_)) {
                self.actions.push_back(Action::Close { relid });
            }
            !matches!(was, ChannelState::Rescinded)
        });
    }

    fn send_open_result(&mut self, open: &OpenRequest, status: u32) {
        self.send(&Message::OpenChannelResult(OpenResult {
            relid: open.relid.into(),
            open_id: open.open_id.into(),
            status: status.into(),
        }));
    }

    fn send(&mut self, message: &Message<'_>) {
        if let Connection::Connected { target_vp, .. } = self.state.connection {
            self.send_to(target_vp, message);
        }
    }

    fn send_to(&mut self, vp: u32, message: &Message<'_>) {
        self.actions.push_back(Action::Send {
            vp,
            message: message.encode(),
        });
    }

    fn refuse(&mut self) {
        self.state.refused = self.state.refused.saturating_add(1);
    }
}
