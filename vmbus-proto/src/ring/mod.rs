//! Rings: one-way packet queues in shared memory.
//!
//! A channel has two, `to_host` and `to_guest`, each a control page and any number
//! of data pages. The producer owns the write index, the consumer the read index; each keeps its
//! own index in private memory and only publishes it. What the peer published is checked before
//! every use, so a peer can stop its ring but not steer us out of it.
//!
//! **Signalling.** A signal costs a hypercall or an interrupt, so each side signals only where
//! the other could be asleep:
//!
//! - A [`Producer`] signals when the ring was empty before its packet and the consumer's
//!   interrupt mask is clear. The write index is stored before a full barrier and the mask and
//!   the read index are loaded after it. The consumer, before it sleeps, clears the mask, makes a
//!   full barrier and looks once more ([`Consumer::unmask`]). Whichever barrier comes second sees
//!   the other's store: either the consumer sees the packet or the producer sees it asleep.
//! - A [`Producer`] that finds no room stores the bytes it needs as the pending send size, makes
//!   a full barrier and looks once more. The [`Consumer`] stores its read index, makes a full
//!   barrier, then loads the pending send size, and signals when its step made that room. The
//!   consumer minds the field only if the ring's feature bit says so.
//!
//! A way of one packet: [`Producer::send`], signal, [`Consumer::receive`] (copies it to private
//! memory), [`Packet`](crate::packet::Packet), [`Consumer::commit`].

mod consumer;
mod index;
mod memory;
mod producer;

pub use consumer::Consumer;
pub use index::{ALIGN, Geometry};
pub use memory::{Control, FEATURE_PENDING_SEND_SIZE, RingMemory};
pub use producer::Producer;
pub(crate) use producer::ring_len;

use core::fmt;

/// Bytes after each packet: the write index at which the packet began, in the upper half of a
/// `u64`. Nobody is known to read it.
pub const TRAILER_SIZE: u32 = 8;

/// Whether the peer has to be told.
#[must_use = "a signal that is not sent leaves the peer asleep"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The peer may sleep: ring its doorbell.
    Needed,
    /// The peer is awake, or will look by itself.
    NotNeeded,
}

impl Signal {
    /// Whether it is needed.
    pub fn is_needed(self) -> bool {
        self == Self::Needed
    }
}

/// What the peer wrote cannot be. The ring is not usable any more; its channel has to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corrupt {
    /// An index is outside the data area or not a multiple of 8.
    Index,
    /// A packet's length is below its descriptor's, or beyond what is in the ring.
    PacketLength,
    /// A packet is longer than its receiver allows.
    PacketTooLong,
    /// A packet's inner lengths and counts do not fit together.
    PacketLayout,
    /// A packet of a type that does not exist.
    PacketType(u16),
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index => f.write_str("the peer's ring index is out of range"),
            Self::PacketLength => f.write_str("a packet's length does not fit the ring"),
            Self::PacketTooLong => f.write_str("a packet is longer than allowed"),
            Self::PacketLayout => f.write_str("a packet's inner lengths contradict each other"),
            Self::PacketType(t) => write!(f, "packet type {t} does not exist"),
        }
    }
}

impl core::error::Error for Corrupt {}

/// Why a packet was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// No room now. The pending send size is set: the consumer signals when there is room.
    Full,
    /// The packet can never fit this ring, or is longer than a descriptor can say.
    TooLong,
    /// The consumer's index cannot be.
    Corrupt(Corrupt),
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the ring is full"),
            Self::TooLong => f.write_str("the packet does not fit this ring"),
            Self::Corrupt(c) => c.fmt(f),
        }
    }
}

impl core::error::Error for SendError {}

impl From<Corrupt> for SendError {
    fn from(corrupt: Corrupt) -> Self {
        Self::Corrupt(corrupt)
    }
}
