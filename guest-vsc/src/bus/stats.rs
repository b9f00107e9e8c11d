//! What a bus counts: above all, what the host should not have done.

use core::sync::atomic::{AtomicU32, Ordering};

/// What a bus has counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Channel messages taken.
    pub messages: u32,
    /// Event flags taken.
    pub events: u32,
    /// Messages that could not be parsed, or were not for a guest.
    pub bad_messages: u32,
    /// Answers that nobody waited for, and messages out of order.
    pub unexpected: u32,
    /// Offers with a bad or repeated relid.
    pub bad_offers: u32,
    /// Offers for which the table had no place.
    pub dropped_offers: u32,
    /// Event flags without a channel.
    pub stray_events: u32,
    /// Doorbells that the hypervisor refused.
    pub failed_signals: u32,
    /// Completions that answer no request, or do so a second time.
    pub bad_completions: u32,
    /// Packets that mean nothing in their device's protocol, or not at that time.
    pub bad_packets: u32,
}

/// The counters behind [`Stats`].
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) messages: AtomicU32,
    pub(crate) events: AtomicU32,
    pub(crate) bad_messages: AtomicU32,
    pub(crate) unexpected: AtomicU32,
    pub(crate) bad_offers: AtomicU32,
    pub(crate) dropped_offers: AtomicU32,
    pub(crate) stray_events: AtomicU32,
    pub(crate) failed_signals: AtomicU32,
    pub(crate) bad_completions: AtomicU32,
    pub(crate) bad_packets: AtomicU32,
}

impl Counters {
    pub(super) fn snapshot(&self) -> Stats {
        let read = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
        Stats {
            messages: read(&self.messages),
            events: read(&self.events),
            bad_messages: read(&self.bad_messages),
            unexpected: read(&self.unexpected),
            bad_offers: read(&self.bad_offers),
            dropped_offers: read(&self.dropped_offers),
            stray_events: read(&self.stray_events),
            failed_signals: read(&self.failed_signals),
            bad_completions: read(&self.bad_completions),
            bad_packets: read(&self.bad_packets),
        }
    }
}

/// Adds one to a counter.
pub(crate) fn count(counter: &AtomicU32) {
    counter.fetch_add(1, Ordering::Relaxed);
}
