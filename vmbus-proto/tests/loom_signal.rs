//! The signalling rules under a model checker: no interleaving leaves a side asleep for good.
//!
//! Each test runs a producer and a consumer through every order that the memory model allows and
//! asserts that a signal was given where the other side had gone to sleep. Taking a barrier out
//! of the ring makes them fail.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU8, AtomicU32, Ordering, fence};
use vmbus_proto::packet::Outgoing;
use vmbus_proto::ring::{
    Consumer, Control, FEATURE_PENDING_SEND_SIZE, Producer, RingMemory, SendError,
};

/// Small enough that two empty packets fill it: 24 bytes each, one byte stays free.
const SIZE: usize = 56;

struct Shared {
    control: [AtomicU32; 17],
    data: [AtomicU8; SIZE],
}

/// Fewer modelled fields keep the search small: only the five that exist.
#[derive(Clone)]
struct Ring(Arc<Shared>);

impl Ring {
    fn new() -> Self {
        let shared = Shared {
            control: std::array::from_fn(|_| AtomicU32::new(0)),
            data: std::array::from_fn(|_| AtomicU8::new(0)),
        };
        Self(Arc::new(shared))
    }
}

impl RingMemory for Ring {
    fn data_size(&self) -> u32 {
        SIZE as u32
    }
    fn load(&self, field: Control) -> u32 {
        self.0.control[field.offset() / 4].load(Ordering::Acquire)
    }
    fn store(&self, field: Control, value: u32) {
        self.0.control[field.offset() / 4].store(value, Ordering::Release);
    }
    fn read(&self, offset: u32, to: &mut [u8]) {
        for (i, byte) in to.iter_mut().enumerate() {
            *byte = self.0.data[offset as usize + i].load(Ordering::Relaxed);
        }
    }
    fn write(&self, offset: u32, from: &[u8]) {
        for (i, byte) in from.iter().enumerate() {
            self.0.data[offset as usize + i].store(*byte, Ordering::Relaxed);
        }
    }
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

fn model(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.max_branches = 10_000;
    builder.check(test);
}

#[test]
fn a_packet_is_seen_or_signalled() {
    model(|| {
        let ring = Ring::new();
        let mut producer = Producer::attach(ring.clone()).unwrap();
        let mut consumer = Consumer::attach(ring).unwrap();
        // The consumer is awake, finds nothing, and goes to sleep while the packet is sent.
        consumer.mask();
        let sender = loom::thread::spawn(move || {
            producer
                .send(&Outgoing::in_band(1, &[], false))
                .unwrap()
                .is_needed()
        });
        let mut seen = consumer.receive(&mut [0; 64]).unwrap().is_some();
        if !seen && consumer.unmask().unwrap() {
            seen = consumer.receive(&mut [0; 64]).unwrap().is_some();
            assert!(seen, "unmask announced a packet that is not there");
        }
        let signalled = sender.join().unwrap();
        assert!(
            seen || signalled,
            "the packet lies in the ring and nobody knows"
        );
    });
}

#[test]
fn room_is_seen_or_signalled() {
    model(|| {
        let ring = Ring::new();
        ring.store(Control::FeatureBits, FEATURE_PENDING_SEND_SIZE);
        let mut producer = Producer::attach(ring.clone()).unwrap();
        let mut consumer = Consumer::attach(ring).unwrap();
        let packet = Outgoing::in_band(1, &[], false);
        assert!(producer.send(&packet).unwrap().is_needed());
        assert!(!producer.send(&packet).unwrap().is_needed());
        let sender = loom::thread::spawn(move || match producer.send(&packet) {
            Ok(_) => true,
            Err(SendError::Full) => false,
            Err(error) => panic!("{error}"),
        });
        assert!(consumer.receive(&mut [0; 64]).unwrap().is_some());
        let signalled = consumer.commit().unwrap().is_needed();
        let sent = sender.join().unwrap();
        assert!(
            sent || signalled,
            "the producer waits for room that is there"
        );
    });
}
