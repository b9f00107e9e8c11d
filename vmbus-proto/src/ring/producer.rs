//! The writing end of a ring.

use zerocopy::IntoBytes;

use super::{
    Control, Corrupt, FEATURE_PENDING_SEND_SIZE, Geometry, RingMemory, SendError, Signal,
    TRAILER_SIZE,
};
use crate::packet::Outgoing;

/// The writing end of a ring: the guest's of `to_host`, the host's of `to_guest`.
#[derive(Debug)]
pub struct Producer<M> {
    memory: M,
    geometry: Geometry,
    /// Ours; the shared copy is for the peer only.
    write: u32,
    /// The shared pending send size, as we wrote it.
    pending: u32,
}

impl<M: RingMemory> Producer<M> {
    /// The producer of a ring, going on at the write index in its memory.
    ///
    /// # Errors
    /// [`Corrupt::Index`] where the ring's size or that index cannot be.
    pub fn attach(memory: M) -> Result<Self, Corrupt> {
        let write = memory.load(Control::WriteIndex);
        Self::resume(memory, write)
    }

    /// The producer of a ring whose write index, `write`, was kept elsewhere.
    ///
    /// # Errors
    /// [`Corrupt::Index`] where the ring's size or that index cannot be.
    pub fn resume(memory: M, write: u32) -> Result<Self, Corrupt> {
        let geometry = Geometry::new(memory.data_size()).ok_or(Corrupt::Index)?;
        let write = geometry.check(write)?;
        // A pending size left by an earlier life is ours to clear, with whatever goes first.
        Ok(Self {
            memory,
            geometry,
            write,
            pending: 1,
        })
    }

    /// The private write index, to be kept for [`resume`](Self::resume).
    pub fn write_index(&self) -> u32 {
        self.write
    }

    /// The ring's memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// The longest packet, in ring bytes, that fits an empty ring.
    pub fn capacity(&self) -> u32 {
        self.geometry.size().saturating_sub(super::ALIGN)
    }

    /// Free bytes now; a packet of [`Outgoing::ring_len`] fits if that is less.
    ///
    /// # Errors
    /// [`Corrupt::Index`] where the consumer's index cannot be.
    pub fn free(&self) -> Result<u32, Corrupt> {
        let read = self.geometry.check(self.memory.load(Control::ReadIndex))?;
        Ok(self.geometry.free(self.write, read))
    }

    /// Puts `packet` into the ring and says whether the consumer has to be signalled.
    ///
    /// # Errors
    /// Each of them leaves the packet out of the ring: what it names is still the caller's alone.
    /// With [`SendError::Full`] the consumer is asked, through the pending send size, to signal
    /// when the packet would fit.
    pub fn send(&mut self, packet: &Outgoing<'_>) -> Result<Signal, SendError> {
        self.send_leaving(0, packet)
    }

    /// As [`send`](Self::send), but leaves `spare` bytes of the ring free, for packets that may not
    /// wait for these. Into an empty ring every packet goes that fits it.
    ///
    /// # Errors
    /// As for `send`.
    pub fn send_leaving(&mut self, spare: u32, packet: &Outgoing<'_>) -> Result<Signal, SendError> {
        let length = packet.ring_len().ok_or(SendError::TooLong)?;
        let longest = self.capacity();
        if length > longest {
            return Err(SendError::TooLong);
        }
        // What an empty ring has room for.
        let wanted = length.saturating_add(spare).min(longest);
        let free = self.free()?;
        if free <= wanted {
            // One who asked for less comes first, as long as there is not even that: then others are
            // woken as well, and ask again.
            let is_open = self.pending != 0 && free <= self.pending;
            self.pending = if is_open {
                self.pending.min(wanted)
            } else {
                wanted
            };
            // Ask first, then look once more (partner: `Consumer::commit`): the consumer that
            // made room just now may have loaded the field before we stored it.
            self.memory.store(Control::PendingSendSize, self.pending);
            self.memory.fence();
            if self.free()? <= wanted {
                return Err(SendError::Full);
            }
        }
        // What asks for more room than this took waits on.
        if self.pending != 0 && self.pending <= wanted {
            self.memory.store(Control::PendingSendSize, 0);
            self.pending = 0;
        }

        let old_write = self.write;
        let mut at = old_write;
        at = self.put(at, packet.descriptor().as_bytes());
        let mut body = 0u32;
        for part in packet.parts() {
            at = self.put(at, part);
            body = body.wrapping_add(part.len() as u32);
        }
        let padding = body.wrapping_neg() % super::ALIGN;
        at = self.put(at, [0; 8].get(..padding as usize).unwrap_or_default());
        at = self.put(at, &(u64::from(old_write) << 32).to_le_bytes());
        debug_assert_eq!(self.geometry.used(at, old_write), length);

        self.write = at;
        // The store's release ordering publishes the packet's bytes with the index.
        self.memory.store(Control::WriteIndex, at);
        // Partner: `Consumer::unmask`. Without the barrier both could read stale values: we a
        // set mask, the consumer an empty ring, and the packet would lie unseen.
        self.memory.fence();
        if self.memory.load(Control::InterruptMask) != 0 {
            return Ok(Signal::NotNeeded);
        }
        // The packet is out, so this cannot fail any more. An index that cannot be is found by the
        // next look at it.
        Ok(if self.memory.load(Control::ReadIndex) == old_write {
            Signal::Needed
        } else {
            Signal::NotNeeded
        })
    }

    /// Whether the consumer promises to mind the pending send size.
    pub fn consumer_minds_pending(&self) -> bool {
        self.memory.load(Control::FeatureBits) & FEATURE_PENDING_SEND_SIZE != 0
    }

    /// Copies `bytes` to index `at`, around the end if need be, and returns the index after.
    fn put(&self, at: u32, bytes: &[u8]) -> u32 {
        let length = bytes.len() as u32;
        let (first, rest) = bytes.split_at(self.geometry.before_wrap(at, length) as usize);
        if !first.is_empty() {
            self.memory.write(at, first);
        }
        if !rest.is_empty() {
            self.memory.write(0, rest);
        }
        self.geometry.advance(at, length)
    }
}

/// Bytes that `body` bytes after the descriptor take in a ring, trailer included.
pub(crate) fn ring_len(body: usize) -> Option<u32> {
    let packet = body
        .checked_add(crate::packet::DESCRIPTOR_SIZE)?
        .checked_next_multiple_of(8)?;
    // The descriptor says lengths in 8-byte units in 16 bits.
    let packet = u32::try_from(packet)
        .ok()
        .filter(|&p| p <= u32::from(u16::MAX) * 8)?;
    packet.checked_add(TRAILER_SIZE)
}
