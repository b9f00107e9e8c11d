//! RNDIS: what a network adapter and its driver say to each other, frames included.
//!
//! The guest begins with INITIALIZE, asks and sets what it wants to know and have by object
//! identifiers ([`oid`], with the structures of [`ndis`]), and opens the way for frames by setting a
//! packet filter. The host answers each of these [`Request`]s by a [`Completion`] with the same
//! request id, and tells of changes by an [`Indication`]. Frames travel in PACKET messages
//! ([`packet`]), with what belongs to a frame beside it.
//!
//! A message is a [`Header`] and its body. All offsets in bodies count from the body's first byte.
//!
//! Sources: Microsoft's Remote NDIS specification, Linux `include/linux/rndis.h` and
//! `drivers/net/hyperv`, OpenVMM `netvsp`.

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes as _, IntoBytes as _};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub mod flow;
pub mod ndis;
pub mod oid;
pub mod packet;

/// Bytes of a [`Header`].
pub const HEADER_SIZE: usize = 8;

/// The version of RNDIS, 1.0: major and minor.
pub const VERSION: (u32, u32) = (1, 0);

/// First four bytes of each message.
pub mod message_type {
    /// Both ways: a frame.
    pub const PACKET: u32 = 1;
    /// To host: begins.
    pub const INITIALIZE: u32 = 2;
    /// To host: ends. Not answered.
    pub const HALT: u32 = 3;
    /// To host: asks for the value of an object.
    pub const QUERY: u32 = 4;
    /// To host: sets the value of an object.
    pub const SET: u32 = 5;
    /// To host: begins anew.
    pub const RESET: u32 = 6;
    /// To guest: something has changed.
    pub const INDICATE_STATUS: u32 = 7;
    /// To host: are you there?
    pub const KEEPALIVE: u32 = 8;
    /// Set in the type of an answer.
    pub const COMPLETION: u32 = 0x8000_0000;
}

/// Values of status fields: NDIS_STATUS, of which many are NTSTATUS.
pub mod status {
    /// Done.
    pub const SUCCESS: u32 = 0;
    /// Indicated: the cable is plugged in.
    pub const MEDIA_CONNECT: u32 = 0x4001_000b;
    /// Indicated: the cable is pulled.
    pub const MEDIA_DISCONNECT: u32 = 0x4001_000c;
    /// Indicated: addresses should be asked for anew.
    pub const NETWORK_CHANGE: u32 = 0x4001_0018;
    /// Indicated: these offloads are on now; the buffer is an
    /// [`Offload`](super::ndis::Offload).
    pub const OFFLOAD_CURRENT_CONFIG: u32 = 0x4002_0006;
    /// Not done.
    pub const FAILURE: u32 = 0xc000_0001;
    /// Not something this adapter does.
    pub const NOT_SUPPORTED: u32 = 0xc000_00bb;
    /// The buffer is too short for the object.
    pub const INVALID_LENGTH: u32 = 0xc001_0014;
    /// The value cannot be.
    pub const INVALID_DATA: u32 = 0xc001_0015;
    /// There is no such object.
    pub const INVALID_OID: u32 = 0xc001_0017;
}

/// The start of every message.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Header {
    /// A value of [`message_type`].
    pub message_type: U32,
    /// Length of the message in bytes, with this header.
    pub length: U32,
}
const _: () = assert!(size_of::<Header>() == HEADER_SIZE);

/// A message that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadMessage;

impl core::fmt::Display for BadMessage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("an RNDIS message is cut short, or points beyond its end")
    }
}

impl core::error::Error for BadMessage {}

/// The first message in `bytes`, its type and body, and what comes after it.
///
/// # Errors
/// The header's length is less than a header or more than there is.
pub fn split(bytes: &[u8]) -> Result<(u32, &[u8], &[u8]), BadMessage> {
    let (header, _) = Header::read_from_prefix(bytes).map_err(|_| BadMessage)?;
    let (message, rest) = bytes
        .split_at_checked(header.length.get() as usize)
        .ok_or(BadMessage)?;
    let body = message.get(HEADER_SIZE..).ok_or(BadMessage)?;
    Ok((header.message_type.get(), body, rest))
}

/// Body of QUERY and SET.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ObjectRequest {
    /// Repeated in the answer.
    pub request_id: U32,
    /// Which object, a value of [`oid`].
    pub oid: U32,
    /// Bytes of the value, or of what a query says of it.
    pub length: U32,
    /// Where they are.
    pub offset: U32,
    /// Zero.
    pub handle: U32,
}
const _: () = assert!(size_of::<ObjectRequest>() == 20);

impl ObjectRequest {
    /// Asks or sets `oid`, with `length` bytes that follow at once.
    pub const fn new(request_id: u32, oid: u32, length: u32) -> Self {
        Self {
            request_id: U32::new(request_id),
            oid: U32::new(oid),
            length: U32::new(length),
            offset: U32::new(size_of::<Self>() as u32),
            handle: U32::new(0),
        }
    }
}

/// What a guest asks of the adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Begin, with RNDIS of a major and a minor version.
    Initialize {
        /// Repeated in the answer.
        id: u32,
        /// Major and minor.
        version: (u32, u32),
        /// Most bytes that the guest takes in one message.
        max_transfer: u32,
    },
    /// End.
    Halt,
    /// What is the value of an object?
    Query {
        /// Repeated in the answer.
        id: u32,
        /// Which object.
        oid: u32,
        /// What the guest says of it; for most objects nothing.
        value: &'a [u8],
    },
    /// This shall be the value of an object.
    Set {
        /// Repeated in the answer.
        id: u32,
        /// Which object.
        oid: u32,
        /// The value.
        value: &'a [u8],
    },
    /// Begin anew.
    Reset,
    /// Are you there?
    Keepalive {
        /// Repeated in the answer.
        id: u32,
    },
}

impl<'a> Request<'a> {
    /// Reads a control message of the guest; `None` where its type is none of them.
    ///
    /// # Errors
    /// It is too short, or a value is not within it.
    pub fn parse(message_type: u32, body: &'a [u8]) -> Result<Option<Self>, BadMessage> {
        let words = || match <[U32; 4]>::read_from_prefix(body) {
            Ok((words, _)) => Ok(words.map(U32::get)),
            Err(_) => Err(BadMessage),
        };
        let object = || {
            let (request, _) = ObjectRequest::read_from_prefix(body).map_err(|_| BadMessage)?;
            let value = slice(body, request.offset.get(), request.length.get())?;
            Ok((request.request_id.get(), request.oid.get(), value))
        };
        Ok(Some(match message_type {
            message_type::INITIALIZE => {
                let [id, major, minor, max_transfer] = words()?;
                Self::Initialize {
                    id,
                    version: (major, minor),
                    max_transfer,
                }
            }
            message_type::HALT => Self::Halt,
            message_type::QUERY => {
                let (id, oid, value) = object()?;
                Self::Query { id, oid, value }
            }
            message_type::SET => {
                let (id, oid, value) = object()?;
                Self::Set { id, oid, value }
            }
            message_type::RESET => Self::Reset,
            message_type::KEEPALIVE => {
                let (id, _) = U32::read_from_prefix(body).map_err(|_| BadMessage)?;
                Self::Keepalive { id: id.get() }
            }
            _ => return Ok(None),
        }))
    }

    /// Writes the message into `to`; its bytes, or `None` where they do not fit.
    pub fn encode<'b>(&self, to: &'b mut [u8]) -> Option<&'b [u8]> {
        match *self {
            Self::Initialize {
                id,
                version: (major, minor),
                max_transfer,
            } => {
                let words = [id, major, minor, max_transfer].map(U32::new);
                write(to, message_type::INITIALIZE, words.as_bytes(), &[])
            }
            // The id that its body has is nobody's.
            Self::Halt => write(to, message_type::HALT, &[0; 4], &[]),
            Self::Query { id, oid, value } => {
                let request = ObjectRequest::new(id, oid, value.len() as u32);
                write(to, message_type::QUERY, request.as_bytes(), value)
            }
            Self::Set { id, oid, value } => {
                let request = ObjectRequest::new(id, oid, value.len() as u32);
                write(to, message_type::SET, request.as_bytes(), value)
            }
            Self::Reset => write(to, message_type::RESET, &[0; 4], &[]),
            Self::Keepalive { id } => {
                write(to, message_type::KEEPALIVE, U32::new(id).as_bytes(), &[])
            }
        }
    }
}

/// What the host says of itself when a guest begins.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Adapter {
    /// Major and minor.
    pub version: [U32; 2],
    /// [`DEVICE_CONNECTIONLESS`].
    pub flags: U32,
    /// [`MEDIUM_802_3`].
    pub medium: U32,
    /// Frames that the guest may chain in one packet.
    pub max_packets: U32,
    /// Most bytes of one packet.
    pub max_transfer: U32,
    /// Each frame of a chain begins at a multiple of two to this power.
    pub alignment: U32,
    /// Zero: there are no address families.
    pub families: [U32; 2],
}
const _: () = assert!(size_of::<Adapter>() == 36);

/// [`Adapter::flags`]: frames belong to no connection.
pub const DEVICE_CONNECTIONLESS: u32 = 1;
/// [`Adapter::medium`]: Ethernet.
pub const MEDIUM_802_3: u32 = 0;

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion<'a> {
    /// Of INITIALIZE.
    Initialize {
        /// That of the request.
        id: u32,
        /// A value of [`status`].
        status: u32,
        /// What the adapter is.
        adapter: Adapter,
    },
    /// Of QUERY.
    Query {
        /// That of the request.
        id: u32,
        /// A value of [`status`].
        status: u32,
        /// The value, where there is one.
        value: &'a [u8],
    },
    /// Of SET.
    Set {
        /// That of the request.
        id: u32,
        /// A value of [`status`].
        status: u32,
    },
    /// Of RESET.
    Reset {
        /// A value of [`status`].
        status: u32,
        /// Whether filters have to be set anew.
        addressing: bool,
    },
    /// Of KEEPALIVE.
    Keepalive {
        /// That of the request.
        id: u32,
        /// A value of [`status`].
        status: u32,
    },
}

impl<'a> Completion<'a> {
    /// Reads an answer of the host; `None` where its type is none.
    ///
    /// # Errors
    /// It is too short, or a value is not within it.
    pub fn parse(message_type: u32, body: &'a [u8]) -> Result<Option<Self>, BadMessage> {
        let request = message_type ^ message_type::COMPLETION;
        let two = || match <[U32; 2]>::read_from_prefix(body) {
            Ok((words, _)) => Ok(words.map(U32::get)),
            Err(_) => Err(BadMessage),
        };
        Ok(Some(match request {
            message_type::INITIALIZE => {
                let [id, status] = two()?;
                let adapter = body.get(8..).unwrap_or_default();
                let (adapter, _) = Adapter::read_from_prefix(adapter).map_err(|_| BadMessage)?;
                Self::Initialize {
                    id,
                    status,
                    adapter,
                }
            }
            message_type::QUERY => {
                let (words, _) = <[U32; 4]>::read_from_prefix(body).map_err(|_| BadMessage)?;
                let [id, status, length, offset] = words.map(U32::get);
                let value = match status {
                    status::SUCCESS => slice(body, offset, length)?,
                    _ => &[],
                };
                Self::Query { id, status, value }
            }
            message_type::SET => {
                let [id, status] = two()?;
                Self::Set { id, status }
            }
            message_type::RESET => {
                let [status, addressing] = two()?;
                Self::Reset {
                    status,
                    addressing: addressing != 0,
                }
            }
            message_type::KEEPALIVE => {
                let [id, status] = two()?;
                Self::Keepalive { id, status }
            }
            _ => return Ok(None),
        }))
    }

    /// Writes the message into `to`; its bytes, or `None` where they do not fit.
    pub fn encode<'b>(&self, to: &'b mut [u8]) -> Option<&'b [u8]> {
        let kind = |request| request | message_type::COMPLETION;
        match *self {
            Self::Initialize {
                id,
                status,
                adapter,
            } => {
                let words = [id, status].map(U32::new);
                let kind = kind(message_type::INITIALIZE);
                write(to, kind, words.as_bytes(), adapter.as_bytes())
            }
            Self::Query { id, status, value } => {
                // Linux looks at the offset even where there is no value.
                let words = [id, status, value.len() as u32, 16].map(U32::new);
                write(to, kind(message_type::QUERY), words.as_bytes(), value)
            }
            Self::Set { id, status } => {
                let words = [id, status].map(U32::new);
                write(to, kind(message_type::SET), words.as_bytes(), &[])
            }
            Self::Reset { status, addressing } => {
                let words = [status, u32::from(addressing)].map(U32::new);
                write(to, kind(message_type::RESET), words.as_bytes(), &[])
            }
            Self::Keepalive { id, status } => {
                let words = [id, status].map(U32::new);
                write(to, kind(message_type::KEEPALIVE), words.as_bytes(), &[])
            }
        }
    }
}

/// INDICATE_STATUS: the host tells what the guest has not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Indication<'a> {
    /// A value of [`status`].
    pub status: u32,
    /// What belongs to it.
    pub value: &'a [u8],
}

impl<'a> Indication<'a> {
    /// Reads the body of a message of type INDICATE_STATUS.
    ///
    /// # Errors
    /// It is too short, or the value is not within it.
    pub fn parse(body: &'a [u8]) -> Result<Self, BadMessage> {
        let (words, _) = <[U32; 3]>::read_from_prefix(body).map_err(|_| BadMessage)?;
        let [status, length, offset] = words.map(U32::get);
        let value = match length {
            0 => &[],
            _ => slice(body, offset, length)?,
        };
        Ok(Self { status, value })
    }

    /// Writes the message into `to`; its bytes, or `None` where they do not fit.
    pub fn encode<'b>(&self, to: &'b mut [u8]) -> Option<&'b [u8]> {
        let offset = if self.value.is_empty() { 0 } else { 12 };
        let words = [self.status, self.value.len() as u32, offset].map(U32::new);
        let kind = message_type::INDICATE_STATUS;
        write(to, kind, words.as_bytes(), self.value)
    }
}

/// The `length` bytes at `offset` of `body`.
fn slice(body: &[u8], offset: u32, length: u32) -> Result<&[u8], BadMessage> {
    // A value of no bytes may be anywhere.
    if length == 0 {
        return Ok(&[]);
    }
    let value = body.get(offset as usize..).ok_or(BadMessage)?;
    value.get(..length as usize).ok_or(BadMessage)
}

/// A message of two pieces in `to`.
fn write<'b>(to: &'b mut [u8], kind: u32, head: &[u8], tail: &[u8]) -> Option<&'b [u8]> {
    let length = HEADER_SIZE
        .checked_add(head.len())?
        .checked_add(tail.len())?;
    let header = Header {
        message_type: kind.into(),
        length: u32::try_from(length).ok()?.into(),
    };
    let message = to.get_mut(..length)?;
    let (first, rest) = message.split_at_mut_checked(HEADER_SIZE)?;
    first.copy_from_slice(header.as_bytes());
    let (second, third) = rest.split_at_mut_checked(head.len())?;
    second.copy_from_slice(head);
    third.copy_from_slice(tail);
    Some(message)
}

#[cfg(test)]
mod tests;
