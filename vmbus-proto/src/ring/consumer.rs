//! The reading end of a ring.

use zerocopy::FromBytes;

use super::{
    Control, Corrupt, FEATURE_PENDING_SEND_SIZE, Geometry, RingMemory, Signal, TRAILER_SIZE,
};
use crate::packet::{DESCRIPTOR_SIZE, Descriptor, Packet};

/// Ring bytes of the smallest packet: a descriptor and a trailer.
const SMALLEST: u32 = DESCRIPTOR_SIZE as u32 + TRAILER_SIZE;

/// The reading end of a ring: the host's of `to_host`, the guest's of `to_guest`.
#[derive(Debug)]
pub struct Consumer<M> {
    memory: M,
    geometry: Geometry,
    /// Ours; packets before it have been received.
    read: u32,
    /// The read index we last published.
    published: u32,
}

impl<M: RingMemory> Consumer<M> {
    /// The consumer of a ring, going on at the read index in its memory.
    ///
    /// # Errors
    /// [`Corrupt::Index`] where the ring's size or that index cannot be.
    pub fn attach(memory: M) -> Result<Self, Corrupt> {
        let read = memory.load(Control::ReadIndex);
        Self::resume(memory, read)
    }

    /// The consumer of a ring whose read index, `read`, was kept elsewhere.
    ///
    /// # Errors
    /// [`Corrupt::Index`] where the ring's size or that index cannot be.
    pub fn resume(memory: M, read: u32) -> Result<Self, Corrupt> {
        let geometry = Geometry::new(memory.data_size()).ok_or(Corrupt::Index)?;
        let read = geometry.check(read)?;
        Ok(Self {
            memory,
            geometry,
            read,
            published: read,
        })
    }

    /// The published read index, to be kept for [`resume`](Self::resume) after a
    /// [`commit`](Self::commit).
    pub fn read_index(&self) -> u32 {
        self.published
    }

    /// The ring's memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Bytes that wait to be received.
    ///
    /// # Errors
    /// [`Corrupt::Index`] where the producer's index cannot be.
    pub fn available(&self) -> Result<u32, Corrupt> {
        let write = self.geometry.check(self.memory.load(Control::WriteIndex))?;
        Ok(self.geometry.used(write, self.read))
    }

    /// Takes the next packet, copied into `buffer` and checked there; `None` when there is none.
    ///
    /// The producer gets the room back at the next [`commit`](Self::commit).
    ///
    /// # Errors
    /// A packet that cannot be, or does not fit `buffer`, ends the use of this ring.
    pub fn receive<'b>(&mut self, buffer: &'b mut [u8]) -> Result<Option<Packet<'b>>, Corrupt> {
        let available = self.available()?;
        if available == 0 {
            return Ok(None);
        }
        let mut descriptor = [0; DESCRIPTOR_SIZE];
        // A producer publishes whole packets: less than the smallest one is a lie.
        if available < SMALLEST {
            return Err(Corrupt::PacketLength);
        }
        self.get(self.read, &mut descriptor);
        let descriptor =
            Descriptor::read_from_bytes(&descriptor).map_err(|_| Corrupt::PacketLength)?;
        let length = u32::from(descriptor.length8.get()).saturating_mul(8);
        if length < DESCRIPTOR_SIZE as u32 || length.saturating_add(TRAILER_SIZE) > available {
            return Err(Corrupt::PacketLength);
        }
        let body_len = length.saturating_sub(DESCRIPTOR_SIZE as u32);
        let body = buffer
            .get_mut(..body_len as usize)
            .ok_or(Corrupt::PacketTooLong)?;
        self.get(
            self.geometry.advance(self.read, DESCRIPTOR_SIZE as u32),
            body,
        );
        self.read = self
            .geometry
            .advance(self.read, length.saturating_add(TRAILER_SIZE));
        Packet::parse(&descriptor, body).map(Some)
    }

    /// Gives the room of received packets back to the producer, and says whether it waits for
    /// that room.
    ///
    /// # Errors
    /// [`Corrupt::Index`] where the producer's index cannot be.
    pub fn commit(&mut self) -> Result<Signal, Corrupt> {
        if self.read == self.published {
            return Ok(Signal::NotNeeded);
        }
        let given_back = self.geometry.used(self.read, self.published);
        self.published = self.read;
        self.memory.store(Control::ReadIndex, self.read);
        // Partner: `Producer::send` on a full ring. Without the barrier it could miss the new
        // index while we miss its pending size, and both would wait.
        self.memory.fence();
        if self.memory.load(Control::FeatureBits) & FEATURE_PENDING_SEND_SIZE == 0 {
            return Ok(Signal::NotNeeded);
        }
        let pending = self.memory.load(Control::PendingSendSize);
        if pending == 0 {
            return Ok(Signal::NotNeeded);
        }
        let write = self.geometry.check(self.memory.load(Control::WriteIndex))?;
        let free = self.geometry.free(write, self.read);
        let free_before = free.saturating_sub(given_back);
        // Only the step over the threshold signals: too little room helps nobody, and where
        // there was enough before, an earlier commit has signalled or the producer saw it.
        Ok(if free > pending && free_before <= pending {
            Signal::Needed
        } else {
            Signal::NotNeeded
        })
    }

    /// Asks the producer not to signal: we are awake and will look.
    pub fn mask(&self) {
        self.memory.store(Control::InterruptMask, 1);
        self.memory.fence();
    }

    /// Asks the producer to signal again, and returns whether packets wait all the same: those
    /// may come without a signal, so the caller must take them before it sleeps.
    ///
    /// # Errors
    /// [`Corrupt::Index`] where the producer's index cannot be.
    pub fn unmask(&self) -> Result<bool, Corrupt> {
        self.memory.store(Control::InterruptMask, 0);
        // Partner: the barrier in `Producer::send`.
        self.memory.fence();
        Ok(self.available()? != 0)
    }

    /// Copies from index `at` on, around the end if need be.
    fn get(&self, at: u32, to: &mut [u8]) {
        let length = to.len() as u32;
        let (first, rest) = to.split_at_mut(self.geometry.before_wrap(at, length) as usize);
        if !first.is_empty() {
            self.memory.read(at, first);
        }
        if !rest.is_empty() {
            self.memory.read(0, rest);
        }
    }
}
