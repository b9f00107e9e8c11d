//! One CPU's own state, and the ways to wait.
//!
//! [`init`] gives the CPU that calls it its descriptor tables, its local APIC and its index; the
//! first CPU calls it early, the others from [`smp`]. After that, [`index`] tells a CPU which one
//! it is.

pub(crate) mod apic;
pub(crate) mod gdt;
pub(crate) mod hypervisor;
pub(crate) mod local;
pub(crate) mod port;
pub(crate) mod smp;
pub(crate) mod stack;
pub(crate) mod traps;

pub(crate) use local::index;

use crate::clock::Deadline;
use core::time::Duration;
use x86_64::instructions::interrupts;

/// The number of CPUs the kernel can use; more stay off.
pub(crate) const MAX_CPUS: usize = 16;

/// Gives the CPU that calls it its tables and its local APIC, as CPU number `index`.
pub(crate) fn init(index: usize) {
    gdt::load(index);
    local::set_index(index);
    traps::load();
    apic::enable();
}

/// Sleeps until `ready` says so; `false` if the deadline passed first.
///
/// `ready` is asked again after every interrupt, with interrupts disabled, so a wake-up between
/// the question and the halt is not lost. The only timer interrupt comes at the deadline: a device
/// that forgets its interrupt is found out, not papered over.
pub(crate) fn wait_until(deadline: Deadline, mut ready: impl FnMut() -> bool) -> bool {
    let were_enabled = interrupts::are_enabled();
    apic::arm_timer(deadline.remaining());
    let outcome = loop {
        interrupts::disable();
        if ready() {
            break true;
        }
        if deadline.passed() {
            break false;
        }
        if !apic::timer_is_armed() {
            // It counts at a measured rate, so it may come a little early.
            apic::arm_timer(deadline.remaining());
        }
        interrupts::enable_and_hlt();
    };
    apic::disarm_timer();
    if were_enabled {
        interrupts::enable();
    }
    outcome
}

/// Sleeps until the next interrupt; called with interrupts disabled, which it enables.
///
/// Some interrupt comes within `limit`: the timer's, if no other. It is not armed anew at each
/// call, so that a busy wait for a device costs no timer programming.
pub(crate) fn doze(limit: Duration) {
    if !apic::timer_is_armed() {
        apic::arm_timer(limit);
    }
    interrupts::enable_and_hlt();
}
