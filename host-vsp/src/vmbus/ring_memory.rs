//! A ring in guest RAM, reached page by page.

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
    /// Guest physical addresses of the pages, the control page first.
    pages: Arc<[u64]>,
}

impl GuestRing {
    /// The ring in `pages`, guest physical addresses of RAM, the control page first. `None` where
    /// there is no data page or too many, or a page is not RAM.
    pub fn new(memory: Arc<dyn GuestMemory>, pages: Arc<[u64]>) -> Option<Self> {
        let data_pages = pages.len().checked_sub(1)?;
        if data_pages == 0 || data_pages > MAX_DATA_PAGES {
            return None;
        }
        pages
            .iter()
            .all(|&gpa| memory.slice(gpa, PAGE_SIZE).is_some())
            .then_some(())?;
        Some(Self { memory, pages })
    }

    /// Walks the pieces of `length` bytes from `offset` of the data area, each within a page: its
    /// guest physical address, and its place in the whole.
    fn pieces(&self, offset: u32, length: usize) -> impl Iterator<Item = (u64, usize, usize)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let left = length.checked_sub(done).filter(|&left| left != 0)?;
            let at = offset as usize + done;
            let page = self.pages.get(1 + at / PAGE_SIZE)?;
            let piece = left.min(PAGE_SIZE - at % PAGE_SIZE);
            let start = done;
            done += piece;
            Some((page + (at % PAGE_SIZE) as u64, start, piece))
        })
    }
}

/// Data pages in the largest ring: its size in bytes has to stay below 2^31.
const MAX_DATA_PAGES: usize = (1 << 19) - 1;

impl RingMemory for GuestRing {
    fn data_size(&self) -> u32 {
        ((self.pages.len() - 1) * PAGE_SIZE) as u32
    }

    fn load(&self, field: Control) -> u32 {
        // The pages were found to be RAM when the ring was made, and RAM stays. Where it does
        // not, a zero index ends the channel by the checks that every index gets.
        let gpa = self.pages[0] + field.offset() as u64;
        self.memory
            .slice(gpa, size_of::<u32>())
            .and_then(|slice| slice.load::<u32>(0, Ordering::Acquire).ok())
            .map_or(0, u32::from_le)
    }

    fn store(&self, field: Control, value: u32) {
        let gpa = self.pages[0] + field.offset() as u64;
        if let Some(slice) = self.memory.slice(gpa, size_of::<u32>()) {
            // An aligned word within the slice: the store cannot fail.
            let _ = slice.store(value.to_le(), 0, Ordering::Release);
        }
    }

    fn read(&self, offset: u32, to: &mut [u8]) {
        for (gpa, start, length) in self.pieces(offset, to.len()) {
            self.memory.read(gpa, &mut to[start..start + length]);
        }
    }

    fn write(&self, offset: u32, from: &[u8]) {
        for (gpa, start, length) in self.pieces(offset, from.len()) {
            self.memory.write(gpa, &from[start..start + length]);
        }
    }
}
