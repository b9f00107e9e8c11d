//! Channel messages: the control plane of VMBus.
//!
//! The guest posts a message to a connection id with HvPostMessage; the host puts one into the
//! guest's SynIC message slot. Both carry at most 240 bytes: an 8-byte [`Header`], then the body
//! of the message's type. [`Message::parse`] turns bytes into one enum, [`Message::encode`] turns
//! them back.
//!
//! Source: Linux `include/linux/hyperv.h` (`enum vmbus_channel_message_type` and the structs
//! after it); checked against a stock guest.

mod body;
pub mod gpadl;
mod offer;

pub use body::{
    ChannelId, CloseReservedChannel, GpadlCreated, GpadlId, GpadlTeardown, InitiateContact,
    ModifyChannel, ModifyChannelResponse, OpenChannel, OpenReservedChannel, OpenResult, TlConnect,
    TlConnectResult, VersionResponse,
};
pub use gpadl::{GpadlBodyHeader, GpadlHeaderHeader};
pub use offer::{OfferChannel, offer_flags, pipe_mode};

use core::fmt;

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes as _, IntoBytes as _};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::hv::synic::MESSAGE_PAYLOAD;

/// Connection id of the message port for contact below version 5.0, and for all messages then.
pub const CONNECTION_ID_MESSAGE: u32 = 1;
/// Connection id of the event port that all channels without a dedicated interrupt share.
pub const CONNECTION_ID_EVENT: u32 = 2;
/// Connection id of the message port for contact from version 5.0 on.
pub const CONNECTION_ID_CONTACT: u32 = 4;

/// Start of every message.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// A [`MessageType`].
    pub message_type: U32,
    /// Zero.
    pub padding: U32,
}
const _: () = assert!(size_of::<Header>() == 8);

/// Types of channel messages, versions 2.4 to 5.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[expect(missing_docs, reason = "the variants of `Message` are documented")]
pub enum MessageType {
    OfferChannel = 1,
    RescindChannelOffer = 2,
    RequestOffers = 3,
    AllOffersDelivered = 4,
    OpenChannel = 5,
    OpenChannelResult = 6,
    CloseChannel = 7,
    GpadlHeader = 8,
    GpadlBody = 9,
    GpadlCreated = 10,
    GpadlTeardown = 11,
    GpadlTorndown = 12,
    RelidReleased = 13,
    InitiateContact = 14,
    VersionResponse = 15,
    Unload = 16,
    UnloadResponse = 17,
    OpenReservedChannel = 18,
    CloseReservedChannel = 19,
    CloseReservedChannelResponse = 20,
    TlConnectRequest = 21,
    ModifyChannel = 22,
    TlConnectResult = 23,
    ModifyChannelResponse = 24,
}

/// A channel message, parsed.
#[derive(Clone, Copy, Debug)]
pub enum Message<'a> {
    /// Host: here is a channel.
    OfferChannel(OfferChannel),
    /// Host: the channel is gone; the guest has to close it and release its relid.
    RescindChannelOffer(ChannelId),
    /// Guest: send me all offers.
    RequestOffers,
    /// Host: those were all offers.
    AllOffersDelivered,
    /// Guest: open a channel over the rings in a GPADL.
    OpenChannel(OpenChannel),
    /// Host: how that went.
    OpenChannelResult(OpenResult),
    /// Guest: close the channel. Not answered.
    CloseChannel(ChannelId),
    /// Guest: a GPADL begins.
    GpadlHeader(GpadlHeaderHeader, &'a [u8]),
    /// Guest: more of a GPADL.
    GpadlBody(GpadlBodyHeader, &'a [u8]),
    /// Host: the GPADL is established, or not.
    GpadlCreated(GpadlCreated),
    /// Guest: give the GPADL's memory back.
    GpadlTeardown(GpadlTeardown),
    /// Host: the memory is the guest's again.
    GpadlTorndown(GpadlId),
    /// Guest: the relid of a rescinded channel may be used anew.
    RelidReleased(ChannelId),
    /// Guest: let us speak this version.
    InitiateContact(InitiateContact),
    /// Host: yes, or no.
    VersionResponse(VersionResponse),
    /// Guest: forget me.
    Unload,
    /// Host: forgotten.
    UnloadResponse,
    /// Guest: open a channel that needs no offer (firmware's way back).
    OpenReservedChannel(OpenReservedChannel),
    /// Guest: close such a channel.
    CloseReservedChannel(CloseReservedChannel),
    /// Host: closed.
    CloseReservedChannelResponse(ChannelId),
    /// Guest: connect a hypervisor socket.
    TlConnectRequest(TlConnect),
    /// Guest: interrupt another processor for this channel.
    ModifyChannel(ModifyChannel),
    /// Host: how connecting a hypervisor socket went.
    TlConnectResult(TlConnectResult),
    /// Host: how modifying went, from version 5.3 on.
    ModifyChannelResponse(ModifyChannelResponse),
}

/// Bytes that are not a channel message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageError {
    /// Shorter than its type says; the number is its length in bytes.
    TooShort(usize),
    /// No message has this type, as far as these versions go.
    UnknownType(u32),
}

impl fmt::Display for MessageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort(n) => write!(f, "a channel message of {n} bytes is too short"),
            Self::UnknownType(t) => write!(f, "channel message type {t} is unknown"),
        }
    }
}

impl core::error::Error for MessageError {}

impl<'a> Message<'a> {
    /// Parses a message's payload. Bytes after what the type needs are ignored: newer peers
    /// send longer bodies.
    ///
    /// # Errors
    /// Says why the bytes are not a message.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, MessageError> {
        match Self::parse_from_host(bytes) {
            Err(MessageError::UnknownType(_)) => Self::parse_from_guest(bytes),
            parsed => parsed,
        }
    }

    /// As [`parse`](Self::parse), for what a host sends: that a guest has no use for what only guests
    /// send keeps its code small.
    ///
    /// # Errors
    /// As for `parse`; the types of guests' messages are unknown.
    pub fn parse_from_host(bytes: &'a [u8]) -> Result<Self, MessageError> {
        use MessageType as T;
        let (message_type, body, short) = split(bytes)?;
        Ok(match message_type {
            t if t == T::OfferChannel as u32 => Self::OfferChannel(take(body, short)?.0),
            t if t == T::RescindChannelOffer as u32 => {
                Self::RescindChannelOffer(take(body, short)?.0)
            }
            t if t == T::AllOffersDelivered as u32 => Self::AllOffersDelivered,
            t if t == T::OpenChannelResult as u32 => Self::OpenChannelResult(take(body, short)?.0),
            t if t == T::GpadlCreated as u32 => Self::GpadlCreated(take(body, short)?.0),
            t if t == T::GpadlTorndown as u32 => Self::GpadlTorndown(take(body, short)?.0),
            t if t == T::VersionResponse as u32 => Self::VersionResponse(take(body, short)?.0),
            t if t == T::UnloadResponse as u32 => Self::UnloadResponse,
            t if t == T::CloseReservedChannelResponse as u32 => {
                Self::CloseReservedChannelResponse(take(body, short)?.0)
            }
            t if t == T::TlConnectResult as u32 => Self::TlConnectResult(take(body, short)?.0),
            t if t == T::ModifyChannelResponse as u32 => {
                Self::ModifyChannelResponse(take(body, short)?.0)
            }
            t => return Err(MessageError::UnknownType(t)),
        })
    }

    fn parse_from_guest(bytes: &'a [u8]) -> Result<Self, MessageError> {
        use MessageType as T;
        let (message_type, body, short) = split(bytes)?;
        Ok(match message_type {
            t if t == T::RequestOffers as u32 => Self::RequestOffers,
            t if t == T::OpenChannel as u32 => Self::OpenChannel(take(body, short)?.0),
            t if t == T::CloseChannel as u32 => Self::CloseChannel(take(body, short)?.0),
            t if t == T::GpadlHeader as u32 => {
                let (b, tail) = take(body, short)?;
                Self::GpadlHeader(b, tail)
            }
            t if t == T::GpadlBody as u32 => {
                let (b, tail) = take(body, short)?;
                Self::GpadlBody(b, tail)
            }
            t if t == T::GpadlTeardown as u32 => Self::GpadlTeardown(take(body, short)?.0),
            t if t == T::RelidReleased as u32 => Self::RelidReleased(take(body, short)?.0),
            t if t == T::InitiateContact as u32 => Self::InitiateContact(take(body, short)?.0),
            t if t == T::Unload as u32 => Self::Unload,
            t if t == T::OpenReservedChannel as u32 => {
                Self::OpenReservedChannel(take(body, short)?.0)
            }
            t if t == T::CloseReservedChannel as u32 => {
                Self::CloseReservedChannel(take(body, short)?.0)
            }
            t if t == T::TlConnectRequest as u32 => Self::TlConnectRequest(take(body, short)?.0),
            t if t == T::ModifyChannel as u32 => Self::ModifyChannel(take(body, short)?.0),
            t => return Err(MessageError::UnknownType(t)),
        })
    }

    /// The message's type.
    pub fn message_type(&self) -> MessageType {
        self.parts().0
    }

    /// The message's bytes. A GPADL's tail is cut where the 240 bytes end; the iterator of
    /// [`gpadl::announce`] never lets it come to that.
    pub fn encode(&self) -> Encoded {
        let (message_type, body, tail) = self.parts();
        let header = Header {
            message_type: (message_type as u32).into(),
            padding: 0.into(),
        };
        let mut encoded = Encoded::EMPTY;
        encoded.push(header.as_bytes());
        encoded.push(body);
        encoded.push(tail);
        encoded
    }

    fn parts(&self) -> (MessageType, &[u8], &[u8]) {
        use MessageType as T;
        let (message_type, body) = match self {
            Self::OfferChannel(b) => (T::OfferChannel, b.as_bytes()),
            Self::RescindChannelOffer(b) => (T::RescindChannelOffer, b.as_bytes()),
            Self::RequestOffers => (T::RequestOffers, [].as_slice()),
            Self::AllOffersDelivered => (T::AllOffersDelivered, [].as_slice()),
            Self::OpenChannel(b) => (T::OpenChannel, b.as_bytes()),
            Self::OpenChannelResult(b) => (T::OpenChannelResult, b.as_bytes()),
            Self::CloseChannel(b) => (T::CloseChannel, b.as_bytes()),
            Self::GpadlHeader(b, tail) => return (T::GpadlHeader, b.as_bytes(), tail),
            Self::GpadlBody(b, tail) => return (T::GpadlBody, b.as_bytes(), tail),
            Self::GpadlCreated(b) => (T::GpadlCreated, b.as_bytes()),
            Self::GpadlTeardown(b) => (T::GpadlTeardown, b.as_bytes()),
            Self::GpadlTorndown(b) => (T::GpadlTorndown, b.as_bytes()),
            Self::RelidReleased(b) => (T::RelidReleased, b.as_bytes()),
            Self::InitiateContact(b) => (T::InitiateContact, b.as_bytes()),
            Self::VersionResponse(b) => (T::VersionResponse, b.as_bytes()),
            Self::Unload => (T::Unload, [].as_slice()),
            Self::UnloadResponse => (T::UnloadResponse, [].as_slice()),
            Self::OpenReservedChannel(b) => (T::OpenReservedChannel, b.as_bytes()),
            Self::CloseReservedChannel(b) => (T::CloseReservedChannel, b.as_bytes()),
            Self::CloseReservedChannelResponse(b) => {
                (T::CloseReservedChannelResponse, b.as_bytes())
            }
            Self::TlConnectRequest(b) => (T::TlConnectRequest, b.as_bytes()),
            Self::ModifyChannel(b) => (T::ModifyChannel, b.as_bytes()),
            Self::TlConnectResult(b) => (T::TlConnectResult, b.as_bytes()),
            Self::ModifyChannelResponse(b) => (T::ModifyChannelResponse, b.as_bytes()),
        };
        (message_type, body, &[])
    }
}

/// The type, the body, and the error for a body that is too short.
fn split(bytes: &[u8]) -> Result<(u32, &[u8], MessageError), MessageError> {
    let short = MessageError::TooShort(bytes.len());
    let (header, body) = Header::read_from_prefix(bytes).map_err(|_| short)?;
    Ok((header.message_type.get(), body, short))
}

/// Takes a fixed part off the front of a body.
fn take<T: zerocopy::FromBytes>(
    body: &[u8],
    short: MessageError,
) -> Result<(T, &[u8]), MessageError> {
    T::read_from_prefix(body).map_err(|_| short)
}

/// The bytes of one message.
#[derive(Clone, Copy)]
pub struct Encoded {
    bytes: [u8; MESSAGE_PAYLOAD],
    length: usize,
}

impl Encoded {
    const EMPTY: Self = Self {
        bytes: [0; MESSAGE_PAYLOAD],
        length: 0,
    };

    fn push(&mut self, from: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(self.length).zip(from) {
            *to = *from;
        }
        self.length = self.length.saturating_add(from.len()).min(MESSAGE_PAYLOAD);
    }
}

impl core::ops::Deref for Encoded {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
