//! How long a net without room is waited for.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// As long as the guest's packets wait for room. Then their frames are lost, so that what else the
/// guest has to say is heard.
const PATIENCE: Duration = Duration::from_secs(1);

/// Since when a net has had no room.
pub(super) struct Patience {
    timer: OwnedFd,
    full_since: Option<Instant>,
}

impl Patience {
    /// With a net that has room.
    ///
    /// # Errors
    /// The system gives no file descriptor.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self {
            timer: timerfd_create(TimerfdClockId::Monotonic, flags)?,
            full_since: None,
        })
    }

    /// Readable when the net has been full for too long, until that is looked at.
    pub(super) fn event(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// Takes note of whether the net is full; whether it has been for too long.
    pub(super) fn is_over(&mut self, full: bool) -> bool {
        match self.full_since {
            None if !full => false,
            None => {
                self.full_since = Some(Instant::now());
                self.set(PATIENCE);
                false
            }
            Some(_) if !full => {
                self.full_since = None;
                self.set(Duration::ZERO);
                false
            }
            Some(since) => {
                let over = since.elapsed() >= PATIENCE;
                if over {
                    // Not blocking; a timer that has not rung is no error.
                    let _ = rustix::io::read(&self.timer, &mut [0; 8]);
                }
                over
            }
        }
    }

    /// Rings once, or not at all with a time of zero.
    fn set(&self, after: Duration) {
        let times = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec::try_from(after).unwrap_or_default(),
        };
        // The timer is ours and the time a good one.
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &times);
    }
}
