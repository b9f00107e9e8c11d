//! The guest memory that a request describes.
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

use std::sync::Arc;

use vm_memory::{Bytes as _, VolatileSlice};
use vmbus_proto::gpa::GpaRanges;

use crate::memory::GuestMemory;

/// Most pieces, not adjacent in guest memory, of one request's buffer.
pub const MAX_PIECES: usize = 2048;

/// A request's buffer: checked pieces of guest RAM.
pub struct GuestBuffer {
    memory: Arc<dyn GuestMemory>,
    /// Guest physical address and length in bytes, never 0.
    pieces: Vec<(u64, usize)>,
    length: usize,
}

/// Why ranges are not a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BufferError {
    /// They have fewer bytes than the request.
    #[error("the ranges are shorter than the transfer")]
    TooShort,
    /// They have a page that is not RAM.
    #[error("a page is not RAM")]
    NotRam,
    /// They are in too many pieces.
    #[error("the ranges are in too many pieces")]
    TooManyPieces,
}

impl GuestBuffer {
    /// A buffer of no bytes.
    pub fn empty(memory: Arc<dyn GuestMemory>) -> Self {
        Self {
            memory,
            pieces: Vec::new(),
            length: 0,
        }
    }

    /// The first `length` bytes of `ranges`.
    ///
    /// # Errors
    /// What is wrong with the ranges.
    pub fn new(
        memory: Arc<dyn GuestMemory>,
        ranges: GpaRanges<'_>,
        length: usize,
    ) -> Result<Self, BufferError> {
        if ranges.byte_count() < length as u64 {
            return Err(BufferError::TooShort);
        }
        let mut buffer = Self::empty(memory);
        for piece in ranges.iter().flat_map(|range| range.pieces()) {
            let left = length.saturating_sub(buffer.length);
            if left == 0 {
                break;
            }
            let (gpa, piece) = piece.ok_or(BufferError::NotRam)?;
            buffer.push(gpa, piece.min(left))?;
        }
        if buffer.length < length {
            return Err(BufferError::TooShort);
        }
        Ok(buffer)
    }

    fn push(&mut self, gpa: u64, length: usize) -> Result<(), BufferError> {
        if length == 0 {
            return Ok(());
        }
        self.memory.slice(gpa, length).ok_or(BufferError::NotRam)?;
        self.length = self.length.saturating_add(length);
        // Pages that follow each other, here and in this process, are one piece.
        if let Some((start, before)) = self.pieces.last_mut() {
            let joined = before.saturating_add(length);
            let adjacent = start.checked_add(*before as u64) == Some(gpa);
            if adjacent && self.memory.slice(*start, joined).is_some() {
                *before = joined;
                return Ok(());
            }
        }
        if self.pieces.len() >= MAX_PIECES {
            return Err(BufferError::TooManyPieces);
        }
        self.pieces.push((gpa, length));
        Ok(())
    }

    /// Its bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Cuts it to `length` bytes, if it is longer.
    pub fn truncate(&mut self, length: usize) {
        let mut left = length;
        self.pieces.retain_mut(|(_, piece)| {
            *piece = left.min(*piece);
            left = left.saturating_sub(*piece);
            *piece != 0
        });
        self.length = self.length.min(length);
    }

    /// Its memory, piece by piece; `None` where it is RAM no more.
    pub fn slices(&self) -> Option<Vec<VolatileSlice<'_>>> {
        self.pieces
            .iter()
            .map(|&(gpa, length)| self.memory.slice(gpa, length))
            .collect()
    }

    /// Copies `data` to its start, as much as fits, and says how much that was.
    pub fn fill(&self, data: &[u8]) -> usize {
        let mut left = data;
        for slice in self.slices().unwrap_or_default() {
            let copied = slice.write(left, 0).unwrap_or(0);
            left = left.get(copied..).unwrap_or_default();
            if left.is_empty() {
                break;
            }
        }
        data.len().saturating_sub(left.len())
    }

    /// A private copy of its first `length` bytes; `None` where it has fewer.
    pub fn copy(&self, length: usize) -> Option<Vec<u8>> {
        if self.length < length {
            return None;
        }
        let mut data = vec![0; length];
        let mut at = 0usize;
        for slice in self.slices()? {
            let rest = data.get_mut(at..)?;
            if rest.is_empty() {
                break;
            }
            at = at.checked_add(slice.read(rest, 0).ok()?)?;
        }
        Some(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{GuestAddress, GuestMemoryMmap};
    use vmbus_proto::gpa::GpaRangeWriter;

    /// RAM at 0..64 KiB and, behind a hole of a page, at 68..100 KiB.
    fn memory() -> Arc<dyn GuestMemory> {
        let parts = [(GuestAddress(0), 0x10000), (GuestAddress(0x11000), 0x8000)];
        Arc::new(GuestMemoryMmap::<()>::from_ranges(&parts).unwrap())
    }

    fn buffer(ranges: &[(u32, u32, &[u64])], length: usize) -> Result<GuestBuffer, BufferError> {
        let mut bytes = [0; 4096];
        let mut writer = GpaRangeWriter::ranges(&mut bytes);
        for (count, offset, pfns) in ranges {
            writer.range(*count, *offset).unwrap();
            for &pfn in *pfns {
                writer.pfn(pfn).unwrap();
            }
        }
        let bytes = writer.finish();
        let ranges = GpaRanges::parse(ranges.len() as u32, bytes).unwrap();
        GuestBuffer::new(memory(), ranges, length)
    }

    #[test]
    fn odd_places_and_adjacent_pages() {
        let buffer = buffer(&[(9000, 100, &[2, 3, 7]), (7, 4089, &[9])], 9007).unwrap();
        assert_eq!(buffer.pieces, [(0x2064, 8092), (0x7000, 908), (0x9ff9, 7)]);
        let data: Vec<u8> = (0..9007).map(|i| (i % 253) as u8).collect();
        assert_eq!(buffer.fill(&data), 9007);
        assert_eq!(buffer.copy(9007).unwrap(), data);
        assert_eq!(buffer.copy(8095).unwrap(), data[..8095]);
        assert_eq!(buffer.copy(9008), None);
    }

    #[test]
    fn truncation() {
        let mut buffer = buffer(&[(8192, 0, &[2, 7])], 8192).unwrap();
        buffer.truncate(4097);
        assert_eq!(
            (buffer.len(), &buffer.pieces[..]),
            (4097, &[(0x2000, 4096), (0x7000, 1)][..])
        );
        buffer.truncate(4096);
        assert_eq!(buffer.pieces, [(0x2000, 4096)]);
        assert_eq!(buffer.fill(&[1; 5000]), 4096);
        buffer.truncate(9000);
        assert_eq!(buffer.len(), 4096);
    }

    #[test]
    fn lies() {
        assert_eq!(
            buffer(&[(4096, 0, &[2])], 4097).err(),
            Some(BufferError::TooShort)
        );
        assert_eq!(buffer(&[], 1).err(), Some(BufferError::TooShort));
        assert_eq!(
            buffer(&[(4096, 0, &[0x10])], 1).err(),
            Some(BufferError::NotRam)
        );
        assert_eq!(
            buffer(&[(8192, 0, &[0xf, 0x10])], 8192).err(),
            Some(BufferError::NotRam)
        );
        assert_eq!(
            buffer(&[(1, 0, &[u64::MAX])], 1).err(),
            Some(BufferError::NotRam)
        );
        // A page that the transfer does not need may be anything.
        assert!(buffer(&[(8192, 0, &[0xf, 0x10])], 4096).is_ok());
    }
}
