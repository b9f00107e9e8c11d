//! The network: the guest's driver against the host's adapter.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use guest_vsc::bus::{BusMemory, Options, VmBus};
use guest_vsc::error::Error;
use guest_vsc::network::{
    self, Buffer, Network, NetworkMemory, NetworkOptions, PacketInfo, RxChecksum, TxChecksum,
};
use host_vsp::network::backend::{Loopback, Stream};
use inproc::{FakeHal, Machine, RamBuffer, VECTOR};
use rand::RngExt as _;

type Bus<'m> = VmBus<'m, FakeHal>;

/// Long enough for anything on a busy machine.
const LONG: Duration = Duration::from_secs(20);
/// Long enough for what should not come.
const SHORT: Duration = Duration::from_millis(100);

/// The address of the first adapter.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Runs a story on processor 0 of a connected guest.
fn story(machine: &Machine, tell: impl FnOnce(&Bus<'_>)) {
    let _cpu = machine.hypervisor.enter(0);
    let memory = BusMemory::<FakeHal, 4, 4>::new();
    let bus = VmBus::new(&memory, VECTOR).unwrap();
    bus.connect(&Options::default()).unwrap();
    tell(&bus);
    let stats = bus.stats();
    assert_eq!((stats.bad_completions, stats.bad_packets), (0, 0));
    drop(bus);
    assert_eq!(machine.hypervisor.counts().pages, 0, "pages were lost");
}

fn open<'b, B: Buffer, const SENDS: usize, const FRAMES: usize>(
    bus: &'b Bus<'b>,
    memory: &'b NetworkMemory<FakeHal, B, SENDS, FRAMES>,
) -> Network<'b, FakeHal, B> {
    open_with(bus, memory, &NetworkOptions::default())
}

fn open_with<'b, B: Buffer, const SENDS: usize, const FRAMES: usize>(
    bus: &'b Bus<'b>,
    memory: &'b NetworkMemory<FakeHal, B, SENDS, FRAMES>,
    options: &NetworkOptions,
) -> Network<'b, FakeHal, B> {
    let offer = bus.find(network::CLASS).expect("an offer");
    Network::open(bus, &offer, memory, options).unwrap()
}

/// A frame of `length` bytes to `MAC`, random behind its header.
fn frame(length: usize) -> Vec<u8> {
    let mut frame = vec![0; length];
    rand::rng().fill(frame.as_mut_slice());
    frame[..6].copy_from_slice(&MAC);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

/// Waits for the next frame.
fn next<B: Buffer>(network: &Network<'_, FakeHal, B>, buffer: &mut [u8]) -> network::Received {
    let end = Instant::now() + LONG;
    loop {
        if let Some(received) = network.try_receive(buffer).unwrap() {
            return received;
        }
        assert!(Instant::now() < end, "no frame came: {:?}", network.stats());
        network.wait_until_ready(SHORT).unwrap();
    }
}

#[test]
fn frames_of_every_length_come_back_as_they_were() {
    let machine = Machine::new(1);
    let (_, _, counters) = machine.add_network(1, 1500, Loopback::new(false).unwrap());
    story(&machine, |bus| {
        let memory: NetworkMemory<FakeHal> = NetworkMemory::new();
        let network = open(bus, &memory);
        assert_eq!(network.mac_address(), MAC);
        assert_eq!((network.mtu(), network.max_frame()), (1500, 1514));
        assert!(network.max_copied() > 1514);
        assert!(network.link_is_up());
        assert_eq!(network.offloads(), network::Offloads::default());
        let mut buffer = [0; 1514];
        for length in 14..=1514 {
            let sent = frame(length);
            network.try_send(&sent).unwrap();
            let received = next(&network, &mut buffer);
            assert_eq!(received.length, length);
            assert_eq!(buffer[..length], sent);
            assert_eq!(
                (received.checksum, received.vlan),
                (RxChecksum::Unknown, None)
            );
        }
        assert!(!network.can_recv());
        let stats = network.stats();
        assert_eq!((stats.sent, stats.received), (1501, 1501));
        assert_eq!((stats.bad, stats.lost, stats.refused), (0, 0, 0));
    });
    assert_eq!(
        (counters.tx_frames.get(), counters.rx_frames.get()),
        (1501, 1501)
    );
    assert_eq!((counters.tx_refused.get(), counters.rx_lost.get()), (0, 0));
}

#[test]
fn bursts_keep_their_order_and_fill_every_place() {
    let machine = Machine::new(1);
    let net = Loopback::new(false).unwrap();
    machine.add_network(1, 1500, net.clone());
    story(&machine, |bus| {
        let memory: NetworkMemory<FakeHal, Vec<u8>, 8, 300> = NetworkMemory::new();
        let network = open(bus, &memory);
        let mut buffer = [0; 1514];
        let (mut sent, mut received) = (0u32, 0u32);
        let end = Instant::now() + LONG;
        let mut full = 0;
        while received < 5000 {
            assert!(Instant::now() < end, "{sent} sent, {received} received");
            while sent < 5000 && sent - received < 250 {
                let mut frame = frame(60);
                frame[14..18].copy_from_slice(&sent.to_le_bytes());
                match network.try_send(&frame) {
                    Ok(()) => sent += 1,
                    Err(Error::Full) => {
                        full += 1;
                        break;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            while network.try_receive(&mut buffer).unwrap().is_some() {
                assert_eq!(buffer[14..18], received.to_le_bytes());
                received += 1;
            }
        }
        assert!(full > 0, "8 places were never too few");
        let end = Instant::now() + LONG;
        while network.in_flight() > 0 {
            network.handle_interrupt();
            assert!(Instant::now() < end);
        }
        // Nobody takes these, and none is lost by that.
        for _ in 0..2000 {
            net.put(&frame(60));
        }
        for _ in 0..100 {
            network.handle_interrupt();
            network.wait_until_ready(SHORT / 100).unwrap();
        }
        assert_eq!(network.stats().lost, 0);
        // An answer comes behind them: what finds no place is lost, and the adapter works on.
        network.set_promiscuous(false).unwrap();
        let end = Instant::now() + LONG;
        while network.stats().received + network.stats().lost < 7000 {
            network.try_receive(&mut buffer).unwrap();
            assert!(Instant::now() < end, "{:?}", network.stats());
        }
        assert!(network.stats().lost > 0);
        assert!(!network.can_recv());
        assert_eq!(network.stats().bad, 0);
    });
}

#[test]
fn frames_go_out_of_buffers_that_are_given_away() {
    let machine = Machine::new(1);
    machine.add_network(1, 9000, Loopback::new(false).unwrap());
    story(&machine, |bus| {
        let memory: NetworkMemory<FakeHal, RamBuffer, 4> = NetworkMemory::new();
        let options = NetworkOptions {
            mtu: 9000,
            ..NetworkOptions::default()
        };
        let network = open_with(bus, &memory, &options);
        assert_eq!(network.max_frame(), 9014);
        let mut received = vec![0; 9014];
        for (offset, length) in [(0, 14), (1, 60), (4095, 1514), (4000, 6144), (2047, 9014)] {
            let sent = frame(length);
            let buffer = RamBuffer::with(&machine.hypervisor, offset, &sent);
            let token = network.submit(buffer, &PacketInfo::default());
            let token = token.map_err(|(error, _)| error).unwrap();
            let got = next(&network, &mut received);
            assert_eq!((got.length, &received[..got.length]), (length, &sent[..]));
            let end = Instant::now() + LONG;
            let done = loop {
                if let Some(done) = network.poll_sent() {
                    break done;
                }
                assert!(Instant::now() < end, "the buffer did not come back");
            };
            assert_eq!((done.token, done.result), (token, Ok(())));
            assert_eq!(done.buffer[..], sent);
        }
        assert_eq!(machine.hypervisor.counts().bounced, 0, "no copy was made");
        // The adapter finds such a frame too long, and says so.
        let huge = RamBuffer::new(&machine.hypervisor, 0, 1 << 17);
        let refused = network.submit(huge, &PacketInfo::default());
        assert_eq!(refused.map_err(|(error, _)| error), Err(Error::TooLong));
        assert_eq!(network.in_flight(), 0);
    });
}

#[test]
fn frames_that_are_too_long_for_a_section_are_copied_all_the_same() {
    let machine = Machine::new(1);
    machine.add_network(1, 9000, Loopback::new(false).unwrap());
    story(&machine, |bus| {
        let memory: NetworkMemory<FakeHal, Vec<u8>, 8> = NetworkMemory::new();
        let options = NetworkOptions {
            mtu: 9000,
            ..NetworkOptions::default()
        };
        let network = open_with(bus, &memory, &options);
        assert!(network.max_copied() >= 9014);
        let mut received = vec![0; 9014];
        // Around the borders of a section and of pages; many at a time, so that each place is used.
        for lengths in [[5990, 6144, 6145, 8192], [8193, 9013, 9014, 60]] {
            for _ in 0..5 {
                let frames = lengths.map(frame);
                for frame in &frames {
                    network.try_send(frame).unwrap();
                }
                for frame in &frames {
                    let got = next(&network, &mut received);
                    assert_eq!(&received[..got.length], frame);
                }
            }
        }
        let too_long = frame(network.max_copied() + 1);
        assert_eq!(network.try_send(&too_long), Err(Error::TooLong));
        assert_eq!(network.stats().sent, 40);
    });
}

#[test]
fn the_shape_of_virtio_drivers() {
    let machine = Machine::new(1);
    machine.add_network(1, 9000, Loopback::new(false).unwrap());
    story(&machine, |bus| {
        let memory: NetworkMemory<FakeHal, Vec<u8>> = NetworkMemory::new();
        let options = NetworkOptions {
            mtu: 9000,
            ..NetworkOptions::default()
        };
        let network = open_with(bus, &memory, &options);
        assert!(network.receive().unwrap().is_none());
        for length in [60, 1514, 9014, 600].into_iter().cycle().take(200) {
            assert!(network.can_send());
            let sent = frame(length);
            let mut buffer = network.new_tx_buffer(length);
            assert_eq!(buffer.packet_len(), length);
            buffer.packet_mut().copy_from_slice(&sent);
            network.send(buffer).unwrap();
            assert!(network.wait_until_ready(LONG).unwrap());
            let received = network.receive().unwrap().unwrap();
            assert_eq!(received.packet(), sent);
            network.recycle_rx_buffer(received);
        }
        assert_eq!(network.stats().received, 200);
    });
}

#[test]
fn the_cable_is_pulled_and_plugged_in_again() {
    let machine = Machine::new(1);
    let net = Loopback::new(false).unwrap();
    let (_, cable, _) = machine.add_network(1, 1500, net.clone());
    story(&machine, |bus| {
        let memory: NetworkMemory<FakeHal> = NetworkMemory::new();
        let network = open(bus, &memory);
        assert!(network.link_is_up());
        assert_eq!(network.take_link_change(), None);
        for up in [false, true, false, true] {
            cable.set_plugged(up);
            let end = Instant::now() + LONG;
            let change = loop {
                network.wait_until_ready(SHORT / 10).unwrap();
                if let Some(change) = network.take_link_change() {
                    break change;
                }
                assert!(Instant::now() < end, "nobody said that the link is {up}");
            };
            assert_eq!((change, network.link_is_up()), (up, up));
            assert_eq!(network.take_link_change(), None);
        }
        network.try_send(&frame(60)).unwrap();
        next(&network, &mut [0; 1514]);
    });
    // One that is opened while it is pulled knows it.
    cable.set_plugged(false);
    story(&machine, |bus| {
        let memory: NetworkMemory<FakeHal> = NetworkMemory::new();
        let network = open(bus, &memory);
        network.wait_until_ready(SHORT).unwrap();
        assert!(!network.link_is_up());
    });
}

#[test]
fn filters_and_short_buffers() {
    let machine = Machine::new(1);
    let net = Loopback::new(false).unwrap();
    machine.add_network(1, 1500, net.clone());
    story(&machine, |bus| {
        let memory: NetworkMemory<FakeHal> = NetworkMemory::new();
        let network = open(bus, &memory);
        let mut buffer = [0; 1514];
        let to = |address: [u8; 6]| {
            let mut frame = frame(60);
            frame[..6].copy_from_slice(&address);
            net.put(&frame);
        };
        let stranger = [2, 9, 9, 9, 9, 9];
        for wanted in [MAC, [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
            to(stranger);
            to(wanted);
            next(&network, &mut buffer);
            assert_eq!(buffer[..6], wanted);
        }
        network.set_promiscuous(true).unwrap();
        to(stranger);
        next(&network, &mut buffer);
        assert_eq!(buffer[..6], stranger);
        network.set_promiscuous(false).unwrap();
        to(stranger);
        assert!(!network.wait_until_ready(SHORT).unwrap());
        // A frame that is longer than the buffer is lost, and the next one is not.
        net.put(&frame(1000));
        let second = frame(60);
        net.put(&second);
        next(&network, &mut buffer[..999]);
        assert_eq!(buffer[..60], second);
        assert_eq!(network.stats().lost, 1);
    });
}

#[test]
fn offloads_are_what_the_net_does() {
    let machine = Machine::new(1);
    machine.add_network(1, 1500, Loopback::new(true).unwrap());
    story(&machine, |bus| {
        let memory: NetworkMemory<FakeHal> = NetworkMemory::new();
        let network = open(bus, &memory);
        let offloads = network.offloads();
        assert!(offloads.tcp_ipv4 && offloads.udp_ipv4 && offloads.tcp_ipv6 && offloads.udp_ipv6);
        assert!(offloads.receive && offloads.large_send_ipv4 > 1514);
        // UDP over IPv4 whose checksum is that of the pseudo header: the net completes it.
        let mut sent = frame(14 + 20 + 8 + 100);
        sent[12..14].copy_from_slice(&[8, 0]);
        let ip = [
            0x45, 0, 0, 128, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ];
        sent[14..34].copy_from_slice(&ip);
        let header_sum = checksum(&sent[14..34]);
        sent[24..26].copy_from_slice(&header_sum.to_be_bytes());
        sent[34..40].copy_from_slice(&[0, 7, 0, 7, 0, 108]);
        let pseudo = [10, 0, 0, 1, 10, 0, 0, 2, 0, 17, 0, 108];
        sent[40..42].copy_from_slice(&(!checksum(&pseudo)).to_be_bytes());
        let flags = TxChecksum::IPV4 | TxChecksum::UDP;
        let info = PacketInfo {
            checksum: Some(TxChecksum::new(flags, 34).0),
            ..PacketInfo::default()
        };
        network.try_send_with(&sent, &info).unwrap();
        let mut buffer = [0; 1514];
        let received = next(&network, &mut buffer);
        assert_eq!(received.checksum, RxChecksum::Good);
        let whole: Vec<u8> = [&pseudo[..], &buffer[34..received.length]].concat();
        assert_eq!(checksum(&whole), 0, "the checksum was not completed");
    });
}

/// The Internet's checksum.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2);
    let mut sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |&low| u32::from(low)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[test]
fn one_adapter_on_four_processors() {
    let machine = Machine::new(4);
    let (_, _, counters) = machine.add_network(1, 1500, Loopback::new(false).unwrap());
    const EACH: usize = 5000;
    story(&machine, |bus| {
        for cpu in 1..4 {
            let _cpu = machine.hypervisor.enter(cpu);
            bus.start_cpu().unwrap();
        }
        let memory: NetworkMemory<FakeHal, Vec<u8>, 64, 1024> = NetworkMemory::new();
        let network = open(bus, &memory);
        let network = &network;
        let received = AtomicUsize::new(0);
        let sent = AtomicUsize::new(0);
        let seen: Vec<_> = (0..4 * EACH).map(|_| AtomicUsize::new(0)).collect();
        let end = Instant::now() + 3 * LONG;
        std::thread::scope(|scope| {
            for cpu in 0..4 {
                let (received, sent, seen) = (&received, &sent, &seen);
                let hypervisor = &machine.hypervisor;
                scope.spawn(move || {
                    let _cpu = hypervisor.enter(cpu);
                    let mut buffer = [0; 1514];
                    let mut mine = cpu as usize..usize::MAX;
                    let mut next = mine.by_ref().step_by(4).take(EACH).peekable();
                    while received.load(Ordering::Relaxed) < 4 * EACH {
                        assert!(Instant::now() < end, "{:?}", network.stats());
                        let on_the_cable = sent
                            .load(Ordering::Relaxed)
                            .saturating_sub(received.load(Ordering::Relaxed));
                        if on_the_cable < 500
                            && let Some(number) = next.peek()
                        {
                            let mut frame = frame(60 + number % 1400);
                            frame[14..22].copy_from_slice(&(*number as u64).to_le_bytes());
                            match network.try_send(&frame) {
                                Ok(()) => {
                                    sent.fetch_add(1, Ordering::Relaxed);
                                    next.next();
                                }
                                Err(Error::Full) => {}
                                Err(error) => panic!("{error}"),
                            }
                        }
                        while let Some(got) = network.try_receive(&mut buffer).unwrap() {
                            let number = u64::from_le_bytes(buffer[14..22].try_into().unwrap());
                            let number = number as usize;
                            assert_eq!(got.length, 60 + number % 1400);
                            assert_eq!(seen[number].fetch_add(1, Ordering::Relaxed), 0, "twice");
                            received.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert!(seen.iter().all(|seen| seen.load(Ordering::Relaxed) == 1));
        assert_eq!(network.stats().lost + network.stats().bad, 0);
        for cpu in 1..4 {
            let _cpu = machine.hypervisor.enter(cpu);
            bus.stop_cpu();
        }
    });
    assert_eq!(counters.tx_frames.get(), 4 * EACH as u64);
}

#[test]
fn reloads_leave_nothing_behind() {
    let machine = Machine::new(1);
    let net = Loopback::new(false).unwrap();
    machine.add_network(1, 1500, net.clone());
    let reloads = match std::env::var_os("VMBUS_SOAK") {
        Some(_) => 1000,
        None => 20,
    };
    story(&machine, |bus| {
        let memory: NetworkMemory<FakeHal, Vec<u8>> = NetworkMemory::new();
        let before = machine.hypervisor.counts().pages;
        for _ in 0..reloads {
            let network = open(bus, &memory);
            let mut buffer = network.new_tx_buffer(200);
            buffer.packet_mut().copy_from_slice(&frame(200));
            network.send(buffer).unwrap();
            next(&network, &mut [0; 1514]);
            // Closed with frames on their way, in both directions.
            for _ in 0..5 {
                net.put(&frame(60));
                network.try_send(&frame(60)).unwrap();
            }
            let second = NetworkMemory::<FakeHal, Vec<u8>>::new();
            let offer = bus.offers().next().unwrap();
            let again = Network::open(bus, &offer, &second, &NetworkOptions::default());
            assert_eq!(again.err(), Some(Error::OfferInUse));
            drop(network);
            assert_eq!(machine.hypervisor.counts().pages, before);
        }
    });
}

#[test]
fn an_adapter_that_is_taken_away_gives_buffers_back() {
    let machine = Machine::new(1);
    let (id, ..) = machine.add_network(1, 1500, Loopback::new(false).unwrap());
    story(&machine, |bus| {
        let memory: NetworkMemory<FakeHal, RamBuffer> = NetworkMemory::new();
        let network = open(bus, &memory);
        let mut out = 0;
        for _ in 0..20 {
            let buffer = RamBuffer::with(&machine.hypervisor, 0, &frame(1000));
            out += i32::from(network.submit(buffer, &PacketInfo::default()).is_ok());
        }
        machine.host.rescind(id);
        let end = Instant::now() + LONG;
        let mut buffer = [0; 1514];
        let error = loop {
            if let Err(error) = network.try_receive(&mut buffer) {
                break error;
            }
            assert!(Instant::now() < end, "nobody said that it is gone");
            bus.poll();
        };
        assert_eq!(error, Error::Rescinded);
        assert_eq!(network.try_send(&frame(60)), Err(Error::Rescinded));
        network.shutdown().unwrap();
        while network.poll_sent().is_some() {
            out -= 1;
        }
        assert_eq!(out, 0, "each buffer comes back once");
    });
}

#[test]
fn two_adapters_on_one_wire() {
    let (left, right) = UnixStream::pair().unwrap();
    let machine = Machine::new(1);
    machine.add_network(1, 1500, Stream::new(left).unwrap());
    machine.add_network(2, 1500, Stream::new(right).unwrap());
    story(&machine, |bus| {
        let memories = [(); 2].map(|()| NetworkMemory::<FakeHal>::new());
        let [first, second] = &memories;
        let (first, second) = (open(bus, first), open(bus, second));
        let (mut first, mut second) = (first, second);
        if first.mac_address() != MAC {
            std::mem::swap(&mut first, &mut second);
        }
        assert_eq!(second.mac_address(), [2, 0, 0, 0, 0, 2]);
        let mut buffer = [0; 1514];
        for _ in 0..200 {
            let sent = frame(1514);
            second.try_send(&sent).unwrap();
            next(&first, &mut buffer);
            assert!(buffer[..] == sent);
            first.try_send(&frame(60)).unwrap();
        }
        assert!(!second.can_recv(), "none of these is for it");
    });
}
