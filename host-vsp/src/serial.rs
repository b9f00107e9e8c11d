//! A 16550, at COM1 the guest's log and a terminal for guests that know no other.
//!
//! The registers are `vm-superio`'s, the interrupt line is ours. Bytes to the guest come from
//! whoever holds the [`Serial`]; bytes from the guest go to a [`Write`].

use std::io::{self, Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use vm_superio::Trigger;
use vm_superio::serial::NoEvents;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Receiver and transmitter; with [`DIVISOR_ACCESS`], of the divisor.
const DATA: u8 = 0;
/// Interrupt enable; with [`DIVISOR_ACCESS`], of the divisor.
const INTERRUPT_ENABLE: u8 = 1;
/// Interrupt identification, when read.
const IDENTIFICATION: u8 = 2;
const LINE_CONTROL: u8 = 3;
const LINE_STATUS: u8 = 5;

/// Interrupt enable: there is data from outside.
const ENABLE_RECEIVED: u8 = 1 << 0;
/// Interrupt enable: the transmitter is empty.
const ENABLE_SENT: u8 = 1 << 1;
/// Line control: the first two registers are the divisor.
const DIVISOR_ACCESS: u8 = 1 << 7;
/// Line status: there is data from outside.
const DATA_READY: u8 = 1 << 0;

/// Identification: the FIFOs are on.
const FIFOS: u8 = 0xC0;
/// Identification: nothing to tell.
const NOTHING: u8 = 1;
/// Identification: the transmitter is empty.
const SENT: u8 = 2;
/// Identification: there is data from outside.
const RECEIVED: u8 = 4;

/// How long input waits for the guest to take some, before it looks again.
const PATIENCE: Duration = Duration::from_millis(5);

/// Where the guest's bytes go. Writing must not wait for a reader, since a processor does it: see
/// [`output::Output`](crate::output::Output) for one that does not.
pub type Output = Box<dyn Write + Send>;

/// The registers' own idea of interrupts, which nobody hears: see [`Port`].
struct Unheard;

impl Trigger for Unheard {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A serial port of a machine.
pub struct Serial {
    line: EventFd,
    port: Mutex<Port>,
}

/// Registers, and what of them the guest has to be told.
///
/// A 16550 holds its interrupt line high as long as there is a cause that is enabled, and says one
/// cause at a time, the highest. `vm-superio` raises an edge for each cause by itself, says all at
/// once and forgets all that it has said, so that a driver that believes what it reads never hears
/// of the second. Here the line is computed from the registers after each access.
struct Port {
    registers: vm_superio::Serial<Unheard, NoEvents, Output>,
    /// What the guest wants to hear of.
    enabled: u8,
    /// The transmitter became empty and the guest does not know yet. It is empty whenever the
    /// guest looks, since sending takes no time.
    sent: bool,
    /// The line.
    high: bool,
}

impl Port {
    fn new(output: Output) -> Self {
        Self {
            registers: vm_superio::Serial::new(Unheard, output),
            enabled: 0,
            sent: false,
            high: false,
        }
    }

    /// What the identification register says.
    fn cause(&mut self) -> u8 {
        if self.enabled & ENABLE_RECEIVED != 0 && self.registers.read(LINE_STATUS) & DATA_READY != 0
        {
            RECEIVED
        } else if self.enabled & ENABLE_SENT != 0 && self.sent {
            SENT
        } else {
            NOTHING
        }
    }

    fn divisor_access(&mut self) -> bool {
        self.registers.read(LINE_CONTROL) & DIVISOR_ACCESS != 0
    }

    fn write(&mut self, offset: u8, value: u8) {
        match offset {
            DATA if !self.divisor_access() => self.sent = true,
            INTERRUPT_ENABLE if !self.divisor_access() => {
                self.enabled = value;
                self.sent = true;
            }
            _ => {}
        }
        if let Err(error) = self.registers.write(offset, value) {
            // The log's reader may be gone; the guest has no way to care.
            tracing::debug!(?error, "a byte of the serial port was lost");
        }
    }

    fn read(&mut self, offset: u8) -> u8 {
        if offset != IDENTIFICATION {
            return self.registers.read(offset);
        }
        let cause = self.cause();
        if cause == SENT {
            // Told, and told once.
            self.sent = false;
        }
        FIFOS | cause
    }

    /// Whether the pin that the line goes to has to see an edge: the line went high, or it is high
    /// and the guest has just dealt with interrupts `anew`.
    ///
    /// The pin takes edges, and loses one that comes while it is masked. A guest that masks it
    /// looks at the registers before it waits again.
    fn rises(&mut self, anew: bool) -> bool {
        let before = self.high;
        self.high = self.cause() != NOTHING;
        self.high && (anew || !before)
    }
}

impl Serial {
    /// A serial port in its reset state; what the guest sends is dropped until
    /// [`set_output`](Self::set_output).
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            line: EventFd::new(EFD_NONBLOCK)?,
            port: Mutex::new(Port::new(Box::new(io::sink()))),
        })
    }

    /// The event that is the interrupt line: it rings for each edge.
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    fn port(&self) -> MutexGuard<'_, Port> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, port: &mut Port, anew: bool) {
        if port.rises(anew) {
            // An event that is full has yet to be heard, which will do.
            let _ = self.line.write(1);
        }
    }

    /// The guest writes to register `offset`, several values where it used a string instruction.
    pub fn write(&self, offset: u8, values: &[u8]) {
        let mut port = self.port();
        values.iter().for_each(|value| port.write(offset, *value));
        self.settle(&mut port, offset == INTERRUPT_ENABLE);
    }

    /// The guest reads register `offset`.
    pub fn read(&self, offset: u8, values: &mut [u8]) {
        let mut port = self.port();
        values.fill_with(|| port.read(offset));
        self.settle(&mut port, offset == IDENTIFICATION);
    }

    /// Bytes for the guest; returns how many its queue took.
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut port = self.port();
        let room = port.registers.fifo_capacity().min(bytes.len());
        let taken = port
            .registers
            .enqueue_raw_bytes(&bytes[..room])
            .unwrap_or(0);
        self.settle(&mut port, taken != 0);
        taken
    }

    /// Carries `input` to the guest until it ends or fails, for a thread of its own: it waits for the
    /// guest to take what its queue has no room for.
    pub fn take_all(&self, mut input: impl Read) {
        let mut buffer = [0; 256];
        while let Ok(length @ 1..) = input.read(&mut buffer) {
            let mut rest = &buffer[..length];
            while !rest.is_empty() {
                let taken = self.input(rest);
                rest = &rest[taken..];
                if taken == 0 {
                    thread::sleep(PATIENCE);
                }
            }
        }
    }

    /// From now on what the guest sends goes to `output`.
    pub fn set_output(&self, output: Output) {
        *self.port().registers.writer_mut() = output;
    }

    /// Back to the state after power-on; the output stays.
    pub fn reset(&self) {
        let mut port = self.port();
        // The sink stands in for the moment of the exchange.
        let output = std::mem::replace(port.registers.writer_mut(), Box::new(io::sink()));
        *port = Port::new(output);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;

    /// For two thousand bytes through a queue of 64.
    const LIMIT: Duration = Duration::from_secs(60);

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn input_that_is_longer_than_the_queue_comes_whole_and_in_order() {
        let sent: Vec<u8> = (0..2000).map(|number: u32| number as u8).collect();
        let serial = Arc::new(Serial::new().unwrap());
        let carries = {
            let (serial, sent) = (Arc::clone(&serial), sent.clone());
            thread::spawn(move || serial.take_all(sent.as_slice()))
        };
        let mut received = Vec::new();
        let begun = Instant::now();
        while received.len() < sent.len() {
            assert!(begun.elapsed() < LIMIT, "{} bytes came", received.len());
            let mut value = [0];
            serial.read(LINE_STATUS, &mut value);
            if value[0] & DATA_READY != 0 {
                serial.read(DATA, &mut value);
                received.push(value[0]);
            }
        }
        assert_eq!(received, sent);
        carries.join().unwrap();
    }

    #[test]
    fn bytes_pass_both_ways_and_a_reset_empties_the_queue() {
        let sink = Sink::default();
        let serial = Serial::new().unwrap();
        serial.set_output(Box::new(sink.clone()));
        serial.write(0, b"hello");
        assert_eq!(*sink.0.lock().unwrap(), b"hello");
        assert_eq!(serial.input(b"ab"), 2);
        let mut value = [0];
        serial.read(0, &mut value);
        assert_eq!(&value, b"a");
        serial.reset();
        serial.read(5, &mut value);
        assert_eq!(value[0] & 1, 0, "no data after a reset");
        serial.write(0, b"!");
        assert_eq!(*sink.0.lock().unwrap(), b"hello!");
    }

    /// Whether the line rang since the last look.
    fn rang(serial: &Serial) -> bool {
        serial.line.read().is_ok()
    }

    fn read(serial: &Serial, offset: u8) -> u8 {
        let mut value = [0];
        serial.read(offset, &mut value);
        value[0]
    }

    #[test]
    fn two_causes_are_told_one_after_the_other() {
        let serial = Serial::new().unwrap();
        serial.write(INTERRUPT_ENABLE, &[ENABLE_RECEIVED | ENABLE_SENT]);
        serial.input(b"a");
        assert!(rang(&serial));
        assert_eq!(read(&serial, IDENTIFICATION), FIFOS | RECEIVED);
        assert!(rang(&serial), "there is more to tell");
        assert_eq!(read(&serial, DATA), b'a');
        assert_eq!(read(&serial, IDENTIFICATION), FIFOS | SENT);
        assert_eq!(read(&serial, IDENTIFICATION), FIFOS | NOTHING);
        assert!(!rang(&serial));
        serial.write(DATA, b"b");
        assert!(rang(&serial), "the transmitter is empty again");
    }

    #[test]
    fn what_is_disabled_is_not_told_and_enabling_it_tells() {
        let serial = Serial::new().unwrap();
        serial.input(b"a");
        serial.write(DATA, b"b");
        assert!(!rang(&serial));
        assert_eq!(read(&serial, IDENTIFICATION), FIFOS | NOTHING);
        for (enabled, told) in [(ENABLE_SENT, SENT), (ENABLE_RECEIVED, RECEIVED)] {
            serial.write(INTERRUPT_ENABLE, &[enabled]);
            assert!(rang(&serial));
            // As Linux's console does, around each of its messages.
            serial.write(INTERRUPT_ENABLE, &[0]);
            assert_eq!(read(&serial, IDENTIFICATION), FIFOS | NOTHING);
            serial.write(INTERRUPT_ENABLE, &[enabled]);
            assert!(rang(&serial));
            assert_eq!(read(&serial, IDENTIFICATION), FIFOS | told);
        }
        // The divisor is no interrupt enable register.
        serial.write(LINE_CONTROL, &[DIVISOR_ACCESS]);
        serial.write(INTERRUPT_ENABLE, &[0]);
        serial.write(LINE_CONTROL, &[3]);
        assert_eq!(read(&serial, IDENTIFICATION), FIFOS | RECEIVED);
    }

    /// A guest behind an edge-triggered pin, with a driver that takes one cause from each
    /// interrupt and believes it.
    struct Driver {
        serial: Serial,
        masked: bool,
        /// An edge came through and was not served yet.
        pending: bool,
        enabled: u8,
        to_send: usize,
        received: usize,
    }

    impl Driver {
        fn look_at_pin(&mut self) {
            self.pending |= rang(&self.serial) && !self.masked;
        }

        fn write(&mut self, offset: u8, value: u8) {
            self.serial.write(offset, &[value]);
            self.look_at_pin();
        }

        fn read(&mut self, offset: u8) -> u8 {
            let value = read(&self.serial, offset);
            self.look_at_pin();
            value
        }

        fn serve(&mut self) {
            self.pending = false;
            match self.read(IDENTIFICATION) & 0xF {
                RECEIVED => {
                    self.read(DATA);
                    self.received += 1;
                }
                SENT if self.to_send == 0 => {
                    self.enabled &= !ENABLE_SENT;
                    self.write(INTERRUPT_ENABLE, self.enabled);
                }
                SENT => {
                    self.to_send -= 1;
                    self.write(DATA, b'x');
                }
                told => assert_eq!(told, NOTHING, "a cause that no 16550 has here"),
            }
        }
    }

    proptest! {
        /// Whatever edges the pin loses while it is masked: when all is served, nothing waits.
        #[test]
        fn no_cause_waits_unheard(steps in proptest::collection::vec(0..7u8, 1..200)) {
            let mut driver = Driver {
                serial: Serial::new().unwrap(),
                masked: false,
                pending: false,
                enabled: ENABLE_RECEIVED,
                to_send: 0,
                received: 0,
            };
            driver.write(INTERRUPT_ENABLE, ENABLE_RECEIVED);
            let mut typed = 0;
            for step in steps {
                match step {
                    0 => typed += driver.serial.input(b"y"),
                    1 | 2 => {
                        driver.to_send += 20 * usize::from(step);
                        driver.enabled |= ENABLE_SENT;
                        driver.write(INTERRUPT_ENABLE, driver.enabled);
                    }
                    // A message of the kernel, past the driver.
                    3 => {
                        driver.write(INTERRUPT_ENABLE, 0);
                        driver.write(DATA, b'z');
                        driver.write(INTERRUPT_ENABLE, driver.enabled);
                    }
                    4 => driver.masked = true,
                    // Whoever unmasks a pin asks the device.
                    5 if driver.masked => {
                        driver.masked = false;
                        driver.serve();
                    }
                    _ if driver.pending => driver.serve(),
                    _ => {}
                }
                driver.look_at_pin();
            }
            driver.masked = false;
            driver.serve();
            for _ in 0..20_000 {
                if driver.pending {
                    driver.serve();
                }
            }
            prop_assert_eq!((driver.to_send, driver.received), (0, typed));
        }
    }

    #[test]
    fn a_full_queue_takes_no_more() {
        let serial = Serial::new().unwrap();
        let taken = serial.input(&[0; 1000]);
        assert!(taken > 0 && taken < 1000);
        assert_eq!(serial.input(&[0; 10]), 0);
    }
}
