//! The keyboard: the guest's driver against the host's device.

use std::time::{Duration, Instant};

use guest_vsc::bus::{BusMemory, Options, VmBus};
use guest_vsc::channel::OpenOptions;
use guest_vsc::error::{Error, Waited};
use guest_vsc::keyboard::{self, Key, KeyEvent, Keyboard, Lights, Prefix};
use host_vsp::keyboard::Key as HostKey;
use inproc::{FakeHal, Machine, VECTOR};

/// Runs a story on processor 0 of a connected guest.
fn story(machine: &Machine, timeout: Duration, tell: impl FnOnce(&VmBus<'_, FakeHal>)) {
    let _cpu = machine.hypervisor.enter(0);
    let memory = BusMemory::<FakeHal, 1, 4>::new();
    let bus = VmBus::new(&memory, VECTOR).unwrap();
    let options = Options {
        timeout,
        ..Options::default()
    };
    bus.connect(&options).unwrap();
    tell(&bus);
    assert_eq!(bus.stats().bad_packets, 0);
    drop(bus);
    assert_eq!(machine.hypervisor.counts().pages, 0, "pages were lost");
}

fn open<'b>(bus: &'b VmBus<'b, FakeHal>) -> Keyboard<'b, FakeHal> {
    let offer = bus.find(keyboard::CLASS).expect("an offer");
    Keyboard::open(bus, &offer, &OpenOptions::default()).unwrap()
}

const LONG: Duration = Duration::from_secs(10);

#[test]
fn a_line_is_typed() {
    let machine = Machine::new(1);
    let (_, host) = machine.add_keyboard();
    story(&machine, LONG, |bus| {
        let keyboard = open(bus);
        assert_eq!(keyboard.try_read(), Ok(None));
        host.type_text("aZ\n").unwrap();
        let mut bytes = Vec::new();
        while bytes.last() != Some(&0x9C) {
            bytes.extend(keyboard.read().unwrap().scan_code());
        }
        assert_eq!(
            bytes,
            [0x1E, 0x9E, 0x2A, 0x2C, 0xAC, 0xAA, 0x1C, 0x9C],
            "a, Z with shift, enter"
        );
        host.press(&[HostKey::CTRL, HostKey::DELETE]).unwrap();
        let delete = Key::ScanCode {
            code: 0x53,
            prefix: Prefix::E0,
        };
        let events: Vec<KeyEvent> = (0..4).map(|_| keyboard.read().unwrap()).collect();
        assert_eq!((events[1].key, events[1].pressed), (delete, true));
        assert_eq!((events[2].key, events[2].pressed), (delete, false));
        keyboard
            .set_lights(Lights {
                caps_lock: true,
                ..Lights::default()
            })
            .unwrap();
        // The host has read them and works on.
        host.type_text("x").unwrap();
        assert_eq!(keyboard.read().unwrap().scan_code().next(), Some(0x2D));
    });
}

#[test]
fn more_than_the_ring_holds() {
    let machine = Machine::new(1);
    let (_, host) = machine.add_keyboard();
    story(&machine, LONG, |bus| {
        let keyboard = open(bus);
        host.type_text(&"q".repeat(2000)).unwrap();
        for n in 0..4000 {
            let event = keyboard.read().unwrap();
            assert_eq!(event.pressed, n % 2 == 0);
        }
        assert_eq!(keyboard.try_read(), Ok(None));
    });
}

#[test]
fn nobody_types() {
    let machine = Machine::new(1);
    machine.add_keyboard();
    story(&machine, Duration::from_millis(100), |bus| {
        let keyboard = open(bus);
        assert_eq!(keyboard.read(), Err(Error::Timeout(Waited::Packet)));
    });
}

#[test]
fn a_keyboard_is_unplugged_and_another_one_comes() {
    let machine = Machine::new(1);
    let (mut device, _) = machine.add_keyboard();
    story(&machine, LONG, |bus| {
        assert!(bus.next_offer().is_some());
        for _ in 0..20 {
            assert!(bus.next_offer().is_none());
            let keyboard = open(bus);
            std::thread::scope(|scope| {
                scope.spawn(|| machine.host.rescind(device));
                assert_eq!(keyboard.read(), Err(Error::Rescinded));
            });
            drop(keyboard);
            let (again, host) = machine.add_keyboard();
            device = again;
            let end = Instant::now() + LONG;
            let offer = loop {
                bus.poll();
                match bus.next_offer() {
                    Some(offer) => break offer,
                    None => assert!(Instant::now() < end, "no offer"),
                }
            };
            assert_eq!(offer.class(), keyboard::CLASS);
            let keyboard = open(bus);
            host.type_text("k").unwrap();
            assert!(keyboard.read().unwrap().pressed);
        }
    });
}
