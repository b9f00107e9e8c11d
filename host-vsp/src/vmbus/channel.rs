//! The host's end of an open channel.
#![warn(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use vmbus_proto::packet::{Outgoing, Packet};
use vmbus_proto::ring::{Consumer, Corrupt, Producer, SendError, Signal};

use super::lent::{Lent, LentTable};
use super::ring_memory::GuestRing;
use super::trace::Hex;
use crate::memory::GuestMemory;

use std::sync::Arc;

/// Why a channel had to be stopped.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The ring cannot be used any more.
    #[error("the guest corrupted the ring: {0}")]
    Ring(#[from] Corrupt),
    /// The guest broke the device's protocol where no error answer exists.
    #[error("the guest broke the protocol: {0}")]
    Protocol(&'static str),
}

/// The host's end of an open channel: a consumer of `to_host`, a producer of `to_guest`.
///
/// Signals to the guest gather until the worker raises one interrupt for the batch.
pub struct Channel {
    to_host: Consumer<GuestRing>,
    to_guest: Producer<GuestRing>,
    memory: Arc<dyn GuestMemory>,
    lent: Arc<LentTable>,
    signal: bool,
    /// Whether the last attempt to receive since [`mask`](Self::mask) found nothing.
    drained: bool,
    /// Whether a packet since then found no room, and the guest will not say when there is some.
    must_poll: bool,
}

impl Channel {
    /// A channel over two rings in `memory`.
    pub fn new(
        to_host: Consumer<GuestRing>,
        to_guest: Producer<GuestRing>,
        memory: Arc<dyn GuestMemory>,
    ) -> Self {
        Self {
            to_host,
            to_guest,
            memory,
            lent: Arc::default(),
            signal: false,
            drained: false,
            must_poll: false,
        }
    }

    /// The same channel, whose device finds the guest's GPADLs in `table`.
    #[must_use]
    pub(crate) fn with_lent(mut self, table: &Arc<LentTable>) -> Self {
        self.lent = Arc::clone(table);
        self
    }

    /// Guest RAM, for transfers that packets describe.
    pub fn memory(&self) -> &Arc<dyn GuestMemory> {
        &self.memory
    }

    /// The memory that the guest lends by a GPADL of this handle, if there is one.
    pub fn lent(&self, gpadl: u32) -> Option<Lent> {
        self.lent.find(gpadl, &self.memory)
    }

    /// Takes the next packet, copied into `buffer` and checked.
    ///
    /// # Errors
    /// The ring is corrupt; or the packet is longer than `buffer`.
    pub fn receive<'b>(&mut self, buffer: &'b mut [u8]) -> Result<Option<Packet<'b>>, Corrupt> {
        let packet = self.to_host.receive(buffer)?;
        self.drained = packet.is_none();
        if let Some(Packet {
            transaction_id,
            kind,
            payload,
            ..
        }) = &packet
        {
            tracing::trace!(transaction_id, ?kind, payload = %Hex(payload), "from the guest");
        }
        Ok(packet)
    }

    /// Sends a packet.
    ///
    /// # Errors
    /// [`SendError::Full`]: the worker calls the VSP again when the guest has made room.
    pub fn send(&mut self, packet: &Outgoing<'_>) -> Result<(), SendError> {
        let signal = self.to_guest.send(packet);
        if signal == Err(SendError::Full) {
            self.must_poll = !self.to_guest.consumer_minds_pending();
        }
        let signal = signal?;
        tracing::trace!(?packet, "to the guest");
        self.signal |= signal.is_needed();
        Ok(())
    }

    /// Whether the VSP has taken every packet there was.
    pub(crate) fn is_drained(&self) -> bool {
        self.drained
    }

    /// Gives the room of the packets taken back to the guest.
    pub(crate) fn commit(&mut self) -> Result<(), Corrupt> {
        self.signal |= self.to_host.commit()?.is_needed();
        Ok(())
    }

    /// Asks the guest not to ring the doorbell, for a new look at the ring.
    pub(crate) fn mask(&mut self) {
        self.to_host.mask();
        // What an earlier look found says nothing of this one, which may not even come to the
        // ring: a VSP that waits for room takes nothing, and must not be asked over and over.
        self.drained = false;
        self.must_poll = false;
    }

    /// Whether the guest must be looked after before long: there was no room for a packet, and it
    /// is a guest that does not mind the pending send size.
    pub(crate) fn must_poll(&self) -> bool {
        self.must_poll
    }

    /// Asks for the doorbell again; says whether packets wait all the same.
    pub(crate) fn unmask(&self) -> Result<bool, Corrupt> {
        self.to_host.unmask()
    }

    /// Whether the guest has to be interrupted for what was done since the last call.
    pub(crate) fn take_signal(&mut self) -> Signal {
        if std::mem::take(&mut self.signal) {
            Signal::Needed
        } else {
            Signal::NotNeeded
        }
    }

    /// Private indices: read index of `to_host`, write index of `to_guest`.
    pub(crate) fn indices(&self) -> (u32, u32) {
        (self.to_host.read_index(), self.to_guest.write_index())
    }
}
