//! An adapter with several queues: one for each of four processors, each with its interrupts.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use guest_vsc::bus::{BusMemory, Options, VmBus};
use guest_vsc::channel::Channel;
use guest_vsc::error::Error;
use guest_vsc::network::{
    self, Buffer, Network, NetworkMemory, NetworkOptions, PacketInfo, QueueStats,
};
use host_vsp::network::QueueCounters;
use host_vsp::network::backend::Loopback;
use host_vsp::vmbus::DeviceId;
use inproc::{FakeHal, Machine, RamBuffer, VECTOR};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

type Bus<'m> = VmBus<'m, FakeHal>;
type Memory<B> = NetworkMemory<FakeHal, B, 64, 1024, PROCESSORS>;

const PROCESSORS: usize = 4;
/// Long enough for anything on a busy machine.
const LONG: Duration = Duration::from_secs(60);

/// Flows that frames belong to.
const FLOWS: usize = 32;

/// A machine with an adapter with as many queues as processors, each of which gets back what it sends.
fn machine() -> (Machine, DeviceId, [QueueCounters; PROCESSORS]) {
    let machine = Machine::new(PROCESSORS as u32);
    let nets = [(); PROCESSORS].map(|()| Loopback::new(false).unwrap());
    let (id, _, counters) = machine.add_network_with_queues(1, 1500, nets);
    (machine, id, counters)
}

/// Runs a story on processor 0 of a connected guest of which `started` processors can be interrupted.
fn story(machine: &Machine, started: usize, tell: impl FnOnce(&Bus<'_>)) {
    let _cpu = machine.hypervisor.enter(0);
    let memory = BusMemory::<FakeHal, PROCESSORS, 8>::new();
    let bus = VmBus::new(&memory, VECTOR).unwrap();
    for vp in 1..started {
        let _cpu = machine.hypervisor.enter(vp as u32);
        bus.start_cpu().unwrap();
    }
    bus.connect(&Options::default()).unwrap();
    tell(&bus);
    for vp in 1..started {
        let _cpu = machine.hypervisor.enter(vp as u32);
        bus.stop_cpu();
    }
    let stats = bus.stats();
    assert_eq!((stats.bad_completions, stats.bad_packets), (0, 0));
    assert_eq!((stats.bad_offers, stats.dropped_offers), (0, 0));
    drop(bus);
    assert_eq!(machine.hypervisor.counts().pages, 0, "pages were lost");
}

fn open<'b, B: Buffer>(
    bus: &'b Bus<'b>,
    memory: &'b Memory<B>,
    queues: usize,
) -> Network<'b, FakeHal, B> {
    let offer = bus.find(network::CLASS).expect("an offer");
    let options = NetworkOptions::default();
    Network::open_with_queues(bus, &offer, memory, &options, queues).unwrap()
}

/// A frame of TCP of flow `flow` with a number.
fn frame(flow: usize, number: u32) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 8, 0];
    frame.extend([0x45, 0, 0, 48, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend((50_000 + flow as u16).to_be_bytes());
    frame.extend(443_u16.to_be_bytes());
    frame.resize(54, 0);
    frame.extend(number.to_le_bytes());
    frame.resize(62, flow as u8);
    frame
}

/// The flow and the number of a frame.
fn read(frame: &[u8]) -> (usize, u32) {
    let port = u16::from_be_bytes(frame[34..36].try_into().unwrap());
    let number = u32::from_le_bytes(frame[54..58].try_into().unwrap());
    let flow = usize::from(port - 50_000);
    assert_eq!(frame, self::frame(flow, number));
    (flow, number)
}

/// Frames of each flow in the story below; many more in a soak.
fn frames_wanted() -> u32 {
    match std::env::var_os("VMBUS_SOAK") {
        Some(_) => 10_000,
        None => 500,
    }
}

/// A flow: what was sent of it, what has come, and in which queue.
#[derive(Default)]
struct Flow {
    sent: Mutex<u32>,
    received: AtomicU32,
    queue: Mutex<Option<usize>>,
}

/// Sends frames of any flow, as long as there are some, and takes those of the processor's own queue.
fn send_and_receive<B: Buffer>(
    machine: &Machine,
    network: &Network<'_, FakeHal, B>,
    vp: usize,
    flows: &[Flow],
    buffer: impl Fn(&[u8]) -> Option<B>,
) {
    let _cpu = machine.hypervisor.enter(vp as u32);
    let mut random = SmallRng::seed_from_u64(vp as u64);
    let end = Instant::now() + 10 * LONG;
    let mut received = [0; 1514];
    loop {
        let all = |flow: &Flow| flow.received.load(Ordering::Relaxed) == frames_wanted();
        if flows.iter().all(all) {
            return;
        }
        assert!(
            Instant::now() < end,
            "frames were lost: {:?}",
            network.stats()
        );
        let number = random.random_range(0..flows.len());
        let flow = &flows[number];
        // Whatever processor it is: who has the next frame of the flow sends it.
        if let Ok(mut next) = flow.sent.try_lock()
            && *next < frames_wanted()
            && *next - flow.received.load(Ordering::Relaxed) < 16
        {
            let frame = frame(number, *next);
            let sent = match buffer(&frame) {
                Some(buffer) => network
                    .submit(buffer, &PacketInfo::default())
                    .map(|_| ())
                    .map_err(|(error, _)| error),
                None => network.try_send(&frame),
            };
            match sent {
                Ok(()) => *next += 1,
                Err(Error::Full) => {}
                Err(error) => panic!("{error}"),
            }
        }
        while let Some(sent) = network.poll_sent() {
            sent.result.unwrap();
        }
        while let Some(got) = network.try_receive_from(vp, &mut received).unwrap() {
            let (number, place) = read(&received[..got.length]);
            let flow = &flows[number];
            let expected = flow.received.fetch_add(1, Ordering::Relaxed);
            assert_eq!(place, expected, "flow {number} is out of order");
            let queue = *flow.queue.lock().unwrap().get_or_insert(vp);
            assert_eq!(queue, vp, "flow {number} changes its queue");
        }
    }
}

/// Frames of all flows from all processors: each flow in its order, over one queue both ways.
fn all_flows<B: Buffer>(buffer: impl Fn(&Machine, &[u8]) -> Option<B> + Sync) {
    let (machine, _, counters) = machine();
    let all = u64::from(frames_wanted()) * FLOWS as u64;
    story(&machine, PROCESSORS, |bus| {
        let memory = Memory::new();
        let network = &open(bus, &memory, PROCESSORS);
        assert_eq!(network.queues(), PROCESSORS);
        let mut cpus: Vec<_> = network.channels().map(Channel::cpu).collect();
        cpus.sort_unstable();
        assert_eq!(cpus, [0, 1, 2, 3], "a channel for each processor");
        let flows: Vec<_> = (0..FLOWS).map(|_| Flow::default()).collect();
        std::thread::scope(|scope| {
            for vp in 0..PROCESSORS {
                let (machine, flows, buffer) = (&machine, &flows, &buffer);
                scope.spawn(move || {
                    let buffer = |frame: &[u8]| buffer(machine, frame);
                    send_and_receive(machine, network, vp, flows, buffer);
                });
            }
        });
        let stats = network.stats();
        assert_eq!((stats.received, stats.sent), (all, all));
        assert_eq!((stats.lost, stats.bad, stats.refused), (0, 0, 0));
        // Which flows there are in a queue is not chance: eight of them, as sent, as received.
        for queue in 0..PROCESSORS {
            let QueueStats { received, sent, .. } = network.queue_stats(queue).unwrap();
            assert_eq!((received, sent), (all / 4, all / 4), "queue {queue}");
        }
        assert_eq!(network.queue_stats(PROCESSORS), None);
        assert_eq!(network.try_receive_from(PROCESSORS, &mut [0; 60]), Ok(None));
    });
    for counters in counters {
        let counted = (counters.rx_frames.get(), counters.tx_frames.get());
        assert_eq!(counted, (all / 4, all / 4), "on the host");
    }
}

#[test]
fn each_flow_keeps_its_order_whoever_sends_it() {
    all_flows::<Vec<u8>>(|_, _| None);
}

#[test]
fn flows_of_buffers_that_are_given_away_keep_theirs_too() {
    all_flows(|machine, frame| Some(RamBuffer::with(&machine.hypervisor, 4000, frame)));
}

#[test]
fn as_many_queues_as_all_have() {
    let (machine, ..) = machine();
    for started in 1..=PROCESSORS {
        story(&machine, started, |bus| {
            let memory = Memory::<Vec<u8>>::new();
            for wanted in [0, 1, 2, 3, 4, 16, usize::MAX, 1, 4] {
                let network = open(bus, &memory, wanted);
                assert_eq!(network.queues(), wanted.clamp(1, started));
                assert_eq!(network.channels().count(), network.queues());
                send_some(&network);
            }
        });
    }
    story(&machine, PROCESSORS, |bus| {
        let memory = NetworkMemory::<FakeHal, Vec<u8>, 8, 8, 3>::new();
        let offer = bus.find(network::CLASS).unwrap();
        let options = NetworkOptions::default();
        let network = Network::open_with_queues(bus, &offer, &memory, &options, 4).unwrap();
        assert_eq!(network.queues(), 3);
    });
    // An adapter with fewer, and one with none but the first.
    let few = Machine::new(PROCESSORS as u32);
    few.add_network_with_queues(1, 1500, [(); 2].map(|()| Loopback::new(false).unwrap()));
    let one = Machine::new(PROCESSORS as u32);
    one.add_network(1, 1500, Loopback::new(false).unwrap());
    for (machine, queues) in [(few, 2), (one, 1)] {
        story(&machine, PROCESSORS, |bus| {
            let memory = Memory::<Vec<u8>>::new();
            let network = open(bus, &memory, PROCESSORS);
            assert_eq!(network.queues(), queues);
            send_some(&network);
        });
    }
}

/// Sends a frame, when there is room for it.
fn send<B: Buffer>(network: &Network<'_, FakeHal, B>, frame: &[u8]) {
    let end = Instant::now() + LONG;
    while let Err(error) = network.try_send(frame) {
        assert_eq!(error, Error::Full);
        assert!(Instant::now() < end, "{:?}", network.stats());
        std::thread::yield_now();
    }
}

/// A frame of each flow there and back, taken by whoever runs this.
fn send_some<B: Buffer>(network: &Network<'_, FakeHal, B>) {
    let mut buffer = [0; 1514];
    for flow in 0..FLOWS {
        send(network, &frame(flow, 7));
    }
    let mut flows = 0;
    while flows < FLOWS {
        assert!(network.wait_until_ready(LONG).unwrap());
        if let Some(received) = network.try_receive(&mut buffer).unwrap() {
            assert_eq!(read(&buffer[..received.length]).1, 7);
            flows += 1;
        }
    }
    assert!(!network.can_recv());
}

/// One processor takes all, while there is always a frame in its own queue.
#[test]
fn a_busy_queue_does_not_hold_up_the_others() {
    let (machine, ..) = machine();
    story(&machine, PROCESSORS, |bus| {
        let memory = Memory::<Vec<u8>>::new();
        let network = open(bus, &memory, PROCESSORS);
        let mut buffer = [0; 1514];
        // Of which flow frames come back in the first queue.
        let own = (0..FLOWS).find(|flow| {
            let before = network.queue_stats(0).unwrap().sent;
            send(&network, &frame(*flow, 0));
            network.wait_until_ready(LONG).unwrap();
            network.try_receive(&mut buffer).unwrap();
            network.queue_stats(0).unwrap().sent > before
        });
        let own = own.unwrap();
        let send = |flow| send(&network, &frame(flow, 1));
        (0..200).for_each(|_| send(own));
        let others: Vec<_> = (0..FLOWS).filter(|flow| *flow % 4 != own % 4).collect();
        others.iter().for_each(|flow| send(*flow));
        let mut left = others.len();
        let end = Instant::now() + LONG;
        while left > 0 {
            assert!(
                Instant::now() < end,
                "{left} frames of other queues wait for ever"
            );
            network.wait_until_ready(LONG).unwrap();
            let Some(received) = network.try_receive(&mut buffer).unwrap() else {
                continue;
            };
            match read(&buffer[..received.length]).0 {
                flow if flow == own => send(own),
                _ => left -= 1,
            }
        }
    });
}

#[test]
fn all_buffers_come_back_from_every_queue() {
    let (machine, id, _) = machine();
    let turns = match std::env::var_os("VMBUS_SOAK") {
        Some(_) => 500,
        None => 20,
    };
    for turn in 0..turns {
        let rescinded = turn == turns - 1;
        story(&machine, PROCESSORS, |bus| {
            let memory = Memory::<RamBuffer>::new();
            let network = open(bus, &memory, PROCESSORS);
            let mut out = 0;
            for flow in 0..FLOWS {
                let buffer = RamBuffer::with(&machine.hypervisor, 0, &frame(flow, 1));
                out += i32::from(network.submit(buffer, &PacketInfo::default()).is_ok());
                while network.poll_sent().is_some() {
                    out -= 1;
                }
            }
            for queue in 0..PROCESSORS {
                assert!(network.queue_stats(queue).unwrap().sent > 0);
            }
            let mut expected = Error::Closed;
            if rescinded {
                machine.host.rescind(id);
                let end = Instant::now() + LONG;
                expected = loop {
                    // Whatever queue is looked into, the end of one is that of all.
                    if let Err(error) = network.try_receive_from(3, &mut [0; 1514]) {
                        break error;
                    }
                    assert!(Instant::now() < end, "nobody said that it is gone");
                    bus.poll();
                };
                assert_eq!(expected, Error::Rescinded);
                assert_eq!(network.check(), Err(Error::Rescinded));
            }
            network.shutdown().unwrap();
            while let Some(sent) = network.poll_sent() {
                assert!([Ok(()), Err(expected)].contains(&sent.result));
                out -= 1;
            }
            assert_eq!(out, 0, "each buffer comes back once");
            assert_eq!(network.try_send(&frame(0, 0)), Err(Error::Closed));
            // What had come before can be taken, and then that is all.
            for queue in 0..PROCESSORS {
                let mut buffer = [0; 1514];
                let end =
                    (0..=FLOWS).find_map(|_| network.try_receive_from(queue, &mut buffer).err());
                assert_eq!(end, Some(Error::Closed));
            }
        });
    }
}

/// Wakes a thread.
struct Thread(std::thread::Thread);

impl Wake for Thread {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// A future hears of frames in any queue, whichever processor was interrupted for them, and whether
/// its handler looks at its own queue only or at all of them.
#[test]
fn a_future_is_woken_by_every_queue() {
    let (machine, ..) = machine();
    for own_only in [false, true] {
        story(&machine, PROCESSORS, |bus| {
            let memory = Memory::<Vec<u8>>::new();
            let network = &open(bus, &memory, PROCESSORS);
            let stop = &AtomicBool::new(false);
            let hypervisor = &machine.hypervisor;
            std::thread::scope(|scope| {
                for (queue, channel) in network.channels().enumerate() {
                    let vp = channel.cpu() as u32;
                    scope.spawn(move || {
                        let cpu = hypervisor.enter(vp);
                        while !stop.load(Ordering::Relaxed) {
                            cpu.wait_for_interrupt();
                            bus.handle_interrupt();
                            match own_only {
                                true => network.handle_queue_interrupt(queue),
                                false => network.handle_interrupt(),
                            }
                        }
                    });
                }
                let waker = Waker::from(Arc::new(Thread(std::thread::current())));
                let mut buffer = [0; 1514];
                for turn in 0..500 {
                    let flow = turn % FLOWS;
                    send(network, &frame(flow, turn as u32));
                    let mut future = pin!(network.receive_async(&mut buffer));
                    let received = loop {
                        let mut context = Context::from_waker(&waker);
                        if let Poll::Ready(received) = future.as_mut().poll(&mut context) {
                            break received.unwrap();
                        }
                        let slept = Instant::now();
                        std::thread::park_timeout(LONG);
                        assert!(
                            slept.elapsed() < LONG,
                            "turn {turn}: nobody wakes the future"
                        );
                    };
                    assert_eq!(read(&buffer[..received.length]), (flow, turn as u32));
                }
                stop.store(true, Ordering::Relaxed);
            });
        });
    }
}
