//! A 16550, at COM1 the guest's log and a terminal for guests that know no other.
//!
//! The registers are `vm-superio`'s. Bytes to the guest come from whoever holds the [`Serial`];
//! bytes from the guest go to a [`Write`].

use std::io::{self, Write};
use std::sync::Mutex;

use vm_superio::Trigger;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The interrupt line, an irqfd.
struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Where the guest's bytes go. Writing must not wait for a reader, since a processor does it: see
/// [`output::Output`](crate::output::Output) for one that does not.
pub type Output = Box<dyn Write + Send>;

/// A serial port of a machine.
pub struct Serial {
    line: EventFd,
    registers: Mutex<vm_superio::Serial<Line, vm_superio::serial::NoEvents, Output>>,
}

impl Serial {
    /// A serial port in its reset state; what the guest sends is dropped until
    /// [`set_output`](Self::set_output).
    pub fn new() -> io::Result<Self> {
        let line = EventFd::new(EFD_NONBLOCK)?;
        let output: Output = Box::new(io::sink());
        let registers = vm_superio::Serial::new(Line(line.try_clone()?), output);
        Ok(Self {
            line,
            registers: Mutex::new(registers),
        })
    }

    /// The event that is the interrupt line.
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    /// The guest writes to register `offset`, several values where it used a string instruction.
    pub fn write(&self, offset: u8, values: &[u8]) {
        let mut registers = lock(&self.registers);
        for value in values {
            if let Err(error) = registers.write(offset, *value) {
                // The log's reader may be gone; the guest has no way to care.
                tracing::debug!(?error, "a byte of the serial port was lost");
            }
        }
    }

    /// The guest reads register `offset`.
    pub fn read(&self, offset: u8, values: &mut [u8]) {
        let mut registers = lock(&self.registers);
        values.fill_with(|| registers.read(offset));
    }

    /// Bytes for the guest; returns how many its queue took.
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut registers = lock(&self.registers);
        let room = registers.fifo_capacity().min(bytes.len());
        registers.enqueue_raw_bytes(&bytes[..room]).unwrap_or(0)
    }

    /// From now on what the guest sends goes to `output`.
    pub fn set_output(&self, output: Output) {
        *lock(&self.registers).writer_mut() = output;
    }

    /// Back to the state after power-on; the output stays.
    pub fn reset(&self) -> io::Result<()> {
        let line = Line(self.line.try_clone()?);
        let mut registers = lock(&self.registers);
        // The sink stands in for the moment of the exchange.
        let output = std::mem::replace(registers.writer_mut(), Box::new(io::sink()));
        *registers = vm_superio::Serial::new(line, output);
        Ok(())
    }
}

/// Locks `mutex`; its data is whole even if a thread panicked while it held the lock.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            lock(&self.0).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn bytes_pass_both_ways_and_a_reset_empties_the_queue() {
        let sink = Sink::default();
        let serial = Serial::new().unwrap();
        serial.set_output(Box::new(sink.clone()));
        serial.write(0, b"hello");
        assert_eq!(*lock(&sink.0), b"hello");
        assert_eq!(serial.input(b"ab"), 2);
        let mut value = [0];
        serial.read(0, &mut value);
        assert_eq!(&value, b"a");
        serial.reset().unwrap();
        serial.read(5, &mut value);
        assert_eq!(value[0] & 1, 0, "no data after a reset");
        serial.write(0, b"!");
        assert_eq!(*lock(&sink.0), b"hello!");
    }

    #[test]
    fn a_full_queue_takes_no_more() {
        let serial = Serial::new().unwrap();
        let taken = serial.input(&[0; 1000]);
        assert!(taken > 0 && taken < 1000);
        assert_eq!(serial.input(&[0; 10]), 0);
    }
}
