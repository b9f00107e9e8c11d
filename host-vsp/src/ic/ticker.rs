//! A ticker: a file descriptor that becomes readable by the clock, or when it is rung.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// Ticks every period from its making on, whether or not anybody listens.
pub(super) struct Ticker {
    timer: OwnedFd,
    period: Timespec,
}

impl Ticker {
    pub fn new(period: Duration) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let ticker = Self {
            timer: timerfd_create(TimerfdClockId::Monotonic, flags)?,
            period: Timespec::try_from(period).map_err(io::Error::other)?,
        };
        ticker.set(ticker.period)?;
        Ok(ticker)
    }

    fn set(&self, first: Timespec) -> io::Result<()> {
        let times = Itimerspec {
            it_interval: self.period,
            it_value: first,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &times)?;
        Ok(())
    }

    /// Ticks now, and every period from now on.
    pub fn ring(&self) {
        let soon = Timespec {
            tv_sec: 0,
            tv_nsec: 1,
        };
        // The arguments are as good as those that `new` has tried.
        let _ = self.set(soon);
    }

    /// Makes it unreadable; whether it had ticked.
    pub fn clear(&self) -> bool {
        rustix::io::read(&self.timer, &mut [0; 8]).is_ok()
    }

    pub fn event(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}
