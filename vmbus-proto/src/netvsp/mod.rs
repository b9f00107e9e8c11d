//! netvsp: Ethernet over a VMBus channel, and the way [`rndis`](crate::rndis) travels.
//!
//! The guest opens the channel and speaks first, [`Message`] by message: INIT until the host takes
//! a [`Version`], SEND_NDIS_CONFIG (from version 2 on) and SEND_NDIS_VERSION, then it hands over two
//! buffers by GPADL. Into the *receive buffer*, cut into sections by the host, the host puts what it
//! sends; the *send buffer*, also cut by the host, is a place where a guest may put short packets
//! instead of describing pages. From then on both send RNDIS messages by SEND_RNDIS_PACKET and
//! answer each with SEND_RNDIS_PACKET_COMPLETE:
//!
//! - the guest's are bytes in a section of the send buffer, followed by the bytes of the packet's
//!   GPA-direct ranges, where it has any;
//! - the host's are transfer-page packets, whose ranges are sections of the receive buffer with one
//!   RNDIS message each. The sections are the guest's until it completes the packet.
//!
//! Sources: Linux `drivers/net/hyperv` (`hyperv_net.h`, `netvsc.c`) and OpenVMM `netvsp` for layouts
//! and values.

use core::ops::Deref;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes as _, IntoBytes as _};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::guid::Guid;

mod version;

pub use version::Version;

/// Class of the synthetic network adapter (Linux `HV_NIC_GUID`).
pub const CLASS: Guid = Guid::new(0xf8615163, 0xdf3e, 0x46c5, 0x913f, 0xf2d2f965ed0e);

/// Page set of the receive buffer in transfer-page packets, and its id in messages.
pub const RECEIVE_BUFFER_ID: u16 = 0xcafe;

/// The id that guests give their send buffer.
pub const SEND_BUFFER_ID: u16 = 0;

/// [`SendRndisPacket::section_index`] of a packet that uses no section of the send buffer.
pub const NO_SECTION: u32 = u32::MAX;

/// The smallest section a guest may be given, in bytes: Linux refuses shorter ones.
pub const MIN_SECTION_SIZE: u32 = 68;

/// Entries of the table by which the guest picks a channel to send on.
pub const SEND_TABLE_ENTRIES: usize = 16;

/// [`SendRndisPacket::channel`]: what it carries.
pub mod rndis_channel {
    /// Ethernet frames.
    pub const DATA: u32 = 0;
    /// Everything else.
    pub const CONTROL: u32 = 1;
}

/// First four bytes of each message.
pub mod message_type {
    /// To host: [`Init`](super::Message::Init).
    pub const INIT: u32 = 1;
    /// To guest: [`InitComplete`](super::Message::InitComplete).
    pub const INIT_COMPLETE: u32 = 2;
    /// To host: [`SendNdisVersion`](super::Message::SendNdisVersion).
    pub const SEND_NDIS_VERSION: u32 = 100;
    /// To host: [`SendReceiveBuffer`](super::Message::SendReceiveBuffer).
    pub const SEND_RECEIVE_BUFFER: u32 = 101;
    /// To guest: [`SendReceiveBufferComplete`](super::Message::SendReceiveBufferComplete).
    pub const SEND_RECEIVE_BUFFER_COMPLETE: u32 = 102;
    /// To host: [`RevokeReceiveBuffer`](super::Message::RevokeReceiveBuffer).
    pub const REVOKE_RECEIVE_BUFFER: u32 = 103;
    /// To host: [`SendSendBuffer`](super::Message::SendSendBuffer).
    pub const SEND_SEND_BUFFER: u32 = 104;
    /// To guest: [`SendSendBufferComplete`](super::Message::SendSendBufferComplete).
    pub const SEND_SEND_BUFFER_COMPLETE: u32 = 105;
    /// To host: [`RevokeSendBuffer`](super::Message::RevokeSendBuffer).
    pub const REVOKE_SEND_BUFFER: u32 = 106;
    /// Both ways: [`SendRndisPacket`](super::Message::SendRndisPacket).
    pub const SEND_RNDIS_PACKET: u32 = 107;
    /// Both ways: [`SendRndisPacketComplete`](super::Message::SendRndisPacketComplete).
    pub const SEND_RNDIS_PACKET_COMPLETE: u32 = 108;
    /// To host, version 2: [`SendNdisConfig`](super::Message::SendNdisConfig).
    pub const SEND_NDIS_CONFIG: u32 = 125;
    /// To guest, version 4: [`SendVfAssociation`](super::Message::SendVfAssociation).
    pub const SEND_VF_ASSOCIATION: u32 = 128;
    /// To host, version 4: [`SwitchDataPath`](super::Message::SwitchDataPath).
    pub const SWITCH_DATA_PATH: u32 = 129;
    /// To host, version 5: [`SubChannel`](super::Message::SubChannel); to guest:
    /// [`SubChannelComplete`](super::Message::SubChannelComplete).
    pub const SUB_CHANNEL: u32 = 133;
    /// To guest, version 5: [`SendTable`](super::SendTable).
    pub const SEND_INDIRECTION_TABLE: u32 = 134;
}

/// Values of the status fields (Linux `NVSP_STAT_*`).
pub mod status {
    /// Not set.
    pub const NONE: u32 = 0;
    /// Done.
    pub const SUCCESS: u32 = 1;
    /// Not done.
    pub const FAILURE: u32 = 2;
    /// The RNDIS message cannot be.
    pub const INVALID_RNDIS_PACKET: u32 = 5;
    /// Not now.
    pub const BUSY: u32 = 6;
}

/// [`Message::SwitchDataPath`]: through the host.
pub const DATA_PATH_SYNTHETIC: u32 = 0;
/// [`Message::SwitchDataPath`]: past the host, by a device of its own.
pub const DATA_PATH_VF: u32 = 1;

/// [`Message::SubChannel`]: the one operation there is.
pub const SUB_CHANNEL_ALLOCATE: u32 = 1;

/// Body of SEND_NDIS_CONFIG.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct NdisConfig {
    /// Longest frame that the guest takes, its Ethernet header included, in bytes.
    pub mtu: U32,
    /// Zero.
    pub reserved: U32,
    /// What the guest can do, a combination of [`capability`].
    pub capabilities: U64,
}
const _: () = assert!(size_of::<NdisConfig>() == 16);

/// Bits of [`NdisConfig::capabilities`].
pub mod capability {
    /// It would use a virtual function of a real adapter.
    pub const SRIOV: u64 = 1 << 2;
    /// It knows VLAN tags beside a frame.
    pub const IEEE_8021Q: u64 = 1 << 3;
    /// It teams this adapter with another one.
    pub const TEAMING: u64 = 1 << 5;
    /// It takes frames longer than a section, in pieces (version 6.1).
    pub const RSC: u64 = 1 << 7;
}

/// Body of SEND_RECEIVE_BUFFER and SEND_SEND_BUFFER.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Buffer {
    /// Where its memory is.
    pub gpadl: U32,
    /// [`RECEIVE_BUFFER_ID`] or [`SEND_BUFFER_ID`].
    pub id: U16,
    /// Zero.
    pub reserved: U16,
}
const _: () = assert!(size_of::<Buffer>() == 8);

/// How the host has cut the receive buffer. Of any number that the message could have, stock Linux
/// takes exactly one group, at offset 0.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct Sections {
    /// Where the first one begins, in bytes.
    pub offset: U32,
    /// Bytes of each.
    pub size: U32,
    /// How many there are.
    pub count: U32,
    /// Where the last one ends, in bytes.
    pub end_offset: U32,
}
const _: () = assert!(size_of::<Sections>() == 16);

/// Body of SEND_RNDIS_PACKET.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct SendRndisPacket {
    /// A value of [`rndis_channel`].
    pub channel: U32,
    /// To host: which section of the send buffer begins the message, or [`NO_SECTION`].
    pub section_index: U32,
    /// To host: bytes of it there.
    pub section_size: U32,
}
const _: () = assert!(size_of::<SendRndisPacket>() == 12);

impl SendRndisPacket {
    /// A message that uses no section.
    pub const fn without_section(channel: u32) -> Self {
        Self {
            channel: U32::new(channel),
            section_index: U32::new(NO_SECTION),
            section_size: U32::new(0),
        }
    }
}

/// A message of either direction, whose length does not vary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// May we speak versions from the first to the second? Guests name one, twice.
    Init(u32, u32),
    /// The host's answer, a value of [`status`]: success takes the version asked for.
    InitComplete(u32),
    /// The version of NDIS that the guest's RNDIS is made for: major and minor.
    SendNdisVersion(u32, u32),
    /// The guest's [`NdisConfig`].
    SendNdisConfig(NdisConfig),
    /// Here is the receive buffer.
    SendReceiveBuffer(Buffer),
    /// What the host makes of it: a value of [`status`], and the sections.
    SendReceiveBufferComplete(u32, Sections),
    /// The receive buffer of this id is not to be used any more.
    RevokeReceiveBuffer(u16),
    /// Here is the send buffer.
    SendSendBuffer(Buffer),
    /// What the host makes of it: a value of [`status`], and the bytes of a section.
    SendSendBufferComplete(u32, u32),
    /// The send buffer of this id is not to be used any more.
    RevokeSendBuffer(u16),
    /// An RNDIS message.
    SendRndisPacket(SendRndisPacket),
    /// It is done with: a value of [`status`].
    SendRndisPacketComplete(u32),
    /// Whether there is a virtual function to team with, and its serial number.
    SendVfAssociation(bool, u32),
    /// The guest would send by [`DATA_PATH_SYNTHETIC`] or [`DATA_PATH_VF`].
    SwitchDataPath(u32),
    /// An operation ([`SUB_CHANNEL_ALLOCATE`]), and how many channels the guest would like besides
    /// this one.
    SubChannel(u32, u32),
    /// A value of [`status`], and how many channels will be offered.
    SubChannelComplete(u32, u32),
}

/// A message that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadMessage {
    /// It is shorter than its type.
    CutShort,
    /// Nobody knows its type.
    Type(u32),
}

impl core::fmt::Display for BadMessage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::CutShort => f.write_str("a network message is cut short"),
            Self::Type(unknown) => write!(f, "a network message is of unknown type {unknown}"),
        }
    }
}

impl core::error::Error for BadMessage {}

/// Who sent a message: one number means two things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The guest.
    Guest,
    /// The host.
    Host,
}

impl Message {
    /// Reads the payload of a packet that `from` sent.
    ///
    /// # Errors
    /// It is too short, or of no known type.
    pub fn parse(from: Sender, payload: &[u8]) -> Result<Self, BadMessage> {
        let (kind, body) = U32::read_from_prefix(payload).map_err(|_| BadMessage::CutShort)?;
        let one = || match U32::read_from_prefix(body) {
            Ok((value, _)) => Ok(value.get()),
            Err(_) => Err(BadMessage::CutShort),
        };
        let two = || match <[U32; 2]>::read_from_prefix(body) {
            Ok(([first, second], _)) => Ok((first.get(), second.get())),
            Err(_) => Err(BadMessage::CutShort),
        };
        let id = || match U16::read_from_prefix(body) {
            Ok((value, _)) => Ok(value.get()),
            Err(_) => Err(BadMessage::CutShort),
        };
        let buffer = || match Buffer::read_from_prefix(body) {
            Ok((value, _)) => Ok(value),
            Err(_) => Err(BadMessage::CutShort),
        };
        Ok(match kind.get() {
            message_type::INIT => two().map(|(min, max)| Self::Init(min, max))?,
            message_type::INIT_COMPLETE => {
                // A version that is not used any more, the longest chain of buffers, the status.
                let (fields, _) =
                    <[U32; 3]>::read_from_prefix(body).map_err(|_| BadMessage::CutShort)?;
                Self::InitComplete(fields[2].get())
            }
            message_type::SEND_NDIS_VERSION => {
                two().map(|(major, minor)| Self::SendNdisVersion(major, minor))?
            }
            message_type::SEND_NDIS_CONFIG => Self::SendNdisConfig(
                NdisConfig::read_from_prefix(body)
                    .map_err(|_| BadMessage::CutShort)?
                    .0,
            ),
            message_type::SEND_RECEIVE_BUFFER => Self::SendReceiveBuffer(buffer()?),
            message_type::SEND_RECEIVE_BUFFER_COMPLETE => {
                let (status, groups) = two()?;
                let sections = body.get(8..).unwrap_or_default();
                match Sections::read_from_prefix(sections) {
                    Ok((sections, _)) if groups == 1 => {
                        Self::SendReceiveBufferComplete(status, sections)
                    }
                    // No host has ever made another number of groups of a buffer it takes.
                    _ if status == self::status::SUCCESS => return Err(BadMessage::CutShort),
                    _ => Self::SendReceiveBufferComplete(status, Sections::default()),
                }
            }
            message_type::REVOKE_RECEIVE_BUFFER => Self::RevokeReceiveBuffer(id()?),
            message_type::SEND_SEND_BUFFER => Self::SendSendBuffer(buffer()?),
            message_type::SEND_SEND_BUFFER_COMPLETE => {
                two().map(|(status, size)| Self::SendSendBufferComplete(status, size))?
            }
            message_type::REVOKE_SEND_BUFFER => Self::RevokeSendBuffer(id()?),
            message_type::SEND_RNDIS_PACKET => Self::SendRndisPacket(
                SendRndisPacket::read_from_prefix(body)
                    .map_err(|_| BadMessage::CutShort)?
                    .0,
            ),
            message_type::SEND_RNDIS_PACKET_COMPLETE => Self::SendRndisPacketComplete(one()?),
            message_type::SEND_VF_ASSOCIATION => {
                two().map(|(allocated, serial)| Self::SendVfAssociation(allocated != 0, serial))?
            }
            message_type::SWITCH_DATA_PATH => Self::SwitchDataPath(one()?),
            message_type::SUB_CHANNEL => {
                let (first, count) = two()?;
                match from {
                    Sender::Guest => Self::SubChannel(first, count),
                    Sender::Host => Self::SubChannelComplete(first, count),
                }
            }
            unknown => return Err(BadMessage::Type(unknown)),
        })
    }

    /// Its bytes, as long as `version` has them; before there is one, as long as version 1.
    pub fn encode(&self, version: Option<Version>) -> Encoded {
        let mut encoded = Encoded {
            bytes: [0; Version::V6_1.message_size()],
            length: version.unwrap_or(Version::V1).message_size(),
        };
        let word = |value: u32| U32::new(value);
        let half = |value: u16| U16::new(value);
        match *self {
            Self::Init(min, max) => encoded.put(message_type::INIT, &[word(min), word(max)]),
            Self::InitComplete(status) => {
                // Hyper-V says 34 buffers; nobody is known to look at it.
                let fields = [word(0), word(MAX_MDL_CHAIN), word(status)];
                encoded.put(message_type::INIT_COMPLETE, &fields);
            }
            Self::SendNdisVersion(major, minor) => {
                encoded.put(message_type::SEND_NDIS_VERSION, &[word(major), word(minor)]);
            }
            Self::SendNdisConfig(config) => encoded.put(message_type::SEND_NDIS_CONFIG, &config),
            Self::SendReceiveBuffer(buffer) => {
                encoded.put(message_type::SEND_RECEIVE_BUFFER, &buffer);
            }
            Self::SendReceiveBufferComplete(status, sections) => {
                let Sections {
                    offset,
                    size,
                    count,
                    end_offset,
                } = sections;
                let groups = word(u32::from(count != U32::ZERO));
                let fields = [word(status), groups, offset, size, count, end_offset];
                encoded.put(message_type::SEND_RECEIVE_BUFFER_COMPLETE, &fields);
            }
            Self::RevokeReceiveBuffer(id) => {
                encoded.put(message_type::REVOKE_RECEIVE_BUFFER, &half(id));
            }
            Self::SendSendBuffer(buffer) => encoded.put(message_type::SEND_SEND_BUFFER, &buffer),
            Self::SendSendBufferComplete(status, size) => {
                let fields = [word(status), word(size)];
                encoded.put(message_type::SEND_SEND_BUFFER_COMPLETE, &fields);
            }
            Self::RevokeSendBuffer(id) => encoded.put(message_type::REVOKE_SEND_BUFFER, &half(id)),
            Self::SendRndisPacket(packet) => encoded.put(message_type::SEND_RNDIS_PACKET, &packet),
            Self::SendRndisPacketComplete(status) => {
                encoded.put(message_type::SEND_RNDIS_PACKET_COMPLETE, &word(status));
            }
            Self::SendVfAssociation(allocated, serial) => {
                let fields = [word(u32::from(allocated)), word(serial)];
                encoded.put(message_type::SEND_VF_ASSOCIATION, &fields);
            }
            Self::SwitchDataPath(path) => {
                encoded.put(message_type::SWITCH_DATA_PATH, &word(path));
            }
            Self::SubChannel(first, count) | Self::SubChannelComplete(first, count) => {
                encoded.put(message_type::SUB_CHANNEL, &[word(first), word(count)]);
            }
        }
        encoded
    }
}

/// Longest chain of buffers of one packet, as the host says it in INIT_COMPLETE.
const MAX_MDL_CHAIN: u32 = 34;

/// A message as bytes.
#[derive(Clone, Copy, Debug)]
pub struct Encoded {
    bytes: [u8; Version::V6_1.message_size()],
    length: usize,
}

impl Encoded {
    fn put(&mut self, kind: u32, body: &(impl zerocopy::IntoBytes + zerocopy::Immutable + ?Sized)) {
        let body = body.as_bytes();
        let (head, rest) = self.bytes.split_at_mut(4);
        head.copy_from_slice(&kind.to_le_bytes());
        // The longest body, that of SEND_RECEIVE_BUFFER_COMPLETE, is as long as version 1 has room.
        if let Some(place) = rest.get_mut(..body.len()) {
            place.copy_from_slice(body);
        }
    }
}

impl Deref for Encoded {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&self.bytes)
    }
}

/// SEND_INDIRECTION_TABLE: on which channel the guest shall send, by the hash of a packet.
///
/// It follows a message that is as long as the version has them. Versions before 6.1 of Hyper-V
/// itself get the offset wrong; this one is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendTable {
    /// Numbers of channels, 0 for the first.
    pub channels: [u32; SEND_TABLE_ENTRIES],
}

/// Bytes of the longest [`SendTable`] message.
pub const SEND_TABLE_SIZE: usize = Version::V6_1.message_size() + 4 * SEND_TABLE_ENTRIES;

impl SendTable {
    /// Writes the message for `version` into `to`; its bytes.
    pub fn encode<'a>(&self, version: Version, to: &'a mut [u8; SEND_TABLE_SIZE]) -> &'a [u8] {
        *to = [0; SEND_TABLE_SIZE];
        let offset = version.message_size();
        let head: [U32; 3] = [
            message_type::SEND_INDIRECTION_TABLE.into(),
            (SEND_TABLE_ENTRIES as u32).into(),
            (offset as u32).into(),
        ];
        let entries = self.channels.map(U32::new);
        for (at, part) in [(0, head.as_bytes()), (offset, entries.as_bytes())] {
            let end = at.saturating_add(part.len());
            if let Some(place) = to.get_mut(at..end) {
                place.copy_from_slice(part);
            }
        }
        let length = offset.saturating_add(entries.as_bytes().len());
        to.get(..length).unwrap_or_default()
    }

    /// Reads a message of the host; `None` where it is none, or has not the entries it must have.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        Self::at(payload, None)
    }

    /// The same of a host that speaks `version`. The table is looked for where a message of that
    /// version ends, whatever a host before 6.1 says, if there is so much of it.
    pub fn parse_as(version: Version, payload: &[u8]) -> Option<Self> {
        let end = version.message_size();
        let whole = payload.len() >= end.saturating_add(size_of::<[U32; SEND_TABLE_ENTRIES]>());
        Self::at(payload, (version < Version::V6_1 && whole).then_some(end))
    }

    fn at(payload: &[u8], place: Option<usize>) -> Option<Self> {
        let ([kind, count, offset], _) = <[U32; 3]>::read_from_prefix(payload).ok()?;
        if kind.get() != message_type::SEND_INDIRECTION_TABLE
            || count.get() as usize != SEND_TABLE_ENTRIES
        {
            return None;
        }
        let table = payload.get(place.unwrap_or(offset.get() as usize)..)?;
        let (entries, _) = <[U32; SEND_TABLE_ENTRIES]>::read_from_prefix(table).ok()?;
        Some(Self {
            channels: entries.map(U32::get),
        })
    }
}

#[cfg(test)]
mod tests;
