//! An adapter as its machine sees it: its address, its cable, and what it has counted.

use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmbus_proto::guid::Guid;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::counters::{Counter, Counters};

/// The smallest MTU: what IPv4 needs.
pub const MIN_MTU: u32 = 68;
/// The largest MTU.
pub const MAX_MTU: u32 = 9000;
/// The MTU of an adapter that is given none.
pub const DEFAULT_MTU: u32 = 1500;

/// The most queues of an adapter: as many channels as Linux takes.
pub const MAX_QUEUES: u16 = 64;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// What an adapter is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Which one it is: the same at each boot, or a guest takes it for another.
    pub instance: Guid,
    /// Its address.
    pub mac: Mac,
    /// The largest MTU that a guest may use, from [`MIN_MTU`] to [`MAX_MTU`].
    pub mtu: u32,
    /// Channels that a guest may have, at least one.
    pub queues: u16,
}

/// What a queue has counted.
#[derive(Clone, Debug, Default)]
pub struct QueueCounters {
    /// Frames sent by the guest.
    pub tx_frames: Counter,
    /// Their bytes.
    pub tx_bytes: Counter,
    /// Frames sent that were lost: the cable was pulled, or the net had no room.
    pub tx_lost: Counter,
    /// Messages of the guest that cannot be.
    pub tx_refused: Counter,
    /// Frames given to the guest.
    pub rx_frames: Counter,
    /// Their bytes.
    pub rx_bytes: Counter,
    /// Those of them that the guest got in pieces, their segments joined.
    pub rx_joined: Counter,
    /// Frames that the guest did not want.
    pub rx_filtered: Counter,
    /// Frames lost: they were too long, or the guest had no buffer for them.
    pub rx_lost: Counter,
}

impl QueueCounters {
    /// Those of queue `queue` of adapter `name`, among the machine's.
    pub fn named(counters: &Counters, name: &str, queue: u16) -> Self {
        let counter = |what| counters.counter(&format!("{name}.queue{queue}.{what}"));
        Self {
            tx_frames: counter("tx_frames"),
            tx_bytes: counter("tx_bytes"),
            tx_lost: counter("tx_lost"),
            tx_refused: counter("tx_refused"),
            rx_frames: counter("rx_frames"),
            rx_bytes: counter("rx_bytes"),
            rx_joined: counter("rx_joined"),
            rx_filtered: counter("rx_filtered"),
            rx_lost: counter("rx_lost"),
        }
    }
}

struct Shared {
    plugged: AtomicBool,
    event: EventFd,
}

/// An adapter's cable, to be pulled and plugged in by whoever holds this.
#[derive(Clone)]
pub struct Cable(Arc<Shared>);

impl Cable {
    /// A cable that is plugged in.
    ///
    /// # Errors
    /// The system gives no file descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            plugged: AtomicBool::new(true),
            event: EventFd::new(EFD_NONBLOCK)?,
        })))
    }

    /// Plugs it in or pulls it; the guest is told. Linux waits two seconds between changes.
    pub fn set_plugged(&self, plugged: bool) {
        // The worker that is woken by the event sees this.
        self.0.plugged.store(plugged, Ordering::Release);
        // An eventfd that is full is readable, which is all we want of it.
        let _ = self.0.event.write(1);
    }

    /// Whether it is plugged in.
    pub fn is_plugged(&self) -> bool {
        self.0.plugged.load(Ordering::Acquire)
    }

    /// Readable when it may have changed.
    pub(super) fn event(&self) -> RawFd {
        self.0.event.as_raw_fd()
    }

    /// Makes the event unreadable; look at the cable after it.
    pub(super) fn clear_event(&self) {
        // Not blocking; an event that was not set is no error.
        let _ = self.0.event.read();
    }
}
