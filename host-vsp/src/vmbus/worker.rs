//! A worker: the thread that serves one open channel.
//!
//! It sleeps until the guest rings the doorbell, the device's backend has something, or it is
//! told to stop. Awake, it masks the guest's doorbell, lets the VSP work, gives the ring's room
//! back, raises one interrupt for the whole batch, and looks once more before it sleeps.
#![warn(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::channel::{Channel, ChannelError};
use crate::hv::Interrupts;
use crate::vsp::Vsp;

/// What a channel did, for whoever asks.
#[derive(Debug, Default)]
pub struct ChannelCounters {
    /// Times the worker woke up.
    pub wakeups: AtomicU64,
    /// Interrupts raised.
    pub interrupts: AtomicU64,
    /// Times the guest made the channel stop or not open, by a corrupt ring, say.
    pub failures: AtomicU64,
}

/// How long to sleep on a full ring whose guest does not say when it has made room, in
/// milliseconds.
const ROOM_POLL: i32 = 2;

/// Failures of one channel that are told at level warn: a guest must not fill a log.
const FAILURES_TOLD: u64 = 8;

impl ChannelCounters {
    /// Counts a failure; whether to tell of it.
    pub(super) fn failed(&self) -> bool {
        self.failures.fetch_add(1, Ordering::Relaxed) < FAILURES_TOLD
    }
}

/// Where a channel's interrupts go. The lock is held while one is raised, so that after a change
/// of target the old processor gets no more.
struct Target {
    relid: u32,
    vp: Mutex<Option<u32>>,
    interrupts: Arc<dyn Interrupts>,
    counters: Arc<ChannelCounters>,
}

impl Target {
    fn signal(&self, always: bool) {
        let vp = self.vp.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(vp) = *vp {
            self.counters.interrupts.fetch_add(1, Ordering::Relaxed);
            if always {
                self.interrupts.signal_always(vp, self.relid);
            } else {
                self.interrupts.signal(vp, self.relid);
            }
        }
    }

    fn retarget(&self, new: Option<u32>) {
        let mut vp = self.vp.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = std::mem::replace(&mut *vp, new) {
            self.interrupts.clear(old, self.relid);
        }
    }
}

/// What a stopped worker gives back.
pub struct Stopped {
    /// The device.
    pub vsp: Box<dyn Vsp>,
    /// Read index of `to_host` and write index of `to_guest`.
    pub indices: (u32, u32),
}

/// What a worker serves its channel with, besides the device.
pub(super) struct Serving {
    pub(super) relid: u32,
    /// VP index to interrupt.
    pub(super) vp: Option<u32>,
    pub(super) interrupts: Arc<dyn Interrupts>,
    pub(super) counters: Arc<ChannelCounters>,
    pub(super) sub_channels: SubChannels,
}

/// The sub-channels beside the channel of a worker.
pub(super) struct SubChannels {
    /// They are numbered from 1 to this.
    pub(super) offered: u16,
    /// Has another one offered. Does not wait: the control thread may be waiting for this one.
    pub(super) offer: Box<dyn Fn(u16, Box<dyn Vsp>) + Send>,
}

impl SubChannels {
    /// Has those offered that the device wants and are not yet.
    fn follow(&mut self, vsp: &mut dyn Vsp) {
        let wanted = vsp.sub_channels();
        while self.offered < wanted {
            self.offered = self.offered.saturating_add(1);
            match vsp.sub_channel(self.offered) {
                Ok(sub_channel) => (self.offer)(self.offered, sub_channel),
                Err(error) => tracing::warn!(%error, "there can be no sub-channel"),
            }
        }
    }
}

/// A running worker.
pub struct Worker {
    stop: Arc<Stop>,
    target: Arc<Target>,
    thread: JoinHandle<Option<Stopped>>,
}

struct Stop {
    asked: AtomicBool,
    event: EventFd,
}

impl Worker {
    /// Starts serving `channel` by `vsp`. On failure the device comes back with the reason.
    pub(super) fn start(
        vsp: Box<dyn Vsp>,
        channel: Channel,
        doorbell: Arc<EventFd>,
        serving: Serving,
    ) -> Result<Self, (Option<Box<dyn Vsp>>, io::Error)> {
        let prepared = EventFd::new(EFD_NONBLOCK).and_then(|event| {
            let stop = Arc::new(Stop {
                asked: AtomicBool::new(false),
                event,
            });
            let sleep = Sleep::new(&doorbell, &stop.event, vsp.event())?;
            Ok((stop, sleep))
        });
        let (stop, sleep) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return Err((Some(vsp), error)),
        };
        let Serving {
            relid,
            vp,
            interrupts,
            counters,
            sub_channels,
        } = serving;
        let target = Arc::new(Target {
            relid,
            vp: Mutex::new(vp),
            interrupts,
            counters,
        });
        // The device goes in by a slot, so that it is not lost where no thread can be had.
        let slot = Arc::new(Mutex::new(Some((vsp, channel))));
        let thread = std::thread::Builder::new()
            .name(format!("channel-{relid}"))
            .spawn({
                let (slot, stop, target) =
                    (Arc::clone(&slot), Arc::clone(&stop), Arc::clone(&target));
                move || {
                    let taken = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
                    let (vsp, channel) = taken?;
                    let inner = Inner {
                        vsp,
                        channel,
                        sub_channels,
                    };
                    Some(inner.run(&doorbell, &sleep, &stop, &target))
                }
            });
        match thread {
            Ok(thread) => Ok(Self {
                stop,
                target,
                thread,
            }),
            Err(error) => {
                let taken = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
                Err((taken.map(|(vsp, _)| vsp), error))
            }
        }
    }

    /// Sends interrupts to `vp` from now on.
    pub fn retarget(&self, vp: Option<u32>) {
        self.target.retarget(vp);
    }

    /// Raises an interrupt whatever the event flag says.
    pub fn kick(&self) {
        self.target.signal(true);
    }

    /// Stops, with no transfer left on guest memory, and gives the device back; `None` where the
    /// device's code panicked.
    pub fn stop(self) -> Option<Stopped> {
        self.stop.asked.store(true, Ordering::Release);
        // The counter of an eventfd that only we write cannot overflow.
        let _ = self.stop.event.write(1);
        let stopped = self.thread.join().ok().flatten();
        self.target.retarget(None);
        stopped
    }
}

/// What a sleeping worker waits for.
struct Sleep {
    epoll: Epoll,
}

impl Sleep {
    fn new(doorbell: &EventFd, stop: &EventFd, device: Option<RawFd>) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let fds = [Some(doorbell.as_raw_fd()), Some(stop.as_raw_fd()), device];
        for fd in fds.into_iter().flatten() {
            let event = EpollEvent::new(EventSet::IN, fd as u64);
            epoll.ctl(ControlOperation::Add, fd, event)?;
        }
        Ok(Self { epoll })
    }

    /// Waits for an event, or for `limit` milliseconds where there is one.
    fn wait(&self, limit: Option<i32>) -> io::Result<()> {
        let mut events = [EpollEvent::default(); 3];
        match self.epoll.wait(limit.unwrap_or(-1), &mut events) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }
}

/// What the worker's thread owns.
struct Inner {
    vsp: Box<dyn Vsp>,
    channel: Channel,
    sub_channels: SubChannels,
}

impl Inner {
    fn run(mut self, doorbell: &EventFd, sleep: &Sleep, stop: &Stop, target: &Target) -> Stopped {
        while !stop.asked.load(Ordering::Acquire) {
            target.counters.wakeups.fetch_add(1, Ordering::Relaxed);
            // Empty the doorbell before looking: a ring that comes later wakes us again. It is not
            // blocking, and an empty one is no error.
            let _ = doorbell.read();
            let outcome = self.work(stop, target);
            if let Err(error) = outcome {
                if target.counters.failed() {
                    tracing::warn!(relid = target.relid, %error, "channel stopped");
                }
                break;
            }
            if stop.asked.load(Ordering::Acquire) {
                break;
            }
            if let Err(error) = sleep.wait(self.channel.must_poll().then_some(ROOM_POLL)) {
                tracing::error!(relid = target.relid, %error, "channel stopped: cannot wait");
                break;
            }
        }
        self.vsp.quiesce();
        Stopped {
            indices: self.channel.indices(),
            vsp: self.vsp,
        }
    }

    /// Serves until there is nothing to do without waiting.
    fn work(&mut self, stop: &Stop, target: &Target) -> Result<(), ChannelError> {
        loop {
            self.channel.mask();
            let outcome = self.vsp.service(&mut self.channel);
            // What was done before a failure is still the guest's to know.
            self.channel.commit()?;
            if self.channel.take_signal().is_needed() {
                target.signal(false);
            }
            outcome?;
            if stop.asked.load(Ordering::Acquire) {
                return Ok(());
            }
            self.sub_channels.follow(&mut *self.vsp);
            // A VSP that left packets in the ring waits for its backend or for room. The guest need
            // not ring for more packets until then; for room it rings whatever the mask says.
            if !self.channel.is_drained() || !self.channel.unmask()? {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_failures_are_told() {
        let counters = ChannelCounters::default();
        let told = (0..1000).filter(|_| counters.failed()).count() as u64;
        assert_eq!(told, FAILURES_TOLD);
        assert_eq!(counters.failures.load(Ordering::Relaxed), 1000);
    }
}
