//! The synthetic interrupt controller: message slots, event flags and SINTs (TLFS 11).

use zerocopy::little_endian::{U32, U64};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Synthetic interrupt sources per virtual processor.
pub const SINT_COUNT: usize = 16;
/// The SINT that VMBus uses, by convention of every known guest and host.
pub const VMBUS_SINT: u8 = 2;

/// Bytes of payload in a message.
pub const MESSAGE_PAYLOAD: usize = 240;
/// Bytes of one message slot. The message page holds one slot per SINT.
pub const MESSAGE_SIZE: usize = 256;
/// Bytes of one SINT's event flags. The event page holds one set per SINT.
pub const EVENT_FLAGS_SIZE: usize = 256;
/// Event flags per SINT; flag numbers are below this.
pub const EVENT_FLAG_COUNT: u32 = 2048;

/// Message type of an empty slot.
pub const MESSAGE_TYPE_NONE: u32 = 0;
/// Message type of a VMBus channel message.
pub const MESSAGE_TYPE_CHANNEL: u32 = 1;
/// Message type of an expired synthetic timer.
pub const MESSAGE_TYPE_TIMER_EXPIRED: u32 = 0x8000_0010;

/// Bit of [`MessageHeader::flags`]: another message waits, write EOM after emptying the slot.
pub const MESSAGE_FLAG_PENDING: u8 = 1;

/// The first 16 bytes of a message slot (TLFS 11.10, HV_MESSAGE_HEADER).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct MessageHeader {
    /// Type; 0 while the slot is empty. Written last by the sender, zeroed by the receiver.
    pub message_type: U32,
    /// Bytes of payload in use, at most 240.
    pub payload_size: u8,
    /// Bit 0: [`MESSAGE_FLAG_PENDING`].
    pub flags: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// Port or partition the message came from.
    pub origin: U64,
}
const _: () = assert!(size_of::<MessageHeader>() == 16);

/// Offset of the message type in a slot, in bytes.
pub const SLOT_TYPE: usize = 0;
/// Offset of the payload size in a slot, in bytes.
pub const SLOT_PAYLOAD_SIZE: usize = 4;
/// Offset of the flags in a slot, in bytes.
pub const SLOT_FLAGS: usize = 5;
/// Offset of the payload in a slot, in bytes.
pub const SLOT_PAYLOAD: usize = 16;

/// A SINT register (TLFS 11.8.4): the vector and how it is raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sint(pub u64);

impl Sint {
    /// Bit 16: the source raises nothing.
    pub const MASKED: u64 = 1 << 16;
    /// Bit 17: the interrupt needs no EOI.
    pub const AUTO_EOI: u64 = 1 << 17;
    /// Bit 18: the source is polled.
    pub const POLLING: u64 = 1 << 18;
    /// The vector and the bits above; the others are reserved, and are to be preserved.
    pub const BITS: u64 = 0xFF | Self::MASKED | Self::AUTO_EOI | Self::POLLING;

    /// An unmasked SINT that raises `vector` and wants an EOI.
    pub const fn unmasked(vector: u8) -> Self {
        Self(vector as u64)
    }

    /// A masked SINT. The vector stays valid, as the hypervisor checks it even then.
    pub const fn masked(vector: u8) -> Self {
        Self(vector as u64 | Self::MASKED)
    }

    /// The vector it raises.
    pub const fn vector(self) -> u8 {
        self.0 as u8
    }

    /// Whether it raises nothing.
    pub const fn is_masked(self) -> bool {
        self.0 & Self::MASKED != 0
    }
}
