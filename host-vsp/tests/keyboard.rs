//! The synthetic keyboard, against a guest made by hand.

mod support;

use std::thread::sleep;
use std::time::{Duration, Instant};

use host_vsp::ic::Error;
use host_vsp::keyboard::{Key, Keyboard, LIMIT};
use host_vsp::vmbus::VmBus;
use support::{DEADLINE, Guest, GuestChannel};
use vmbus_proto::keyboard::{CLASS, Keystroke, ProtocolRequest, ProtocolResponse};
use vmbus_proto::packet::Outgoing;
use zerocopy::{FromBytes as _, IntoBytes as _};

fn connected() -> (Guest, VmBus, GuestChannel, Keyboard) {
    let (guest, partition) = Guest::new();
    let bus = VmBus::new(partition).unwrap();
    let (vsp, keyboard) = Keyboard::new().unwrap();
    bus.offer(vsp).unwrap();
    let offers = guest.connect(&bus);
    assert_eq!((offers[0].class, offers[0].pipe_mode()), (CLASS, None));
    let channel = guest.open(&bus, 1, 16, 2);
    (guest, bus, channel, keyboard)
}

fn ask(guest: &Guest, channel: &mut GuestChannel, version: u32) -> u32 {
    let request = ProtocolRequest {
        message_type: 1.into(),
        version: version.into(),
    };
    guest.send(channel, &Outgoing::in_band(9, request.as_bytes(), true));
    let answer = guest.receive(channel);
    let (answer, _) = ProtocolResponse::read_from_prefix(&answer).unwrap();
    assert_eq!(answer.message_type, 2);
    answer.accepted.get()
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "{what} does not come");
        sleep(Duration::from_millis(2));
    }
}

/// The next keystroke: code and flags.
fn stroke(guest: &Guest, channel: &mut GuestChannel) -> (u16, u32) {
    let payload = guest.receive(channel);
    let (stroke, _) = Keystroke::read_from_prefix(&payload).unwrap();
    assert_eq!(stroke.message_type, 3);
    (stroke.code.get(), stroke.flags.get())
}

fn strokes(guest: &Guest, channel: &mut GuestChannel, count: usize) -> Vec<(u16, u32)> {
    (0..count).map(|_| stroke(guest, channel)).collect()
}

#[test]
fn a_line_is_typed() {
    let (guest, _bus, mut channel, keyboard) = connected();
    assert_eq!(keyboard.type_text("early"), Err(Error::NotReady));
    assert_eq!(ask(&guest, &mut channel, 0x2_0000), 0, "no such version");
    assert!(!keyboard.is_ready());
    assert_eq!(ask(&guest, &mut channel, 0x1_0000), 1);
    until("the driver", || keyboard.is_ready());
    assert_eq!(keyboard.type_text("né"), Err(Error::Unsuitable));
    keyboard.type_text("aB\n").unwrap();
    let typed = strokes(&guest, &mut channel, 8);
    let (down, up) = (0, 2);
    assert_eq!(
        typed,
        [
            (0x1E, down),
            (0x1E, up),
            (0x2A, down),
            (0x30, down),
            (0x30, up),
            (0x2A, up),
            (0x1C, down),
            (0x1C, up)
        ]
    );
    keyboard.press(&[Key::CTRL, Key::ALT, Key::DELETE]).unwrap();
    let typed = strokes(&guest, &mut channel, 6);
    assert_eq!(
        typed,
        [
            (0x1D, 0),
            (0x38, 0),
            (0x53, 4),
            (0x53, 6),
            (0x38, 2),
            (0x1D, 2)
        ]
    );
    for code in [0, 0x80, 0xE0] {
        assert_eq!(keyboard.press(&[Key::new(code)]), Err(Error::Unsuitable));
    }
    // Lights are no reason to stop.
    let lights = [4, 0, 0, 0, 2, 0];
    guest.send(&mut channel, &Outgoing::in_band(0, &lights, false));
    keyboard.type_text("c").unwrap();
    assert_eq!(stroke(&guest, &mut channel), (0x2E, 0));
}

#[test]
fn much_text_waits_for_the_guest_and_too_much_is_refused() {
    let (guest, bus, mut channel, keyboard) = connected();
    ask(&guest, &mut channel, 0x1_0000);
    until("the driver", || keyboard.is_ready());
    keyboard.type_text(&"x".repeat(LIMIT / 2)).unwrap();
    // The ring has taken about a hundred.
    assert_eq!(keyboard.type_text(&"y".repeat(LIMIT / 2)), Err(Error::Busy));
    let typed = strokes(&guest, &mut channel, LIMIT);
    assert!(typed.iter().all(|(code, _)| *code == 0x2D));
    // A new driver begins with nothing typed.
    keyboard.type_text("zzz").unwrap();
    guest.close(&bus, 1);
    assert!(!guest.has_doorbell(1));
    assert_eq!(keyboard.type_text("q"), Err(Error::NotReady));
    let mut channel = guest.open(&bus, 1, 16, 2);
    ask(&guest, &mut channel, 0x1_0000);
    until("the driver", || keyboard.is_ready());
    keyboard.type_text("q").unwrap();
    assert_eq!(stroke(&guest, &mut channel), (0x10, 0));
}

#[test]
fn more_questions_than_the_ring_has_room_for_answers() {
    let (guest, _bus, mut channel, keyboard) = connected();
    let request = ProtocolRequest {
        message_type: 1.into(),
        version: 0x1_0000.into(),
    };
    // Rings of one page hold 128 of these: here stands a guest that does not read.
    for _ in 0..200 {
        let packet = Outgoing::in_band(0, request.as_bytes(), true);
        guest.send(&mut channel, &packet);
    }
    for _ in 0..200 {
        guest.receive(&mut channel);
    }
    until("the driver", || keyboard.is_ready());
}

#[test]
fn nonsense_stops_the_channel_only() {
    let all: [&[u8]; 5] = [
        &[],
        &[1, 0, 0, 0],
        &[3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[255; 64],
        &[1; 1000],
    ];
    for bytes in all {
        let (guest, bus, mut channel, keyboard) = connected();
        ask(&guest, &mut channel, 0x1_0000);
        until("the driver", || keyboard.is_ready());
        guest.send(&mut channel, &Outgoing::in_band(0, bytes, false));
        until("the end", || !keyboard.is_ready());
        guest.close(&bus, 1);
        let mut channel = guest.open(&bus, 1, 16, 2);
        assert_eq!(ask(&guest, &mut channel, 0x1_0000), 1);
    }
}

#[test]
fn what_was_typed_before_a_pause_comes_after_it() {
    let (guest, partition) = Guest::new();
    let bus = VmBus::new(partition.clone()).unwrap();
    let (vsp, keyboard) = Keyboard::new().unwrap();
    bus.offer(vsp).unwrap();
    guest.connect(&bus);
    let mut channel = guest.open(&bus, 1, 16, 2);
    ask(&guest, &mut channel, 0x1_0000);
    until("the driver", || keyboard.is_ready());
    keyboard.type_text(&"abcd".repeat(100)).unwrap();
    let bytes = postcard::to_stdvec(&bus.pause().unwrap()).unwrap();
    drop(bus);
    let (vsp, keyboard) = Keyboard::new().unwrap();
    let saved = postcard::from_bytes(&bytes).unwrap();
    let bus = VmBus::restore(partition, vec![vsp], saved).unwrap();
    bus.resume();
    until("the driver", || keyboard.is_ready());
    keyboard.type_text("e").unwrap();
    let typed = strokes(&guest, &mut channel, 802);
    for (at, [down, up]) in typed.as_chunks::<2>().0.iter().enumerate() {
        let code = if at == 400 {
            0x12
        } else {
            [0x1E, 0x30, 0x2E, 0x20][at % 4]
        };
        assert_eq!((*down, *up), ((code, 0), (code, 2)), "key {at}");
    }
}
