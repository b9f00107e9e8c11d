//! The privileged instructions of x86 and the hypercall page. What 32 and 64 bits have in common is
//! here.
#![expect(unsafe_code, reason = "inline assembly")]

use core::arch::asm;
#[cfg(target_arch = "x86")]
use core::arch::x86 as isa;
#[cfg(target_arch = "x86_64")]
use core::arch::x86_64 as isa;
use core::ptr::NonNull;

use crate::hal::Cpuid;

#[cfg(target_arch = "x86")]
mod x86;
#[cfg(target_arch = "x86")]
pub(crate) use x86::hypercall;
#[cfg(target_arch = "x86")]
use x86::take_flags;

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::hypercall;
#[cfg(target_arch = "x86_64")]
use x86_64::take_flags;

#[cfg(not(any(target_arch = "x86", target_arch = "x86_64")))]
compile_error!("guest-vsc runs on x86 only");

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

/// Bit 9 of the flags: interrupts are on.
const FLAGS_IF: usize = 1 << 9;

pub(crate) fn disable_interrupts() -> bool {
    take_flags() & FLAGS_IF != 0
}

pub(crate) fn enable_interrupts() {
    // SAFETY: callers restore the state they found, so handlers may run here.
    unsafe { asm!("sti", options(nostack)) };
}

pub(crate) fn cpuid(leaf: u32) -> Cpuid {
    let r = isa::__cpuid(leaf);
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

/// The time stamp counter.
pub(crate) fn rdtsc() -> u64 {
    // SAFETY: every processor that runs a hypervisor has it. The fence keeps the reading after
    // earlier loads.
    unsafe { asm!("lfence", options(nostack, preserves_flags)) };
    // SAFETY: every processor that runs a hypervisor has it.
    unsafe { isa::_rdtsc() }
}
