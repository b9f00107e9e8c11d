//! A message of the guest's, wherever its pieces are.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

use vm_memory::{Bytes as _, VolatileSlice};
use vmbus_proto::gpa::GpaRanges;

use crate::memory::GuestMemory;

/// Most pieces of a message. A frame of 64 KiB has less than 30.
const MAX_PIECES: usize = 256;

/// Guest memory in pieces, which the guest may change at any time.
#[derive(Default)]
pub(super) struct Gather<'a> {
    slices: Vec<VolatileSlice<'a>>,
    length: usize,
}

impl<'a> Gather<'a> {
    /// Pieces that follow each other.
    pub(super) fn new(slices: Vec<VolatileSlice<'a>>) -> Self {
        let length = slices.iter().map(VolatileSlice::len).sum();
        Self { slices, length }
    }

    /// Adds the memory of a packet's ranges; `None` where it is not RAM, or in too many pieces.
    pub(super) fn push_ranges(
        &mut self,
        memory: &'a dyn GuestMemory,
        ranges: GpaRanges<'_>,
    ) -> Option<()> {
        for piece in ranges.iter().flat_map(|range| range.pieces()) {
            let (gpa, length) = piece?;
            if length == 0 {
                continue;
            }
            if self.slices.len() >= MAX_PIECES {
                return None;
            }
            self.slices.push(memory.slice(gpa, length)?);
            self.length = self.length.checked_add(length)?;
        }
        Some(())
    }

    /// All its bytes.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// Copies what is at `offset`, as many bytes as `to` has; `None` where there are fewer.
    pub(super) fn copy(&self, offset: usize, to: &mut [u8]) -> Option<()> {
        let mut rest = to;
        for slice in self.part(offset, rest.len())? {
            let (piece, after) = rest.split_at_mut_checked(slice.len())?;
            slice.read_slice(piece, 0).ok()?;
            rest = after;
        }
        Some(())
    }

    /// The pieces of the `length` bytes at `offset`; `None` where they are not within.
    pub(super) fn part(&self, offset: usize, length: usize) -> Option<Vec<VolatileSlice<'a>>> {
        if offset.checked_add(length)? > self.length {
            return None;
        }
        let (mut skip, mut left) = (offset, length);
        let mut part = Vec::new();
        for slice in &self.slices {
            if left == 0 {
                break;
            }
            if skip >= slice.len() {
                skip = skip.saturating_sub(slice.len());
                continue;
            }
            let piece = left.min(slice.len().saturating_sub(skip));
            part.push(slice.subslice(skip, piece).ok()?);
            skip = 0;
            left = left.saturating_sub(piece);
        }
        Some(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_copies() {
        let mut memory: Vec<u8> = (0..100).collect();
        let whole = VolatileSlice::from(&mut memory[..]);
        let slice = |at, length| whole.subslice(at, length).unwrap();
        let gather = Gather::new(vec![slice(10, 3), slice(50, 0), slice(20, 5)]);
        assert_eq!(gather.len(), 8);
        let mut bytes = [0; 4];
        gather.copy(2, &mut bytes).unwrap();
        assert_eq!(bytes, [12, 20, 21, 22]);
        assert_eq!(gather.copy(5, &mut bytes), None);
        let lengths = |offset, length| {
            let part = gather.part(offset, length)?;
            Some(part.iter().map(VolatileSlice::len).collect::<Vec<_>>())
        };
        assert_eq!(lengths(0, 8), Some(vec![3, 5]));
        assert_eq!(lengths(3, 1), Some(vec![1]));
        assert_eq!(lengths(8, 0), Some(vec![]));
        assert_eq!(lengths(usize::MAX, 1), None);
    }
}
