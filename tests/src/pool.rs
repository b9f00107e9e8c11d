//! The L1s that the workers share, and the count of those that died.

use std::sync::{Mutex, MutexGuard};

use bed::l1::{Drive, L1};
use bed::provision::debian_root;

/// More L1s than this dying in one run fail it.
pub const BED_DEATHS_ALLOWED: usize = 2;

/// The name of the disk with Debian's root file system, which they all have.
pub(crate) const ROOT: &str = "debian-root";

/// Idle L1s; a worker that finds none boots its own, so there are never more than workers.
#[derive(Default)]
pub(crate) struct Pool {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    idle: Vec<L1>,
    deaths: usize,
}

impl Pool {
    /// An L1 that answers.
    pub(crate) fn take(&self) -> bed::Result<L1> {
        let idle = self.lock().idle.pop();
        match idle {
            Some(l1) => Ok(l1),
            None => L1::setup()
                .drive(Drive::read_only(ROOT, debian_root::get()?))
                .boot(),
        }
    }

    /// Keeps a healthy L1 for the next story.
    pub(crate) fn give_back(&self, l1: L1) {
        self.lock().idle.push(l1);
    }

    /// Counts a death; the number of deaths so far.
    pub(crate) fn count_death(&self) -> usize {
        let mut state = self.lock();
        state.deaths += 1;
        state.deaths
    }

    /// Deaths so far.
    pub(crate) fn deaths(&self) -> usize {
        self.lock().deaths
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
