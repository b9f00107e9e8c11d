//! Frames that the host has put into the receive buffer and that nobody has taken yet.
//!
//! The host sends many frames in one packet of the ring, and gets their sections back when that is
//! completed. [`Frames`] holds where the frames are, in order; the last one of a packet carries the
//! packet's transaction id, so that taking it brings the completion about. What finds no place in the
//! queue is lost, as it would be in any adapter that nobody listens to.
//!
//! A completion that finds no room in the ring is [`Owed`], and packets are taken meanwhile: a host
//! whose own ring is full may take nothing before it has room for an answer. Each packet has a section
//! at least, so that no host can wait for more completions than there are sections.

use core::sync::atomic::{AtomicU64, Ordering};

use vmbus_proto::PAGE_SIZE;
use vmbus_proto::packet::TransferPageRange;

use crate::hal::Hal;
use crate::shared::Dma;

/// Most ranges of one packet, as many as Linux takes.
const MAX_RANGES: usize = 562;

/// Bytes after the descriptor in the longest packet: a header, ranges, a message with a table.
const MAX_PACKET: usize = 8 + MAX_RANGES * size_of::<TransferPageRange>() + 128;

/// Where packets are copied to, the frames they told of, and what is owed of them.
pub(super) struct Inbox<H: Hal, F: ?Sized> {
    pub(super) packet: [u8; MAX_PACKET],
    /// While an adapter is open.
    pub(super) owed: Option<Owed<H>>,
    pub(super) frames: Frames<F>,
}

impl<H: Hal, const N: usize> Inbox<H, [Waiting; N]> {
    pub(super) const fn new() -> Self {
        Self {
            packet: [0; MAX_PACKET],
            owed: None,
            frames: Frames::new(),
        }
    }
}

impl<H: Hal, F: ?Sized> Inbox<H, F> {
    /// Whether nothing more may be taken before a completion has found room.
    pub(super) fn is_stopped(&self) -> bool {
        self.owed.as_ref().is_some_and(Owed::is_full)
    }

    /// The packet `id` is to be completed.
    pub(super) fn owe(&mut self, id: u64) {
        if let Some(owed) = &mut self.owed {
            owed.push(id);
        }
    }
}

/// A message in the receive buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    /// Where it is in the buffer.
    pub(super) offset: u32,
    /// Its bytes: they end within the buffer.
    pub(super) length: u32,
    /// The transaction id of its packet, where it is the last one of it.
    pub(super) last_of: Option<u64>,
}

impl Waiting {
    const NONE: Self = Self {
        offset: 0,
        length: 0,
        last_of: None,
    };
}

/// What of a number of places is in use.
#[derive(Clone, Copy)]
struct Span {
    first: usize,
    count: usize,
}

impl Span {
    const EMPTY: Self = Self { first: 0, count: 0 };

    /// The place that has `number` in use before it, of `places`.
    fn place(self, number: usize, places: usize) -> Option<usize> {
        self.first.saturating_add(number).checked_rem(places)
    }

    /// The place for one more, which is in use from now on.
    fn push(&mut self, places: usize) -> Option<usize> {
        let place = self.place(self.count, places);
        let place = place.filter(|_| self.count < places)?;
        self.count = self.count.saturating_add(1);
        Some(place)
    }

    /// The first place in use, which is not any more.
    fn pop(&mut self, places: usize) -> Option<usize> {
        self.count = self.count.checked_sub(1)?;
        let place = self.first;
        self.first = self.place(1, places)?;
        Some(place)
    }
}

/// Bytes of a transaction id.
const ID: usize = size_of::<u64>();

/// The packets that are done with and not completed yet, in order, by their transaction ids.
pub(super) struct Owed<H: Hal> {
    /// Never the host's.
    memory: Dma<H>,
    span: Span,
}

impl<H: Hal> Owed<H> {
    /// With room for `packets` at least; `None` where there is no memory.
    pub(super) fn new(packets: usize) -> Option<Self> {
        let bytes = packets.checked_mul(ID)?;
        Some(Self {
            memory: Dma::new(bytes.div_ceil(PAGE_SIZE).max(1))?,
            span: Span::EMPTY,
        })
    }

    /// How many can be owed.
    pub(super) fn places(&self) -> usize {
        self.memory.len() / ID
    }

    /// Whether no more can be owed. As long as that is so, nothing is taken, neither out of the ring
    /// nor out of the queue.
    pub(super) fn is_full(&self) -> bool {
        self.span.count >= self.places()
    }

    /// The first one.
    pub(super) fn first(&self) -> Option<u64> {
        let place = self.id_at(self.span.first)?;
        (self.span.count > 0).then(|| place.load(Ordering::Relaxed))
    }

    /// The first one is completed.
    pub(super) fn pop(&mut self) {
        self.span.pop(self.places());
    }

    /// One more; there is room for it.
    pub(super) fn push(&mut self, id: u64) {
        let place = self.span.push(self.places());
        if let Some(place) = place.and_then(|place| self.id_at(place)) {
            place.store(id, Ordering::Relaxed);
        }
    }

    fn id_at(&self, place: usize) -> Option<&AtomicU64> {
        self.memory.u64_at(place.checked_mul(ID)?)
    }
}

/// A queue of messages in the receive buffer.
pub(super) struct Frames<F: ?Sized> {
    span: Span,
    places: F,
}

impl<const N: usize> Frames<[Waiting; N]> {
    const fn new() -> Self {
        Self {
            span: Span::EMPTY,
            places: [Waiting::NONE; N],
        }
    }
}

impl Frames<[Waiting]> {
    /// Forgets everything.
    pub(super) fn reset(&mut self) {
        self.span = Span::EMPTY;
    }

    /// Whether no frame waits.
    pub(super) fn is_empty(&self) -> bool {
        self.span.count == 0
    }

    /// Whether there may be no place for the frames of another packet. No host is known to send more
    /// than some dozens in one.
    pub(super) fn is_half_full(&self) -> bool {
        self.span.count > self.places.len() / 2
    }

    /// Takes the ranges of the packet `id`, as offset and length. Returns how many were lost, and
    /// whether none was taken, so that the packet is owed at once.
    pub(super) fn push_packet(
        &mut self,
        id: u64,
        ranges: impl Iterator<Item = (u32, u32)>,
    ) -> (u32, bool) {
        let mut lost = 0u32;
        let mut last = None;
        for (offset, length) in ranges {
            let place = self.span.push(self.places.len());
            match place.and_then(|place| self.places.get_mut(place)) {
                Some(frame) => {
                    *frame = Waiting {
                        offset,
                        length,
                        last_of: None,
                    };
                    last = place;
                }
                None => lost = lost.saturating_add(1),
            }
        }
        let last = last.and_then(|last| self.places.get_mut(last));
        let none = last.is_none();
        if let Some(frame) = last {
            frame.last_of = Some(id);
        }
        (lost, none)
    }

    /// Takes the first frame. Where it is the last one of its packet, that is owed from now on.
    pub(super) fn pop(&mut self) -> Option<Waiting> {
        let place = self.span.pop(self.places.len())?;
        self.places.get(place).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_frame_of_each_packet_names_it() {
        let mut frames = Frames::<[Waiting; 4]>::new();
        let frames: &mut Frames<[Waiting]> = &mut frames;
        let mut expected = 0;
        let mut numbers = 0..;
        for id in 1..200u64 {
            let count = id % 4;
            let ranges = numbers.by_ref().take(count as usize);
            let pushed = frames.push_packet(id, ranges.map(|n| (n, n + 1)));
            assert_eq!(pushed, (0, count == 0));
            for left in (0..count).rev() {
                let frame = frames.pop().unwrap();
                assert_eq!((frame.offset, frame.length), (expected, expected + 1));
                assert_eq!(frame.last_of, (left == 0).then_some(id));
                expected += 1;
            }
            assert_eq!(frames.pop(), None);
        }
    }

    #[test]
    fn what_finds_no_place_is_lost_and_its_packet_is_completed() {
        let mut frames = Frames::<[Waiting; 4]>::new();
        let frames: &mut Frames<[Waiting]> = &mut frames;
        let ranges = |count| (0..count).map(|n| (n, 1));
        assert_eq!(frames.push_packet(7, ranges(3)), (0, false));
        assert_eq!(frames.push_packet(8, ranges(3)), (2, false));
        assert_eq!(frames.push_packet(9, ranges(3)), (3, true));
        let last_of: [_; 4] = core::array::from_fn(|_| frames.pop().unwrap().last_of);
        assert_eq!(last_of, [None, None, Some(7), Some(8)]);
        assert!(frames.is_empty());
    }

    #[test]
    fn a_span_goes_around() {
        let mut span = Span::EMPTY;
        for round in 0..9 {
            for number in 0..4 {
                assert_eq!(span.push(4), Some((round + number) % 4));
            }
            assert_eq!(span.push(4), None);
            for number in 0..4 {
                assert_eq!(span.pop(4), Some((round + number) % 4));
            }
            assert_eq!(span.pop(4), None);
            // From the next place on.
            assert_eq!(span.push(4), Some(round % 4));
            assert_eq!(span.pop(4), Some(round % 4));
        }
    }
}
