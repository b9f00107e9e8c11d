//! The console VSP and the running bus, against a guest made by hand.

mod support;

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use host_vsp::console::{Console, Streams};
use host_vsp::vmbus::VmBus;
use host_vsp::vmbus::channel::{Channel, ChannelError};
use host_vsp::vsp::{StateError, Vsp, plain_offer};
use support::{DEADLINE, Guest, GuestChannel};
use vmbus_proto::console::{CLASS, PipeHeader, data};
use vmbus_proto::guid::Guid;
use vmbus_proto::hv::hypercall::Status;
use vmbus_proto::message::{ChannelId, InitiateContact, Message, OfferChannel, TlConnect};
use vmbus_proto::packet::Outgoing;
use vmbus_proto::ring::{Control, RingMemory};
use vmbus_proto::version::Version;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A console whose other end is a socket.
fn console() -> (Box<Console>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(DEADLINE)).unwrap();
    let streams = Streams::new(
        Some(Box::new(theirs.try_clone().unwrap())),
        Box::new(theirs),
    )
    .unwrap();
    (Box::new(Console::new(streams)), ours)
}

fn write(guest: &Guest, channel: &mut GuestChannel, bytes: &[u8]) {
    let header = PipeHeader::data(bytes.len() as u32);
    guest.send(
        channel,
        &Outgoing::in_band(0, header.bytes(), false).with_tail(bytes),
    );
}

#[test]
fn bytes_both_ways_with_both_sides_slower_than_the_other() {
    let (guest, partition) = Guest::new();
    let bus = VmBus::new(partition).unwrap();
    let (vsp, mut terminal) = console();
    bus.offer(vsp).unwrap();
    let offers = guest.connect(&bus);
    assert_eq!((offers[0].class, offers[0].pipe_mode()), (CLASS, Some(0)));
    let mut channel = guest.open(&bus, 1, 16, 2);

    // More than the ring, the VSP and the stream hold together, so that each one blocks.
    let text: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
    std::thread::scope(|scope| {
        let mut reader = terminal.try_clone().unwrap();
        let expected = &text;
        scope.spawn(move || {
            let mut got = vec![0; expected.len()];
            reader.read_exact(&mut got).unwrap();
            assert!(got == *expected, "output arrived changed");
        });
        for chunk in text.chunks(1500) {
            write(&guest, &mut channel, chunk);
        }
    });
    std::thread::scope(|scope| {
        let input = &text;
        let terminal = &mut terminal;
        scope.spawn(move || terminal.write_all(input).unwrap());
        let mut got = Vec::new();
        while got.len() < text.len() {
            got.extend_from_slice(data(&guest.receive(&mut channel)).unwrap());
        }
        assert!(got == text, "input arrived changed");
    });
}

#[test]
fn a_corrupt_ring_stops_its_channel_only() {
    let (guest, partition) = Guest::new();
    let bus = VmBus::new(partition).unwrap();
    let (bad, _keep) = console();
    let (good, mut terminal) = console();
    bus.offer(bad).unwrap();
    bus.offer(good).unwrap();
    guest.connect(&bus);
    let channel = guest.open(&bus, 1, 16, 2);
    let mut other = guest.open(&bus, 2, 32, 2);
    channel
        .to_host
        .memory()
        .store(Control::WriteIndex, 0xFFFF_FFF1);
    guest.ring_doorbell(1);
    write(&guest, &mut other, b"still here");
    let mut got = [0; 10];
    terminal.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"still here");
    let failures = || -> Vec<u64> {
        let counters = bus.counters().channels;
        let failures = counters
            .values()
            .map(|c| c.failures.load(Ordering::Relaxed));
        failures.collect()
    };
    let begin = Instant::now();
    while failures() != [1, 0] {
        assert!(begin.elapsed() < DEADLINE, "{:?}", failures());
        std::thread::yield_now();
    }
    // The broken one can be closed and opened anew.
    guest.close(&bus, 1);
    let mut channel = guest.open(&bus, 1, 16, 2);
    write(&guest, &mut channel, b"again");
}

#[test]
fn packets_that_are_no_pipe_packets() {
    for payload in [
        &[1, 0, 0, 0, 255, 0, 0, 0][..],
        &[1, 0, 0, 0, 255, 255, 255, 255],
        &[],
    ] {
        let (guest, partition) = Guest::new();
        let bus = VmBus::new(partition).unwrap();
        let (vsp, _terminal) = console();
        bus.offer(vsp).unwrap();
        guest.connect(&bus);
        let mut channel = guest.open(&bus, 1, 16, 2);
        guest.send(&mut channel, &Outgoing::in_band(0, payload, false));
        guest.close(&bus, 1);
        let mut channel = guest.open(&bus, 1, 16, 2);
        write(&guest, &mut channel, b"fine");
    }
}

#[test]
fn close_reset_and_rescind_end_the_channel() {
    let (guest, partition) = Guest::new();
    let bus = VmBus::new(partition).unwrap();
    let (vsp, _terminal) = console();
    let device = bus.offer(vsp).unwrap();
    for _ in 0..3 {
        guest.connect(&bus);
        guest.open(&bus, 1, 16, 2);
        assert!(guest.has_doorbell(1));
        bus.reset();
        assert!(!guest.has_doorbell(1));
    }
    guest.connect(&bus);
    for _ in 0..3 {
        guest.open(&bus, 1, 16, 2);
        guest.close(&bus, 1);
        assert!(!guest.has_doorbell(1));
    }
    guest.open(&bus, 1, 16, 2);
    bus.rescind(device);
    assert!(!guest.has_doorbell(1));
    let heard = guest.hear();
    assert!(matches!(
        Message::parse(&heard),
        Ok(Message::RescindChannelOffer(_))
    ));
    guest.say(&bus, &Message::RelidReleased(ChannelId::new(1)).encode());
    let (vsp, _terminal) = console();
    bus.offer(vsp).unwrap();
    let heard = guest.hear();
    let Ok(Message::OfferChannel(offer)) = Message::parse(&heard) else {
        panic!("{heard:?}")
    };
    assert_eq!(offer.relid.get(), 1);
}

#[test]
fn messages_are_refused_by_their_port_and_their_number() {
    use host_vsp::hv::Hypercalls;
    let (guest, partition) = Guest::new();
    let bus = VmBus::new(partition).unwrap();
    let message = Message::RequestOffers.encode();
    assert_eq!(
        bus.post_message(0, 7, 1, &message),
        Status::INVALID_CONNECTION_ID
    );
    assert_eq!(
        bus.post_message(0, 1, 2, &message),
        Status::INVALID_PARAMETER
    );
    assert_eq!(
        bus.post_message(0, 1, 1, &[0; 241]),
        Status::INVALID_PARAMETER
    );
    assert_eq!(bus.signal_event(0, 2, 5), Status::SUCCESS);
    assert_eq!(bus.signal_event(0, 99, 0), Status::INVALID_CONNECTION_ID);
    // A guest that posts and never takes an answer is stopped before memory is.
    guest.connect(&bus);
    let begin = Instant::now();
    let socket = Message::TlConnectRequest(TlConnect {
        endpoint: Guid::ZERO,
        service: Guid::ZERO,
    });
    use host_vsp::hv::Messages;
    let mut refused = 0;
    while refused < 1000 || guest.log.backlog() < 256 {
        assert!(begin.elapsed() < DEADLINE, "the host swallows everything");
        let status = bus.post_message(0, 1, 1, &socket.encode());
        refused += u32::from(status == Status::INSUFFICIENT_BUFFERS);
    }
    assert!(guest.log.backlog() < 400);
    // A kernel that comes after it is heard all the same; what follows its contact is its own.
    let contact = InitiateContact::new(Version::V5_3, 0);
    guest.say(&bus, &Message::InitiateContact(contact).encode());
    while !matches!(
        Message::parse(&guest.hear()),
        Ok(Message::VersionResponse(_))
    ) {}
    guest.say(&bus, &message);
    assert!(matches!(
        Message::parse(&guest.hear()),
        Ok(Message::AllOffersDelivered)
    ));
}

/// A guest whose ring lacks the feature bit never says that it has made room.
#[test]
fn a_guest_that_does_not_mind_the_pending_send_size_is_polled() {
    let (guest, partition) = Guest::new();
    let bus = VmBus::new(partition).unwrap();
    let (vsp, mut terminal) = console();
    bus.offer(vsp).unwrap();
    guest.connect(&bus);
    let mut channel = guest.open(&bus, 1, 16, 2);
    channel.to_guest.memory().store(Control::FeatureBits, 0);
    let text: Vec<u8> = (0..50_000u32).map(|i| (i % 251) as u8).collect();
    terminal.write_all(&text).unwrap();
    let mut got = Vec::new();
    while got.len() < text.len() {
        got.extend_from_slice(data(&guest.receive(&mut channel)).unwrap());
    }
    assert!(got == text, "input arrived changed");
}

/// Guests of old ring one bell for all channels; and a hypervisor may leave every bell to us.
#[test]
fn signals_that_reach_the_bus_wake_their_channels() {
    use host_vsp::hv::Hypercalls;
    use host_vsp::vmbus::bus::doorbell_id;
    let (guest, partition) = Guest::new();
    let bus = VmBus::new(partition).unwrap();
    let (vsp, mut terminal) = console();
    bus.offer(vsp).unwrap();
    guest.connect(&bus);
    let mut channel = guest.open(&bus, 1, 16, 2);
    for (id, text) in [
        (2, b"old"),
        (doorbell_id(1), b"own"),
        (2, b"and"),
        (2, b"end"),
    ] {
        let header = PipeHeader::data(3);
        let packet = Outgoing::in_band(0, header.bytes(), false).with_tail(text);
        // Not by the doorbell that the hypervisor knows.
        let _ = channel.to_host.send(&packet).unwrap();
        assert_eq!(bus.signal_event(0, id, 0), Status::SUCCESS);
        let mut got = [0; 3];
        terminal.read_exact(&mut got).unwrap();
        assert_eq!(&got, text);
    }
    assert_eq!(
        bus.signal_event(0, doorbell_id(1), 1),
        Status::INVALID_CONNECTION_ID,
        "another flag"
    );
    guest.close(&bus, 1);
    assert_eq!(
        bus.signal_event(0, doorbell_id(1), 0),
        Status::INVALID_CONNECTION_ID,
        "closed"
    );
    assert_eq!(bus.signal_event(0, 2, 0), Status::SUCCESS);
}

#[test]
fn a_paused_bus_goes_on_elsewhere() {
    let (guest, partition) = Guest::new();
    let bus = VmBus::new(partition.clone()).unwrap();
    let (vsp, mut terminal) = console();
    bus.offer(vsp).unwrap();
    guest.connect(&bus);
    let mut channel = guest.open(&bus, 1, 16, 2);
    write(&guest, &mut channel, b"before ");
    let mut got = [0; 7];
    terminal.read_exact(&mut got).unwrap();
    let bytes = postcard::to_stdvec(&bus.pause().unwrap()).unwrap();
    drop(bus);

    let (vsp, mut terminal) = console();
    let saved = postcard::from_bytes(&bytes).unwrap();
    let bus = VmBus::restore(partition, vec![vsp], saved).unwrap();
    bus.resume();
    write(&guest, &mut channel, b"after");
    let mut got = [0; 5];
    terminal.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"after");
    terminal.write_all(b"input").unwrap();
    assert_eq!(data(&guest.receive(&mut channel)).unwrap(), b"input");
}

/// What a test sees and steers of a [`Choosy`] device.
struct Switches {
    /// The device leaves packets in the ring: it waits for room, say.
    busy: AtomicBool,
    calls: AtomicU64,
    packets: AtomicU64,
    event: EventFd,
}

/// A device that takes packets only while it feels like it.
struct Choosy(Arc<Switches>);

impl Vsp for Choosy {
    fn offer(&self) -> OfferChannel {
        plain_offer(Guid::new(1, 2, 3, 4, 5), Guid::new(1, 2, 3, 4, 6))
    }

    fn opened(&mut self) {}

    fn service(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        let _ = self.0.event.read();
        self.0.calls.fetch_add(1, Ordering::SeqCst);
        while !self.0.busy.load(Ordering::SeqCst) {
            if channel.receive(&mut [0; 256])?.is_none() {
                break;
            }
            self.0.packets.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    fn event(&self) -> Option<RawFd> {
        Some(self.0.event.as_raw_fd())
    }

    fn quiesce(&mut self) {}

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&mut self, _: &[u8]) -> Result<(), StateError> {
        Ok(())
    }
}

fn wait(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_device_that_leaves_packets_in_the_ring_is_not_asked_over_and_over() {
    let switches = Arc::new(Switches {
        busy: AtomicBool::new(false),
        calls: AtomicU64::new(0),
        packets: AtomicU64::new(0),
        event: EventFd::new(EFD_NONBLOCK).unwrap(),
    });
    let packets = || switches.packets.load(Ordering::SeqCst);
    let (guest, partition) = Guest::new();
    let bus = VmBus::new(partition).unwrap();
    bus.offer(Box::new(Choosy(Arc::clone(&switches)))).unwrap();
    guest.connect(&bus);
    let mut channel = guest.open(&bus, 1, 16, 2);
    guest.send(&mut channel, &Outgoing::in_band(1, &[0; 8], false));
    wait("the first packet is not taken", || packets() == 1);

    // The device has emptied the ring once. Now it takes nothing, and packets wait.
    switches.busy.store(true, Ordering::SeqCst);
    for id in 2..10 {
        guest.send(&mut channel, &Outgoing::in_band(id, &[0; 8], false));
    }
    switches.event.write(1).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let before = switches.calls.load(Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(200));
    let calls = switches.calls.load(Ordering::SeqCst) - before;
    assert!(calls <= 2, "the device was asked {calls} times for nothing");

    // Its event is all it takes to go on.
    switches.busy.store(false, Ordering::SeqCst);
    switches.event.write(1).unwrap();
    wait("the packets are not taken", || packets() == 9);
}
