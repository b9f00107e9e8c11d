//! The ring against a model: every size, every wrap, and every signal.

mod support;

use std::collections::VecDeque;

use proptest::prelude::*;
use support::Cells;
use vmbus_proto::packet::{Outgoing, PacketKind};
use vmbus_proto::ring::{
    Consumer, Control, Corrupt, FEATURE_PENDING_SEND_SIZE, Producer, RingMemory, SendError, Signal,
};

/// Bytes a packet with `payload` bytes takes: descriptor, padded payload, trailer.
fn footprint(payload: usize) -> u32 {
    (16 + payload.div_ceil(8) * 8 + 8) as u32
}

#[test]
fn every_size_every_start_every_length() {
    let bytes: Vec<u8> = (0..=255).cycle().take(600).collect();
    for size in (32..=160).step_by(8).chain([4096]) {
        let starts: Box<dyn Iterator<Item = u32>> = if size < 4096 {
            Box::new((0..size).step_by(8))
        } else {
            Box::new(4000..4096)
        };
        for start in starts.filter(|start| start % 8 == 0) {
            for length in 0..=(size as usize).min(200) {
                let memory = Cells::new(size);
                memory.set(Control::WriteIndex, start);
                memory.set(Control::ReadIndex, start);
                let mut producer = Producer::attach(memory.clone()).unwrap();
                let mut consumer = Consumer::attach(memory).unwrap();
                let payload = &bytes[length..2 * length];
                let outcome = producer.send(&Outgoing::in_band(7, payload, true));
                if footprint(length) >= size {
                    assert_eq!(
                        outcome,
                        Err(SendError::TooLong),
                        "size {size} length {length}"
                    );
                    continue;
                }
                assert_eq!(outcome, Ok(Signal::Needed));
                let mut buffer = [0; 512];
                let packet = consumer.receive(&mut buffer).unwrap().expect("one packet");
                assert_eq!(
                    &packet.payload[..length],
                    payload,
                    "size {size} start {start}"
                );
                assert!(
                    packet.payload[length..].iter().all(|&b| b == 0),
                    "padding is zero"
                );
                assert_eq!(
                    (packet.transaction_id, packet.completion_requested),
                    (7, true)
                );
                assert!(matches!(packet.kind, PacketKind::InBand));
                assert!(consumer.receive(&mut [0; 512]).unwrap().is_none());
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// So many bytes, leaving so many of the ring free.
    Send(usize, u32),
    Receive,
    Commit,
    Mask,
    Unmask,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0usize..120, prop_oneof![2 => Just(0), 1 => 0u32..600])
            .prop_map(|(length, spare)| Step::Send(length, spare)),
        3 => Just(Step::Receive),
        2 => Just(Step::Commit),
        1 => Just(Step::Mask),
        1 => Just(Step::Unmask),
    ]
}

/// More cases than usual, or as many as the environment asks for.
fn at_least(cases: u32) -> ProptestConfig {
    let usual = ProptestConfig::default();
    ProptestConfig {
        cases: usual.cases.max(cases),
        ..usual
    }
}

proptest! {
    #![proptest_config(at_least(2000))]

    #[test]
    fn any_order_of_steps(
        words in 4u32..60,
        start in any::<u32>(),
        feature in any::<bool>(),
        steps in proptest::collection::vec(step(), 0..200),
    ) {
        let size = words * 8;
        let memory = Cells::new(size);
        let start = start % words * 8;
        memory.set(Control::WriteIndex, start);
        memory.set(Control::ReadIndex, start);
        memory.set(Control::FeatureBits, if feature { FEATURE_PENDING_SEND_SIZE } else { 0 });
        let mut producer = Producer::attach(memory.clone()).unwrap();
        let mut consumer = Consumer::attach(memory.clone()).unwrap();

        // The model: packets in the ring, packets received and not committed, in bytes.
        let mut waiting: VecDeque<(u64, Vec<u8>)> = VecDeque::new();
        let (mut unread, mut uncommitted) = (0u32, 0u32);
        let (mut masked, mut pending) = (false, 0u32);
        let mut next = 0u64;

        for step in steps {
            match step {
                Step::Send(length, spare) => {
                    next += 1;
                    let payload: Vec<u8> = (0..length).map(|i| (i as u64 ^ next) as u8).collect();
                    let need = footprint(length);
                    let packet = Outgoing::in_band(next, &payload, false);
                    let outcome = producer.send_leaving(spare, &packet);
                    let used = unread + uncommitted;
                    let (room, wanted) = (size - used, (need + spare).min(size - 8));
                    if need >= size {
                        prop_assert_eq!(outcome, Err(SendError::TooLong));
                    } else if room <= wanted {
                        prop_assert_eq!(outcome, Err(SendError::Full));
                        // Who asked for less, and has not got it yet, is called first.
                        let is_open = pending != 0 && room <= pending;
                        pending = if is_open { pending.min(wanted) } else { wanted };
                    } else {
                        let signal = if used == 0 && !masked { Signal::Needed } else { Signal::NotNeeded };
                        prop_assert_eq!(outcome, Ok(signal));
                        waiting.push_back((next, payload));
                        unread += need;
                        // Who asked for more waits on.
                        if pending <= wanted {
                            pending = 0;
                        }
                    }
                    prop_assert_eq!(memory.get(Control::PendingSendSize), pending);
                }
                Step::Receive => {
                    let mut buffer = [0; 256];
                    let packet = consumer.receive(&mut buffer).unwrap();
                    let expected = waiting.pop_front();
                    prop_assert_eq!(packet.is_some(), expected.is_some());
                    if let (Some(packet), Some((id, payload))) = (packet, expected) {
                        prop_assert_eq!(packet.transaction_id, id);
                        prop_assert_eq!(&packet.payload[..payload.len()], &payload[..]);
                        unread -= footprint(payload.len());
                        uncommitted += footprint(payload.len());
                    }
                }
                Step::Commit => {
                    let before = size - unread - uncommitted;
                    let after = size - unread;
                    let crossed = pending != 0 && before <= pending && after > pending;
                    let expected =
                        if feature && crossed { Signal::Needed } else { Signal::NotNeeded };
                    prop_assert_eq!(consumer.commit(), Ok(expected));
                    uncommitted = 0;
                }
                Step::Mask => {
                    consumer.mask();
                    masked = true;
                }
                Step::Unmask => {
                    prop_assert_eq!(consumer.unmask(), Ok(unread != 0));
                    masked = false;
                }
            }
            prop_assert_eq!(consumer.available(), Ok(unread));
            prop_assert_eq!(producer.free(), Ok(size - unread - uncommitted));
        }
    }

    #[test]
    fn hostile_bytes_end_in_an_error_or_a_packet(
        words in 3u32..40,
        seed in proptest::collection::vec(any::<u8>(), 320),
        write in any::<u32>(),
        mask_write in any::<bool>(),
    ) {
        let size = words * 8;
        let memory = Cells::new(size);
        memory.write(0, &seed[..size as usize]);
        // Half of the cases have a plausible index, so that the bytes behind it are reached.
        memory.set(Control::WriteIndex, if mask_write { write % words * 8 } else { write });
        let mut consumer = Consumer::attach(memory).unwrap();
        for _ in 0..100 {
            match consumer.receive(&mut [0; 64]) {
                Ok(Some(packet)) => prop_assert!(packet.payload.len() <= 64),
                Ok(None) | Err(_) => break,
            }
        }
    }
}

#[test]
fn peers_lies_are_refused() {
    let memory = Cells::new(4096);
    let mut consumer = Consumer::attach(memory.clone()).unwrap();
    let mut producer = Producer::attach(memory.clone()).unwrap();
    let mut buffer = [0; 128];
    for index in [4096, 4, u32::MAX, 0x8000_0000] {
        memory.set(Control::WriteIndex, index);
        assert_eq!(consumer.receive(&mut buffer).unwrap_err(), Corrupt::Index);
        memory.set(Control::WriteIndex, 0);
        memory.set(Control::ReadIndex, index);
        assert_eq!(
            producer.send(&Outgoing::in_band(1, b"x", false)),
            Err(SendError::Corrupt(Corrupt::Index))
        );
        memory.set(Control::ReadIndex, 0);
    }
    // Lengths: below the descriptor, beyond what was written, longer than the buffer.
    for (length8, available, expected) in [
        (0u16, 64, Corrupt::PacketLength),
        (1, 64, Corrupt::PacketLength),
        (8, 64, Corrupt::PacketLength),
        (0xFFFF, 64, Corrupt::PacketLength),
        (2, 16, Corrupt::PacketLength),
        (100, 1000, Corrupt::PacketTooLong),
    ] {
        memory.write(0, &[6, 0, 2, 0, length8 as u8, (length8 >> 8) as u8, 0, 0]);
        memory.set(Control::WriteIndex, available);
        assert_eq!(
            consumer.receive(&mut buffer).unwrap_err(),
            expected,
            "{length8}"
        );
    }
    // Offsets: before the descriptor's end, beyond the packet; and a type that is not.
    for (kind, offset8, expected) in [
        (6u16, 0u16, Corrupt::PacketLayout),
        (6, 1, Corrupt::PacketLayout),
        (6, 5, Corrupt::PacketLayout),
        (6, 0xFFFF, Corrupt::PacketLayout),
        (9, 2, Corrupt::PacketLayout),
        (7, 2, Corrupt::PacketLayout),
        (5, 2, Corrupt::PacketType(5)),
    ] {
        let memory = Cells::new(4096);
        memory.write(
            0,
            &[
                kind as u8,
                0,
                offset8 as u8,
                (offset8 >> 8) as u8,
                4,
                0,
                0,
                0,
            ],
        );
        memory.set(Control::WriteIndex, 40);
        let mut consumer = Consumer::attach(memory).unwrap();
        assert_eq!(
            consumer.receive(&mut buffer).unwrap_err(),
            expected,
            "{kind} {offset8}"
        );
    }
}

#[test]
fn a_packet_changed_after_the_copy_stays_what_it_was() {
    let memory = Cells::new(4096);
    let mut producer = Producer::attach(memory.clone()).unwrap();
    let mut consumer = Consumer::attach(memory.clone()).unwrap();
    assert_eq!(
        producer.send(&Outgoing::in_band(1, b"honest..", false)),
        Ok(Signal::Needed)
    );
    let mut buffer = [0; 64];
    let packet = consumer.receive(&mut buffer).unwrap().unwrap();
    memory.write(0, &[0xFF; 64]);
    assert_eq!(packet.payload, b"honest..");
}

/// A consumer that ruins its index as soon as a packet is published.
struct RuinsItsIndex(Cells);

impl RingMemory for RuinsItsIndex {
    fn data_size(&self) -> u32 {
        self.0.data_size()
    }
    fn load(&self, field: Control) -> u32 {
        self.0.load(field)
    }
    fn store(&self, field: Control, value: u32) {
        self.0.store(field, value);
        if matches!(field, Control::WriteIndex) {
            self.0.set(Control::ReadIndex, u32::MAX);
        }
    }
    fn read(&self, offset: u32, to: &mut [u8]) {
        self.0.read(offset, to);
    }
    fn write(&self, offset: u32, from: &[u8]) {
        self.0.write(offset, from);
    }
}

#[test]
fn a_packet_that_was_published_was_sent() {
    // An error would have the sender take back the memory that the packet names, while the
    // consumer has the packet.
    let memory = Cells::new(4096);
    let mut producer = Producer::attach(RuinsItsIndex(memory.clone())).unwrap();
    let packet = Outgoing::in_band(1, b"once", false);
    assert_eq!(producer.send(&packet), Ok(Signal::NotNeeded));
    let written = memory.get(Control::WriteIndex);
    assert_eq!(written, footprint(4));
    let refused = Err(SendError::Corrupt(Corrupt::Index));
    assert_eq!(producer.send(&packet), refused);
    assert_eq!(memory.get(Control::WriteIndex), written);
}
