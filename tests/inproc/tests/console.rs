//! The console: the guest's driver against the host's device.

use std::time::Duration;

use embedded_io::{Read as _, ReadReady as _};
use guest_vsc::bus::{BusMemory, Options, VmBus};
use guest_vsc::channel::OpenOptions;
use guest_vsc::console::{self, Console};
use guest_vsc::error::{Error, Waited};
use inproc::{FakeHal, Machine, VECTOR};

type Memory = BusMemory<FakeHal, 2, 4>;

/// Runs a story on processor 0 of a connected guest.
fn story(machine: &Machine, timeout: Duration, tell: impl FnOnce(&VmBus<'_, FakeHal>)) {
    let _cpu = machine.hypervisor.enter(0);
    let memory = Memory::new();
    let bus = VmBus::new(&memory, VECTOR).unwrap();
    let options = Options {
        timeout,
        ..Options::default()
    };
    bus.connect(&options).unwrap();
    tell(&bus);
    drop(bus);
    assert_eq!(machine.hypervisor.counts().pages, 0, "pages were lost");
}

fn open<'b>(bus: &'b VmBus<'b, FakeHal>, options: &OpenOptions) -> Console<'b, FakeHal> {
    let offer = bus.find(console::CLASS).expect("an offer");
    assert!(offer.message().is_pipe());
    Console::open(bus, &offer, options).unwrap()
}

const LONG: Duration = Duration::from_secs(10);

#[test]
fn bytes_both_ways() {
    let machine = Machine::new(1);
    let (_, terminal) = machine.add_console();
    story(&machine, LONG, |bus| {
        let mut console = open(bus, &OpenOptions::default());
        std::fmt::Write::write_fmt(&mut console, format_args!("hello from the {}\n", "guest"))
            .unwrap();
        assert_eq!(terminal.shown(21), b"hello from the guest\n");
        assert_eq!(console.try_read(&mut [0; 8]), Ok(0));
        terminal.type_in(b"hello back");
        let mut buffer = [0; 4];
        let mut got = Vec::new();
        while got.len() < 10 {
            let length = Console::read(&console, &mut buffer).unwrap();
            got.extend_from_slice(&buffer[..length]);
        }
        assert_eq!(got, b"hello back");
    });
}

#[test]
fn through_the_traits_of_embedded_io() {
    let machine = Machine::new(1);
    let (_, terminal) = machine.add_console();
    story(&machine, LONG, |bus| {
        let mut console = open(bus, &OpenOptions::default());
        embedded_io::Write::write_all(&mut console, b"out").unwrap();
        embedded_io::Write::flush(&mut console).unwrap();
        assert_eq!(terminal.shown(3), b"out");
        assert!(!console.read_ready().unwrap());
        terminal.type_in(b"in");
        let mut buffer = [0; 2];
        console.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"in");
    });
}

#[test]
fn more_than_the_rings_hold() {
    let machine = Machine::new(1);
    let (_, terminal) = machine.add_console();
    let text: Vec<u8> = (0..600_000u32).map(|n| (n * 7 % 251) as u8).collect();
    story(&machine, LONG, |bus| {
        let small = OpenOptions {
            to_host: 8192,
            to_guest: 8192,
            ..OpenOptions::default()
        };
        let console = open(bus, &small);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _cpu = machine.hypervisor.enter(0);
                for part in text.chunks(7777) {
                    console.write(part).unwrap();
                }
            });
            scope.spawn(|| assert!(terminal.shown(text.len()) == text));
            scope.spawn(|| terminal.type_in(&text));
            let mut got = Vec::new();
            let mut buffer = [0; 1000];
            while got.len() < text.len() {
                let length = Console::read(&console, &mut buffer).unwrap();
                got.extend_from_slice(&buffer[..length]);
            }
            assert!(got == text);
        });
    });
}

#[test]
fn a_terminal_that_takes_nothing_is_an_error_not_a_hang() {
    let machine = Machine::new(1);
    let (_, terminal) = machine.add_console();
    story(&machine, Duration::from_millis(200), |bus| {
        let small = OpenOptions {
            to_host: 8192,
            ..OpenOptions::default()
        };
        let console = open(bus, &small);
        terminal.hold(true);
        // More than the ring and the host's own buffers hold.
        let result = console.write(&[b'x'; 400_000]);
        assert_eq!(result, Err(Error::Timeout(Waited::Room)));
        assert_eq!(console.try_write(&[b'x'; 4096]), Ok(0));
        terminal.hold(false);
        // What was written comes, and then there is room again.
        while console.try_write(b"!").unwrap() == 0 {
            std::thread::yield_now();
        }
        let nothing_typed = Console::read(&console, &mut [0; 1]);
        assert_eq!(nothing_typed, Err(Error::Timeout(Waited::Packet)));
    });
}

#[test]
fn a_console_may_be_taken_away_and_comes_back() {
    let machine = Machine::new(1);
    let (mut device, _) = machine.add_console();
    story(&machine, LONG, |bus| {
        for _ in 0..20 {
            let mut console = open(bus, &OpenOptions::default());
            std::thread::scope(|scope| {
                scope.spawn(|| machine.host.rescind(device));
                let end = loop {
                    if let Err(error) = console.write(b"still there? ") {
                        break error;
                    }
                };
                assert_eq!(end, Error::Rescinded);
                assert!(console.read_exact(&mut [0; 1]).is_err());
            });
            drop(console);
            assert!(bus.find(console::CLASS).is_none());
            let (again, terminal) = machine.add_console();
            device = again;
            while bus.find(console::CLASS).is_none() {
                bus.poll();
            }
            open(bus, &OpenOptions::default()).write(b"back").unwrap();
            assert_eq!(terminal.shown(4), b"back");
        }
    });
}
