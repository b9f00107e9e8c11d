//! The local APIC: acknowledgements, interrupts to other CPUs, the deadline timer. And the two
//! 8259s, which only need silencing.
//!
//! The same registers are reached in two ways: the x2APIC's by MSR, the older xAPIC's in memory.
//! (Intel's Software Developer's Manual, volume 3, chapter "Advanced Programmable Interrupt
//! Controller".)
#![expect(unsafe_code, reason = "MSRs and memory-mapped registers")]

use super::{MAX_CPUS, index, port, traps};
use crate::clock::{self, Deadline};
use core::arch::x86_64::__cpuid;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use core::time::Duration;
use spin::Once;
use x86_64::registers::model_specific::Msr;

const APIC_BASE: u32 = 0x1B;
/// IA32_APIC_BASE: the local APIC is on.
const APIC_ENABLE: u64 = 1 << 11;
/// IA32_APIC_BASE: its registers are MSRs.
const X2APIC_ENABLE: u64 = 1 << 10;
/// The registers' MSRs start here, one per 16 bytes of the memory-mapped layout.
const X2APIC_MSRS: u32 = 0x800;

// Registers, by byte offset in the memory-mapped layout.
const ID: u32 = 0x020;
const TASK_PRIORITY: u32 = 0x080;
const EOI: u32 = 0x0B0;
const SPURIOUS_VECTOR: u32 = 0x0F0;
const COMMAND: u32 = 0x300;
const COMMAND_HIGH: u32 = 0x310;
const LVT_TIMER: u32 = 0x320;
const LVT_LINT0: u32 = 0x350;
const LVT_LINT1: u32 = 0x360;
const TIMER_INITIAL: u32 = 0x380;
const TIMER_CURRENT: u32 = 0x390;
const TIMER_DIVIDE: u32 = 0x3E0;

const SOFTWARE_ENABLE: u32 = 1 << 8;
const MASKED: u32 = 1 << 16;
/// TIMER_DIVIDE: count every 128th clock; a 32-bit count of a 1 GHz clock then lasts 9 minutes.
const DIVIDE_BY_128: u32 = 0b1010;

// Bits of COMMAND.
const COMMAND_INIT: u32 = 0b101 << 8;
const COMMAND_START_UP: u32 = 0b110 << 8;
const COMMAND_PENDING: u32 = 1 << 12;
const COMMAND_ASSERT: u32 = 1 << 14;

#[derive(Clone, Copy)]
enum Registers {
    Msr,
    Memory(*mut u32),
}

// SAFETY: the address is the same on every CPU, and means that CPU's own APIC.
unsafe impl Send for Registers {}
// SAFETY: as above.
unsafe impl Sync for Registers {}

static REGISTERS: Once<Registers> = Once::new();
/// Timer counts per second.
static TIMER_RATE: Once<u64> = Once::new();
/// Whether a CPU's timer is still to interrupt it.
static TIMER_ARMED: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(false) }; MAX_CPUS];
/// Timer interrupts so far, on all CPUs.
static TIMER_INTERRUPTS: AtomicU64 = AtomicU64::new(0);

/// Switches this CPU's local APIC on.
pub(super) fn enable() {
    silence_8259();
    let has_x2apic = __cpuid(1).ecx & 1 << 21 != 0;
    let mut base = Msr::new(APIC_BASE);
    // SAFETY: every 64-bit CPU has this MSR.
    let before = unsafe { base.read() };
    let mode = if has_x2apic { X2APIC_ENABLE } else { 0 };
    // SAFETY: off to on to x2APIC are the permitted steps, each kept if already taken.
    unsafe { base.write(before | APIC_ENABLE) };
    // SAFETY: as above.
    unsafe { base.write(before | APIC_ENABLE | mode) };
    REGISTERS.call_once(|| {
        if has_x2apic {
            Registers::Msr
        } else {
            Registers::Memory((before & 0xF_FFFF_F000) as *mut u32)
        }
    });
    traps::set_handler(traps::TIMER, || {
        TIMER_ARMED[index()].store(false, Relaxed);
        TIMER_INTERRUPTS.fetch_add(1, Relaxed);
    });
    write(TASK_PRIORITY, 0);
    write(LVT_LINT0, MASKED);
    write(LVT_LINT1, MASKED);
    write(LVT_TIMER, MASKED);
    write(TIMER_DIVIDE, DIVIDE_BY_128);
    write(
        SPURIOUS_VECTOR,
        SOFTWARE_ENABLE | u32::from(traps::SPURIOUS),
    );
}

/// Moves the interrupts of the two 8259s away from the exceptions and masks all of them.
fn silence_8259() {
    for (command, first_vector, wiring) in [(0x20, 0x20, 4), (0xA0, 0x28, 2)] {
        port::write8(command, 0x11); // start the initialisation: four words in all
        port::write8(command + 1, first_vector);
        port::write8(command + 1, wiring);
        port::write8(command + 1, 0x01);
        port::write8(command + 1, 0xFF);
    }
}

fn registers() -> Registers {
    *REGISTERS
        .get()
        .expect("the local APIC is enabled first thing")
}

fn read(register: u32) -> u32 {
    match registers() {
        // SAFETY: reading the registers named above has no side effect.
        Registers::Msr => unsafe { Msr::new(X2APIC_MSRS + register / 16).read() as u32 },
        Registers::Memory(base) => {
            // SAFETY: inside the APIC's page, which is mapped uncached.
            let address = unsafe { base.byte_add(register as usize) };
            // SAFETY: as above; registers are read in 32-bit units.
            unsafe { address.read_volatile() }
        }
    }
}

fn write(register: u32, value: u32) {
    match registers() {
        // SAFETY: the registers named above control interrupts, not memory.
        Registers::Msr => unsafe { Msr::new(X2APIC_MSRS + register / 16).write(value.into()) },
        Registers::Memory(base) => {
            // SAFETY: inside the APIC's page, which is mapped uncached.
            let address = unsafe { base.byte_add(register as usize) };
            // SAFETY: as above; registers are written in 32-bit units.
            unsafe { address.write_volatile(value) }
        }
    }
}

/// The id of this CPU's local APIC.
pub(crate) fn id() -> u32 {
    match registers() {
        Registers::Msr => read(ID),
        Registers::Memory(_) => read(ID) >> 24,
    }
}

/// The name of the way the registers are reached.
pub(crate) fn mode() -> &'static str {
    match registers() {
        Registers::Msr => "x2APIC",
        Registers::Memory(_) => "xAPIC",
    }
}

/// Acknowledges the interrupt being handled.
pub(super) fn end_of_interrupt() {
    write(EOI, 0);
}

fn command(target: u32, command: u32) {
    match registers() {
        Registers::Msr => {
            let value = u64::from(target) << 32 | u64::from(command);
            // SAFETY: sends an interrupt; what that runs is set up by traps and smp.
            unsafe { Msr::new(X2APIC_MSRS + COMMAND / 16).write(value) };
        }
        Registers::Memory(_) => {
            write(COMMAND_HIGH, target << 24);
            write(COMMAND, command);
            let deadline = Deadline::after(Duration::from_millis(10));
            while read(COMMAND) & COMMAND_PENDING != 0 && !deadline.passed() {
                core::hint::spin_loop();
            }
        }
    }
}

/// Interrupts the CPU with the local APIC `target` at `vector`.
pub(super) fn send(target: u32, vector: u8) {
    command(target, COMMAND_ASSERT | u32::from(vector));
}

/// Resets a CPU; it then waits for [`send_start_up`].
pub(super) fn send_init(target: u32) {
    command(target, COMMAND_ASSERT | COMMAND_INIT);
}

/// Starts a waiting CPU in real mode at page number `page`.
pub(super) fn send_start_up(target: u32, page: u8) {
    command(target, COMMAND_ASSERT | COMMAND_START_UP | u32::from(page));
}

/// Measures the timer against the clock.
pub(crate) fn calibrate_timer() {
    const MEASURED: Duration = Duration::from_millis(10);
    write(LVT_TIMER, MASKED);
    write(TIMER_INITIAL, u32::MAX);
    let start = clock::now();
    let deadline = Deadline::after(MEASURED);
    while !deadline.passed() {
        core::hint::spin_loop();
    }
    let counted = u64::from(u32::MAX - read(TIMER_CURRENT));
    let elapsed = clock::now() - start;
    write(TIMER_INITIAL, 0);
    let rate = u128::from(counted) * 1_000_000_000 / elapsed.as_nanos().max(1);
    TIMER_RATE.call_once(|| (rate as u64).max(1));
}

/// Interrupts this CPU once, after about `delay`; see [`timer_is_armed`].
pub(super) fn arm_timer(delay: Duration) {
    let rate = TIMER_RATE.get().copied().unwrap_or(1);
    let count = delay.as_nanos() * u128::from(rate) / 1_000_000_000 + 1;
    TIMER_ARMED[index()].store(true, Relaxed);
    write(LVT_TIMER, u32::from(traps::TIMER));
    write(TIMER_INITIAL, count.min(u32::MAX.into()) as u32);
}

/// Stops the timer.
pub(super) fn disarm_timer() {
    write(TIMER_INITIAL, 0);
    write(LVT_TIMER, MASKED);
    TIMER_ARMED[index()].store(false, Relaxed);
}

/// Whether this CPU's timer was armed and has not interrupted yet.
pub(super) fn timer_is_armed() -> bool {
    TIMER_ARMED[index()].load(Relaxed)
}

/// Timer interrupts so far, on all CPUs.
pub(crate) fn timer_interrupts() -> u64 {
    TIMER_INTERRUPTS.load(Relaxed)
}
