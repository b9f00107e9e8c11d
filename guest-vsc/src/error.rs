//! Why something could not be done.

use core::fmt;

use vmbus_proto::hv::hypercall::Status;
use vmbus_proto::ring::Corrupt;
use vmbus_proto::version::Version;

use crate::hypervisor::Missing;

/// Why the bus or a channel could not do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// This machine does not have what VMBus needs.
    Missing(Missing),
    /// The kernel had no pages to share.
    OutOfMemory,
    /// The memory given to the driver is in use by another.
    MemoryInUse,
    /// The memory given to the driver has no place for this processor.
    TooManyCpus,
    /// The interrupt vector is one of the first 16, which are the processor's own.
    BadVector(u8),
    /// The hypervisor refused a call.
    Hypercall(Status),
    /// The host did not answer in time; what it was asked for.
    Timeout(Waited),
    /// The host speaks none of the versions that were tried; the last of them.
    VersionRefused(Version),
    /// The host speaks the version but refused the connection, with this connection state.
    ConnectionRefused(u8),
    /// The bus is not connected.
    NotConnected,
    /// The bus is connected already.
    AlreadyConnected,
    /// Channels are open; close them first.
    ChannelsOpen,
    /// There is no such offer, or not any more.
    NoOffer,
    /// The channel of the offer is in use.
    OfferInUse,
    /// The version that was negotiated has no such message.
    NotInThisVersion,
    /// The host refused what it was asked for, with this NTSTATUS.
    Refused(Waited, u32),
    /// The host has taken the device away.
    Rescinded,
    /// The channel is closed.
    Closed,
    /// There is no room for the packet or the request now; try again when others are done.
    Full,
    /// The packet can never fit the ring.
    TooLong,
    /// The host wrote what cannot be into the ring.
    Corrupt(Corrupt),
    /// The host broke the device's protocol; what it did.
    Protocol(&'static str),
}

/// An answer that the guest waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Waited {
    /// That a message can be posted.
    Post,
    /// VERSION_RESPONSE.
    Version,
    /// ALLOFFERS_DELIVERED.
    Offers,
    /// GPADL_CREATED.
    GpadlCreated,
    /// GPADL_TORNDOWN.
    GpadlTorndown,
    /// OPENCHANNEL_RESULT.
    Open,
    /// MODIFYCHANNEL_RESPONSE.
    Modify,
    /// UNLOAD_RESPONSE.
    Unload,
    /// A completion of a device's packet.
    Completion,
    /// A packet of a device's own accord.
    Packet,
    /// That a device speaks our version of its protocol.
    ProtocolVersion,
    /// Room in a ring.
    Room,
    /// Another processor's message to the host.
    Turn,
}

impl fmt::Display for Waited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Post => "to take a message",
            Self::Version => "to answer INITIATE_CONTACT",
            Self::Offers => "to deliver its offers",
            Self::GpadlCreated => "to establish a GPADL",
            Self::GpadlTorndown => "to tear a GPADL down",
            Self::Open => "to open a channel",
            Self::Modify => "to modify a channel",
            Self::Unload => "to answer UNLOAD",
            Self::Completion => "to complete a packet",
            Self::Packet => "to send a packet",
            Self::ProtocolVersion => "to accept the device protocol's version",
            Self::Room => "to make room in a ring",
            Self::Turn => "to answer another processor",
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(missing) => missing.fmt(f),
            Self::OutOfMemory => f.write_str("no pages to share with the host"),
            Self::MemoryInUse => f.write_str("the driver's memory is in use by another driver"),
            Self::TooManyCpus => f.write_str("the bus memory has no place for this processor"),
            Self::BadVector(vector) => {
                write!(
                    f,
                    "vector {vector} is the processor's own: take one above 31"
                )
            }
            Self::Hypercall(status) => write!(f, "the hypervisor refused a call: {status:?}"),
            Self::Timeout(waited) => write!(f, "the host did not come {waited} in time"),
            Self::VersionRefused(last) => {
                write!(f, "the host refused every VMBus version down to {last}")
            }
            Self::ConnectionRefused(state) => {
                write!(f, "the host refused the connection (state {state})")
            }
            Self::NotConnected => f.write_str("VMBus is not connected"),
            Self::AlreadyConnected => f.write_str("VMBus is connected already"),
            Self::ChannelsOpen => f.write_str("channels are open"),
            Self::NoOffer => f.write_str("there is no such offer"),
            Self::OfferInUse => f.write_str("the offer's channel is in use"),
            Self::NotInThisVersion => f.write_str("this VMBus version has no such message"),
            Self::Refused(waited, status) => {
                write!(f, "the host refused {waited}: status {status:#x}")
            }
            Self::Rescinded => f.write_str("the host has taken the device away"),
            Self::Closed => f.write_str("the channel is closed"),
            Self::Full => f.write_str("no room now"),
            Self::TooLong => f.write_str("the packet does not fit the ring"),
            Self::Corrupt(corrupt) => corrupt.fmt(f),
            Self::Protocol(what) => write!(f, "the host broke the protocol: {what}"),
        }
    }
}

impl core::error::Error for Error {}

impl From<Missing> for Error {
    fn from(missing: Missing) -> Self {
        Self::Missing(missing)
    }
}

impl From<Corrupt> for Error {
    fn from(corrupt: Corrupt) -> Self {
        Self::Corrupt(corrupt)
    }
}

impl From<vmbus_proto::ring::SendError> for Error {
    fn from(error: vmbus_proto::ring::SendError) -> Self {
        use vmbus_proto::ring::SendError as E;
        match error {
            E::Full => Self::Full,
            E::TooLong => Self::TooLong,
            E::Corrupt(corrupt) => Self::Corrupt(corrupt),
        }
    }
}
