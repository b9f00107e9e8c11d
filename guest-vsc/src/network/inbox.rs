//! Frames that the host has put into the receive buffer and that nobody has taken yet.
//!
//! The host sends many frames in one packet of the ring, and gets their sections back when that is
//! completed. A [`Queue`] holds where the frames are, in order; the last one of a packet carries the
//! packet's transaction id, so that taking it brings the completion about. What finds no place in the
//! queue is lost, as it would be in any adapter that nobody listens to.

use vmbus_proto::packet::TransferPageRange;

/// Most ranges of one packet, as many as Linux takes.
const MAX_RANGES: usize = 562;

/// Bytes after the descriptor in the longest packet: a header, ranges, a message with a table.
const MAX_PACKET: usize = 8 + MAX_RANGES * size_of::<TransferPageRange>() + 128;

/// Where packets are copied to, and the frames they told of.
pub(super) struct Inbox<F: ?Sized> {
    pub(super) packet: [u8; MAX_PACKET],
    pub(super) queue: Queue<F>,
}

impl<const N: usize> Inbox<[Waiting; N]> {
    pub(super) const fn new() -> Self {
        Self {
            packet: [0; MAX_PACKET],
            queue: Queue::new(),
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
    last_of: Option<u64>,
}

impl Waiting {
    const NONE: Self = Self {
        offset: 0,
        length: 0,
        last_of: None,
    };
}

/// A queue of messages in the receive buffer.
pub(super) struct Queue<F: ?Sized> {
    /// The packet that is done with and not completed yet. There is one at most: as long as there
    /// is, nothing is taken, neither out of the ring nor out of the queue.
    owed: Option<u64>,
    first: usize,
    count: usize,
    frames: F,
}

impl<const N: usize> Queue<[Waiting; N]> {
    const fn new() -> Self {
        Self {
            owed: None,
            first: 0,
            count: 0,
            frames: [Waiting::NONE; N],
        }
    }
}

impl Queue<[Waiting]> {
    /// Forgets everything.
    pub(super) fn reset(&mut self) {
        (self.owed, self.first, self.count) = (None, 0, 0);
    }

    /// The packet to complete before anything else.
    pub(super) fn owed(&self) -> Option<u64> {
        self.owed
    }

    /// It is completed.
    pub(super) fn paid(&mut self) {
        self.owed = None;
    }

    /// Whether no frame waits.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether there may be no place for the frames of another packet. No host is known to send more
    /// than some dozens in one.
    pub(super) fn is_half_full(&self) -> bool {
        self.count > self.frames.len() / 2
    }

    /// Takes the ranges of the packet `id`, as offset and length; returns how many were lost. Nothing
    /// is owed.
    pub(super) fn push_packet(&mut self, id: u64, ranges: impl Iterator<Item = (u32, u32)>) -> u32 {
        let mut lost = 0u32;
        let mut last = None;
        for (offset, length) in ranges {
            match self.place(self.count) {
                Some(place) if self.count < self.frames.len() => {
                    if let Some(frame) = self.frames.get_mut(place) {
                        *frame = Waiting {
                            offset,
                            length,
                            last_of: None,
                        };
                    }
                    last = Some(place);
                    self.count = self.count.saturating_add(1);
                }
                _ => lost = lost.saturating_add(1),
            }
        }
        match last.and_then(|last| self.frames.get_mut(last)) {
            Some(frame) => frame.last_of = Some(id),
            None => self.owed = Some(id),
        }
        lost
    }

    /// Takes the first frame. Nothing is owed before; afterwards the packet is, where this was its
    /// last frame.
    pub(super) fn pop(&mut self) -> Option<Waiting> {
        if self.count == 0 {
            return None;
        }
        let frame = self.frames.get(self.first).copied()?;
        self.first = self.place(1).unwrap_or_default();
        self.count = self.count.saturating_sub(1);
        self.owed = frame.last_of;
        Some(frame)
    }

    /// Where the frame is that has `number` frames before it.
    fn place(&self, number: usize) -> Option<usize> {
        self.first
            .saturating_add(number)
            .checked_rem(self.frames.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_packet_is_owed_once_when_its_last_frame_is_taken() {
        let mut queue = Queue::<[Waiting; 4]>::new();
        let queue: &mut Queue<[Waiting]> = &mut queue;
        let mut taken = 0;
        let mut expected = 0;
        let mut numbers = 0..;
        for id in 1..200u64 {
            let ranges = numbers.by_ref().take((id % 4) as usize);
            assert_eq!(queue.push_packet(id, ranges.map(|n| (n, n + 1))), 0);
            while let Some(frame) = queue.pop() {
                assert_eq!((frame.offset, frame.length), (expected, expected + 1));
                expected += 1;
                if queue.owed().is_some() {
                    break;
                }
            }
            // Also where it had no frame at all.
            assert_eq!(queue.owed(), Some(id));
            queue.paid();
            assert_eq!(queue.pop(), None);
            taken += 1;
        }
        assert_eq!(taken, 199);
    }

    #[test]
    fn what_finds_no_place_is_lost_and_its_packet_is_completed() {
        let mut queue = Queue::<[Waiting; 4]>::new();
        let queue: &mut Queue<[Waiting]> = &mut queue;
        let ranges = |count| (0..count).map(|n| (n, 1));
        assert_eq!(queue.push_packet(7, ranges(3)), 0);
        assert_eq!(queue.push_packet(8, ranges(3)), 2);
        assert_eq!(queue.owed(), None);
        assert_eq!(queue.push_packet(9, ranges(3)), 3);
        assert_eq!(queue.owed(), Some(9), "none of it waits");
        queue.paid();
        let owed: [_; 4] = core::array::from_fn(|_| {
            queue.pop().unwrap();
            let owed = queue.owed();
            queue.paid();
            owed
        });
        assert_eq!(owed, [None, None, Some(7), Some(8)]);
        assert!(queue.is_empty());
    }
}
