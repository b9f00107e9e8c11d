//! The threads that do transfers, and the queue their results come back by.
//!
//! A [`Job`] goes in with whatever its submitter needs to answer it, and comes out as a
//! [`Finished`] exactly once, whatever the backend did. An eventfd is readable while there are
//! results that nobody took.
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

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::backend::Backend;
use super::buffer::GuestBuffer;

/// Transfers that run at the same time.
const THREADS: usize = 4;

/// Bytes that [`Io::Verify`] reads at a time.
const VERIFY_CHUNK: usize = 256 * 1024;

/// What to do with a backend. Offsets and lengths in bytes.
pub(super) enum Io {
    /// Into the buffer, all of it.
    Read { offset: u64, buffer: GuestBuffer },
    /// From the buffer, all of it.
    Write {
        offset: u64,
        buffer: GuestBuffer,
        durable: bool,
    },
    /// Read and forget.
    Verify { offset: u64, length: u64 },
    /// Make what was written durable.
    Flush,
    /// Forget these places: offset and length.
    Unmap(Vec<(u64, u64)>),
}

impl Io {
    /// Does it on this thread if that needs no waiting.
    pub(super) fn run_if_ready(&self, backend: &dyn Backend) -> Option<io::Result<()>> {
        match self {
            Self::Read { offset, buffer } => backend.read_if_ready(*offset, &buffer.slices()?),
            _ => None,
        }
    }

    fn run(&self, backend: &dyn Backend) -> io::Result<()> {
        let gone = || io::Error::other("guest memory has gone");
        match self {
            Self::Read { offset, buffer } => {
                backend.read(*offset, &buffer.slices().ok_or_else(gone)?)
            }
            Self::Write {
                offset,
                buffer,
                durable,
            } => backend.write(*offset, &buffer.slices().ok_or_else(gone)?, *durable),
            Self::Verify { offset, length } => verify(backend, *offset, *length),
            Self::Flush => backend.flush(),
            Self::Unmap(places) => places
                .iter()
                .try_for_each(|&(offset, length)| backend.unmap(offset, length)),
        }
    }
}

fn verify(backend: &dyn Backend, offset: u64, length: u64) -> io::Result<()> {
    let mut chunk = vec![0; VERIFY_CHUNK.min(usize::try_from(length).unwrap_or(usize::MAX))];
    let end = offset.saturating_add(length);
    let mut at = offset;
    while at < end {
        let left = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX);
        let size = left.min(chunk.len());
        let part = chunk.get_mut(..size).unwrap_or_default();
        backend.read(at, &[VolatileSlice::from(part)])?;
        at = at.saturating_add(size as u64);
    }
    Ok(())
}

/// A request for a backend.
pub(super) struct Job<T> {
    pub(super) request: T,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) io: Io,
}

/// A request that is done.
pub(super) struct Finished<T> {
    pub(super) request: T,
    pub(super) outcome: io::Result<()>,
}

/// The threads.
pub(super) struct Engine<T> {
    shared: Arc<Shared<T>>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared<T> {
    queues: Mutex<Queues<T>>,
    /// Jobs came, or the end.
    work: Condvar,
    /// The last job in flight is done.
    idle: Condvar,
    event: EventFd,
}

struct Queues<T> {
    jobs: VecDeque<Job<T>>,
    /// Jobs submitted and not yet in `finished`.
    in_flight: usize,
    finished: Vec<Finished<T>>,
    stop: bool,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Queues<T>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Send + 'static> Engine<T> {
    /// An engine with its threads.
    ///
    /// # Errors
    /// The system has no eventfd or no threads for us.
    pub(super) fn new() -> io::Result<Self> {
        let queues = Queues {
            jobs: VecDeque::new(),
            in_flight: 0,
            finished: Vec::new(),
            stop: false,
        };
        let shared = Arc::new(Shared {
            queues: Mutex::new(queues),
            work: Condvar::new(),
            idle: Condvar::new(),
            event: EventFd::new(EFD_NONBLOCK)?,
        });
        // Made before its threads: where the second cannot be had, dropping it ends the first.
        let mut engine = Self {
            shared,
            threads: Vec::new(),
        };
        for number in 0..THREADS {
            let shared = Arc::clone(&engine.shared);
            let thread = std::thread::Builder::new()
                .name(format!("storage-{number}"))
                .spawn(move || run(&shared))?;
            engine.threads.push(thread);
        }
        Ok(engine)
    }

    /// Takes a job. How many there may be is for the caller to bound.
    pub(super) fn submit(&self, job: Job<T>) {
        let mut queues = self.shared.lock();
        queues.in_flight = queues.in_flight.saturating_add(1);
        queues.jobs.push_back(job);
        drop(queues);
        self.shared.work.notify_one();
    }

    /// Takes what is finished, and says how many jobs are still not.
    pub(super) fn take_finished(&self) -> (Vec<Finished<T>>, usize) {
        let mut queues = self.shared.lock();
        (std::mem::take(&mut queues.finished), queues.in_flight)
    }

    /// Waits until no job is in flight.
    pub(super) fn wait_idle(&self) {
        let mut queues = self.shared.lock();
        while queues.in_flight != 0 {
            queues = self
                .shared
                .idle
                .wait(queues)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The descriptor that is readable while results wait.
    pub(super) fn event(&self) -> RawFd {
        self.shared.event.as_raw_fd()
    }

    /// Another descriptor of it, to make it readable from elsewhere.
    pub(super) fn waker(&self) -> io::Result<EventFd> {
        self.shared.event.try_clone()
    }

    /// Makes the event unreadable; results that come later make it readable again.
    pub(super) fn clear_event(&self) {
        // Not blocking, and an event that is not set is no error.
        let _ = self.shared.event.read();
    }

    /// Makes the event readable, for a submitter that wants to be called again.
    pub(super) fn set_event(&self) {
        // Fails only where the counter is full, and then the event is readable anyway.
        let _ = self.shared.event.write(1);
    }
}

impl<T> Drop for Engine<T> {
    fn drop(&mut self) {
        let mut queues = self.shared.lock();
        queues.stop = true;
        queues.jobs.clear();
        drop(queues);
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // The thread catches its backend's panics; there is nothing to learn here.
            let _ = thread.join();
        }
    }
}

fn run<T>(shared: &Shared<T>) {
    loop {
        let mut queues = shared.lock();
        let Job {
            request,
            backend,
            io,
        } = loop {
            if queues.stop {
                return;
            }
            match queues.jobs.pop_front() {
                Some(job) => break job,
                None => {
                    queues = shared
                        .work
                        .wait(queues)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        };
        drop(queues);
        // A backend of an embedder's own may panic. That is one failed request, not a guest that
        // waits for ever: the backend is behind a shared reference and guards its own state.
        let outcome = catch_unwind(AssertUnwindSafe(|| io.run(&*backend)))
            .unwrap_or_else(|_| Err(io::Error::other("the backend panicked")));
        // The guest's pages are let go before anybody can learn that the request is done.
        drop(io);
        let mut queues = shared.lock();
        queues.finished.push(Finished { request, outcome });
        queues.in_flight = queues.in_flight.saturating_sub(1);
        let first = queues.finished.len() == 1;
        if queues.in_flight == 0 {
            shared.idle.notify_all();
        }
        drop(queues);
        if first {
            // The taker empties the event before it takes, so the first result is enough.
            let _ = shared.event.write(1);
        }
    }
}
