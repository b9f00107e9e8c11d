//! What goes to the guest in one packet: sections of its receive buffer with a message each.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes as _, VolatileSlice};
use vmbus_proto::netvsp::{Message, RECEIVE_BUFFER_ID, SendRndisPacket, Version, rndis_channel};
use vmbus_proto::packet::{Outgoing, TransferPageRange, TransferPagesHeader};
use vmbus_proto::ring::SendError;
use zerocopy::IntoBytes as _;

use super::sections::Sections;
use crate::vmbus::channel::{Channel, ChannelError};
use crate::vmbus::lent::LockedMemory;

/// Most frames in one packet.
pub(super) const BATCH: usize = 32;

/// Most sections in one packet, but for a frame that has more itself. Linux takes 562, others less.
const MAX_RANGES: usize = 128;

/// Sections that go to the guest in one packet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Batch {
    transaction_id: u64,
    channel: u32,
    /// Length and offset of each message in the receive buffer.
    ranges: Vec<(u32, u32)>,
}

impl Batch {
    /// Whether its sections are of this buffer.
    pub(super) fn is_of(&self, sections: &Sections) -> bool {
        sections.names(self.transaction_id)
    }

    /// Sends it; false where the ring has no room now.
    pub(super) fn send(
        &self,
        channel: &mut Channel,
        version: Option<Version>,
    ) -> Result<bool, ChannelError> {
        let header = TransferPagesHeader {
            pageset_id: RECEIVE_BUFFER_ID.into(),
            sender_owns_set: 0,
            reserved: 0,
            range_count: (self.ranges.len() as u32).into(),
        };
        let mut ranges = header.as_bytes().to_vec();
        for &(length, offset) in &self.ranges {
            let range = TransferPageRange {
                byte_count: length.into(),
                byte_offset: offset.into(),
            };
            ranges.extend(range.as_bytes());
        }
        let message = Message::SendRndisPacket(SendRndisPacket::without_section(self.channel));
        let payload = message.encode(version);
        let packet = Outgoing::transfer_pages(self.transaction_id, &ranges, &payload);
        match channel.send(&packet) {
            Ok(()) => Ok(true),
            Err(SendError::Full) => Ok(false),
            Err(SendError::TooLong) => Err(ChannelError::Protocol(
                "the network adapter's ring is too small",
            )),
            Err(SendError::Corrupt(corrupt)) => Err(corrupt.into()),
        }
    }
}

/// Puts a message of RNDIS that is no frame into a section; `None` where none is free or the guest
/// has its memory back.
pub(super) fn control(
    sections: &mut Sections,
    memory: &LockedMemory<'_>,
    message: &[u8],
) -> Option<Batch> {
    let index = sections.take()?;
    let offset = sections.offset(index);
    let mut slices = Vec::new();
    memory.slices(offset as usize, message.len(), &mut slices)?;
    scatter(message, &slices)?;
    Some(Batch {
        transaction_id: sections.give(&[index]),
        channel: rndis_channel::CONTROL,
        ranges: vec![(message.len() as u32, offset)],
    })
}

/// A frame in sections, on its way to the guest.
#[derive(Clone, Debug)]
pub(super) struct Arrived {
    /// Of which receive buffer they are.
    pub(super) generation: u32,
    /// The sections, and the bytes of the message in each: one, or as many as the frame has pieces.
    pub(super) pieces: Vec<(u32, u32)>,
}

impl Arrived {
    /// Its sections.
    pub(super) fn sections(&self) -> impl Iterator<Item = u32> {
        self.pieces.iter().map(|&(index, _)| index)
    }
}

/// Frames to the guest, in as few packets as they take; none where the guest has taken the buffer
/// back. All pieces of a frame are in one packet, or the guest would not find them.
pub(super) fn batches(sections: &mut Sections, frames: &[Arrived]) -> Vec<Batch> {
    let mut batches = Vec::new();
    let mut indices = Vec::new();
    let mut ranges = Vec::new();
    let mut count = 0_usize;
    let mut end = |indices: &mut Vec<u32>, ranges: &mut Vec<_>, sections: &mut Sections| {
        if !indices.is_empty() {
            batches.push(Batch {
                transaction_id: sections.give(indices),
                channel: rndis_channel::DATA,
                ranges: std::mem::take(ranges),
            });
            indices.clear();
        }
    };
    let generation = sections.generation();
    for frame in frames.iter().filter(|it| it.generation == generation) {
        let many = indices.len().saturating_add(frame.pieces.len()) > MAX_RANGES;
        if many || count == BATCH {
            end(&mut indices, &mut ranges, sections);
            count = 0;
        }
        count = count.saturating_add(1);
        for &(index, length) in &frame.pieces {
            indices.push(index);
            ranges.push((length, sections.offset(index)));
        }
    }
    end(&mut indices, &mut ranges, sections);
    batches
}

/// Copies all of `bytes` into `to`.
pub(super) fn scatter(bytes: &[u8], to: &[VolatileSlice<'_>]) -> Option<()> {
    let mut rest = bytes;
    for slice in to {
        let (piece, after) = rest.split_at(rest.len().min(slice.len()));
        slice.write_slice(piece, 0).ok()?;
        rest = after;
    }
    rest.is_empty().then_some(())
}
