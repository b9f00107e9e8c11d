//! What a processor meets at I/O ports and at the MSRs that are served here.
//!
//! Ports: COM1 and COM2, the clock, the ways to power off and to reset, and, where asked for, two that help tests: a
//! *steady port* that brackets a window of time in which all counters are compared, and an *exit
//! port* that ends the process with a status, as QEMU's `isa-debug-exit` does. Everything else
//! reads as all ones, as on a bus with nobody there.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmbus_proto::hv::msr::{CRASH_CTL, CRASH_MESSAGE, CRASH_NOTIFY, CRASH_P0};

use crate::acpi::SLEEP_TYPE_S5;
use crate::counters::{Counter, Counters, Snapshot};
use crate::layout::{
    I8042_COMMAND, I8042_RESET, PM1A_CONTROL, PM1A_EVENT, RESET_PORT, RESET_VALUE, SERIAL_PORTS,
};
use crate::machine::{Event, ResetCause};
use crate::memory::GuestMemory;
use crate::rtc::{self, Rtc};
use crate::serial::Serial;

/// PM1 control: ACPI, not legacy, mode.
const SCI_ENABLED: u16 = 1;
/// PM1 control: go to sleep now.
const SLEEP_ENABLE: u16 = 1 << 13;
/// PM1 control: the sleep type begins at this bit.
const SLEEP_TYPE_SHIFT: u16 = 10;
/// Most of a crash message that is read, in bytes.
const CRASH_MESSAGE_MAX: u64 = 4096;
/// Crashes that are reported between two resets: a guest must not fill a log.
const CRASHES_MAX: u32 = 4;

/// Value that begins a window at the steady port.
const WINDOW_BEGIN: u8 = 1;
/// Value that ends it.
const WINDOW_END: u8 = 2;

/// Receives the counters of each window that a guest marked at the steady port.
pub type WindowReport = Arc<dyn Fn(&Snapshot) + Send + Sync>;

/// What of the platform is only there if asked for.
#[derive(Clone, Default)]
pub struct Options {
    /// Port at which a guest brackets a window: 1 begins it, 2 ends it.
    pub steady_port: Option<u16>,
    /// Who hears of the windows.
    pub window_report: Option<WindowReport>,
    /// Port at which a byte ends the machine.
    pub exit_port: Option<u16>,
}

/// A crash that a guest's operating system reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crash {
    /// The crash MSRs P0 to P4.
    pub parameters: [u64; 5],
    /// Its message, without what a terminal would obey.
    pub message: Option<String>,
}

/// The ports and MSRs of one machine.
pub struct Platform {
    memory: Arc<dyn GuestMemory>,
    counters: Arc<Counters>,
    serial: [Arc<Serial>; 2],
    rtc: Rtc,
    options: Options,
    state: Mutex<State>,
    /// The last crash. It outlives a reset: guests restart after one.
    crash: Mutex<Option<Crash>>,
    crashes: Counter,
    serial_accesses: Counter,
    power_accesses: Counter,
    other_accesses: Counter,
}

#[derive(Default)]
struct State {
    /// PM1 enable: bits that the guest set and that nothing here raises.
    pm1_enable: u16,
    crash: [u64; 5],
    /// Crashes reported since power-on.
    crashes: u32,
    window: Option<Snapshot>,
}

impl Platform {
    /// A platform in its state after power-on.
    pub fn new(
        memory: Arc<dyn GuestMemory>,
        counters: Arc<Counters>,
        serial: [Arc<Serial>; 2],
        options: Options,
    ) -> Self {
        Self {
            crash: Mutex::default(),
            crashes: counters.counter("guest.crashes"),
            serial_accesses: counters.counter("serial.accesses"),
            power_accesses: counters.counter("power.accesses"),
            other_accesses: counters.counter("other.port_accesses"),
            memory,
            counters,
            serial,
            rtc: Rtc::default(),
            options,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last crash that the guest reported, and how many there were.
    pub fn crash(&self) -> (Option<Crash>, u64) {
        let crash = self.crash.lock().unwrap_or_else(PoisonError::into_inner);
        (crash.clone(), self.crashes.get())
    }

    /// Back to the state after power-on.
    pub fn reset(&self) {
        *self.state() = State::default();
        self.serial.iter().for_each(|port| port.reset());
    }

    /// The serial port that has the I/O port, and which of its registers that is.
    fn serial_at(&self, port: u16) -> Option<(&Serial, u8)> {
        let mut ports = SERIAL_PORTS.iter().zip(&self.serial);
        let (first, serial) = ports.find(|(first, _)| (**first..**first + 8).contains(&port))?;
        Some((serial, (port - first) as u8))
    }

    /// The guest writes `data` to `port`.
    pub fn port_out(&self, port: u16, data: &[u8]) -> Option<Event> {
        if let Some((serial, offset)) = self.serial_at(port) {
            self.serial_accesses.count();
            serial.write(offset, data);
            return None;
        }
        let first = *data.first()?;
        if self.options.steady_port == Some(port) {
            self.mark(first);
            return None;
        }
        if self.options.exit_port == Some(port) {
            return Some(Event::Exit(first));
        }
        match port {
            PM1A_CONTROL => {
                self.power_accesses.count();
                let value = u16::from_le_bytes([first, data.get(1).copied().unwrap_or(0)]);
                let s5 = u16::from(SLEEP_TYPE_S5) << SLEEP_TYPE_SHIFT | SLEEP_ENABLE;
                (value & (7 << SLEEP_TYPE_SHIFT | SLEEP_ENABLE) == s5).then_some(Event::PowerOff)
            }
            _ if port == PM1A_EVENT + 2 => {
                self.power_accesses.count();
                let value = u16::from_le_bytes([first, data.get(1).copied().unwrap_or(0)]);
                self.state().pm1_enable = value;
                None
            }
            rtc::INDEX_PORT => {
                self.rtc.select(first);
                None
            }
            RESET_PORT if first & RESET_VALUE == RESET_VALUE => {
                Some(Event::Reset(ResetCause::ResetRegister))
            }
            I8042_COMMAND if first == I8042_RESET => {
                Some(Event::Reset(ResetCause::KeyboardController))
            }
            _ => {
                self.other_accesses.count();
                None
            }
        }
    }

    /// The guest reads `port`.
    pub fn port_in(&self, port: u16, data: &mut [u8]) {
        if let Some((serial, offset)) = self.serial_at(port) {
            self.serial_accesses.count();
            return serial.read(offset, data);
        }
        if port == rtc::DATA_PORT {
            return data.fill(self.rtc.read());
        }
        let register = match port {
            PM1A_EVENT => 0,
            PM1A_CONTROL => SCI_ENABLED,
            _ if port == PM1A_EVENT + 2 => self.state().pm1_enable,
            // The keyboard controller takes commands: its input buffer is empty.
            I8042_COMMAND => 0,
            _ => {
                self.other_accesses.count();
                return data.fill(0xFF);
            }
        };
        self.power_accesses.count();
        data.fill(0);
        for (byte, value) in data.iter_mut().zip(register.to_le_bytes()) {
            *byte = value;
        }
    }

    /// The guest reads an MSR; `None` is a fault.
    pub fn read_msr(&self, index: u32) -> Option<u64> {
        match index {
            CRASH_CTL => Some(CRASH_NOTIFY | CRASH_MESSAGE),
            _ => self
                .state()
                .crash
                .get(index.checked_sub(CRASH_P0)? as usize)
                .copied(),
        }
    }

    /// The guest writes an MSR; false is a fault.
    pub fn write_msr(&self, index: u32, value: u64) -> bool {
        if index == CRASH_CTL {
            if value & CRASH_NOTIFY != 0 {
                self.report_crash(value & CRASH_MESSAGE != 0);
            }
            return true;
        }
        let mut state = self.state();
        let place = index
            .checked_sub(CRASH_P0)
            .and_then(|at| state.crash.get_mut(at as usize));
        place.map(|place| *place = value).is_some()
    }

    fn report_crash(&self, with_message: bool) {
        self.crashes.count();
        let parameters = {
            let mut state = self.state();
            if state.crashes >= CRASHES_MAX {
                return;
            }
            state.crashes += 1;
            state.crash
        };
        let crash = Crash {
            parameters,
            message: with_message
                .then(|| self.crash_message(parameters))
                .flatten(),
        };
        let text = match &crash.message {
            Some(message) => format!("\n{message}"),
            None => format!(" with parameters {parameters:#x?}"),
        };
        *self.crash.lock().unwrap_or_else(PoisonError::into_inner) = Some(crash);
        tracing::error!("the guest reports that it crashed{text}");
    }

    /// The message of a crash, where it can be read.
    fn crash_message(&self, parameters: [u64; 5]) -> Option<String> {
        let [.., address, length] = parameters;
        if length > CRASH_MESSAGE_MAX {
            return None;
        }
        let mut bytes = vec![0; length as usize];
        self.memory.read(address, &mut bytes)?;
        // What a guest says goes to a terminal: nothing that a terminal would obey.
        let text = String::from_utf8_lossy(&bytes)
            .chars()
            .filter(|c| *c == '\n' || !c.is_control())
            .collect();
        Some(text)
    }

    /// A guest marks the begin or the end of a window.
    fn mark(&self, value: u8) {
        match value {
            WINDOW_BEGIN => {
                let mut state = self.state();
                state.window = Some(self.counters.snapshot());
            }
            WINDOW_END => {
                let now = self.counters.snapshot();
                let begin = self.state().window.take();
                if let (Some(begin), Some(report)) = (begin, &self.options.window_report) {
                    report(&now.since(&begin));
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::counters::Return;

    fn platform(options: Options) -> (Platform, Arc<Counters>) {
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap());
        let counters = Arc::new(Counters::new(1));
        let serial = [0; 2].map(|_| Arc::new(Serial::new().unwrap()));
        (
            Platform::new(memory, Arc::clone(&counters), serial, options),
            counters,
        )
    }

    #[test]
    fn only_the_right_values_end_or_reset_the_machine() {
        let (platform, _) = platform(Options::default());
        let out = |port, data: &[u8]| platform.port_out(port, data);
        assert!(matches!(out(0x604, &[0x00, 0x34]), Some(Event::PowerOff)));
        assert!(out(0x604, &[0x01, 0x00]).is_none());
        assert!(out(0x604, &[0x00, 0x24]).is_none(), "another sleep type");
        assert!(matches!(
            out(0xCF9, &[6]),
            Some(Event::Reset(ResetCause::ResetRegister))
        ));
        assert!(out(0xCF9, &[2]).is_none());
        assert!(matches!(
            out(0x64, &[0xFE]),
            Some(Event::Reset(ResetCause::KeyboardController))
        ));
        assert!(out(0x64, &[0x20]).is_none());
        assert!(out(0x80, &[1]).is_none());
        assert!(out(0xF4, &[1]).is_none(), "no exit port unless asked for");
    }

    #[test]
    fn registers_read_as_acpi_expects_and_nothing_reads_as_ones() {
        let (platform, _) = platform(Options::default());
        let read = |port| {
            let mut data = [0; 2];
            platform.port_in(port, &mut data);
            u16::from_le_bytes(data)
        };
        assert_eq!((read(0x600), read(0x604)), (0, 1));
        platform.port_out(0x602, &[0x20, 0x01]);
        assert_eq!(read(0x602), 0x120);
        platform.reset();
        assert_eq!(read(0x602), 0);
        assert_eq!(read(0xCF8), 0xFFFF);
        assert_eq!(read(0x64), 0);
    }

    #[test]
    fn a_window_counts_what_happens_between_its_marks() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let (platform, counters) = platform(Options {
            steady_port: Some(0x510),
            window_report: Some(Arc::new(move |window| {
                log.lock().unwrap().push(window.clone())
            })),
            exit_port: Some(0xF4),
        });
        platform.port_out(0x510, &[2]);
        counters.returned(0, Return::Msr);
        platform.port_out(0x510, &[1]);
        counters.returned(0, Return::Msr);
        counters.returned(0, Return::Msr);
        platform.port_out(0x510, &[2]);
        let windows = seen.lock().unwrap();
        assert_eq!(windows.len(), 1, "an end without a begin reports nothing");
        assert_eq!(windows[0].returns_total, 2);
        assert!(matches!(
            platform.port_out(0xF4, &[0x10]),
            Some(Event::Exit(0x10))
        ));
    }

    #[test]
    fn a_crash_offers_messages_and_survives_a_wrong_one() {
        let (platform, _) = platform(Options::default());
        assert_eq!(platform.read_msr(CRASH_CTL), Some(3 << 62));
        assert!(platform.write_msr(CRASH_P0 + 3, u64::MAX));
        assert!(platform.write_msr(CRASH_P0 + 4, 100));
        assert_eq!(platform.read_msr(CRASH_P0 + 4), Some(100));
        assert!(platform.write_msr(CRASH_CTL, 3 << 62));
        assert!(!platform.write_msr(0x10, 0) && platform.read_msr(0x10).is_none());
    }
}
