//! A network adapter that lies: errors and counts, never a panic or a hang, and no byte beyond the
//! buffers.

mod lying;
mod queues;
mod storm;
mod strict;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use guest_vsc::bus::{BusMemory, Options, VmBus};
use guest_vsc::error::Error;
use guest_vsc::network::{self, Network, NetworkMemory, NetworkOptions, PacketInfo};
use host_vsp::hv::Hypercalls;
use inproc::{FakeHal, Machine, VECTOR};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use vm_memory::{Bytes as _, GuestAddress};
use vmbus_proto::hv::hypercall::Status;
use vmbus_proto::message::Message as BusMessage;
use vmbus_proto::netvsp::{Message, RECEIVE_BUFFER_ID, Sections, Version, rndis_channel, status};
use vmbus_proto::rndis::packet::PacketInfo as Info;
use vmbus_proto::rndis::{self, Completion, Indication, oid, status as rndis_status};

use lying::{Lying, MAC, QUEUES, Reply, SECTION, SECTIONS, Sent};

/// Long enough for an honest answer on a busy machine.
const LONG: Duration = Duration::from_secs(10);
/// Long enough where there may be no answer.
const SHORT: Duration = Duration::from_millis(100);

type Memory = NetworkMemory<FakeHal, Vec<u8>, 16, 64, { QUEUES as usize }>;
type Opened<'b> = Network<'b, FakeHal, Vec<u8>>;

/// Tries to open a lying adapter; lets `tell` use it where that works. Returns why it did not.
fn story(
    timeout: Duration,
    lie: impl FnMut(&Message, &mut Reply) + Send + 'static,
    tell: impl FnOnce(&Opened<'_>),
) -> Result<(), Error> {
    story_with_queues(1, timeout, lie, tell)
}

/// The same of a guest with so many processors, which wants as many queues.
fn story_with_queues(
    queues: u32,
    timeout: Duration,
    lie: impl FnMut(&Message, &mut Reply) + Send + 'static,
    tell: impl FnOnce(&Opened<'_>),
) -> Result<(), Error> {
    let machine = Machine::new(queues);
    machine.host.offer(Lying::new(lie)).unwrap();
    let _cpu = machine.hypervisor.enter(0);
    let memory = BusMemory::<FakeHal, { QUEUES as usize }, 8>::new();
    let bus = VmBus::new(&memory, VECTOR).unwrap();
    for vp in 1..queues {
        let _cpu = machine.hypervisor.enter(vp);
        bus.start_cpu().unwrap();
    }
    bus.connect(&Options::default()).unwrap();
    let places = Memory::new();
    let offer = bus.find(network::CLASS).unwrap();
    let pages = || machine.hypervisor.counts().pages;
    let before = pages();
    bus.set_timeout(timeout);
    let options = NetworkOptions::default();
    let queues_wanted = queues as usize;
    let opened = Network::open_with_queues(&bus, &offer, &places, &options, queues_wanted);
    let result = opened.map(|network| {
        bus.set_timeout(LONG);
        tell(&network);
    });
    // A bus that is late, for once not by intention, keeps what it was lent; but its answer comes, and
    // is counted as one that nobody waits for.
    let late = pages() != before;
    let end = Instant::now() + LONG;
    while late && bus.stats().unexpected == 0 {
        assert!(Instant::now() < end, "pages were lost: {result:?}");
        bus.poll();
        std::thread::yield_now();
    }
    for vp in 1..queues {
        let _cpu = machine.hypervisor.enter(vp);
        bus.stop_cpu();
    }
    drop(bus);
    if !late {
        assert_eq!(pages(), 0, "pages were lost");
    }
    result
}

/// Waits for a frame that is as it should be.
fn good_frame(network: &Opened<'_>) {
    let mut buffer = [0; 1514];
    for _ in 0..100 {
        if let Some(received) = network.try_receive(&mut buffer).unwrap() {
            assert_eq!(buffer[..received.length], [7; 100]);
            return;
        }
        network.wait_until_ready(SHORT).unwrap();
    }
    panic!("no good frame came: {:?}", network.stats());
}

#[test]
fn an_honest_adapter_opens() {
    let opened = story(
        LONG,
        |_, _| {},
        |network| {
            assert_eq!(network.mac_address(), MAC);
            assert_eq!(network.version(), Some(Version::V6_1));
            for _ in 0..100 {
                network.try_send(&[9; 60]).unwrap();
                good_frame(network);
            }
            assert_eq!(network.stats().bad, 0);
        },
    );
    assert_eq!(opened, Ok(()));
}

/// Replaces the completion of the message that `is` picks.
fn instead(
    is: fn(&Message) -> bool,
    answer: Message,
) -> impl FnMut(&Message, &mut Reply) + Send + 'static {
    move |message, reply| {
        if is(message) {
            for sent in &mut reply.packets {
                if let Sent::Completion(_, bytes) = sent {
                    *bytes = answer.encode(None).to_vec();
                }
            }
        }
    }
}

#[test]
fn answers_that_cannot_be_end_the_opening() {
    let is_init = |message: &Message| matches!(message, Message::Init(..));
    let is_receive = |message: &Message| matches!(message, Message::SendReceiveBuffer(_));
    let is_send = |message: &Message| matches!(message, Message::SendSendBuffer(_));
    let open = |is: fn(&Message) -> bool, answer: Message| {
        story(LONG, instead(is, answer), |_| {}).unwrap_err()
    };
    let refused = open(is_init, Message::InitComplete(status::FAILURE));
    assert!(matches!(refused, Error::Refused(..)), "{refused}");
    let other = Message::SendRndisPacketComplete(status::SUCCESS);
    for is in [is_init as fn(&Message) -> bool, is_receive, is_send] {
        assert!(matches!(open(is, other), Error::Protocol(_)));
    }
    let sections = |size: u32, count: u32| {
        let sections = Sections {
            offset: 0.into(),
            size: size.into(),
            count: count.into(),
            end_offset: 0.into(),
        };
        Message::SendReceiveBufferComplete(status::SUCCESS, sections)
    };
    for (size, count) in [
        (0, 1),
        (67, 1),
        (u32::MAX, u32::MAX),
        (SECTION, SECTIONS + 1),
    ] {
        assert!(matches!(
            open(is_receive, sections(size, count)),
            Error::Protocol(_)
        ));
    }
    for size in [0, 1, 68, 100, 384 << 10 | 1, u32::MAX] {
        let message = Message::SendSendBufferComplete(status::SUCCESS, size);
        assert!(
            matches!(open(is_send, message), Error::Protocol(_)),
            "{size}"
        );
    }
    for answer in [
        Message::SendReceiveBufferComplete(status::FAILURE, Sections::default()),
        Message::SendSendBufferComplete(status::BUSY, 6144),
    ] {
        let is = match answer {
            Message::SendSendBufferComplete(..) => is_send,
            _ => is_receive,
        };
        assert!(matches!(open(is, answer), Error::Refused(..)));
    }
}

#[test]
fn objects_that_cannot_be_end_the_opening() {
    // Each value in the place of the address or the MTU.
    let open = |wrong: u32, value: &'static [u8]| {
        let mut asked = None;
        let lie = move |_: &Message, reply: &mut Reply| {
            for (_, bytes) in &mut reply.writes {
                let Ok((kind, body, _)) = rndis::split(bytes) else {
                    continue;
                };
                let Ok(Some(Completion::Query { id, status, .. })) = Completion::parse(kind, body)
                else {
                    continue;
                };
                // Objects are asked for in the order of these.
                let oid = match asked {
                    None => oid::ETHERNET_PERMANENT_ADDRESS,
                    Some(oid::ETHERNET_PERMANENT_ADDRESS) => oid::GEN_MAXIMUM_FRAME_SIZE,
                    _ => 0,
                };
                asked = Some(oid);
                if oid == wrong {
                    let mut to = [0; 1024];
                    let answer = Completion::Query { id, status, value };
                    *bytes = answer.encode(&mut to).unwrap().to_vec();
                }
            }
            for sent in &mut reply.packets {
                if let Sent::Transfer(_, _, ranges, _) = sent
                    && let (Some((_, bytes)), [(length, _)]) =
                        (reply.writes.first(), &mut ranges[..])
                {
                    *length = bytes.len() as u32;
                }
            }
        };
        story(LONG, lie, |network| assert!(network.mtu() <= 1500))
    };
    let is_wrong = |result: Result<(), Error>| matches!(result, Err(Error::Protocol(_)));
    for mac in [
        &[][..],
        &[2, 0, 0, 0, 0],
        &[0; 6],
        &[0xff; 6],
        &[1, 0, 0, 0, 0, 1],
    ] {
        assert!(
            is_wrong(open(oid::ETHERNET_PERMANENT_ADDRESS, mac)),
            "{mac:?}"
        );
    }
    for mtu in [&[0; 4][..], &[67, 0, 0, 0]] {
        assert!(is_wrong(open(oid::GEN_MAXIMUM_FRAME_SIZE, mtu)), "{mtu:?}");
    }
    // One that is no number, or larger than ours, changes nothing.
    for mtu in [&[1][..], &[0xff; 4], &[0xff; 200]] {
        assert_eq!(open(oid::GEN_MAXIMUM_FRAME_SIZE, mtu), Ok(()), "{mtu:?}");
    }
}

#[test]
fn completions_that_answer_nothing_are_counted() {
    let lie = |message: &Message, reply: &mut Reply| {
        if !matches!(message, Message::SendRndisPacket(p) if p.channel.get() == 0) {
            return;
        }
        let Some(Sent::Completion(id, bytes)) = reply.packets.first().cloned() else {
            return;
        };
        for wrong in [0, id ^ 1, id ^ 1 << 32, id | 0xffff, id | 1 << 31, u64::MAX] {
            let before = Sent::Completion(wrong, bytes.clone());
            reply.packets.insert(0, before);
        }
        for _ in 0..2 {
            reply.packets.push(Sent::Completion(id, bytes.clone()));
        }
        reply.packets.push(Sent::Completion(id, vec![108, 0, 0, 0]));
        reply.packets.push(Sent::Completion(id, Vec::new()));
        reply.packets.push(Sent::InBand(0, vec![0xff; 40]));
    };
    let opened = story(LONG, lie, |network| {
        for _ in 0..50 {
            network.try_send(&[9; 60]).unwrap();
            good_frame(network);
        }
        network.set_promiscuous(false).unwrap();
        assert_eq!(network.in_flight(), 0);
        let stats = network.channel().bus().stats();
        assert!(stats.bad_completions >= 45 * 10, "{stats:?}");
        assert!(stats.bad_packets >= 45, "{stats:?}");
    });
    assert_eq!(opened, Ok(()));
}

#[test]
fn ranges_and_messages_that_cannot_be_are_counted() {
    let mut n = 0usize;
    let lie = move |message: &Message, reply: &mut Reply| {
        if !matches!(message, Message::SendRndisPacket(p) if p.channel.get() == 0) {
            return;
        }
        let Some(Sent::Transfer(id, _, ranges, payload)) = reply.packets.pop() else {
            return;
        };
        let good = ranges[0];
        let (length, offset) = good;
        let end = SECTION * SECTIONS;
        let wrong = [
            (length, end),
            (length, end - length + 1),
            (u32::MAX, 0),
            (1, u32::MAX),
            (u32::MAX, u32::MAX),
            (0, 0),
            (0, end),
            (7, offset),
            (43, offset),
            (length - 1, offset),
        ];
        // Mostly lies, and the truth between them.
        let mut ranges = wrong.to_vec();
        ranges.insert(n % wrong.len(), good);
        n += 1;
        let bad_set = Sent::Transfer(id, 0xbeef, vec![good], payload.clone());
        let no_message = Sent::Transfer(id, RECEIVE_BUFFER_ID, vec![good], Vec::new());
        let nothing = Sent::Transfer(id, RECEIVE_BUFFER_ID, Vec::new(), payload.clone());
        let all = Sent::Transfer(id, RECEIVE_BUFFER_ID, ranges, payload);
        reply.packets.extend([bad_set, no_message, nothing, all]);
    };
    let opened = story(LONG, lie, |network| {
        for _ in 0..40 {
            network.try_send(&[9; 60]).unwrap();
            good_frame(network);
        }
        network.set_promiscuous(false).unwrap();
        assert!(network.stats().bad >= 39 * 11, "{:?}", network.stats());
    });
    assert_eq!(opened, Ok(()));
}

#[test]
fn headers_that_point_anywhere_are_counted() {
    // Each word of the header and the list in turn, with each of these values.
    const VALUES: [u32; 8] = [
        0,
        1,
        35,
        101,
        0x7fff_ffff,
        0x8000_0000,
        u32::MAX - 3,
        u32::MAX,
    ];
    const WORDS: usize = 2 + 9 + 4;
    let case = Arc::new(AtomicU32::new(0));
    let number = case.clone();
    let lie = move |message: &Message, reply: &mut Reply| {
        if !matches!(message, Message::SendRndisPacket(p) if p.channel.get() == 0) {
            return;
        }
        let number = number.load(Ordering::Relaxed) as usize;
        let info = Info {
            checksum: Some(0),
            ..Info::default()
        };
        reply.packets.pop();
        reply.writes.clear();
        reply.frame(1, &[8; 100], &info);
        let (word, value) = (number / VALUES.len(), VALUES[number % VALUES.len()]);
        reply.writes[0].1[4 * word..][..4].copy_from_slice(&value.to_le_bytes());
        reply.frame(2, &[7; 100], &Info::default());
    };
    let opened = story(LONG, lie, |network| {
        let mut buffer = [0; 1514];
        for number in 0..(WORDS * VALUES.len()) as u32 {
            case.store(number, Ordering::Relaxed);
            network.try_send(&[9; 60]).unwrap();
            // Whatever comes of the first, the second is good and ends this turn.
            loop {
                network.wait_until_ready(SHORT).unwrap();
                let received = network.try_receive(&mut buffer).unwrap();
                if received.is_some_and(|r| buffer[..r.length] == [7; 100]) {
                    break;
                }
            }
        }
        assert!(network.stats().bad > 40, "{:?}", network.stats());
    });
    assert_eq!(opened, Ok(()));
}

#[test]
fn an_adapter_that_never_answers() {
    let silent = |_: &Message, reply: &mut Reply| *reply = Reply::default();
    let error = story(SHORT, silent, |_| {}).unwrap_err();
    assert!(matches!(error, Error::Timeout(_)), "{error}");
    // One that falls silent when it is open keeps places, and all buffers come back at the end.
    let mut open = false;
    let lie = move |message: &Message, reply: &mut Reply| {
        open |= matches!(message, Message::SendRndisPacket(p) if p.channel.get() == 0);
        if open {
            *reply = Reply::default();
        }
    };
    let opened = story(LONG, lie, |network| {
        for _ in 0..16 {
            let submitted = network.submit(vec![9; 100], &PacketInfo::default());
            submitted.map_err(|(error, _)| error).unwrap();
        }
        assert!(!network.can_send());
        assert_eq!(network.try_send(&[9; 60]), Err(Error::Full));
        network.channel().bus().set_timeout(SHORT);
        assert!(matches!(
            network.set_promiscuous(true),
            Err(Error::Timeout(_))
        ));
        network.channel().bus().set_timeout(LONG);
        network.shutdown().unwrap();
        for _ in 0..16 {
            assert_eq!(network.poll_sent().unwrap().result, Err(Error::Closed));
        }
        assert!(network.poll_sent().is_none());
        assert_eq!(network.try_send(&[9; 60]), Err(Error::Closed));
        assert_eq!(network.try_receive(&mut [0; 60]).err(), Some(Error::Closed));
    });
    assert_eq!(opened, Ok(()));
}

#[test]
fn a_flood_of_indications() {
    let lie = |message: &Message, reply: &mut Reply| {
        if !matches!(message, Message::SendRndisPacket(p) if p.channel.get() == 0) {
            return;
        }
        // Beside the sections that frames are in.
        for index in 500..600 {
            let mut bytes = [0; 64];
            let status = match index % 4 {
                0 => rndis_status::MEDIA_CONNECT,
                1 => rndis_status::MEDIA_DISCONNECT,
                2 => rndis_status::NETWORK_CHANGE,
                _ => 0x1234_5678,
            };
            let indication = Indication { status, value: &[] };
            let message = indication.encode(&mut bytes).unwrap().to_vec();
            reply.rndis(rndis_channel::CONTROL, index, &message);
        }
    };
    let opened = story(LONG, lie, |network| {
        for _ in 0..20 {
            // A slow host may have its ring full of completions.
            let end = Instant::now() + LONG;
            while network.try_send(&[9; 60]) == Err(Error::Full) {
                assert!(Instant::now() < end, "there is no room");
                network.handle_interrupt();
                std::thread::yield_now();
            }
            good_frame(network);
        }
        assert!(network.take_link_change().is_some());
    });
    assert_eq!(opened, Ok(()));
}

/// Notes where the guest's buffers are.
struct Spy {
    host: Arc<host_vsp::vmbus::VmBus>,
    /// The first page of each GPADL.
    seen: Arc<Mutex<Vec<u64>>>,
}

impl Hypercalls for Spy {
    fn post_message(&self, vp: u32, id: u32, message_type: u32, payload: &[u8]) -> Status {
        if let Ok(BusMessage::GpadlHeader(..)) = BusMessage::parse(payload)
            && let Some(pfn) = payload.get(28..36)
        {
            let pfn = u64::from_le_bytes(pfn.try_into().unwrap());
            self.seen.lock().unwrap().push(pfn);
        }
        self.host.post_message(vp, id, message_type, payload)
    }

    fn signal_event(&self, vp: u32, id: u32, flag: u16) -> Status {
        self.host.signal_event(vp, id, flag)
    }
}

#[test]
fn headers_that_change_while_they_are_read() {
    let machine = Machine::new(1);
    machine.host.offer(Lying::new(|_, _| {})).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    machine.hypervisor.serve_shared(Arc::new(Spy {
        host: machine.host.clone(),
        seen: seen.clone(),
    }));
    let _cpu = machine.hypervisor.enter(0);
    let memory = BusMemory::<FakeHal, 1, 4>::new();
    let bus = VmBus::new(&memory, VECTOR).unwrap();
    bus.connect(&Options::default()).unwrap();
    let places = NetworkMemory::<FakeHal, Vec<u8>, 16, 64>::new();
    let offer = bus.find(network::CLASS).unwrap();
    let network = Network::open(&bus, &offer, &places, &NetworkOptions::default()).unwrap();
    // The rings, the receive buffer, the send buffer.
    let receive_buffer = seen.lock().unwrap()[1] * 4096;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = SmallRng::seed_from_u64(5);
            while !stop.load(Ordering::Relaxed) {
                // Lengths and offsets in the headers of the next sections.
                for _ in 0..64 {
                    let section = random.random_range(0..64u64) * u64::from(SECTION);
                    let word = random.random_range(1..9u64) * 4;
                    let value: u32 = random.random::<u32>() >> random.random_range(0..32u32);
                    let at = GuestAddress(receive_buffer + section + word);
                    machine.hypervisor.memory().write_obj(value, at).unwrap();
                }
                std::thread::yield_now();
            }
        });
        let mut buffer = [0; 1514];
        // On a busy machine the other thread may have its turn late.
        let end = Instant::now() + 3 * LONG;
        let never_changed = || network.stats().bad + network.stats().lost == 0;
        let mut rounds = 0;
        while rounds < 20_000 || (never_changed() && Instant::now() < end) {
            rounds += 1;
            let _ = network.try_send(&[9; 60]);
            while network.try_receive(&mut buffer).unwrap().is_some() {}
        }
        stop.store(true, Ordering::Relaxed);
    });
    let stats = network.stats();
    assert!(stats.bad + stats.lost > 0, "it never changed: {stats:?}");
    drop(network);
    drop(bus);
    assert_eq!(machine.hypervisor.counts().pages, 0, "pages were lost");
}
