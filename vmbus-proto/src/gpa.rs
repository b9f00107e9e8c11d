//! Ranges of guest physical memory, as GPADLs and GPA-direct packets carry them.
//!
//! A range is a byte count, a byte offset into its first page, and the frame numbers of all its
//! pages, which need not lie together.

use core::fmt;

use zerocopy::FromBytes as _;
use zerocopy::IntoBytes as _;
use zerocopy::little_endian::{U32, U64};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::PAGE_SIZE;
use crate::packet::GpaDirectHeader;

/// Start of a range (Linux `struct gpa_range`); its frame numbers follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct GpaRangeHeader {
    /// Length of the range in bytes.
    pub byte_count: U32,
    /// Where it starts in its first page, in bytes, below 4096.
    pub byte_offset: U32,
}
const _: () = assert!(size_of::<GpaRangeHeader>() == 8);

impl GpaRangeHeader {
    /// Pages the range touches; `None` where the offset is not within a page.
    pub fn page_count(&self) -> Option<usize> {
        let offset = self.byte_offset.get() as usize;
        if offset >= PAGE_SIZE {
            return None;
        }
        let end = offset.checked_add(self.byte_count.get() as usize)?;
        Some(end.div_ceil(PAGE_SIZE))
    }
}

/// One checked range.
#[derive(Clone, Copy)]
pub struct GpaRange<'a> {
    /// Length in bytes.
    pub byte_count: u32,
    /// Offset into the first page in bytes, below 4096.
    pub byte_offset: u32,
    /// Frame numbers: a page's guest physical address divided by 4096. Exactly as many as the
    /// range touches; whether they are RAM is for the owner of the memory to say.
    pub pfns: &'a [U64],
}

impl fmt::Debug for GpaRange<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GpaRange")
            .field("byte_count", &self.byte_count)
            .field("byte_offset", &self.byte_offset)
            .field("pages", &self.pfns.len())
            .finish()
    }
}

impl<'a> GpaRange<'a> {
    /// The range as pieces that each lie within one page: guest physical address and length.
    ///
    /// A frame number too large to be an address yields `None` in its place.
    pub fn pieces(&self) -> impl Iterator<Item = Option<(u64, usize)>> + use<'a> {
        let mut left = self.byte_count as usize;
        let mut offset = self.byte_offset as usize;
        self.pfns.iter().map(move |pfn| {
            let length = left.min(PAGE_SIZE.saturating_sub(offset));
            let gpa = pfn
                .get()
                .checked_mul(PAGE_SIZE as u64)?
                .checked_add(offset as u64)?;
            left = left.saturating_sub(length);
            offset = 0;
            Some((gpa, length))
        })
    }
}

/// A list of checked ranges over private bytes.
#[derive(Clone, Copy)]
pub struct GpaRanges<'a> {
    count: u32,
    bytes: &'a [u8],
}

impl<'a> GpaRanges<'a> {
    /// Checks that `bytes` starts with `count` well-formed ranges.
    pub fn parse(count: u32, bytes: &'a [u8]) -> Option<Self> {
        let mut rest = bytes;
        // Each step takes at least 8 bytes, so a lying count ends with the bytes.
        for _ in 0..count {
            (_, rest) = split_range(rest)?;
        }
        let used = bytes.len().checked_sub(rest.len())?;
        Some(Self {
            count,
            bytes: bytes.get(..used)?,
        })
    }

    /// Number of ranges.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes that the ranges take in their list.
    pub fn encoded_len(&self) -> usize {
        self.bytes.len()
    }

    /// The sum of the ranges' lengths in bytes.
    pub fn byte_count(&self) -> u64 {
        self.iter().fold(0u64, |sum, range| {
            sum.saturating_add(u64::from(range.byte_count))
        })
    }

    /// The ranges.
    pub fn iter(&self) -> impl Iterator<Item = GpaRange<'a>> + use<'a> {
        let mut rest = self.bytes;
        (0..self.count).map_while(move |_| {
            let (range, after) = split_range(rest)?;
            rest = after;
            Some(range)
        })
    }
}

impl fmt::Debug for GpaRanges<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

fn split_range(bytes: &[u8]) -> Option<(GpaRange<'_>, &[u8])> {
    let (header, rest) = GpaRangeHeader::read_from_prefix(bytes).ok()?;
    let (pfns, rest) = <[U64]>::ref_from_prefix_with_elems(rest, header.page_count()?).ok()?;
    let range = GpaRange {
        byte_count: header.byte_count.get(),
        byte_offset: header.byte_offset.get(),
        pfns,
    };
    Some((range, rest))
}

/// Writes the ranges of a GPA-direct packet, or of a GPADL, into a caller's buffer.
#[derive(Debug)]
pub struct GpaRangeWriter<'a> {
    buffer: &'a mut [u8],
    /// Bytes written.
    length: usize,
}

impl<'a> GpaRangeWriter<'a> {
    /// A writer of a GPA-direct packet's ranges, its header first; `None` where `buffer` is too
    /// small for that.
    pub fn gpa_direct(buffer: &'a mut [u8], range_count: u32) -> Option<Self> {
        let mut writer = Self { buffer, length: 0 };
        let header = GpaDirectHeader {
            reserved: 0.into(),
            range_count: range_count.into(),
        };
        writer.push(header.as_bytes())?;
        Some(writer)
    }

    /// A writer of bare ranges.
    pub fn ranges(buffer: &'a mut [u8]) -> Self {
        Self { buffer, length: 0 }
    }

    /// Starts a range; its frame numbers have to follow by [`pfn`](Self::pfn).
    pub fn range(&mut self, byte_count: u32, byte_offset: u32) -> Option<()> {
        let header = GpaRangeHeader {
            byte_count: byte_count.into(),
            byte_offset: byte_offset.into(),
        };
        self.push(header.as_bytes())
    }

    /// Adds a frame number to the range.
    pub fn pfn(&mut self, pfn: u64) -> Option<()> {
        self.push(&pfn.to_le_bytes())
    }

    /// What was written.
    pub fn finish(self) -> &'a [u8] {
        self.buffer.get(..self.length).unwrap_or_default()
    }

    fn push(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.length.checked_add(bytes.len())?;
        self.buffer
            .get_mut(self.length..end)?
            .copy_from_slice(bytes);
        self.length = end;
        Some(())
    }
}
