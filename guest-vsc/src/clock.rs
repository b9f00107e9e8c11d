//! The partition's reference time: a clock that every guest has.
//!
//! [`VmBus::clock`](crate::VmBus::clock) has it ready. It counts units of 100 ns since the partition was made. An MSR reads it at the
//! price of an exit; where the hypervisor offers the reference TSC page, a multiplication does
//! (TLFS 12.7). The page says by its sequence 0 that it cannot be used now, for example
//! where the host's own TSC is not stable.
#![expect(unsafe_code, reason = "privileged instructions through `Hal`")]

use core::marker::PhantomData;
use core::sync::atomic::{Ordering, fence};
use core::time::Duration;

use vmbus_proto::hv::cpuid::privilege;
use vmbus_proto::hv::msr;

use crate::arch;
use crate::hal::Hal;
use crate::hypervisor::{Features, PAGE_BITS, change_msr};
use crate::shared::Dma;

/// Offset of the sequence in the reference TSC page, in bytes; a `u32`.
const TSC_SEQUENCE: usize = 0;
/// Offset of the scale, in bytes; a `u64` fraction of 2^64.
const TSC_SCALE: usize = 8;
/// Offset of the offset, in bytes; an `i64` in units of 100 ns.
const TSC_OFFSET: usize = 16;

/// The reference clock.
pub struct ReferenceClock<H: Hal> {
    /// The reference TSC page, where there is one.
    page: Option<Dma<H>>,
    hal: PhantomData<fn() -> H>,
}

impl<H: Hal> ReferenceClock<H> {
    /// Sets up the reference TSC page where the hypervisor offers it. The clock works without.
    pub(crate) fn new(features: &Features) -> Self {
        let offered = features.privileges & privilege::REFERENCE_TSC != 0;
        let page = offered.then(|| Dma::new(1)).flatten();
        if let Some(page) = &page {
            page.lend();
            // SAFETY: the privilege was checked; the page is lent until the register is cleared.
            unsafe {
                change_msr::<H>(
                    msr::REFERENCE_TSC,
                    PAGE_BITS,
                    page.paddr() | msr::PAGE_ENABLE,
                )
            };
        }
        Self {
            page,
            hal: PhantomData,
        }
    }

    /// The time in units of 100 ns since the partition was made. Never waits; may be called in
    /// interrupt context, on any processor.
    pub fn now(&self) -> u64 {
        self.page
            .as_ref()
            .and_then(Self::by_tsc)
            .unwrap_or_else(|| {
                // SAFETY: the privilege was checked at detection; reading has no effect.
                unsafe { H::rdmsr(msr::TIME_REF_COUNT) }
            })
    }

    /// The time since the partition was made.
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos_u128(u128::from(self.now()).saturating_mul(100))
    }

    /// Whether reading the clock costs no exit now: the hypervisor has filled the reference TSC
    /// page.
    pub fn is_by_tsc(&self) -> bool {
        self.page
            .as_ref()
            .is_some_and(|page| Self::by_tsc(page).is_some())
    }

    /// The time by the page; `None` while it says no, or where it never stands still.
    fn by_tsc(page: &Dma<H>) -> Option<u64> {
        let sequence = page.u32_at(TSC_SEQUENCE)?;
        // The hypervisor changes the page once in an age, at a migration: a few tries are plenty.
        for _ in 0..4 {
            let before = sequence.load(Ordering::Acquire);
            if before == 0 {
                return None;
            }
            let scale = page.u64_at(TSC_SCALE)?.load(Ordering::Relaxed);
            let offset = page.u64_at(TSC_OFFSET)?.load(Ordering::Relaxed);
            let tsc = arch::rdtsc();
            fence(Ordering::Acquire);
            if sequence.load(Ordering::Relaxed) == before {
                let ticks = u128::from(tsc).wrapping_mul(u128::from(scale)) >> 64;
                return Some((ticks as u64).wrapping_add(offset));
            }
        }
        None
    }
}

impl<H: Hal> Drop for ReferenceClock<H> {
    fn drop(&mut self) {
        if let Some(page) = &self.page {
            // SAFETY: the register takes zero, and the page is not used after.
            unsafe { change_msr::<H>(msr::REFERENCE_TSC, PAGE_BITS, 0) };
            page.reclaim();
        }
    }
}

/// Units of 100 ns in a second.
const UNITS_PER_SECOND: u64 = 10_000_000;
/// Turns of a wait before the clock is read first: most waits are over by then.
const FIRST_TURNS: u32 = 8;
/// Most turns between two readings. Turns that were short may become as long as a sleep, so a wait
/// may last this many sleeps too long.
const MOST_TURNS: u32 = 64;
/// Readings that are closer than this, in units of 100 ns, are too many: a reading may cost an
/// exit.
const CLOSE: u64 = 1_000;
/// Readings that are further apart than this, in units of 100 ns, are too few.
const FAR: u64 = 20_000;

/// The end of a wait.
///
/// A turn of a wait may take nanoseconds or, where it sleeps, milliseconds. So the number of
/// turns between two readings of the clock follows from what the last ones took.
pub(crate) struct Deadline<'a, H: Hal> {
    clock: &'a ReferenceClock<H>,
    /// How long to wait, from the first reading on, in units of 100 ns.
    timeout: u64,
    /// Reference times of the end and of the last reading.
    end_and_last: Option<(u64, u64)>,
    /// Turns until the next reading, and how many there are between two.
    turns: u32,
    interval: u32,
}

impl<'a, H: Hal> Deadline<'a, H> {
    // Once for each wait, in many places.
    #[inline(never)]
    pub(crate) fn new(clock: &'a ReferenceClock<H>, timeout: Duration) -> Self {
        Self {
            clock,
            // As `as_nanos` would say it, but a division of 128 bits is a lot of code.
            timeout: timeout
                .as_secs()
                .saturating_mul(UNITS_PER_SECOND)
                .saturating_add(u64::from(timeout.subsec_nanos() / 100)),
            end_and_last: None,
            turns: FIRST_TURNS,
            interval: 1,
        }
    }

    /// Whether the wait is over. Asked once at each turn of a wait.
    pub(crate) fn is_over(&mut self) -> bool {
        self.turns = self.turns.saturating_sub(1);
        if self.turns != 0 {
            return false;
        }
        let now = self.clock.now();
        let end = match self.end_and_last {
            None => now.saturating_add(self.timeout),
            Some((end, last)) => {
                let elapsed = now.saturating_sub(last);
                if elapsed < CLOSE {
                    self.interval = self.interval.saturating_mul(2).min(MOST_TURNS);
                } else if elapsed > FAR {
                    self.interval = (self.interval / 2).max(1);
                }
                end
            }
        };
        self.end_and_last = Some((end, now));
        self.turns = self.interval;
        now >= end
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use core::ptr::NonNull;
    use std::cell::Cell;

    use crate::hal::{BufferDirection, PhysAddr};

    std::thread_local! {
        static NOW: Cell<u64> = const { Cell::new(0) };
    }

    /// A kernel with nothing but a clock.
    struct OnlyClock;

    // SAFETY: nothing is allocated or shared.
    unsafe impl Hal for OnlyClock {
        fn dma_alloc(_: usize, _: BufferDirection) -> Option<(PhysAddr, NonNull<u8>)> {
            None
        }
        unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) {}
        unsafe fn share(_: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
            0
        }
        unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
        fn code_to_phys(_: NonNull<u8>) -> PhysAddr {
            0
        }
        fn current_cpu() -> usize {
            0
        }
        unsafe fn rdmsr(_: u32) -> u64 {
            NOW.get()
        }
    }

    #[test]
    fn a_wait_whose_turns_become_sleeps_ends_soon_after_its_time() {
        const SECOND: u64 = 10_000_000;
        let clock = ReferenceClock::<OnlyClock>::new(&Features {
            privileges: 0,
            features: 0,
            hints: 0,
        });
        let mut deadline = Deadline::new(&clock, Duration::from_secs(2));
        let mut turn = |length: u64| {
            NOW.set(NOW.get() + length);
            deadline.is_over()
        };
        // Short turns for a second, as while others make noise; then sleeps of 50 ms.
        while NOW.get() < SECOND {
            assert!(!turn(1));
        }
        while !turn(SECOND / 20) {
            assert!(NOW.get() < 60 * SECOND, "the wait does not end");
        }
        let late = NOW.get() - 2 * SECOND;
        assert!(late <= 4 * SECOND, "late by {late}");
    }
}
