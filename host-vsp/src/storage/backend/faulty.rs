//! A backend that fails, waits and counts as a test wants it.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use vm_memory::VolatileSlice;

use super::Backend;

/// What a backend is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// [`Backend::read`].
    Read,
    /// [`Backend::write`], not durable.
    Write,
    /// [`Backend::write`], durable.
    DurableWrite,
    /// [`Backend::flush`].
    Flush,
    /// [`Backend::unmap`].
    Unmap,
}

/// Wraps a backend for tests: counts its operations, fails chosen ones, and holds them back.
///
/// Clones are handles of the same one, so that a test keeps one and gives the other to a disk.
#[derive(Clone)]
pub struct FaultyBackend {
    inner: Arc<dyn Backend>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    plan: Mutex<Plan>,
    changed: Condvar,
}

#[derive(Default)]
struct Plan {
    done: Vec<Operation>,
    /// Operations that wait because of `holds`.
    waiting: usize,
    /// How many [`Held`] there are.
    holds: usize,
    faults: Vec<Fault>,
}

/// Holds the operations of a [`FaultyBackend`] back for as long as it lives.
#[must_use = "dropped at once, it holds nothing back"]
pub struct Held {
    backend: FaultyBackend,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.backend.plan().holds -= 1;
        self.backend.shared.changed.notify_all();
    }
}

struct Fault {
    operation: Operation,
    /// Bytes; an operation that touches one of them fails.
    place: Range<u64>,
    /// How often still.
    times: u64,
    errno: i32,
}

impl FaultyBackend {
    /// A backend that does what `inner` does, until told otherwise.
    pub fn new(inner: impl Backend + 'static) -> Self {
        Self {
            inner: Arc::new(inner),
            shared: Arc::default(),
        }
    }

    /// Makes the next `times` operations of this kind that touch the bytes of `place` fail with
    /// `errno`, before they reach the inner backend. A flush touches everything.
    pub fn fail(&self, operation: Operation, place: Range<u64>, times: u64, errno: i32) {
        self.plan().faults.push(Fault {
            operation,
            place,
            times,
            errno,
        });
    }

    /// Holds operations back until the returned value is dropped.
    ///
    /// Drop it before the disk's controller, which waits for its operations.
    pub fn hold(&self) -> Held {
        self.plan().holds += 1;
        Held {
            backend: self.clone(),
        }
    }

    /// How many operations are held back now.
    pub fn waiting(&self) -> usize {
        self.plan().waiting
    }

    /// How many operations of this kind reached the inner backend and returned.
    pub fn count(&self, operation: Operation) -> usize {
        self.plan()
            .done
            .iter()
            .filter(|&&done| done == operation)
            .count()
    }

    /// Every operation that reached the inner backend and returned, in that order.
    pub fn log(&self) -> Vec<Operation> {
        self.plan().done.clone()
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.shared
            .plan
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn run(
        &self,
        operation: Operation,
        place: Range<u64>,
        inner: impl FnOnce(&dyn Backend) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut plan = self.plan();
        plan.waiting = plan.waiting.saturating_add(1);
        while plan.holds != 0 {
            plan = self
                .shared
                .changed
                .wait(plan)
                .unwrap_or_else(PoisonError::into_inner);
        }
        plan.waiting = plan.waiting.saturating_sub(1);
        let fault = plan.faults.iter_mut().find(|fault| {
            fault.operation == operation
                && fault.times != 0
                && fault.place.start < place.end
                && place.start < fault.place.end
        });
        if let Some(fault) = fault {
            fault.times = fault.times.saturating_sub(1);
            return Err(io::Error::from_raw_os_error(fault.errno));
        }
        drop(plan);
        let outcome = inner(&*self.inner);
        self.plan().done.push(operation);
        outcome
    }
}

fn place(offset: u64, slices: &[VolatileSlice<'_>]) -> Range<u64> {
    let length: u64 = slices.iter().map(|slice| slice.len() as u64).sum();
    offset..offset.saturating_add(length)
}

impl Backend for FaultyBackend {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        self.inner.resize(size)
    }

    fn read_only(&self) -> bool {
        self.inner.read_only()
    }

    fn can_unmap(&self) -> bool {
        self.inner.can_unmap()
    }

    fn read(&self, offset: u64, to: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.run(Operation::Read, place(offset, to), |inner| {
            inner.read(offset, to)
        })
    }

    fn write(&self, offset: u64, from: &[VolatileSlice<'_>], durable: bool) -> io::Result<()> {
        let operation = if durable {
            Operation::DurableWrite
        } else {
            Operation::Write
        };
        self.run(operation, place(offset, from), |inner| {
            inner.write(offset, from, durable)
        })
    }

    fn flush(&self) -> io::Result<()> {
        self.run(Operation::Flush, 0..u64::MAX, |inner| inner.flush())
    }

    fn unmap(&self, offset: u64, length: u64) -> io::Result<()> {
        let place = offset..offset.saturating_add(length);
        self.run(Operation::Unmap, place, |inner| inner.unmap(offset, length))
    }
}
