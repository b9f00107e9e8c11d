//! Frames as futures: sent, received, and dropped before they are ready.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use guest_vsc::bus::{BusMemory, Options, VmBus};
use guest_vsc::error::Error;
use guest_vsc::network::{self, Network, NetworkMemory, NetworkOptions, PacketInfo};
use host_vsp::network::backend::Loopback;
use host_vsp::vmbus::DeviceId;
use inproc::{FakeHal, Machine, VECTOR};

const DEADLINE: Duration = Duration::from_secs(60);

type Adapter<'b> = Network<'b, FakeHal, Vec<u8>>;

/// Wakes a thread.
struct Thread(std::thread::Thread);

impl Wake for Thread {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread, which sleeps until it is woken.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Thread(std::thread::current())));
    let end = Instant::now() + DEADLINE;
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        assert!(Instant::now() < end, "nobody wakes the future");
        std::thread::park_timeout(DEADLINE);
    }
}

/// Runs a story of an adapter whose net sends each frame back, while another thread plays the
/// interrupt handler.
fn story(tell: impl FnOnce(&Machine, DeviceId, &Adapter<'_>)) {
    let machine = Machine::new(1);
    let (device, _, _) = machine.add_network(1, 1500, Loopback::new(false).unwrap());
    let _cpu = machine.hypervisor.enter(0);
    let memory = BusMemory::<FakeHal, 1, 4>::new();
    let bus = &VmBus::new(&memory, VECTOR).unwrap();
    bus.connect(&Options::default()).unwrap();
    let places = NetworkMemory::<FakeHal, Vec<u8>, 4, 256>::new();
    let offer = bus.find(network::CLASS).unwrap();
    let network = &Network::open(bus, &offer, &places, &NetworkOptions::default()).unwrap();
    let stop = &AtomicBool::new(false);
    let hypervisor = &machine.hypervisor;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let cpu = hypervisor.enter(0);
            while !stop.load(Ordering::Relaxed) {
                cpu.wait_for_interrupt();
                bus.handle_interrupt();
                network.handle_interrupt();
            }
        });
        tell(&machine, device, network);
        stop.store(true, Ordering::Relaxed);
    });
}

fn frame(number: u8) -> [u8; 60] {
    let mut frame = [number; 60];
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    frame
}

#[test]
fn frames_come_back_to_futures_in_their_order() {
    story(|_, _, network| {
        let mut buffer = [0; 1514];
        for round in 0..25u8 {
            // More frames than there are places, so that most wait for one.
            for number in 0..20 {
                let frame = frame(round.wrapping_mul(20).wrapping_add(number));
                block_on(network.send_async(&frame, &PacketInfo::default())).unwrap();
            }
            for number in 0..20 {
                let received = block_on(network.receive_async(&mut buffer)).unwrap();
                let frame = frame(round.wrapping_mul(20).wrapping_add(number));
                assert_eq!(buffer[..received.length], frame);
            }
        }
        assert_eq!(network.stats().lost, 0);
    });
}

#[test]
fn a_future_that_is_dropped_takes_no_frame_with_it() {
    story(|_, _, network| {
        let mut buffer = [0; 1514];
        for number in 0..50 {
            {
                let mut other = [0; 1514];
                let mut dropped = pin!(network.receive_async(&mut other));
                let mut context = Context::from_waker(Waker::noop());
                assert!(dropped.as_mut().poll(&mut context).is_pending());
                network.try_send(&frame(number)).unwrap();
            }
            let received = block_on(network.receive_async(&mut buffer)).unwrap();
            assert_eq!(buffer[..received.length], frame(number));
        }
    });
}

#[test]
fn a_rescind_ends_what_waits() {
    story(|machine, device, network| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _cpu = machine.hypervisor.enter(0);
                let mut buffer = [0; 1514];
                let ended = block_on(network.receive_async(&mut buffer));
                assert_eq!(ended, Err(Error::Rescinded));
            });
            std::thread::sleep(Duration::from_millis(20));
            machine.host.rescind(device);
        });
    });
}
