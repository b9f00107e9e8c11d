//! A ring in guest RAM, reached page by page.
#![warn(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::Bytes as _;
use vmbus_proto::PAGE_SIZE;
use vmbus_proto::ring::{Control, RingMemory};

use crate::memory::GuestMemory;

/// One ring: its control page, then its data pages, wherever the guest has them.
#[derive(Clone)]
pub struct GuestRing {
    memory: Arc<dyn GuestMemory>,
    /// Guest physical address of the control page.
    control: u64,
    /// Guest physical addresses of the data pages.
    data: Arc<[u64]>,
}

impl GuestRing {
    /// The ring in `pages`, guest physical addresses of RAM, the control page first. `None` where
    /// there is no data page or too many, or a page is not RAM.
    pub fn new(memory: Arc<dyn GuestMemory>, pages: &[u64]) -> Option<Self> {
        let (&control, data) = pages.split_first()?;
        if data.is_empty() || data.len() > MAX_DATA_PAGES {
            return None;
        }
        pages
            .iter()
            .all(|&gpa| memory.slice(gpa, PAGE_SIZE).is_some())
            .then_some(())?;
        Some(Self {
            memory,
            control,
            data: data.into(),
        })
    }

    /// Guest physical address of a control field.
    fn field(&self, field: Control) -> u64 {
        self.control.saturating_add(field.offset() as u64)
    }

    /// Walks the pieces of `length` bytes from `offset` of the data area, each within a page: its
    /// guest physical address, and its place in the whole.
    fn pieces(&self, offset: u32, length: usize) -> impl Iterator<Item = (u64, Range<usize>)> {
        let mut done = 0usize;
        std::iter::from_fn(move || {
            let left = length.checked_sub(done).filter(|&left| left != 0)?;
            let at = (offset as usize).checked_add(done)?;
            let page = self.data.get(at.checked_div(PAGE_SIZE)?)?;
            let within = at.checked_rem(PAGE_SIZE)?;
            let piece = left.min(PAGE_SIZE.checked_sub(within)?);
            let start = done;
            done = done.checked_add(piece)?;
            Some((page.checked_add(within as u64)?, start..done))
        })
    }
}

/// Data pages in the largest ring: its size in bytes has to stay below 2^31.
const MAX_DATA_PAGES: usize = (1 << 19) - 1;

impl RingMemory for GuestRing {
    fn data_size(&self) -> u32 {
        // At most `MAX_DATA_PAGES` of them.
        self.data.len().saturating_mul(PAGE_SIZE) as u32
    }

    fn load(&self, field: Control) -> u32 {
        // The pages were found to be RAM when the ring was made, and RAM stays. Where it does
        // not, a zero index ends the channel by the checks that every index gets.
        self.memory
            .slice(self.field(field), size_of::<u32>())
            .and_then(|slice| slice.load::<u32>(0, Ordering::Acquire).ok())
            .map_or(0, u32::from_le)
    }

    fn store(&self, field: Control, value: u32) {
        if let Some(slice) = self.memory.slice(self.field(field), size_of::<u32>()) {
            // An aligned word within the slice: the store cannot fail.
            let _ = slice.store(value.to_le(), 0, Ordering::Release);
        }
    }

    fn read(&self, offset: u32, to: &mut [u8]) {
        for (gpa, place) in self.pieces(offset, to.len()) {
            if let Some(to) = to.get_mut(place) {
                self.memory.read(gpa, to);
            }
        }
    }

    fn write(&self, offset: u32, from: &[u8]) {
        for (gpa, place) in self.pieces(offset, from.len()) {
            if let Some(from) = from.get(place) {
                self.memory.write(gpa, from);
            }
        }
    }
}
