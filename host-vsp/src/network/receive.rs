//! Frames from the net to the guest: into sections of its receive buffer.
//!
//! A frame takes a section. One whose segments are joined takes as many as it has room in, a piece
//! in each, where the guest has asked for such frames (RSC); else it is cut ([`cut`](super::cut)).
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::io;

use vm_memory::VolatileSlice;
use vmbus_proto::rndis::packet::{PacketId, PacketInfo, Prefix, rx_checksum};

use super::adapter::{Mac, QueueCounters};
use super::backend::{Backend, MAX_JOINED, Partial, Received, RxChecksum};
use super::batch::{Arrived, BATCH, scatter};
use super::conversation::Reception;
use super::cut::Joined;
use super::gather::Gather;
use super::headers::{self, Sum};
use super::objects::wants;
use crate::vmbus::lent::LockedMemory;

/// Sections that are taken at a time.
const POOL: usize = 256;

/// Sections that there are for a frame of joined segments: it has no more of them where they are not
/// shorter than 512 bytes.
const NEED: usize = 128;

/// Bytes of headers that are looked at: Ethernet's with two tags, the longest of IP's without
/// extensions, and the ports.
const PEEK: usize = 86;

/// Sections for the next frames of a net that joins segments or not, of `free` ones; `None` where
/// there are too few. Frames can have `count` at all.
pub(super) fn pool(joins: bool, free: usize, count: usize) -> Option<usize> {
    (free >= need(joins, count)).then(|| free.min(POOL))
}

/// So many sections there must be for a frame.
fn need(joins: bool, count: usize) -> usize {
    // A guest that has lent little gets long frames too, or their beginning.
    if joins {
        NEED.min(count >> 1).max(1)
    } else {
        1
    }
}

/// Sections that were taken for frames, and what the guest wants of those.
pub(super) struct Place<'a> {
    pub(super) memory: &'a LockedMemory<'a>,
    pub(super) generation: u32,
    /// Bytes of a section.
    pub(super) size: u32,
    /// How many sections frames can have at all, and those that were taken.
    pub(super) count: usize,
    pub(super) free: Vec<u32>,
    pub(super) reception: &'a Reception,
    pub(super) mac: Mac,
    /// [`MAX_JOINED`] bytes, to put a frame together that is to be cut; none where the net joins
    /// nothing.
    pub(super) scratch: &'a mut [u8],
}

/// Frames as they come off the net.
pub(super) struct Frames<'a> {
    place: Place<'a>,
    counters: &'a QueueCounters,
    /// Sections that are used, the first of the free ones.
    used: usize,
    /// A frame may have several pieces.
    in_pieces: bool,
    /// Bytes of a message before its piece of a frame: the same with every value.
    before: usize,
    /// Where pieces go, section by section, as far as they have been needed.
    rooms: Vec<VolatileSlice<'a>>,
    /// Which is the first of each section's rooms, and of the next one's.
    starts: Vec<usize>,
}

/// What becomes of a frame.
enum Verdict {
    /// The guest gets it on this channel, with its checksum said to be right or nothing of it.
    Taken { good: bool, channel: u16 },
    /// The same of its segments.
    Cut { channel: u16 },
    /// The guest does not want it.
    Unwanted,
    /// It is too long, or too short to be a frame.
    Lost,
}

impl<'a> Frames<'a> {
    /// Frames that go to `place`.
    pub(super) fn new(place: Place<'a>, counters: &'a QueueCounters) -> Self {
        let in_pieces = !place.scratch.is_empty() && place.reception.takes_joined();
        let mut frames = Self {
            place,
            counters,
            used: 0,
            in_pieces,
            before: 0,
            rooms: Vec::new(),
            starts: vec![0],
        };
        frames.before = frames.prefix(0, 0, 0, (true, true)).bytes().len();
        frames
    }

    /// The sections that were not used.
    pub(super) fn unused(self) -> impl Iterator<Item = u32> {
        self.place.free.into_iter().skip(self.used)
    }

    /// Takes frames off the net. Each goes to `deliver`, with the number of its channel; what says
    /// no to it loses it. True where there may be more.
    ///
    /// # Errors
    /// The net is gone.
    pub(super) fn take(
        &mut self,
        backend: &mut dyn Backend,
        mut deliver: impl FnMut(u16, Arrived) -> bool,
    ) -> io::Result<bool> {
        let need = need(!self.place.scratch.is_empty(), self.place.count);
        let most = match self.room() {
            0 => return Ok(false),
            room if self.in_pieces => MAX_JOINED.div_ceil(room),
            _ => 1,
        };
        // Frames that the guest does not want must not keep us here for ever.
        for _ in 0..2 * BATCH {
            let left = self.place.free.len().saturating_sub(self.used);
            if left < need {
                return Ok(true);
            }
            let Some(sections) = self.sections(self.used, most.min(left)) else {
                return Ok(false);
            };
            let mut to = sections.clone();
            if !self.in_pieces
                && let Some(behind) = self.place.scratch.get_mut(self.room()..)
            {
                to.push(VolatileSlice::from(behind));
            }
            let Some(received) = backend.receive(&to)? else {
                return Ok(false);
            };
            self.put(received, &Gather::new(sections), &mut deliver);
        }
        Ok(true)
    }

    /// Bytes of a piece.
    fn room(&self) -> usize {
        (self.place.size as usize).saturating_sub(self.before)
    }

    /// Where pieces go in `count` sections, from number `first` of the free ones.
    fn sections(&mut self, first: usize, count: usize) -> Option<Vec<VolatileSlice<'a>>> {
        let end = first.checked_add(count)?;
        while self.starts.len() <= end {
            let number = self.starts.len().checked_sub(1)?;
            let index = self.place.free.get(number)?;
            let offset = index.checked_mul(self.place.size)? as usize;
            let memory = self.place.memory;
            memory.slices(
                offset.checked_add(self.before)?,
                self.room(),
                &mut self.rooms,
            )?;
            self.starts.push(self.rooms.len());
        }
        let rooms = *self.starts.get(first)?..*self.starts.get(end)?;
        Some(self.rooms.get(rooms)?.to_vec())
    }

    /// Does with a frame what is to be done; `sections` have it, or its beginning where the rest is
    /// in the scratch memory.
    fn put(
        &mut self,
        received: Received,
        sections: &Gather<'_>,
        deliver: &mut impl FnMut(u16, Arrived) -> bool,
    ) {
        let mut peek = [0; PEEK];
        let verdict = match peek.get_mut(..received.length.min(PEEK)) {
            Some(peek) => self.look(sections, received, peek),
            None => Verdict::Lost,
        };
        let counters = self.counters;
        match verdict {
            Verdict::Taken { good, channel } => {
                let value = if good { succeeded(&peek) } else { 0 };
                match self.pieces(received.length, value) {
                    Some(frame) => {
                        let pieces = frame.pieces.len();
                        if self.give(frame, received.length, channel, deliver) && pieces > 1 {
                            counters.rx_joined.count();
                        }
                    }
                    None => counters.rx_lost.count(),
                }
            }
            Verdict::Cut { channel } => {
                let scratch = std::mem::take(&mut self.place.scratch);
                if self
                    .cut(scratch, received, sections, channel, deliver)
                    .is_none()
                {
                    counters.rx_lost.count();
                }
                self.place.scratch = scratch;
            }
            Verdict::Unwanted => counters.rx_filtered.count(),
            Verdict::Lost => counters.rx_lost.count(),
        }
    }

    fn look(&self, sections: &Gather<'_>, received: Received, peek: &mut [u8]) -> Verdict {
        let reception = self.place.reception;
        let longest = match received.joined {
            Some(_) => MAX_JOINED,
            None => self.room(),
        };
        if received.length > longest || sections.copy(0, peek).is_none() {
            return Verdict::Lost;
        }
        match peek.first_chunk() {
            Some(to) if wants(reception, self.place.mac, *to) => {}
            Some(_) => return Verdict::Unwanted,
            None => return Verdict::Lost,
        }
        let channel = reception.scaling.channel(peek);
        let ipv6 = headers::network_header(peek).is_some_and(|(_, ipv6)| ipv6);
        if received.joined.is_some() && !(self.in_pieces && reception.takes_joined_of(ipv6)) {
            return Verdict::Cut { channel };
        }
        if received.length > sections.len() {
            return Verdict::Lost;
        }
        let good = match received.checksum {
            RxChecksum::Unknown => false,
            RxChecksum::Good => true,
            // Guests take frames with whole checksums only, and pass them on so.
            RxChecksum::Partial(partial) => {
                if complete(sections, received.length, partial).is_none() {
                    return Verdict::Lost;
                }
                true
            }
        };
        Verdict::Taken { good, channel }
    }

    /// A frame of `length` bytes that is in the next sections.
    fn pieces(&self, length: usize, checksum: u32) -> Option<Arrived> {
        let room = self.room();
        let count = length.div_ceil(room.max(1));
        let id = *self.place.free.get(self.used)?;
        let mut pieces = Vec::with_capacity(count);
        let mut left = length;
        for number in 0..count {
            let piece = left.min(room);
            left = left.saturating_sub(piece);
            let ends = (number == 0, left == 0);
            let prefix = self.prefix(piece as u32, checksum, id, ends);
            pieces.push(self.begin(self.used.checked_add(number)?, piece, &prefix)?);
        }
        Some(Arrived {
            generation: self.place.generation,
            pieces,
        })
    }

    /// Cuts a frame of joined segments; what there are no sections for is lost. `None` where it is
    /// no such frame.
    fn cut(
        &mut self,
        scratch: &mut [u8],
        received: Received,
        sections: &Gather<'_>,
        channel: u16,
        deliver: &mut impl FnMut(u16, Arrived) -> bool,
    ) -> Option<()> {
        let here = received.length.min(sections.len());
        sections.copy(0, scratch.get_mut(..here)?)?;
        let RxChecksum::Partial(partial) = received.checksum else {
            return None;
        };
        let frame = scratch.get(..received.length)?;
        let joined = Joined::new(frame, received.joined?, partial)?;
        let mut headers = Vec::with_capacity(joined.header_length());
        for (number, payload) in joined.payloads().enumerate() {
            joined.write_headers(number, payload, &mut headers)?;
            let length = headers.len().checked_add(payload.len())?;
            let section = Gather::new(self.sections(self.used, 1)?);
            scatter(&headers, &section.part(0, headers.len())?)?;
            scatter(payload, &section.part(headers.len(), payload.len())?)?;
            let frame = self.pieces(length, succeeded(&headers))?;
            self.give(frame, length, channel, deliver);
        }
        Some(())
    }

    /// Gives a frame of `length` bytes to its channel; false where it is lost there.
    fn give(
        &mut self,
        frame: Arrived,
        length: usize,
        channel: u16,
        deliver: &mut impl FnMut(u16, Arrived) -> bool,
    ) -> bool {
        let count = frame.pieces.len();
        let taken = deliver(channel, frame);
        if taken {
            self.used = self.used.saturating_add(count);
            self.counters.rx_frames.count();
            self.counters.rx_bytes.add(length as u64);
        } else {
            self.counters.rx_lost.count();
        }
        taken
    }

    /// What comes before a piece of frame `id`; `ends` are whether it is the first and the last.
    fn prefix(&self, length: u32, checksum: u32, id: u32, ends: (bool, bool)) -> Prefix {
        let info = PacketInfo {
            checksum: self.place.reception.checksum.then_some(checksum),
            id: self
                .in_pieces
                .then(|| PacketId::piece(id as u16, ends.0, ends.1)),
            ..PacketInfo::default()
        };
        Prefix::new(length, &info, 0)
    }

    /// Begins the message in section number `number` of the free ones, before a piece of `length`
    /// bytes.
    fn begin(&self, number: usize, length: usize, prefix: &Prefix) -> Option<(u32, u32)> {
        let index = *self.place.free.get(number)?;
        let offset = index.checked_mul(self.place.size)? as usize;
        let mut slices = Vec::new();
        let memory = self.place.memory;
        memory.slices(offset, self.before, &mut slices)?;
        scatter(prefix.bytes(), &slices)?;
        Some((index, self.before.checked_add(length)? as u32))
    }
}

/// Takes a frame that nobody wants off the net; false where there is none.
///
/// # Errors
/// The net is gone.
pub(super) fn discard(backend: &mut dyn Backend) -> io::Result<bool> {
    Ok(backend.receive(&[])?.is_some())
}

/// What is said of a frame's checksum when it is right.
fn succeeded(headers: &[u8]) -> u32 {
    match headers::transport_protocol(headers) {
        Some(headers::PROTOCOL_TCP) => rx_checksum::TCP_SUCCEEDED,
        Some(headers::PROTOCOL_UDP) => rx_checksum::UDP_SUCCEEDED,
        _ => 0,
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
