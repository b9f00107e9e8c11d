//! The guest's page allocator: first fit, zeroing, and unforgiving about what is freed.

use std::sync::Mutex;

use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};
use vmbus_proto::PAGE_SIZE;

/// Pages of guest RAM, taken and free.
pub(crate) struct Pages {
    taken: Mutex<Vec<bool>>,
}

impl Pages {
    /// All of `count` pages free, but the first: address 0 means nothing.
    pub(crate) fn new(count: usize) -> Self {
        let mut taken = vec![false; count];
        taken[0] = true;
        Self {
            taken: Mutex::new(taken),
        }
    }

    /// Takes `count` pages in a row, zeroed; the address of the first.
    pub(crate) fn take(&self, memory: &GuestMemoryMmap, count: usize) -> Option<u64> {
        let mut taken = self.taken.lock().unwrap();
        let first = taken.windows(count).position(|run| !run.contains(&true))?;
        taken[first..first + count].fill(true);
        let address = (first * PAGE_SIZE) as u64;
        let zeros = vec![0; count * PAGE_SIZE];
        memory
            .write_slice(&zeros, GuestAddress(address))
            .expect("the pages are RAM");
        Some(address)
    }

    /// Gives pages back.
    pub(crate) fn give(&self, address: u64, count: usize) {
        let first = usize::try_from(address).unwrap() / PAGE_SIZE;
        for page in &mut self.taken.lock().unwrap()[first..first + count] {
            assert!(*page, "a free page was freed");
            *page = false;
        }
    }

    /// Pages in use.
    pub(crate) fn in_use(&self) -> usize {
        let taken = self.taken.lock().unwrap();
        taken.iter().skip(1).filter(|taken| **taken).count()
    }
}
