//! Who may run now: processors' threads, and the one that supervises them.
//!
//! Each processor's thread asks [`Control::wait`] whether it may run and looks at
//! [`Control::is_running`] between any two visits to the guest. Whatever ends or resets the
//! machine is an [`Event`]: raising one stops all processors, and the supervisor decides.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::kvm::ioctls::Kicker;
use crate::kvm::vm::Vm;
use crate::machine::Event;

/// What the processors' threads should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Wait.
    Paused,
    /// Run the guest.
    Running,
    /// Return.
    Ended,
}

struct State {
    phase: Phase,
    /// Threads that are there.
    threads: usize,
    /// Of these, waiting.
    waiting: usize,
    events: VecDeque<Event>,
}

/// The switch between running, pausing and ending.
pub struct Control {
    vm: Arc<Vm>,
    state: Mutex<State>,
    changed: Condvar,
    /// `phase == Running`, to be read without the lock.
    running: AtomicBool,
}

/// A processor's thread, from its start to its end, however it ends.
pub(crate) struct Presence<'a>(&'a Control);

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.threads -= 1;
        if std::thread::panicking() {
            state
                .events
                .push_back(Event::failed("a processor's thread panicked"));
            self.0.set(&mut state, Phase::Paused);
        }
        self.0.changed.notify_all();
    }
}

impl Control {
    pub(crate) fn new(vm: Arc<Vm>) -> Self {
        Self {
            vm,
            state: Mutex::new(State {
                phase: Phase::Paused,
                threads: 0,
                waiting: 0,
                events: VecDeque::new(),
            }),
            changed: Condvar::new(),
            running: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn block<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: &mut State, phase: Phase) {
        if state.phase == Phase::Ended {
            return;
        }
        state.phase = phase;
        self.running
            .store(phase == Phase::Running, Ordering::SeqCst);
        self.changed.notify_all();
        if phase != Phase::Running {
            self.vm.kickers().iter().for_each(Kicker::kick);
        }
    }

    /// Before a run: threads may come.
    pub(crate) fn open(&self) {
        self.lock().phase = Phase::Paused;
    }

    /// A processor's thread begins.
    pub(crate) fn enter(&self) -> Presence<'_> {
        self.lock().threads += 1;
        Presence(self)
    }

    /// Waits until the calling processor may run; false: it shall end.
    pub(crate) fn wait(&self) -> bool {
        let mut state = self.lock();
        if state.phase == Phase::Paused {
            state.waiting += 1;
            self.changed.notify_all();
            while state.phase == Phase::Paused {
                state = self.block(state);
            }
            state.waiting -= 1;
        }
        state.phase == Phase::Running
    }

    /// Whether processors run.
    pub(crate) fn is_running(&self) -> bool {
        self.running.load(Ordering::SeqCst)
    }

    /// Stops all processors and tells the supervisor why.
    pub(crate) fn raise(&self, event: Event) {
        let mut state = self.lock();
        state.events.push_back(event);
        self.set(&mut state, Phase::Paused);
    }

    /// The supervisor waits for the next event.
    pub(crate) fn next_event(&self) -> Event {
        let mut state = self.lock();
        loop {
            match state.events.pop_front() {
                Some(event) => return event,
                None => state = self.block(state),
            }
        }
    }

    /// Tells the supervisor something that it answers, and waits for the answer; `None` where the
    /// run has ended or ends first.
    pub(crate) fn ask<T>(&self, event: impl FnOnce(Sender<T>) -> Event) -> Option<T> {
        let (reply, answer) = channel();
        {
            let mut state = self.lock();
            if state.phase == Phase::Ended {
                return None;
            }
            state.events.push_back(event(reply));
            self.set(&mut state, Phase::Paused);
        }
        answer.recv().ok()
    }

    /// Whether the run has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.lock().phase == Phase::Ended
    }

    /// Waits until no processor runs.
    pub(crate) fn pause(&self) {
        let mut state = self.lock();
        self.set(&mut state, Phase::Paused);
        while state.waiting < state.threads {
            state = self.block(state);
        }
    }

    /// Forgets resets that were asked for before the one that is being done.
    pub(crate) fn forget_resets(&self) {
        self.lock()
            .events
            .retain(|event| !matches!(event, Event::Reset(_)));
    }

    /// Lets the processors run, unless something else is to be decided first.
    pub(crate) fn resume(&self) {
        let mut state = self.lock();
        if state.events.is_empty() {
            self.set(&mut state, Phase::Running);
        }
    }

    /// Ends all processors' threads. Nobody gets an answer any more.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        self.set(&mut state, Phase::Ended);
        state.events.clear();
    }
}
