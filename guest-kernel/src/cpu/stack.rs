//! The stacks of all CPUs, each above a page that faults.
#![expect(
    unsafe_code,
    reason = "memory that the CPUs write behind the language's back"
)]

use super::MAX_CPUS;
use crate::memory::PAGE;
use core::cell::UnsafeCell;
use core::mem::offset_of;

const GUARD_BYTES: usize = PAGE as usize;
const STACK_BYTES: usize = 64 << 10;
const FAULT_STACK_BYTES: usize = 16 << 10;

/// One CPU's stacks. Stacks grow down, into the guard before them.
#[repr(C, align(4096))]
struct CpuStacks {
    guard: [u8; GUARD_BYTES],
    stack: [u8; STACK_BYTES],
    fault_guard: [u8; GUARD_BYTES],
    /// For the double fault, which is what an overflow of `stack` ends in.
    fault_stack: [u8; FAULT_STACK_BYTES],
}

/// The stacks of all CPUs.
pub(crate) struct Stacks(UnsafeCell<[CpuStacks; MAX_CPUS]>);

// SAFETY: Rust code only takes addresses; each CPU uses its own stacks.
unsafe impl Sync for Stacks {}

/// The stacks; the entry code puts the first CPU on the first one.
pub(crate) static STACKS: Stacks = Stacks(UnsafeCell::new(
    [const {
        CpuStacks {
            guard: [0; GUARD_BYTES],
            stack: [0; STACK_BYTES],
            fault_guard: [0; GUARD_BYTES],
            fault_stack: [0; FAULT_STACK_BYTES],
        }
    }; MAX_CPUS],
));

/// Byte offset of the initial stack pointer within a CPU's stacks.
pub(crate) const STACK_TOP: usize = offset_of!(CpuStacks, fault_guard);

fn base(cpu: usize) -> u64 {
    STACKS.0.get() as u64 + (cpu * size_of::<CpuStacks>()) as u64
}

/// The initial stack pointer of a CPU.
pub(crate) fn top(cpu: usize) -> u64 {
    base(cpu) + STACK_TOP as u64
}

/// The initial stack pointer of a CPU's double-fault handler.
pub(crate) fn fault_top(cpu: usize) -> u64 {
    base(cpu) + size_of::<CpuStacks>() as u64
}

/// Whether the page at `address` is one of the guards.
pub(crate) fn is_guard(address: u64) -> bool {
    (0..MAX_CPUS).any(|cpu| {
        address == base(cpu) || address == base(cpu) + offset_of!(CpuStacks, fault_guard) as u64
    })
}
