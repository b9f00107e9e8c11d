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
use super::conversation::Conversation;
use super::gather::Gather;
use super::headers::{self, Sum};
use super::objects::wants;
use super::sections::Sections;
use crate::vmbus::channel::{Channel, ChannelError};
use crate::vmbus::lent::LockedMemory;

/// Frames in one packet.
pub(super) const BATCH: usize = 32;

/// Bytes of headers that are looked at: Ethernet's with two tags, and the beginning of IP's.
const PEEK: usize = 48;

/// Sections that go to the guest in one packet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Batch {
    transaction_id: u64,
    channel: u32,
    /// Length and offset of each message in the receive buffer.
    ranges: Vec<(u32, u32)>,
}

impl Batch {
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

/// What came of looking for frames.
pub(super) enum Gathered {
    /// These are for the guest.
    Batch(Batch),
    /// There are none now.
    None,
    /// The guest has no room for more.
    NoSections,
}

/// Takes frames off the net into sections that are free.
///
/// # Errors
/// The net is gone.
pub(super) fn frames(
    backend: &mut dyn Backend,
    conversation: &mut Conversation,
    memory: &LockedMemory<'_>,
    mac: Mac,
    counters: &QueueCounters,
) -> io::Result<Gathered> {
    // Lent memory has as many bytes as the sections that were made of it.
    let rx_checksum = conversation.rx_checksum;
    let mut batch = Vec::new();
    let mut ranges = Vec::new();
    let mut no_sections = false;
    // Frames that the guest does not want must not keep us here for ever.
    for _ in 0..2 * BATCH {
        if batch.len() >= BATCH {
            break;
        }
        let Some(buffer) = &mut conversation.receive else {
            break;
        };
        let Some(index) = buffer.sections.take_for_frame() else {
            no_sections = true;
            break;
        };
        let offset = buffer.sections.offset(index);
        let size = buffer.sections.size();
        // A prefix has the same length with every value.
        let info = PacketInfo {
            checksum: rx_checksum.then_some(0),
            ..PacketInfo::default()
        };
        let before = Prefix::new(0, &info, 0).bytes().len();
        let mut whole = Vec::new();
        let placed = memory.slices(offset as usize, size as usize, &mut whole);
        let section = Gather::new(whole);
        let room = section.len().saturating_sub(before);
        let Some(place) = placed.and_then(|()| section.part(before, room)) else {
            buffer.sections.put_back(index);
            break;
        };
        let received = match backend.receive(&place) {
            Ok(Some(received)) => received,
            outcome => {
                buffer.sections.put_back(index);
                outcome?;
                break;
            }
        };
        let frame = Gather::new(place);
        match look(&frame, received, conversation, mac) {
            Verdict::Taken(checksum) => {
                let info = PacketInfo {
                    checksum: rx_checksum.then_some(checksum),
                    ..PacketInfo::default()
                };
                let prefix = Prefix::new(received.length as u32, &info, 0);
                let written = section
                    .part(0, before)
                    .and_then(|place| scatter(prefix.bytes(), &place));
                debug_assert!(written.is_some(), "the section was there a moment ago");
                let length = before.saturating_add(received.length);
                ranges.push((length as u32, offset));
                batch.push(index);
                counters.rx_frames.count();
                counters.rx_bytes.add(received.length as u64);
                continue;
            }
            Verdict::Unwanted => counters.rx_filtered.count(),
            Verdict::Lost => counters.rx_lost.count(),
        }
        if let Some(buffer) = &mut conversation.receive {
            buffer.sections.put_back(index);
        }
    }
    match &mut conversation.receive {
        Some(buffer) if !batch.is_empty() => Ok(Gathered::Batch(Batch {
            transaction_id: buffer.sections.give(&batch),
            channel: rndis_channel::DATA,
            ranges,
        })),
        _ if no_sections => Ok(Gathered::NoSections),
        _ => Ok(Gathered::None),
    }
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
    /// The guest gets it, with this said of its checksum.
    Taken(u32),
    /// The guest does not want it.
    Unwanted,
    /// It is too long, or too short to be a frame.
    Lost,
}

fn look(place: &Gather<'_>, received: Received, conversation: &Conversation, mac: Mac) -> Verdict {
    let mut peek = [0; PEEK];
    let Some(peek) = peek.get_mut(..received.length.min(PEEK)) else {
        return Verdict::Lost;
    };
    if received.length > place.len() || place.copy(0, peek).is_none() {
        return Verdict::Lost;
    }
    match peek.first_chunk() {
        Some(to) if wants(conversation, mac, *to) => {}
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
    Verdict::Taken(match (good, headers::transport_protocol(peek)) {
        (true, Some(headers::PROTOCOL_TCP)) => rx_checksum::TCP_SUCCEEDED,
        (true, Some(headers::PROTOCOL_UDP)) => rx_checksum::UDP_SUCCEEDED,
        _ => 0,
    })
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
