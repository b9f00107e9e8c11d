//! Exceptions and interrupts.
//!
//! All 256 vectors lead through a stub each to one assembly routine, which saves the registers
//! and calls [`dispatch`]. Exceptions are always fatal here: they are printed with all registers
//! and end the run in FAIL. Interrupts go to the handler registered for their vector and are then
//! acknowledged at the local APIC.
#![expect(
    unsafe_code,
    reason = "the interrupt entry is assembly, and its table is loaded by hand"
)]

use super::{apic, gdt, index};
use crate::power::{self, Verdict};
use crate::serial;
use core::arch::global_asm;
use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::tables::lidt;
use x86_64::registers::control::Cr2;
use x86_64::structures::DescriptorTablePointer;

/// The first vector that is not an exception.
const FIRST_INTERRUPT: usize = 32;
/// Bytes between two stubs.
const STUB_BYTES: usize = 16;

/// The local APIC timer: the deadline of [`super::wait_until`].
pub(crate) const TIMER: u8 = 0xE0;
/// Another CPU has work for this one.
pub(crate) const WAKE: u8 = 0xE1;
/// A synthetic interrupt of Hyper-V's.
pub(crate) const HYPERV: u8 = 0xF3;
/// The local APIC had nothing to deliver after all.
pub(crate) const SPURIOUS: u8 = 0xFF;

const DOUBLE_FAULT: usize = 8;
const PAGE_FAULT: u64 = 14;

const EXCEPTIONS: [&str; FIRST_INTERRUPT] = [
    "divide error",
    "debug",
    "non-maskable interrupt",
    "breakpoint",
    "overflow",
    "bound range exceeded",
    "invalid opcode",
    "device not available",
    "double fault",
    "coprocessor segment overrun",
    "invalid TSS",
    "segment not present",
    "stack-segment fault",
    "general protection fault",
    "page fault",
    "reserved",
    "x87 floating-point error",
    "alignment check",
    "machine check",
    "SIMD floating-point error",
    "virtualization exception",
    "control protection exception",
    "reserved",
    "reserved",
    "reserved",
    "reserved",
    "reserved",
    "reserved",
    "hypervisor injection exception",
    "VMM communication exception",
    "security exception",
    "reserved",
];

global_asm!(
    r#"
.section .text.interrupts, "ax", @progbits
// One stub per vector, 16 bytes apart: make the frame uniform (an error code of 0 where the CPU
// pushes none), note the vector, continue at the common part.
.balign 16
.global interrupt_stubs
interrupt_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if !((vector == 8) | ((vector >= 10) & (vector <= 14)) | (vector == 17) | (vector == 21) | (vector == 29) | (vector == 30))
    push 0
    .endif
    push vector
    jmp interrupt_common
    .set vector, vector + 1
    .endr

interrupt_common:
    push rax
    push rbx
    push rcx
    push rdx
    push rsi
    push rdi
    push rbp
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    cld
    mov rdi, rsp                    // &Frame; 22 pushes after an aligned start: aligned again
    call {dispatch}
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rbp
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rbx
    pop rax
    add rsp, 16                     // vector and error code
    iretq
"#,
    dispatch = sym dispatch,
);

unsafe extern "C" {
    static interrupt_stubs: u8;
}

/// What the stubs leave on the stack, lowest address first.
#[repr(C)]
struct Frame {
    /// r15, r14, … r8, rbp, rdi, rsi, rdx, rcx, rbx, rax.
    registers: [u64; 15],
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// A gate of the interrupt descriptor table (AMD64 Architecture Programmer's Manual, volume 2,
/// "Long-Mode Interrupt Control Transfers").
#[derive(Clone, Copy)]
#[repr(C)]
struct Gate {
    offset_low: u16,
    selector: u16,
    /// Which entry of the interrupt stack table to switch to, counted from 1; 0 keeps the stack.
    stack: u8,
    /// Present, ring 0, 64-bit interrupt gate.
    kind: u8,
    offset_middle: u16,
    offset_high: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<Gate>() == 16);

static GATES: Once<[Gate; 256]> = Once::new();

type Handler = fn();

static HANDLERS: [Once<Handler>; 256 - FIRST_INTERRUPT] =
    [const { Once::new() }; 256 - FIRST_INTERRUPT];

fn gates() -> [Gate; 256] {
    core::array::from_fn(|vector| {
        let offset = (&raw const interrupt_stubs) as u64 + (vector * STUB_BYTES) as u64;
        Gate {
            offset_low: offset as u16,
            selector: 0x08, // the code segment: gdt appends it first
            stack: if vector == DOUBLE_FAULT {
                gdt::DOUBLE_FAULT_STACK as u8 + 1
            } else {
                0
            },
            kind: 0x8E,
            offset_middle: (offset >> 16) as u16,
            offset_high: (offset >> 32) as u32,
            reserved: 0,
        }
    })
}

/// Makes this CPU use the table.
pub(super) fn load() {
    let gates = GATES.call_once(gates);
    let pointer = DescriptorTablePointer {
        limit: (size_of_val(gates) - 1) as u16,
        base: VirtAddr::from_ptr(gates),
    };
    // SAFETY: the table lives in a static, and every gate leads to a stub.
    unsafe { lidt(&pointer) };
}

/// Sets the handler of an interrupt vector, on all CPUs and for good: a second call is ignored.
///
/// The handler runs with interrupts disabled; it must not allocate page frames, wait or print
/// much. The acknowledgement at the local APIC follows it.
pub(crate) fn set_handler(vector: u8, handler: Handler) {
    HANDLERS[usize::from(vector) - FIRST_INTERRUPT].call_once(|| handler);
}

/// Called by the assembly for every exception and interrupt.
extern "C" fn dispatch(frame: &Frame) {
    let Some(interrupt) = (frame.vector as usize).checked_sub(FIRST_INTERRUPT) else {
        die(frame);
    };
    if let Some(handler) = HANDLERS[interrupt].get() {
        handler();
    }
    if frame.vector != u64::from(SPURIOUS) {
        apic::end_of_interrupt();
    }
}

/// Prints the exception and ends the run.
fn die(frame: &Frame) -> ! {
    let [
        r15,
        r14,
        r13,
        r12,
        r11,
        r10,
        r9,
        r8,
        rbp,
        rdi,
        rsi,
        rdx,
        rcx,
        rbx,
        rax,
    ] = frame.registers;
    serial::print_unlocked(format_args!(
        "\nEXCEPTION {vector} ({name}) on CPU {cpu}, error code {error:#x}\n\
         rip {rip:016x}  cs {cs:04x}  rflags {rflags:08x}  rsp {rsp:016x}  ss {ss:04x}\n\
         rax {rax:016x}  rbx {rbx:016x}  rcx {rcx:016x}  rdx {rdx:016x}\n\
         rsi {rsi:016x}  rdi {rdi:016x}  rbp {rbp:016x}  r8  {r8:016x}\n\
         r9  {r9:016x}  r10 {r10:016x}  r11 {r11:016x}  r12 {r12:016x}\n\
         r13 {r13:016x}  r14 {r14:016x}  r15 {r15:016x}\n",
        vector = frame.vector,
        name = EXCEPTIONS[frame.vector as usize],
        cpu = index(),
        error = frame.error,
        rip = frame.rip,
        cs = frame.cs,
        rflags = frame.rflags,
        rsp = frame.rsp,
        ss = frame.ss,
    ));
    if frame.vector == PAGE_FAULT {
        serial::print_unlocked(format_args!(
            "the address that could not be accessed is {:#018x}\n",
            Cr2::read_raw()
        ));
    }
    power::exit(Verdict::Fail)
}
