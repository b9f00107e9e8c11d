//! Guest memory that a device uses by the handle of a GPADL.
//!
//! Some devices get more than rings: a network adapter is lent whole buffers, and their handles
//! come in packets of the device, which the control plane never sees. So the bus keeps what it has
//! established in a table that open channels look things up in ([`Channel::lent`]). A device holds
//! a [`Lent`] for as long as it likes, and the memory behind it only while it has it
//! [locked](Lent::lock); when the guest takes a GPADL back, the answer waits for that lock.
//!
//! [`Channel::lent`]: super::channel::Channel::lent
#![cfg_attr(
    not(test),
    warn(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use vm_memory::VolatileSlice;
use vmbus_proto::PAGE_SIZE;

use crate::memory::GuestMemory;

/// Guest physical addresses of a GPADL's pages; none any more when it was taken back.
type Pages = Arc<RwLock<Option<Arc<[u64]>>>>;

/// The GPADLs of a guest, by handle.
#[derive(Debug, Default)]
pub struct LentTable {
    entries: Mutex<BTreeMap<u32, (usize, Pages)>>,
}

impl LentTable {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, (usize, Pages)>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a GPADL of `length` bytes, if it is not there yet.
    pub(crate) fn lend(&self, gpadl: u32, length: usize, pages: &Arc<[u64]>) {
        let pages = || Arc::new(RwLock::new(Some(Arc::clone(pages))));
        self.lock()
            .entry(gpadl)
            .or_insert_with(|| (length, pages()));
    }

    /// Takes a GPADL out; when this returns, nobody uses its memory.
    pub(crate) fn take_back(&self, gpadl: u32) {
        let taken = self.lock().remove(&gpadl);
        if let Some((_, pages)) = taken {
            *pages.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// The memory of a GPADL.
    pub(super) fn find(&self, gpadl: u32, memory: &Arc<dyn GuestMemory>) -> Option<Lent> {
        let (length, pages) = self.lock().get(&gpadl).cloned()?;
        Some(Lent {
            length,
            pages,
            memory: Arc::clone(memory),
        })
    }
}

/// The memory of one GPADL, contiguous as its user sees it.
#[derive(Clone)]
pub struct Lent {
    length: usize,
    pages: Pages,
    memory: Arc<dyn GuestMemory>,
}

impl Lent {
    /// Its bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Whether the guest has it back.
    pub fn was_taken_back(&self) -> bool {
        let guard = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        guard.is_none()
    }

    /// The memory, which the guest does not get back before the end of this; `None` where it has it
    /// already. Held for one batch of work, and by no thread twice.
    pub fn lock(&self) -> Option<LockedMemory<'_>> {
        let guard = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        guard.is_some().then_some(LockedMemory {
            length: self.length,
            guard,
            memory: &*self.memory,
        })
    }
}

/// A GPADL's memory that the guest does not get back now.
pub struct LockedMemory<'a> {
    length: usize,
    guard: RwLockReadGuard<'a, Option<Arc<[u64]>>>,
    memory: &'a dyn GuestMemory,
}

impl LockedMemory<'_> {
    /// Adds the pieces of `length` bytes at `offset` to `slices`; `None` where they are not within.
    pub fn slices<'s>(
        &'s self,
        offset: usize,
        length: usize,
        slices: &mut Vec<VolatileSlice<'s>>,
    ) -> Option<()> {
        let end = offset
            .checked_add(length)
            .filter(|&end| end <= self.length)?;
        let pages = self.guard.as_ref()?;
        let mut at = offset;
        while at < end {
            let within = at.checked_rem(PAGE_SIZE)?;
            let mut last = at.checked_div(PAGE_SIZE)?;
            let start = pages.get(last)?.checked_add(within as u64)?;
            let mut piece = PAGE_SIZE.checked_sub(within)?.min(end.checked_sub(at)?);
            let mut slice = self.memory.slice(start, piece)?;
            // Pages that follow each other, here and in this process, are one piece.
            while at.checked_add(piece)? < end {
                let follows = start.checked_add(piece as u64)?;
                last = last.checked_add(1)?;
                let longer = end.checked_sub(at)?.min(piece.checked_add(PAGE_SIZE)?);
                let joined = match pages.get(last) {
                    Some(&next) if next == follows => self.memory.slice(start, longer),
                    _ => None,
                };
                let Some(joined) = joined else { break };
                (slice, piece) = (joined, longer);
            }
            slices.push(slice);
            at = at.checked_add(piece)?;
        }
        Some(())
    }
}

/// The table beside state that can be copied and saved. A copy of the state is another guest's
/// beginning: it lends anew.
#[derive(Debug, Default)]
pub(super) struct TableHandle(pub(super) Arc<LentTable>);

impl Clone for TableHandle {
    fn clone(&self) -> Self {
        Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;
    use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

    fn table(pages: &[u64]) -> (LentTable, Arc<dyn GuestMemory>) {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 64 * 4096)]).unwrap();
        let table = LentTable::default();
        let pages: Arc<[u64]> = pages.iter().map(|page| page * 4096).collect();
        table.lend(7, pages.len() * 4096 - 100, &pages);
        (table, Arc::new(memory))
    }

    #[test]
    fn pieces_across_pages() {
        let (table, memory) = table(&[4, 5, 9, 6]);
        let lent = table.find(7, &memory).unwrap();
        let locked = lent.lock().unwrap();
        let lengths = |offset, length| {
            let mut slices = Vec::new();
            locked.slices(offset, length, &mut slices)?;
            Some(slices.iter().map(VolatileSlice::len).collect::<Vec<_>>())
        };
        assert_eq!(lengths(4000, 200), Some(vec![200]));
        assert_eq!(lengths(4000, 5000), Some(vec![4192, 808]));
        assert_eq!(lengths(0, 16284), Some(vec![8192, 4096, 3996]));
        assert_eq!(lengths(0, 16285), None);
        assert_eq!(lengths(usize::MAX, 2), None);
        assert_eq!(lengths(16284, 0), Some(vec![]));
        let mut slices = Vec::new();
        locked.slices(8190, 4, &mut slices).unwrap();
        slices[1].write_slice(&[1, 2], 0).unwrap();
        let mut bytes = [0; 2];
        memory.read(9 * 4096, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 2]);
        assert!(table.find(8, &memory).is_none());
    }

    #[test]
    fn taking_back_waits_for_who_uses_it() {
        let (table, memory) = table(&[1]);
        let lent = table.find(7, &memory).unwrap();
        let locked = lent.lock().unwrap();
        std::thread::scope(|scope| {
            let (done, is_done) = channel();
            scope.spawn({
                let table = &table;
                move || {
                    table.take_back(7);
                    done.send(()).unwrap();
                }
            });
            assert!(is_done.recv_timeout(Duration::from_millis(50)).is_err());
            drop(locked);
            is_done.recv_timeout(Duration::from_secs(20)).unwrap();
        });
        assert!(lent.lock().is_none());
        assert!(table.find(7, &memory).is_none());
    }
}
