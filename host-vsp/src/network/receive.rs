//! Frames from the net to the guest: into sections of its receive buffer, many to a packet.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::io;

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes as _, VolatileSlice};
use vmbus_proto::netvsp::{Message, RECEIVE_BUFFER_ID, SendRndisPacket, Version, rndis_channel};
use vmbus_proto::packet::{Outgoing, TransferPageRange, TransferPagesHeader};
use vmbus_proto::ring::SendError;
use vmbus_proto::rndis::packet::{PacketInfo, Prefix, rx_checksum};
use zerocopy::IntoBytes as _;

use super::adapter::{Mac, QueueCounters};
use super::backend::{Backend, Partial, Received, RxChecksum};
use super::conversation::Reception;
use super::gather::Gather;
use super::headers::{self, Sum};
use super::objects::wants;
use super::sections::Sections;
use crate::vmbus::channel::{Channel, ChannelError};
use crate::vmbus::lent::LockedMemory;

/// Frames in one packet.
pub(super) const BATCH: usize = 32;

/// Bytes of headers that are looked at: Ethernet's with two tags, the longest of IP's without
/// extensions, and the ports.
const PEEK: usize = 86;

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

/// A frame in a section, on its way to the guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrived {
    /// The section, and of which receive buffer it is.
    pub(super) index: u32,
    pub(super) generation: u32,
    /// Where the message begins in the receive buffer, and its bytes.
    offset: u32,
    length: u32,
}

/// Frames to the guest in one packet; `None` where the guest has taken the buffer back.
pub(super) fn batch(sections: &mut Sections, frames: &[Arrived]) -> Option<Batch> {
    let here = |frame: &&Arrived| frame.generation == sections.generation();
    let frames: Vec<&Arrived> = frames.iter().filter(here).collect();
    if frames.is_empty() {
        return None;
    }
    let indices: Vec<u32> = frames.iter().map(|frame| frame.index).collect();
    Some(Batch {
        transaction_id: sections.give(&indices),
        channel: rndis_channel::DATA,
        ranges: frames.iter().map(|it| (it.length, it.offset)).collect(),
    })
}

/// Sections that were taken for frames, and what the guest wants of those.
pub(super) struct Place<'a> {
    pub(super) memory: &'a LockedMemory<'a>,
    pub(super) generation: u32,
    /// Bytes of a section.
    pub(super) size: u32,
    /// Free ones; those that are used go out of it.
    pub(super) free: Vec<u32>,
    pub(super) reception: &'a Reception,
    pub(super) mac: Mac,
}

/// Takes frames off the net into sections. Each goes to `deliver`, with the number of its channel;
/// what says no to it loses it. True where there may be more.
///
/// # Errors
/// The net is gone.
pub(super) fn frames(
    backend: &mut dyn Backend,
    place: &mut Place<'_>,
    counters: &QueueCounters,
    mut deliver: impl FnMut(u16, Arrived) -> bool,
) -> io::Result<bool> {
    // A prefix has the same length with every value.
    let with_checksum = |value| PacketInfo {
        checksum: place.reception.checksum.then_some(value),
        ..PacketInfo::default()
    };
    let before = Prefix::new(0, &with_checksum(0), 0).bytes().len();
    // Frames that the guest does not want must not keep us here for ever.
    for _ in 0..2 * BATCH {
        let Some(&index) = place.free.last() else {
            return Ok(true);
        };
        let offset = index.saturating_mul(place.size);
        let mut whole = Vec::new();
        let placed = place
            .memory
            .slices(offset as usize, place.size as usize, &mut whole);
        let section = Gather::new(whole);
        let room = section.len().saturating_sub(before);
        let Some(inside) = placed.and_then(|()| section.part(before, room)) else {
            return Ok(false);
        };
        let Some(received) = backend.receive(&inside)? else {
            return Ok(false);
        };
        let frame = Gather::new(inside);
        match look(&frame, received, place.reception, place.mac) {
            Verdict::Taken { checksum, channel } => {
                let info = with_checksum(checksum);
                let prefix = Prefix::new(received.length as u32, &info, 0);
                let written = section
                    .part(0, before)
                    .and_then(|place| scatter(prefix.bytes(), &place));
                debug_assert!(written.is_some(), "the section was there a moment ago");
                let arrived = Arrived {
                    index,
                    generation: place.generation,
                    offset,
                    length: before.saturating_add(received.length) as u32,
                };
                if deliver(channel, arrived) {
                    place.free.pop();
                    counters.rx_frames.count();
                    counters.rx_bytes.add(received.length as u64);
                } else {
                    counters.rx_lost.count();
                }
            }
            Verdict::Unwanted => counters.rx_filtered.count(),
            Verdict::Lost => counters.rx_lost.count(),
        }
    }
    Ok(true)
}

/// Takes a frame that nobody wants off the net; false where there is none.
///
/// # Errors
/// The net is gone.
pub(super) fn discard(backend: &mut dyn Backend) -> io::Result<bool> {
    Ok(backend.receive(&[])?.is_some())
}

/// What becomes of a frame.
enum Verdict {
    /// The guest gets it on this channel, with this said of its checksum.
    Taken { checksum: u32, channel: u16 },
    /// The guest does not want it.
    Unwanted,
    /// It is too long, or too short to be a frame.
    Lost,
}

fn look(place: &Gather<'_>, received: Received, reception: &Reception, mac: Mac) -> Verdict {
    let mut peek = [0; PEEK];
    let Some(peek) = peek.get_mut(..received.length.min(PEEK)) else {
        return Verdict::Lost;
    };
    if received.length > place.len() || place.copy(0, peek).is_none() {
        return Verdict::Lost;
    }
    match peek.first_chunk() {
        Some(to) if wants(reception, mac, *to) => {}
        Some(_) => return Verdict::Unwanted,
        None => return Verdict::Lost,
    }
    let good = match received.checksum {
        RxChecksum::Unknown => false,
        RxChecksum::Good => true,
        // Guests take frames with whole checksums only, and pass them on so.
        RxChecksum::Partial(partial) => {
            if complete(place, received.length, partial).is_none() {
                return Verdict::Lost;
            }
            true
        }
    };
    Verdict::Taken {
        checksum: match (good, headers::transport_protocol(peek)) {
            (true, Some(headers::PROTOCOL_TCP)) => rx_checksum::TCP_SUCCEEDED,
            (true, Some(headers::PROTOCOL_UDP)) => rx_checksum::UDP_SUCCEEDED,
            _ => 0,
        },
        channel: reception.scaling.channel(peek),
    }
}

/// Completes a checksum in the guest's memory.
fn complete(place: &Gather<'_>, length: usize, partial: Partial) -> Option<()> {
    let start = usize::from(partial.start);
    let at = start.checked_add(usize::from(partial.offset))?;
    let mut sum = Sum::default();
    let mut chunk = [0; 2048];
    let mut offset = start;
    while offset < length {
        let chunk = chunk.get_mut(..length.checked_sub(offset)?.min(2048))?;
        place.copy(offset, chunk)?;
        sum.add(chunk);
        offset = offset.checked_add(chunk.len())?;
    }
    if at.checked_add(2)? > length {
        return None;
    }
    // Zero means that there is none, to UDP; both are the same sum.
    let checksum = match !sum.fold() {
        0 => 0xffff,
        checksum => checksum,
    };
    scatter(&checksum.to_be_bytes(), &place.part(at, 2)?)
}

/// Copies all of `bytes` into `to`.
fn scatter(bytes: &[u8], to: &[VolatileSlice<'_>]) -> Option<()> {
    let mut rest = bytes;
    for slice in to {
        let (piece, after) = rest.split_at(rest.len().min(slice.len()));
        slice.write_slice(piece, 0).ok()?;
        rest = after;
    }
    rest.is_empty().then_some(())
}
