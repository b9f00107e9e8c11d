// SPDX-License-Identifier: GPL-2.0

//! The pages of a request, as one range of guest memory.
//!
//! Nothing here is the kernel's, so that it is tested outside of it, too.

use core::cell::Cell;
use core::ops::Range;

/// Bytes of a page, as the host counts.
const PAGE: u64 = 4096;

/// The frame numbers of memory that is given in pieces: address and length of each, none of them empty.
/// As one range: only its first page may be used from its middle on, and only its last one up to its
/// middle.
pub(crate) struct Pages<'a, I> {
    pieces: I,
    /// Frame numbers of the current piece that are still to come.
    pages: Range<u64>,
    /// Where the last piece has ended.
    end: Option<u64>,
    has_gap: &'a Cell<bool>,
}

impl<'a, I: Iterator<Item = (u64, u32)>> Pages<'a, I> {
    /// The pages of `pieces`. `has_gap` says, when all are told, that they are no such range.
    pub(crate) fn new(pieces: I, has_gap: &'a Cell<bool>) -> Self {
        Self {
            pieces,
            pages: 0..0,
            end: None,
            has_gap,
        }
    }
}

impl<I: Iterator<Item = (u64, u32)>> Iterator for Pages<'_, I> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        loop {
            if let Some(pfn) = self.pages.next() {
                return Some(pfn);
            }
            let (address, length) = self.pieces.next()?;
            let end = address + u64::from(length);
            let first = match self.end.replace(end) {
                // It goes on in the page where the last one has ended.
                Some(before) if before == address => address.div_ceil(PAGE),
                Some(before) => {
                    if before % PAGE != 0 || address % PAGE != 0 {
                        self.has_gap.set(true);
                    }
                    address / PAGE
                }
                None => address / PAGE,
            };
            self.pages = first..end.div_ceil(PAGE);
        }
    }
}
