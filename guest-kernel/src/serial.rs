//! The log: a 16550 at the PC's first serial port, polled.

use crate::cpu::port;
use core::fmt;
use spin::Mutex;
use x86_64::instructions::interrupts::without_interrupts;

const BASE: u16 = 0x3F8;
const DATA: u16 = BASE;
const INTERRUPT_ENABLE: u16 = BASE + 1;
const FIFO_CONTROL: u16 = BASE + 2;
const LINE_CONTROL: u16 = BASE + 3;
const MODEM_CONTROL: u16 = BASE + 4;
const LINE_STATUS: u16 = BASE + 5;

/// LINE_STATUS: the transmitter takes a byte.
const TRANSMIT_READY: u8 = 1 << 5;
/// How often to look for it. A machine without a serial port must not hang the kernel.
const POLLS: u32 = 100_000;

/// Keeps the lines of different CPUs apart; the hardware itself needs no state.
static LINE: Mutex<()> = Mutex::new(());

/// The port, without the lock.
struct Port;

impl fmt::Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                send(b'\r');
            }
            send(byte);
        }
        Ok(())
    }
}

/// 115200 baud, 8 data bits, no parity, FIFO on, no interrupts.
pub(crate) fn init() {
    port::write8(INTERRUPT_ENABLE, 0);
    port::write8(LINE_CONTROL, 0x80); // the next two writes set the divisor
    port::write8(DATA, 1);
    port::write8(INTERRUPT_ENABLE, 0);
    port::write8(LINE_CONTROL, 0x03);
    port::write8(FIFO_CONTROL, 0x07);
    port::write8(MODEM_CONTROL, 0x03); // DTR and RTS
}

fn send(byte: u8) {
    for _ in 0..POLLS {
        if port::read8(LINE_STATUS) & TRANSMIT_READY != 0 {
            break;
        }
        core::hint::spin_loop();
    }
    port::write8(DATA, byte);
}

/// Prints while other CPUs wait; behind [`println!`](crate::println).
pub(crate) fn print(arguments: fmt::Arguments<'_>) {
    without_interrupts(|| {
        let _line = LINE.lock();
        let _never_fails = fmt::write(&mut Port, arguments);
    });
}

/// Prints even if somebody holds the lock: for the last words of a dying kernel.
pub(crate) fn print_unlocked(arguments: fmt::Arguments<'_>) {
    let _never_fails = fmt::write(&mut Port, arguments);
}

/// Prints a line to the serial port.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => {
        $crate::serial::print(format_args!("{}\n", format_args!($($argument)*)))
    };
}
