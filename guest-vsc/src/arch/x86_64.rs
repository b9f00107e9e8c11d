//! What differs on 64-bit x86: the flags' width, and the registers of a hypercall.
#![expect(unsafe_code, reason = "inline assembly")]

use core::arch::asm;

use super::guest_vsc_hypercall_page;

/// The flags of this processor, with interrupts off afterwards.
pub(super) fn take_flags() -> usize {
    let flags: usize;
    // SAFETY: reads the flags through the stack and clears the interrupt flag, which in kernel
    // mode only delays interrupts.
    unsafe { asm!("pushfq", "pop {}", "cli", out(reg) flags) };
    flags
}

/// # Safety
/// See [`Hal::hypercall`](crate::hal::Hal::hypercall).
pub(crate) unsafe fn hypercall(control: u64, input: u64, output: u64) -> u64 {
    let result: u64;
    // SAFETY: the page holds the hypervisor's code, which keeps to the calling convention of
    // TLFS 3.12: input in RCX, RDX and R8, result in RAX, the volatile registers clobbered.
    unsafe {
        asm!(
            "call {page}",
            page = sym guest_vsc_hypercall_page,
            inlateout("rcx") control => _,
            inlateout("rdx") input => _,
            inlateout("r8") output => _,
            lateout("rax") result,
            clobber_abi("win64"),
        );
    }
    result
}
