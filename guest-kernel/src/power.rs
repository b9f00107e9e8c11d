//! The ways to end: with a verdict, by reset, by triple fault.
//!
//! The verdict goes out in three ways, so that whoever watches has at least one of them: as the
//! last line on the serial port; as a byte written to [`DEBUG_EXIT`], which QEMU's `isa-debug-exit`
//! turns into its exit status, `2 * byte + 1`; and, where nothing listens there, the machine is
//! powered off by ACPI.
#![expect(
    unsafe_code,
    reason = "a triple fault needs an interrupt table that is wrong"
)]

use crate::acpi::Acpi;
use crate::clock::Deadline;
use crate::cpu::port;
use crate::serial;
use core::time::Duration;
use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::tables::lidt;
use x86_64::instructions::{hlt, interrupts};
use x86_64::structures::DescriptorTablePointer;

/// The port where QEMU's `isa-debug-exit` usually listens (`-device isa-debug-exit,iobase=0xf4`).
const DEBUG_EXIT: u16 = 0xF4;

/// The 8042 keyboard controller's command port, and the command that pulses the reset line.
const KEYBOARD_COMMAND: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xFE;

/// How the run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Everything asked for went well.
    Pass,
    /// Something did not; the log says what.
    Fail,
}

impl Verdict {
    /// What is written to [`DEBUG_EXIT`]: QEMU exits with 33 for PASS and 35 for FAIL.
    const fn code(self) -> u8 {
        match self {
            Self::Pass => 0x10,
            Self::Fail => 0x11,
        }
    }
}

#[derive(Clone, Copy)]
struct Ports {
    power_off: Option<(u16, u16)>,
    reset: Option<(u16, u8)>,
}

static PORTS: Once<Ports> = Once::new();

/// Remembers what ACPI says about power.
pub(crate) fn init(acpi: &Acpi) {
    PORTS.call_once(|| Ports {
        power_off: acpi.power_off,
        reset: acpi.reset,
    });
}

/// Prints the final line and ends the machine. Works at any time, on any CPU.
pub(crate) fn exit(verdict: Verdict) -> ! {
    interrupts::disable();
    let word = match verdict {
        Verdict::Pass => "PASS",
        Verdict::Fail => "FAIL",
    };
    serial::print_unlocked(format_args!("GUEST-KERNEL: {word}\n"));
    port::write8(DEBUG_EXIT, verdict.code());
    power_off();
    halt()
}

/// Powers off by ACPI, if the machine can; else does nothing.
pub(crate) fn power_off() {
    if let Some((register, value)) = PORTS.get().and_then(|ports| ports.power_off) {
        port::write16(register, value);
    }
}

/// Resets the machine: by ACPI's reset register, else by the keyboard controller. Returns if
/// neither works within a second.
pub(crate) fn reset() {
    interrupts::disable();
    if let Some((register, value)) = PORTS.get().and_then(|ports| ports.reset) {
        port::write8(register, value);
    }
    port::write8(KEYBOARD_COMMAND, KEYBOARD_RESET);
    let deadline = Deadline::after(Duration::from_secs(1));
    while !deadline.passed() {
        core::hint::spin_loop();
    }
}

/// Faults with no way to handle it, nor the fault that follows: the CPU shuts down.
pub(crate) fn triple_fault() -> ! {
    let nothing = DescriptorTablePointer {
        limit: 0,
        base: VirtAddr::zero(),
    };
    interrupts::disable();
    // SAFETY: ends the machine, which is the purpose.
    unsafe { lidt(&nothing) };
    interrupts::int3();
    halt()
}

fn halt() -> ! {
    loop {
        hlt();
    }
}
