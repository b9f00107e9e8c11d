//! What guest and adapter have agreed on, and the messages by which they do.
//!
//! A plain value: everything an adapter remembers besides its rings. [`Conversation::handle`] takes
//! netvsp's messages, [`Conversation::control`] those of RNDIS, whose objects are in
//! [`objects`](super::objects). A guest waits for its answers without a timeout, so that whatever
//! asks for one gets one.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vmbus_proto::netvsp::{
    Buffer, Encoded, Message, NO_SECTION, SUB_CHANNEL_ALLOCATE, Sections as Groups, Version,
    capability, status,
};
use vmbus_proto::rndis::packet::MAX_PREFIX;
use vmbus_proto::rndis::{
    Adapter, Completion, DEVICE_CONNECTIONLESS, Indication, MEDIUM_802_3, Request, VERSION,
    status as rndis_status,
};

use super::adapter::{Config, Mac};
use super::headers::ETHERNET_HEADER;
use super::scaling::Scaling;
use super::sections::{RESERVED, Sections};

/// Bytes of a section of the send buffer: Hyper-V's, which Linux's constants are made for.
const SEND_SECTION: u32 = 6144;

/// Sections are a multiple of this many bytes, the length of a cache line.
const SECTION_ALIGN: u32 = 64;

/// The shortest section: answers with the longest values have to fit.
const MIN_SECTION: u32 = 1024;

/// Most sections of a receive buffer.
const MAX_SECTIONS: u32 = 32_768;

/// Frames that a guest may chain in one packet.
const MAX_PACKETS: u32 = 8;

/// Most bytes of one packet of the guest: a frame of 64 KiB with its headers, or a chain.
pub(super) const MAX_TRANSFER: u32 = 0x2_0000;

/// Frames of a chain begin at multiples of two to this power.
const ALIGNMENT: u32 = 3;

/// Most answers of RNDIS that wait for the guest.
const MAX_WAITING: usize = 64;

/// Most bytes of an answer of RNDIS.
pub(super) const MAX_ANSWER: usize = 1024;

/// Bytes of a VLAN tag.
const TAG: u32 = 4;

/// The guest's receive buffer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ReceiveBuffer {
    pub(super) gpadl: u32,
    id: u16,
    pub(super) sections: Sections,
}

/// The guest's send buffer.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct SendBuffer {
    pub(super) gpadl: u32,
    id: u16,
    /// How many sections it has.
    count: u32,
}

impl SendBuffer {
    /// Where the message begins that is in section `index` with `size` bytes; `None` where it
    /// cannot be there.
    pub(super) fn place(self, index: u32, size: u32) -> Option<usize> {
        if index == NO_SECTION || index >= self.count || size > SEND_SECTION {
            return None;
        }
        usize::try_from(index.checked_mul(SEND_SECTION)?).ok()
    }
}

/// What the guest wants of frames off the net.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Reception {
    /// Which frames, a combination of [`packet_filter`](vmbus_proto::rndis::oid::packet_filter).
    pub(super) filter: u32,
    /// Of these multicast addresses.
    pub(super) multicast: Vec<Mac>,
    /// It looks at what we say of their checksums.
    pub(super) checksum: bool,
    /// It takes joined segments of TCP over IPv4.
    pub(super) joined_ipv4: bool,
    /// The same over IPv6.
    pub(super) joined_ipv6: bool,
    /// On which channel.
    pub(super) scaling: Scaling,
}

impl Reception {
    /// Whether joined segments are taken over IPv6, or over IPv4.
    pub(super) fn takes_joined_of(&self, ipv6: bool) -> bool {
        if ipv6 {
            self.joined_ipv6
        } else {
            self.joined_ipv4
        }
    }

    /// Whether any are.
    pub(super) fn takes_joined(&self) -> bool {
        self.joined_ipv4 || self.joined_ipv6
    }
}

/// What guest and adapter have agreed on.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Conversation {
    version: Option<u32>,
    /// Longest frame that the guest takes, as it said.
    frame_limit: Option<u32>,
    /// What it says it can do, a combination of [`capability`].
    capabilities: u64,
    pub(super) receive: Option<ReceiveBuffer>,
    pub(super) send: Option<SendBuffer>,
    /// RNDIS has begun.
    initialized: bool,
    /// A copy of it is used while frames are taken.
    pub(super) reception: Arc<Reception>,
    /// Channels besides the first one that the guest was granted.
    pub(super) granted: u16,
    /// The guest has not been told on which channels it may send.
    pub(super) table_is_due: bool,
    /// How many receive buffers there have been.
    generation: u32,
    /// What it was told of the cable.
    told_plugged: Option<bool>,
    /// Messages of RNDIS that wait for a section.
    pub(super) messages: VecDeque<Vec<u8>>,
}

impl Conversation {
    /// A new one, in which no packet of this one means anything.
    pub(super) fn next(&self) -> Self {
        Self {
            generation: self.generation,
            ..Self::default()
        }
    }

    /// The version agreed on.
    pub(super) fn version(&self) -> Option<Version> {
        self.version.and_then(Version::from_wire)
    }

    /// Whether the guest can put a frame together that comes in pieces.
    pub(super) fn knows_pieces(&self) -> bool {
        self.version() >= Some(Version::V6_1) && self.capabilities & capability::RSC != 0
    }

    /// Bytes that a frame may have beside its Ethernet header, as the guest uses it now.
    fn mtu(&self, config: &Config) -> u32 {
        let header = ETHERNET_HEADER as u32;
        self.frame_limit
            .map_or(config.mtu, |limit| limit.saturating_sub(header))
            .min(config.mtu)
    }

    /// Whether frames may go to the guest.
    pub(super) fn is_running(&self) -> bool {
        self.initialized && self.reception.filter != 0
    }

    /// Handles a message of netvsp that is neither RNDIS nor about it; the answer, for a guest that
    /// wants one. `length` says how many bytes the guest lends by a GPADL.
    pub(super) fn handle(
        &mut self,
        message: Message,
        config: &Config,
        length: impl FnOnce(u32) -> Option<usize>,
    ) -> Encoded {
        let answer = match (message, self.version()) {
            (Message::Init(min, max), None) => {
                let version = Version::from_wire(max).filter(|_| min <= max);
                self.version = version.map(|version| version as u32);
                tracing::debug!(?version, max, "netvsp version");
                // This answer is as long as before there was a version.
                return Message::InitComplete(done(version.is_some())).encode(None);
            }
            (Message::Init(..), Some(_)) => Message::InitComplete(status::FAILURE),
            (Message::SendNdisConfig(ndis), Some(version)) if version >= Version::V2 => {
                self.frame_limit = Some(ndis.mtu.get());
                self.capabilities = ndis.capabilities.get();
                Message::SendNdisConfig(ndis)
            }
            (Message::SendReceiveBuffer(buffer), version) => {
                let length = length(buffer.gpadl.get()).filter(|_| version.is_some());
                match self.cut_receive_buffer(buffer, length, config) {
                    Some(groups) => Message::SendReceiveBufferComplete(status::SUCCESS, groups),
                    None => Message::SendReceiveBufferComplete(status::FAILURE, Groups::default()),
                }
            }
            (Message::RevokeReceiveBuffer(id), _) => {
                if self.receive.as_ref().is_some_and(|buffer| buffer.id == id) {
                    self.receive = None;
                }
                message
            }
            (Message::SendSendBuffer(buffer), version) => {
                let length = length(buffer.gpadl.get()).filter(|_| version.is_some());
                let count = length.and_then(|length| u32::try_from(length).ok());
                let count = count.map_or(0, |length| length / SEND_SECTION);
                if count == 0 || self.send.is_some() {
                    Message::SendSendBufferComplete(status::FAILURE, 0)
                } else {
                    self.send = Some(SendBuffer {
                        gpadl: buffer.gpadl.get(),
                        id: buffer.id.get(),
                        count,
                    });
                    Message::SendSendBufferComplete(status::SUCCESS, SEND_SECTION)
                }
            }
            (Message::RevokeSendBuffer(id), _) => {
                if self.send.is_some_and(|buffer| buffer.id == id) {
                    self.send = None;
                }
                message
            }
            (Message::SubChannel(operation, count), version) => {
                let count = u16::try_from(count).unwrap_or(u16::MAX);
                let most = config.queues.saturating_sub(1);
                if operation != SUB_CHANNEL_ALLOCATE
                    || version < Some(Version::V5)
                    || self.granted != 0
                    || count.min(most) == 0
                {
                    Message::SubChannelComplete(status::FAILURE, 0)
                } else {
                    self.granted = count.min(most);
                    self.table_is_due = true;
                    Message::SubChannelComplete(status::SUCCESS, self.granted.into())
                }
            }
            // There is no way past the host. The rest asks for nothing; where an answer is wanted, it is the message itself.
            (other, _) => other,
        };
        answer.encode(self.version())
    }

    /// Cuts the receive buffer into sections.
    fn cut_receive_buffer(
        &mut self,
        buffer: Buffer,
        length: Option<usize>,
        config: &Config,
    ) -> Option<Groups> {
        if self.receive.is_some() {
            return None;
        }
        let size = (MAX_PREFIX as u32)
            .checked_add(ETHERNET_HEADER as u32)?
            .checked_add(TAG)?
            .checked_add(self.mtu(config))?
            .checked_next_multiple_of(SECTION_ALIGN)?
            .max(MIN_SECTION);
        let count = u32::try_from(length?).ok()?.checked_div(size)?;
        let count = count.min(MAX_SECTIONS);
        // Half of them at least are for frames.
        if (count as usize) < RESERVED.checked_mul(2)? {
            return None;
        }
        self.generation = self.generation.wrapping_add(1);
        self.receive = Some(ReceiveBuffer {
            gpadl: buffer.gpadl.get(),
            id: buffer.id.get(),
            sections: Sections::new(self.generation, size, count),
        });
        Some(Groups {
            offset: 0.into(),
            size: size.into(),
            count: count.into(),
            end_offset: size.checked_mul(count)?.into(),
        })
    }

    /// Handles a request of RNDIS. `objects` asks and sets values.
    ///
    /// # Errors
    /// Too many answers wait already.
    pub(super) fn control(
        &mut self,
        request: Request<'_>,
        objects: impl FnOnce(&mut Self, Ask<'_>) -> Result<Vec<u8>, u32>,
    ) -> Result<(), TooManyWaiting> {
        let value;
        let completion = match request {
            Request::Initialize { id, version, .. } => {
                let status = if version.0 == VERSION.0 {
                    self.initialized = true;
                    rndis_status::SUCCESS
                } else {
                    rndis_status::NOT_SUPPORTED
                };
                Completion::Initialize {
                    id,
                    status,
                    adapter: adapter(),
                }
            }
            Request::Halt => {
                self.initialized = false;
                self.reception = Arc::default();
                self.told_plugged = None;
                return Ok(());
            }
            Request::Query { id, oid, value: of } => {
                let (status, found) = match objects(self, Ask::Query(oid, of)) {
                    Ok(found) => (rndis_status::SUCCESS, found),
                    Err(status) => {
                        tracing::debug!(oid, status, "an object is not to be had");
                        (status, Vec::new())
                    }
                };
                value = found;
                Completion::Query {
                    id,
                    status,
                    value: &value,
                }
            }
            Request::Set { id, oid, value } => {
                let status = match objects(self, Ask::Set(oid, value)) {
                    Ok(_) => rndis_status::SUCCESS,
                    Err(status) => {
                        tracing::debug!(oid, status, "an object is not set");
                        status
                    }
                };
                Completion::Set { id, status }
            }
            Request::Reset => {
                // RNDIS goes on, and the guest, which is told so, sets addresses anew.
                let reception = self.reception_mut();
                reception.filter = 0;
                reception.multicast.clear();
                reception.joined_ipv4 = false;
                reception.joined_ipv6 = false;
                self.told_plugged = None;
                Completion::Reset {
                    status: rndis_status::SUCCESS,
                    addressing: true,
                }
            }
            Request::Keepalive { id } => Completion::Keepalive {
                id,
                status: rndis_status::SUCCESS,
            },
        };
        let mut bytes = [0; MAX_ANSWER];
        let encoded = completion.encode(&mut bytes).unwrap_or_default().to_vec();
        self.queue(encoded)
    }

    /// What the guest wants of frames, to be changed.
    pub(super) fn reception_mut(&mut self) -> &mut Reception {
        Arc::make_mut(&mut self.reception)
    }

    fn queue(&mut self, message: Vec<u8>) -> Result<(), TooManyWaiting> {
        if self.messages.len() >= MAX_WAITING {
            return Err(TooManyWaiting);
        }
        self.messages.push_back(message);
        Ok(())
    }

    /// Tells the guest of the cable, where it does not know.
    pub(super) fn tell_plugged(&mut self, plugged: bool) {
        if !self.initialized || self.told_plugged == Some(plugged) {
            return;
        }
        let indication = Indication {
            status: if plugged {
                rndis_status::MEDIA_CONNECT
            } else {
                rndis_status::MEDIA_DISCONNECT
            },
            value: &[],
        };
        let mut bytes = [0; MAX_ANSWER];
        let encoded = indication.encode(&mut bytes).unwrap_or_default().to_vec();
        // Where too much waits, there will be another occasion.
        if self.queue(encoded).is_ok() {
            self.told_plugged = Some(plugged);
        }
    }
}

/// A question about an object.
pub(super) enum Ask<'a> {
    /// Its value, and what the guest says of it.
    Query(u32, &'a [u8]),
    /// This shall be its value.
    Set(u32, &'a [u8]),
}

/// The guest asks, and takes no answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct TooManyWaiting;

fn done(done: bool) -> u32 {
    if done {
        status::SUCCESS
    } else {
        status::FAILURE
    }
}

/// What the adapter says of itself.
fn adapter() -> Adapter {
    Adapter {
        version: [VERSION.0.into(), VERSION.1.into()],
        flags: DEVICE_CONNECTIONLESS.into(),
        medium: MEDIUM_802_3.into(),
        max_packets: MAX_PACKETS.into(),
        max_transfer: MAX_TRANSFER.into(),
        alignment: ALIGNMENT.into(),
        families: [0.into(); 2],
    }
}
