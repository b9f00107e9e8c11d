//! The guest's file systems stand still, but never for longer than was said.
//!
//! Whoever freezes a guest's file systems may die before it thaws them, and then the guest hangs.
//! So each freeze has a thread that thaws when it is told to, when the time is over, or when the
//! [`Frozen`] that stands for it is dropped, and that tries again as long as the guest is there and
//! does not answer.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::ic;

/// The longest that file systems may stand still: Linux thaws by itself after a quarter of an hour.
pub const LONGEST: Duration = Duration::from_secs(600);

/// How long the guest may take to freeze or to thaw.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two attempts to thaw a guest that does not answer.
const PAUSE: Duration = Duration::from_millis(500);

/// Attempts: for about as long as Linux holds file systems frozen.
const ATTEMPTS: u32 = 900;

/// Why file systems are not as they were asked to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Somebody else froze them.
    #[error("the guest's file systems stand still already, or are about to: thaw them first")]
    Already,
    /// Nobody froze them.
    #[error("the guest's file systems are not frozen")]
    NotFrozen,
    /// It would be too long, or no time at all.
    #[error("file systems can stand still for 1 to {} seconds", LONGEST.as_secs())]
    Limit,
    /// The guest.
    #[error("{0}")]
    Guest(ic::Error),
    /// The system has no thread for it.
    #[error("the system gives no thread that would thaw the guest's file systems")]
    NoThread,
}

/// What the file systems are asked by: [`ic::Vss`] in a machine.
pub trait FileSystems: Send + Sync + 'static {
    /// See [`ic::Vss::freeze`].
    ///
    /// # Errors
    /// The guest does not listen, does not answer or cannot.
    fn freeze(&self, patience: Duration) -> Result<(), ic::Error>;
    /// See [`ic::Vss::thaw`].
    ///
    /// # Errors
    /// The guest does not listen, does not answer or cannot.
    fn thaw(&self, patience: Duration) -> Result<(), ic::Error>;
}

impl FileSystems for ic::Vss {
    fn freeze(&self, patience: Duration) -> Result<(), ic::Error> {
        Self::freeze(self, patience)
    }

    fn thaw(&self, patience: Duration) -> Result<(), ic::Error> {
        Self::thaw(self, patience)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Moving,
    Freezing,
    Frozen,
    Thawing,
}

struct State {
    stage: Stage,
    /// Counts freezes: a [`Frozen`] thaws its own only.
    number: u64,
    /// The file systems shall go on.
    thaw: bool,
    /// How the last thaw went.
    outcome: Result<(), ic::Error>,
}

struct Shared {
    guest: Box<dyn FileSystems>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, stage: Stage) {
        self.lock().stage = stage;
        self.changed.notify_all();
    }

    /// Waits until the file systems shall go on, at most until `deadline`.
    fn wait(&self, deadline: Instant) {
        let mut state = self.lock();
        while !state.thaw {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!("the guest's file systems stood still long enough: they are thawed");
                return;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Has the file systems go on, whatever it takes.
    fn thaw(&self) {
        self.set(Stage::Thawing);
        let mut outcome = self.guest.thaw(PATIENCE);
        for _ in 0..ATTEMPTS {
            match outcome {
                // It is paused, or slow.
                Err(ic::Error::NotReady | ic::Error::NoAnswer | ic::Error::Busy) => {}
                // Done, or another guest that knows of no freeze.
                _ => break,
            }
            std::thread::sleep(PAUSE);
            outcome = self.guest.thaw(PATIENCE);
        }
        if let Err(error) = outcome {
            tracing::error!(%error, "the guest's file systems may still stand still");
        }
        let mut state = self.lock();
        state.stage = Stage::Moving;
        state.outcome = outcome;
        self.changed.notify_all();
    }
}

/// File systems that stand still; dropped, they go on, unless it was [kept](Self::keep).
pub struct Frozen {
    release: Option<Box<dyn FnOnce() + Send + Sync>>,
    ended: oneshot::Receiver<()>,
}

impl fmt::Debug for Frozen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frozen").finish_non_exhaustive()
    }
}

impl Frozen {
    /// What `release` thaws; `ended` hears when that is done, whoever did it.
    pub fn new(
        release: impl FnOnce() + Send + Sync + 'static,
        ended: oneshot::Receiver<()>,
    ) -> Self {
        Self {
            release: Some(Box::new(release)),
            ended,
        }
    }

    /// They stand still until somebody thaws them or their time is over.
    pub fn keep(mut self) {
        self.release = None;
    }

    /// Resolves when they go on.
    pub(crate) fn ended(&mut self) -> &mut oneshot::Receiver<()> {
        &mut self.ended
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Some(release) = self.release.take() {
            release();
        }
    }
}

/// Freezes and thaws one guest's file systems.
#[derive(Clone)]
pub struct Freezer(Arc<Shared>);

impl Freezer {
    /// For `guest`.
    pub fn new(guest: impl FileSystems) -> Self {
        Self(Arc::new(Shared {
            guest: Box::new(guest),
            state: Mutex::new(State {
                stage: Stage::Moving,
                number: 0,
                thaw: false,
                outcome: Ok(()),
            }),
            changed: Condvar::new(),
        }))
    }

    /// Whether they stand still, as far as this side knows.
    pub fn is_frozen(&self) -> bool {
        matches!(self.0.lock().stage, Stage::Frozen | Stage::Thawing)
    }

    /// Has the guest's file systems write everything and stand still, at most for `limit`.
    ///
    /// # Errors
    /// Why not. Where the guest gave no answer, it is thawed, in case it freezes later.
    pub fn freeze(&self, limit: Duration) -> Result<Frozen, Error> {
        if limit.is_zero() || limit > LONGEST {
            return Err(Error::Limit);
        }
        let number = {
            let mut state = self.0.lock();
            if state.stage != Stage::Moving {
                return Err(Error::Already);
            }
            state.stage = Stage::Freezing;
            state.thaw = false;
            state.number += 1;
            state.number
        };
        // Begun before, so that there is a thread when it is needed.
        let (begin, begun) = std::sync::mpsc::channel::<Option<Instant>>();
        let (end, ended) = oneshot::channel::<()>();
        let shared = Arc::clone(&self.0);
        let thread = std::thread::Builder::new().name("thaw".into());
        let spawned = thread.spawn(move || {
            if let Ok(deadline) = begun.recv() {
                if let Some(deadline) = deadline {
                    shared.set(Stage::Frozen);
                    shared.wait(deadline);
                }
                shared.thaw();
            } else {
                shared.set(Stage::Moving);
            }
            drop(end);
        });
        if spawned.is_err() {
            self.0.set(Stage::Moving);
            return Err(Error::NoThread);
        }
        let answer = self.0.guest.freeze(PATIENCE);
        let _ = match answer {
            Ok(()) => begin.send(Some(Instant::now() + limit)),
            // It is to be thawed at once, should it freeze.
            Err(ic::Error::NoAnswer | ic::Error::Gone | ic::Error::Malformed) => begin.send(None),
            Err(_) => Ok(()),
        };
        drop(begin);
        answer.map_err(Error::Guest)?;
        let shared = Arc::clone(&self.0);
        let release = move || {
            let mut state = shared.lock();
            if state.number == number {
                state.thaw = true;
                shared.changed.notify_all();
            }
        };
        Ok(Frozen::new(release, ended))
    }

    /// Has the file systems go on, and waits until they do.
    ///
    /// # Errors
    /// They were not frozen, or the guest does not thaw them, which is tried further on.
    pub fn thaw(&self) -> Result<(), Error> {
        let mut state = self.0.lock();
        if state.stage == Stage::Moving {
            return Err(Error::NotFrozen);
        }
        state.thaw = true;
        self.0.changed.notify_all();
        let number = state.number;
        let (state, waited) = self
            .0
            .changed
            .wait_timeout_while(state, PATIENCE, |state| {
                state.stage != Stage::Moving && state.number == number
            })
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return Err(Error::Guest(ic::Error::NoAnswer));
        }
        state.outcome.map_err(Error::Guest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest that counts, and answers what it is told to.
    #[derive(Clone, Default)]
    struct Guest(Arc<Mutex<Log>>);

    #[derive(Default)]
    struct Log {
        freezes: u32,
        thaws: u32,
        freeze: Option<ic::Error>,
        /// For so many times.
        thaw: Option<(u32, ic::Error)>,
    }

    impl FileSystems for Guest {
        fn freeze(&self, _: Duration) -> Result<(), ic::Error> {
            let mut log = self.0.lock().unwrap();
            log.freezes += 1;
            log.freeze.map_or(Ok(()), Err)
        }

        fn thaw(&self, _: Duration) -> Result<(), ic::Error> {
            let mut log = self.0.lock().unwrap();
            log.thaws += 1;
            match &mut log.thaw {
                Some((times @ 1.., error)) => {
                    *times -= 1;
                    Err(*error)
                }
                _ => Ok(()),
            }
        }
    }

    const SOON: Duration = Duration::from_millis(50);
    const LATE: Duration = Duration::from_secs(20);

    fn setup() -> (Freezer, Guest) {
        let guest = Guest::default();
        (Freezer::new(guest.clone()), guest)
    }

    fn counts(guest: &Guest) -> (u32, u32) {
        let log = guest.0.lock().unwrap();
        (log.freezes, log.thaws)
    }

    /// Waits until the file systems go on.
    fn moving(freezer: &Freezer) {
        let state = freezer.0.lock();
        let waited = freezer
            .0
            .changed
            .wait_timeout_while(state, LATE, |state| state.stage != Stage::Moving)
            .unwrap();
        assert!(!waited.1.timed_out(), "nobody thaws");
    }

    /// Waits until the thread knows.
    fn frozen(freezer: &Freezer) {
        let end = Instant::now() + LATE;
        while !freezer.is_frozen() {
            assert!(Instant::now() < end, "they do not stand still");
            std::thread::yield_now();
        }
    }

    #[test]
    fn it_thaws_when_told_to_and_once() {
        let (freezer, guest) = setup();
        assert_eq!(freezer.thaw(), Err(Error::NotFrozen));
        freezer.freeze(LATE).unwrap().keep();
        frozen(&freezer);
        assert_eq!(freezer.freeze(LATE).unwrap_err(), Error::Already);
        assert_eq!(counts(&guest), (1, 0));
        freezer.thaw().unwrap();
        assert_eq!(freezer.thaw(), Err(Error::NotFrozen));
        assert_eq!(counts(&guest), (1, 1));
        assert!(!freezer.is_frozen());
    }

    #[test]
    fn it_thaws_when_the_time_is_over() {
        let (freezer, guest) = setup();
        let begin = Instant::now();
        freezer.freeze(SOON).unwrap().keep();
        moving(&freezer);
        assert!(begin.elapsed() >= SOON);
        assert_eq!(counts(&guest), (1, 1));
        for limit in [Duration::ZERO, LONGEST + SOON] {
            assert_eq!(freezer.freeze(limit).unwrap_err(), Error::Limit);
        }
    }

    #[test]
    fn it_thaws_when_whoever_froze_is_gone() {
        let (freezer, guest) = setup();
        let mut held = freezer.freeze(LATE).unwrap();
        assert!(held.ended().try_recv().is_err());
        drop(held);
        moving(&freezer);
        assert_eq!(counts(&guest), (1, 1));
        // What is over long ago thaws nobody else's.
        let old = freezer.freeze(SOON).unwrap();
        moving(&freezer);
        freezer.freeze(LATE).unwrap().keep();
        frozen(&freezer);
        drop(old);
        std::thread::sleep(SOON);
        assert!(freezer.is_frozen());
        freezer.thaw().unwrap();
    }

    #[test]
    fn a_guest_that_does_not_answer_is_thawed_until_it_does() {
        let (freezer, guest) = setup();
        guest.0.lock().unwrap().thaw = Some((2, ic::Error::NotReady));
        freezer.freeze(LATE).unwrap().keep();
        freezer.thaw().unwrap();
        assert_eq!(counts(&guest), (1, 3));
        // It may freeze yet.
        guest.0.lock().unwrap().freeze = Some(ic::Error::NoAnswer);
        let error = freezer.freeze(LATE).unwrap_err();
        assert_eq!(error, Error::Guest(ic::Error::NoAnswer));
        moving(&freezer);
        assert_eq!(counts(&guest), (2, 4));
        // It will not.
        guest.0.lock().unwrap().freeze = Some(ic::Error::Refused(5));
        let error = freezer.freeze(LATE).unwrap_err();
        assert_eq!(error, Error::Guest(ic::Error::Refused(5)));
        moving(&freezer);
        assert_eq!(counts(&guest), (3, 4));
    }
}
