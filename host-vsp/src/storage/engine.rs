//! The threads that do transfers, and the lanes by which their results come back.
//!
//! A [`Job`] goes in by a [`Lane`] with whatever its submitter needs to answer it, and comes out of
//! the same lane as a [`Finished`] exactly once, whatever the backend did. A lane's eventfd is
//! readable while there are results that nobody took.
//!
//! Each channel of a controller has a lane. A lane can [hold](Lane::hold) the others: they begin
//! nothing new, and the holder learns when nothing is at work any more. Resets are made of that.
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

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::backend::Backend;
use super::io::Io;

/// Transfers that run at the same time.
const THREADS: usize = 4;

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
    /// The last job of a lane is done.
    idle: Condvar,
}

struct Queues<T> {
    /// Each with its lane.
    jobs: VecDeque<(u64, Job<T>)>,
    lanes: BTreeMap<u64, LaneState<T>>,
    next_lane: u64,
    /// Jobs in flight in all lanes, and lanes that take new ones.
    busy: usize,
    stop: bool,
}

struct LaneState<T> {
    /// Jobs submitted and not yet in `finished`.
    in_flight: usize,
    finished: Vec<Finished<T>>,
    /// Its submitter may be at a new request.
    takes: bool,
    /// The other lanes begin nothing new.
    holds: bool,
    event: Arc<EventFd>,
}

impl<T> LaneState<T> {
    fn wake(&self) {
        // Fails only where the counter is full, and then the event is readable anyway.
        let _ = self.event.write(1);
    }
}

impl<T> Queues<T> {
    /// Tells those that hold others, except `lane`, where nothing is at work any more.
    fn tell_holders(&self, lane: u64) {
        if self.busy == 0 {
            let others = self.lanes.iter().filter(|(key, _)| **key != lane);
            let holders = others.filter(|(_, other)| other.holds);
            holders.for_each(|(_, holder)| holder.wake());
        }
    }

    fn set_takes(&mut self, lane: u64, takes: bool) {
        if let Some(state) = self.lanes.get_mut(&lane) {
            let before = std::mem::replace(&mut state.takes, takes);
            self.busy = self.busy.saturating_sub(usize::from(before));
            self.busy = self.busy.saturating_add(usize::from(takes));
        }
    }

    fn set_holds(&mut self, lane: u64, holds: bool) {
        if let Some(state) = self.lanes.get_mut(&lane) {
            state.holds = holds;
        }
        if !holds {
            let others = self.lanes.iter().filter(|(key, _)| **key != lane);
            others.for_each(|(_, other)| other.wake());
        }
    }
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
    /// The system has no threads for us.
    pub(super) fn new() -> io::Result<Self> {
        let queues = Queues {
            jobs: VecDeque::new(),
            lanes: BTreeMap::new(),
            next_lane: 0,
            busy: 0,
            stop: false,
        };
        let shared = Arc::new(Shared {
            queues: Mutex::new(queues),
            work: Condvar::new(),
            idle: Condvar::new(),
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

    /// A new lane.
    ///
    /// # Errors
    /// The system has no eventfd for us.
    pub(super) fn lane(&self) -> io::Result<Lane<T>> {
        let event = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let state = LaneState {
            in_flight: 0,
            finished: Vec::new(),
            takes: false,
            holds: false,
            event: Arc::clone(&event),
        };
        let mut queues = self.shared.lock();
        let key = queues.next_lane;
        queues.next_lane = key.wrapping_add(1);
        queues.lanes.insert(key, state);
        drop(queues);
        Ok(Lane {
            shared: Arc::clone(&self.shared),
            key,
            holds: false,
            event,
        })
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

/// Where one channel's jobs go in and their results come out. The engine outlives it.
pub(super) struct Lane<T> {
    shared: Arc<Shared<T>>,
    key: u64,
    holds: bool,
    event: Arc<EventFd>,
}

/// What a lane has, see [`Lane::collect`].
pub(super) struct Collected<T> {
    pub(super) finished: Vec<Finished<T>>,
    /// Jobs of this lane that are not finished.
    pub(super) in_flight: usize,
    /// Nothing is at work in any lane, and nothing begins in another one while this one holds.
    pub(super) all_idle: bool,
    /// A new request may be begun, until the next call or [`Lane::rest`].
    pub(super) may_take: bool,
}

impl<T> Lane<T> {
    /// Takes what is finished, and asks whether a new request may be begun, where one is `wanted`.
    pub(super) fn collect(&self, wanted: bool) -> Collected<T> {
        let mut queues = self.shared.lock();
        let mut others = queues.lanes.iter().filter(|(key, _)| **key != self.key);
        let may_take = wanted && !others.any(|(_, other)| other.holds);
        queues.set_takes(self.key, false);
        let all_idle = queues.busy == 0;
        queues.set_takes(self.key, may_take);
        let (finished, in_flight) = match queues.lanes.get_mut(&self.key) {
            Some(state) => (std::mem::take(&mut state.finished), state.in_flight),
            None => (Vec::new(), 0),
        };
        Collected {
            finished,
            in_flight,
            all_idle,
            may_take,
        }
    }

    /// Begins no new request before the next [`collect`](Self::collect).
    pub(super) fn rest(&self) {
        let mut queues = self.shared.lock();
        queues.set_takes(self.key, false);
        queues.tell_holders(self.key);
    }

    /// Holds the other lanes, or no longer.
    pub(super) fn hold(&mut self, holds: bool) {
        if self.holds != holds {
            self.holds = holds;
            self.shared.lock().set_holds(self.key, holds);
        }
    }

    /// Takes a job. How many there may be is for the caller to bound.
    pub(super) fn submit(&self, job: Job<T>) {
        let mut queues = self.shared.lock();
        queues.busy = queues.busy.saturating_add(1);
        if let Some(state) = queues.lanes.get_mut(&self.key) {
            state.in_flight = state.in_flight.saturating_add(1);
        }
        queues.jobs.push_back((self.key, job));
        drop(queues);
        self.shared.work.notify_one();
    }

    /// Waits until none of this lane's jobs is in flight.
    pub(super) fn wait_idle(&self) {
        let mut queues = self.shared.lock();
        while queues
            .lanes
            .get(&self.key)
            .is_some_and(|state| state.in_flight != 0)
        {
            queues = self
                .shared
                .idle
                .wait(queues)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The descriptor that is readable while results wait.
    pub(super) fn event(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// Another descriptor of it, to make it readable from elsewhere.
    pub(super) fn waker(&self) -> io::Result<EventFd> {
        self.event.try_clone()
    }

    /// Makes the event unreadable; results that come later make it readable again.
    pub(super) fn clear_event(&self) {
        // Not blocking, and an event that is not set is no error.
        let _ = self.event.read();
    }

    /// Makes the event readable, for a submitter that wants to be called again.
    pub(super) fn set_event(&self) {
        // Fails only where the counter is full, and then the event is readable anyway.
        let _ = self.event.write(1);
    }
}

impl<T> Drop for Lane<T> {
    fn drop(&mut self) {
        self.wait_idle();
        let mut queues = self.shared.lock();
        queues.set_takes(self.key, false);
        queues.set_holds(self.key, false);
        queues.lanes.remove(&self.key);
        queues.tell_holders(self.key);
    }
}

fn run<T>(shared: &Shared<T>) {
    loop {
        let mut queues = shared.lock();
        let (lane, job) = loop {
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
        let Job {
            request,
            backend,
            io,
        } = job;
        // A backend of an embedder's own may panic. That is one failed request, not a guest that
        // waits for ever: the backend is behind a shared reference and guards its own state.
        let outcome = catch_unwind(AssertUnwindSafe(|| io.run(&*backend)))
            .unwrap_or_else(|_| Err(io::Error::other("the backend panicked")));
        // The guest's pages are let go before anybody can learn that the request is done.
        drop(io);
        let mut queues = shared.lock();
        queues.busy = queues.busy.saturating_sub(1);
        let mut first = None;
        if let Some(state) = queues.lanes.get_mut(&lane) {
            state.finished.push(Finished { request, outcome });
            state.in_flight = state.in_flight.saturating_sub(1);
            // The taker empties the event before it takes, so the first result is enough.
            first = (state.finished.len() == 1).then(|| Arc::clone(&state.event));
            if state.in_flight == 0 {
                shared.idle.notify_all();
            }
        }
        queues.tell_holders(lane);
        drop(queues);
        if let Some(event) = first {
            let _ = event.write(1);
        }
    }
}
