//! The privileged instructions of x86-64 and the hypercall page.
#![expect(unsafe_code, reason = "inline assembly")]

use core::arch::asm;
use core::ptr::NonNull;

use crate::hal::Cpuid;

// The page lies in the code segment, so that whatever maps the kernel maps it executable. The
// hypervisor lays its own page over it; until then a call traps.
core::arch::global_asm!(
    ".pushsection .text.guest_vsc_hypercall_page, \"ax\", @progbits",
    ".balign 4096",
    ".global guest_vsc_hypercall_page",
    ".hidden guest_vsc_hypercall_page",
    "guest_vsc_hypercall_page:",
    ".fill 4096, 1, 0xcc",
    ".popsection",
);

unsafe extern "C" {
    static guest_vsc_hypercall_page: [u8; vmbus_proto::PAGE_SIZE];
}

/// The page in this crate's code segment that the hypervisor fills.
pub(crate) fn hypercall_page() -> NonNull<u8> {
    let page = (&raw const guest_vsc_hypercall_page).cast_mut().cast();
    // A symbol's address is never null.
    NonNull::new(page).unwrap_or(NonNull::dangling())
}

/// Bit 9 of RFLAGS: interrupts are on.
const RFLAGS_IF: u64 = 1 << 9;

pub(crate) fn disable_interrupts() -> bool {
    let flags: u64;
    // SAFETY: reads the flags through the stack and clears the interrupt flag, which in kernel
    // mode only delays interrupts.
    unsafe { asm!("pushfq", "pop {}", "cli", out(reg) flags) };
    flags & RFLAGS_IF != 0
}

pub(crate) fn enable_interrupts() {
    // SAFETY: callers restore the state they found, so handlers may run here.
    unsafe { asm!("sti", options(nostack)) };
}

pub(crate) fn cpuid(leaf: u32) -> Cpuid {
    let r = core::arch::x86_64::__cpuid(leaf);
    Cpuid {
        eax: r.eax,
        ebx: r.ebx,
        ecx: r.ecx,
        edx: r.edx,
    }
}

/// # Safety
/// See [`Hal::rdmsr`](crate::hal::Hal::rdmsr).
pub(crate) unsafe fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller vouches for the register.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// # Safety
/// See [`Hal::wrmsr`](crate::hal::Hal::wrmsr).
pub(crate) unsafe fn wrmsr(msr: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: the caller vouches for the register and the value.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") low, in("edx") high, options(nostack));
    }
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

/// The time stamp counter.
pub(crate) fn rdtsc() -> u64 {
    // SAFETY: every 64-bit processor has it. The fence keeps the reading after earlier loads.
    unsafe { core::arch::x86_64::_mm_lfence() };
    // SAFETY: every 64-bit processor has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}
