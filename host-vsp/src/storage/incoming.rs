//! A packet of the guest, checked as far as its envelope goes: payload and ranges.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::sync::Arc;

use vmbus_proto::packet::{Packet, PacketKind};
use vmbus_proto::storvsp::{Operation, PACKET_SIZE, PACKET_SIZE_BEFORE_5_1, VstorPacket};
use zerocopy::FromZeros as _;

use super::MAX_TRANSFER_BYTES;
use super::buffer::GuestBuffer;
use super::conversation::Request;
use super::scsi::Outcome;
use crate::memory::GuestMemory;

/// A request and its data.
pub(super) struct Incoming {
    pub(super) request: Request,
    /// The buffer of an SRB, or what to answer where it cannot be one.
    pub(super) buffer: Result<GuestBuffer, Outcome>,
}

impl Incoming {
    /// `None` for what must not be answered: an answer.
    pub(super) fn new(memory: &Arc<dyn GuestMemory>, packet: &Packet<'_>) -> Option<Self> {
        if matches!(packet.kind, PacketKind::Completion) {
            return None;
        }
        let sent = packet.payload.len();
        let size = if sent < PACKET_SIZE {
            PACKET_SIZE_BEFORE_5_1
        } else {
            PACKET_SIZE
        };
        let request = Request {
            transaction_id: packet.transaction_id,
            // A payload without even a header is answered as operation 0, which nobody knows.
            packet: VstorPacket::parse(packet.payload).unwrap_or_else(VstorPacket::new_zeroed),
            size,
        };
        let is_srb = request.packet.operation() == Some(Operation::ExecuteSrb);
        let buffer = if is_srb && sent < PACKET_SIZE_BEFORE_5_1 {
            Err(Outcome::invalid())
        } else if is_srb {
            let length = request.packet.srb().data_transfer_length.get();
            Self::buffer(memory, packet.kind, length)
        } else {
            Ok(GuestBuffer::empty(Arc::clone(memory)))
        };
        Some(Self { request, buffer })
    }

    /// The buffer of an SRB with `length` bytes of data.
    fn buffer(
        memory: &Arc<dyn GuestMemory>,
        kind: PacketKind<'_>,
        length: u32,
    ) -> Result<GuestBuffer, Outcome> {
        let memory = Arc::clone(memory);
        match kind {
            PacketKind::GpaDirect(ranges) if length <= MAX_TRANSFER_BYTES => {
                GuestBuffer::new(memory, ranges, length as usize).map_err(|error| {
                    tracing::debug!(%error, "an SRB's buffer cannot be");
                    Outcome::invalid()
                })
            }
            PacketKind::InBand if length == 0 => Ok(GuestBuffer::empty(memory)),
            // Data and nowhere to put it, or too much; and this protocol has no agreed pages.
            _ => Err(Outcome::invalid()),
        }
    }
}
