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

mod channels;
mod offers;

use std::collections::VecDeque;
use std::sync::Arc;

use vmbus_proto::hv::synic::VMBUS_SINT;
use vmbus_proto::message::{Encoded, InitiateContact, Message, TlConnectResult, VersionResponse};
use vmbus_proto::version::Version;

use super::gpadl::{GpadlError, Gpadls, Outcome};
pub use super::state::{BusState, OpenRequest};
use super::state::{ChannelState, Connection};
pub use offers::SubChannel;

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
    /// Let go of a channel's device: it was rescinded, or is a sub-channel whose primary channel
    /// has closed.
    Remove {
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
    /// The guest was reset: forget it.
    pub fn reset(&mut self) {
        self.disconnect();
        self.actions
            .retain(|action| matches!(action, Action::Close { .. } | Action::Remove { .. }));
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

    /// Ends the connection: closes what is open and forgets what the guest established.
    fn disconnect(&mut self) {
        self.state.connection = Connection::Disconnected;
        self.state.gpadls = Gpadls::default();
        self.state.channels.retain(|&relid, channel| {
            let was_there = channel.is_there();
            let was = std::mem::replace(&mut channel.state, ChannelState::Closed);
            if matches!(was, ChannelState::Open(_)) {
                self.actions.push_back(Action::Close { relid });
            }
            let stays = was_there && channel.primary.is_none();
            if was_there && !stays {
                self.actions.push_back(Action::Remove { relid });
            }
            stays
        });
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
