//! What differs on 32-bit x86: the flags' width, and how a hypercall's 64-bit values travel.
#![expect(unsafe_code, reason = "inline assembly")]

use core::arch::asm;

use super::guest_vsc_hypercall_page;

/// The flags of this processor, with interrupts off afterwards.
pub(super) fn take_flags() -> usize {
    let flags: usize;
    // SAFETY: reads the flags through the stack and clears the interrupt flag, which in kernel
    // mode only delays interrupts.
    unsafe { asm!("pushfd", "pop {}", "cli", out(reg) flags) };
    flags
}

/// # Safety
/// See [`Hal::hypercall`](crate::hal::Hal::hypercall).
pub(crate) unsafe fn hypercall(control: u64, input: u64, output: u64) -> u64 {
    let [control, input, output] = [control, input, output].map(|value| {
        let (low, high) = (value as u32, (value >> 32) as u32);
        [low, high]
    });
    // EBX and ESI are the compiler's own, so that all six come by way of memory.
    let registers = [
        control[1], input[1], input[0], output[1], output[0], control[0],
    ];
    let (low, high): (u32, u32);
    // SAFETY: the page holds the hypervisor's code, which keeps to the calling convention of
    // TLFS 3.7 for 32 bits: control in EDX:EAX, input in EBX:ECX, output in EDI:ESI, result in
    // EDX:EAX; EBX and ESI are put back.
    unsafe {
        asm!(
            "push ebx",
            "push esi",
            "mov edx, [eax]",
            "mov ebx, [eax + 4]",
            "mov ecx, [eax + 8]",
            "mov edi, [eax + 12]",
            "mov esi, [eax + 16]",
            "mov eax, [eax + 20]",
            "call {page}",
            "pop esi",
            "pop ebx",
            page = sym guest_vsc_hypercall_page,
            inlateout("eax") registers.as_ptr() => low,
            lateout("edx") high,
            lateout("edi") _,
            clobber_abi("cdecl"),
        );
    }
    u64::from(high) << 32 | u64::from(low)
}
