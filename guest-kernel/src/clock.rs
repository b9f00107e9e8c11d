//! Time since boot, from the time stamp counter, and deadlines.
#![expect(unsafe_code, reason = "the RDTSC instruction and an MSR")]

use crate::cpu::{hypervisor, port};
use core::arch::x86_64::_rdtsc;
use core::time::Duration;
use spin::Once;
use vmbus_proto::hv::msr;
use x86_64::registers::model_specific::Msr;

/// Where the counter's rate is known from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source {
    /// The hypervisor said so.
    HypervMsr,
    /// Measured against the 8254 timer.
    Measured,
    /// Nobody knows: taken to be 1 GHz. Deadlines are still reached, only not on time.
    Assumed,
}

struct Clock {
    start: u64,
    /// Nanoseconds per count, times 2^32.
    scale: u64,
}

static CLOCK: Once<Clock> = Once::new();

fn counter() -> u64 {
    // SAFETY: every 64-bit CPU has the instruction, and the kernel never forbids it.
    unsafe { _rdtsc() }
}

/// Finds out the counter's rate, in Hz, and starts the clock.
pub(crate) fn init() -> (u64, Source) {
    let (rate, source) = rate();
    CLOCK.call_once(|| Clock {
        start: counter(),
        scale: ((1_000_000_000_u128 << 32) / u128::from(rate)) as u64,
    });
    (rate, source)
}

fn rate() -> (u64, Source) {
    if hypervisor::has_frequency_msrs() {
        // SAFETY: CPUID says that the MSR exists; reading it changes nothing.
        let rate = unsafe { Msr::new(msr::TSC_FREQUENCY).read() };
        if rate != 0 {
            return (rate, Source::HypervMsr);
        }
    }
    match measure() {
        Some(rate) => (rate, Source::Measured),
        None => (1_000_000_000, Source::Assumed),
    }
}

/// Counts while channel 2 of the 8254 runs down for 10 ms. `None` if there is no such timer.
fn measure() -> Option<u64> {
    const FREQUENCY: u64 = 1_193_182;
    const COUNT: u16 = 11_932;
    const CONTROL: u16 = 0x61;
    const OUTPUT: u8 = 1 << 5;
    /// Far more reads than fit into 10 ms.
    const POLLS: u32 = 10_000_000;

    let speaker_off = port::read8(CONTROL) & !0b11;
    port::write8(CONTROL, speaker_off | 1); // gate on
    port::write8(0x43, 0b1011_0000); // channel 2, both bytes, one shot
    port::write8(0x42, COUNT as u8);
    port::write8(0x42, (COUNT >> 8) as u8);
    let start = counter();
    if port::read8(CONTROL) & OUTPUT != 0 {
        return None; // the output is low while a timer counts
    }
    for _ in 0..POLLS {
        if port::read8(CONTROL) & OUTPUT != 0 {
            let counted = counter().wrapping_sub(start);
            return Some((counted * FREQUENCY / u64::from(COUNT)).max(1));
        }
    }
    None
}

/// The time since [`init`]; zero before.
pub(crate) fn now() -> Duration {
    let Some(clock) = CLOCK.get() else {
        return Duration::ZERO;
    };
    let counts = counter().saturating_sub(clock.start);
    let nanoseconds = (u128::from(counts) * u128::from(clock.scale)) >> 32;
    Duration::from_nanos(nanoseconds as u64)
}

/// A point in time after which waiting is over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Duration);

impl Deadline {
    /// The point in time `delay` from now.
    pub(crate) fn after(delay: Duration) -> Self {
        Self(now() + delay)
    }

    /// Whether it is over.
    pub(crate) fn passed(self) -> bool {
        now() >= self.0
    }

    /// What is left.
    pub(crate) fn remaining(self) -> Duration {
        self.0.saturating_sub(now())
    }
}
