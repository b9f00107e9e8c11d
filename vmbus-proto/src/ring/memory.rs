//! The one trait through which a ring touches shared memory.

use core::sync::atomic::{Ordering, fence};

/// A field of a ring's control page.
///
/// Offsets in bytes, each a little-endian `u32` (Linux `struct hv_ring_buffer`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Control {
    /// Where the producer writes next, a byte offset into the data area.
    WriteIndex = 0,
    /// Where the consumer reads next, a byte offset into the data area.
    ReadIndex = 4,
    /// Non-zero while the consumer wants no interrupt for new packets.
    InterruptMask = 8,
    /// Free bytes the producer waits for, 0 while it waits for none.
    PendingSendSize = 12,
    /// What the ring's owner supports; see [`FEATURE_PENDING_SEND_SIZE`].
    FeatureBits = 64,
}

impl Control {
    /// Offset in the control page, in bytes.
    pub const fn offset(self) -> usize {
        self as usize
    }
}

/// Bit of [`Control::FeatureBits`]: the consumer of this ring minds
/// [`Control::PendingSendSize`].
pub const FEATURE_PENDING_SEND_SIZE: u32 = 1;

/// The shared memory of one ring: a control page, then the data area.
///
/// The peer writes to it at any time. An implementation makes volatile or atomic accesses and
/// never a Rust reference to the memory; it does not trust a value it reads.
pub trait RingMemory {
    /// Bytes in the data area. Constant, and taken from private memory.
    fn data_size(&self) -> u32;

    /// Reads a control field, with acquire ordering at least.
    fn load(&self, field: Control) -> u32;

    /// Writes a control field, with release ordering at least.
    fn store(&self, field: Control, value: u32);

    /// Copies from the data area. `offset + to.len()` is at most [`data_size`](Self::data_size).
    fn read(&self, offset: u32, to: &mut [u8]);

    /// Copies into the data area. `offset + from.len()` is at most
    /// [`data_size`](Self::data_size).
    fn write(&self, offset: u32, from: &[u8]);

    /// A full barrier. Only a model checker has a reason to replace it.
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

impl<M: RingMemory + ?Sized> RingMemory for &M {
    fn data_size(&self) -> u32 {
        (**self).data_size()
    }
    fn load(&self, field: Control) -> u32 {
        (**self).load(field)
    }
    fn store(&self, field: Control, value: u32) {
        (**self).store(field, value);
    }
    fn read(&self, offset: u32, to: &mut [u8]) {
        (**self).read(offset, to);
    }
    fn write(&self, offset: u32, from: &[u8]) {
        (**self).write(offset, from);
    }
    fn fence(&self) {
        (**self).fence();
    }
}
