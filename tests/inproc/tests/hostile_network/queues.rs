//! Lies about queues, and on channels that only frames should come over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use guest_vsc::error::Error;
use vmbus_proto::netvsp::{Message, rndis_channel, status};
use vmbus_proto::rndis::{self, Completion, Indication, status as rndis_status};

use super::lying::{QUEUES, Reply, Sent};
use super::{LONG, Opened, good_frame, story_with_queues};

/// A frame of `length` bytes of a connection of TCP.
pub(crate) fn frame_of_flow(port: u16, length: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 8, 0];
    frame.extend([0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend(port.to_be_bytes());
    frame.resize(length, 0);
    frame
}

/// Sends frames of many flows, each of which is answered by a good one.
fn frames_there_and_back(network: &Opened<'_>) {
    for port in 0..64 {
        let end = Instant::now() + LONG;
        while network.try_send(&frame_of_flow(port, 60)) == Err(Error::Full) {
            assert!(Instant::now() < end, "there is no room");
            network.handle_interrupt();
            std::thread::yield_now();
        }
        good_frame(network);
    }
}

fn is_data(message: &Message) -> bool {
    matches!(message, Message::SendRndisPacket(p) if p.channel.get() == rndis_channel::DATA)
}

#[test]
fn an_honest_adapter_opens_all_queues() {
    let opened = story_with_queues(
        QUEUES,
        LONG,
        |_, _| {},
        |network| {
            assert_eq!(network.queues(), QUEUES as usize);
            frames_there_and_back(network);
            for queue in 0..network.queues() {
                let stats = network.queue_stats(queue).unwrap();
                assert_eq!((stats.sent, stats.received), (16, 16), "queue {queue}");
            }
            assert_eq!(network.stats().bad, 0);
        },
    );
    assert_eq!(opened, Ok(()));
}

#[test]
fn queues_that_are_not_granted_or_not_offered_are_done_without() {
    let granted = |status, count| Message::SubChannelComplete(status, count);
    // What is said, how many are offered, and how many come of it.
    let answers = [
        (granted(status::FAILURE, 3), 3, 1),
        (granted(status::SUCCESS, 0), 3, 1),
        (granted(status::SUCCESS, 1), 3, 2),
        (granted(status::SUCCESS, u32::MAX), 3, 4),
        (granted(status::SUCCESS, 3), 0, 1),
        (granted(status::SUCCESS, 3), 2, 3),
        (Message::InitComplete(status::SUCCESS), 3, 1),
        (Message::SendRndisPacketComplete(status::SUCCESS), 3, 1),
    ];
    for (answer, offered, queues) in answers {
        let lie = move |message: &Message, reply: &mut Reply| {
            if matches!(message, Message::SubChannel(..)) {
                reply.offers = Some(offered);
                for sent in &mut reply.packets {
                    if let Sent::Completion(_, bytes) = sent {
                        *bytes = answer.encode(None).to_vec();
                    }
                }
            }
        };
        let opened = story_with_queues(QUEUES, LONG, lie, |network| {
            assert_eq!(network.queues(), queues, "{answer:?}");
            frames_there_and_back(network);
        });
        assert_eq!(opened, Ok(()));
    }
}

/// Replaces the adapter's answer about object `wrong`, which is asked for as number `asked`.
fn instead(
    wrong: usize,
    answer: impl Fn(u32) -> Completion<'static> + Send + 'static,
) -> impl FnMut(&Message, &mut Reply) + Send + 'static {
    let mut asked = 0;
    move |message, reply| {
        if !matches!(message, Message::SendRndisPacket(_)) || is_data(message) {
            return;
        }
        asked += 1;
        let Some((_, bytes)) = reply.writes.first_mut().filter(|_| asked == wrong) else {
            return;
        };
        // The request's id comes first in each of them.
        let id = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
        let mut to = [0; 1024];
        *bytes = answer(id).encode(&mut to).unwrap().to_vec();
        let length = bytes.len() as u32;
        for sent in &mut reply.packets {
            if let Sent::Transfer(_, _, ranges, _) = sent {
                ranges[0].0 = length;
            }
        }
    }
}

/// INITIALIZE, and what an adapter is asked for before its queues: address, MTU, offloads, the cable.
const CAPABILITIES: usize = 6;
/// The filter comes behind it.
const PARAMETERS: usize = 7;

#[test]
fn capabilities_that_cannot_be() {
    fn capabilities(queues: u32, entries: u16) -> Vec<u8> {
        let mut value = vec![0x88, 2, 18, 0, 1, 3, 0, 0, 0, 0, 0, 0];
        value.extend(queues.to_le_bytes());
        value.extend(entries.to_le_bytes());
        value
    }
    let mut other = capabilities(4, 128);
    other[0] = 0x89;
    let mut short = capabilities(4, 128);
    short[2] = 15;
    let cases = [
        (Vec::new(), 1),
        (capabilities(4, 128)[..15].to_vec(), 1),
        (short, 1),
        (other, 1),
        (capabilities(0, 128), 1),
        (capabilities(1, 128), 1),
        (capabilities(2, 128), 2),
        (capabilities(u32::MAX, 128), 4),
        (capabilities(4, 0), 4),
        (capabilities(4, 1), 4),
        (capabilities(4, 129), 4),
        (capabilities(4, u16::MAX), 4),
    ];
    for (value, queues) in cases {
        let value: &'static [u8] = value.leak();
        let status = rndis_status::SUCCESS;
        let lie = instead(CAPABILITIES, move |id| Completion::Query {
            id,
            status,
            value,
        });
        let opened = story_with_queues(QUEUES, LONG, lie, |network| {
            assert_eq!(network.queues(), queues, "{value:?}");
            frames_there_and_back(network);
        });
        assert_eq!(opened, Ok(()));
    }
    // Refused: no scaling at all, or only the table, whereupon all comes in the first queue.
    let status = rndis_status::NOT_SUPPORTED;
    let value = &[];
    let lie = instead(CAPABILITIES, move |id| Completion::Query {
        id,
        status,
        value,
    });
    let opened = story_with_queues(QUEUES, LONG, lie, |network| {
        assert_eq!(network.queues(), 1);
    });
    assert_eq!(opened, Ok(()));
    let lie = instead(PARAMETERS, move |id| Completion::Set { id, status });
    let opened = story_with_queues(QUEUES, LONG, lie, |network| {
        assert_eq!(network.queues(), 4);
        frames_there_and_back(network);
    });
    assert_eq!(opened, Ok(()));
}

/// What belongs to the first channel changes nothing on another one, and is counted.
#[test]
fn a_sub_channel_carries_frames_only() {
    let asked = Arc::new(AtomicU32::new(0));
    let lies = Arc::new(AtomicU32::new(0));
    let (last, told) = (asked.clone(), lies.clone());
    let lie = move |message: &Message, reply: &mut Reply| {
        // The request that waits for its answer meanwhile.
        if !is_data(message) {
            if let Some((_, bytes)) = reply.writes.first()
                && let Ok((kind, body, _)) = rndis::split(bytes)
                && let Ok(Some(Completion::Set { id, .. })) = Completion::parse(kind, body)
            {
                last.store(id, Ordering::Relaxed);
            }
            return;
        }
        if reply.channel == 0 {
            return;
        }
        told.fetch_add(1, Ordering::Relaxed);
        let mut control = |message: Option<&[u8]>, section| {
            let message = message.unwrap().to_vec();
            reply.rndis(rndis_channel::CONTROL, section, &message);
        };
        let mut bytes = [0; 64];
        let status = rndis_status::MEDIA_DISCONNECT;
        let pulled = Indication { status, value: &[] };
        control(pulled.encode(&mut bytes), 500);
        let id = last.load(Ordering::Relaxed) + 1;
        let status = rndis_status::INVALID_DATA;
        control(Completion::Set { id, status }.encode(&mut bytes), 501);
        // Completions of what was, and will be, asked on the first channel.
        let bad = Message::SendRndisPacketComplete(status::FAILURE).encode(None);
        for number in id - 1..=id + 1 {
            let id = 1 << 31 | u64::from(number) << 32;
            reply.packets.push(Sent::Completion(id, bad.to_vec()));
        }
        reply.send_table(|_| 0);
        reply.packets.push(Sent::InBand(0, vec![0xff; 40]));
        reply.packets.push(Sent::InBand(0, Vec::new()));
    };
    let opened = story_with_queues(QUEUES, LONG, lie, |network| {
        frames_there_and_back(network);
        network.set_promiscuous(true).unwrap();
        frames_there_and_back(network);
        network.set_promiscuous(false).unwrap();
        assert!(network.link_is_up());
        assert_eq!(network.take_link_change(), None);
        let lies = u64::from(lies.load(Ordering::Relaxed));
        assert!(lies >= 90, "{lies} times on a sub-channel");
        let counted = || {
            let bus = network.channel().bus().stats();
            let bus = [bus.bad_completions, bus.bad_packets].map(u64::from);
            (network.stats().bad, bus)
        };
        // The last ones may still be on their way.
        let end = Instant::now() + LONG;
        while counted() != (2 * lies, [3 * lies, 3 * lies]) {
            assert!(Instant::now() < end, "{lies} times: {:?}", counted());
            network.handle_interrupt();
            std::thread::yield_now();
        }
        // The table was not taken: all queues are used as before.
        for queue in 0..network.queues() {
            assert_eq!(network.queue_stats(queue).unwrap().sent, 32);
        }
    });
    assert_eq!(opened, Ok(()));
}

/// Whatever the table says, each frame goes over a channel that there is.
#[test]
fn tables_that_name_any_channel() {
    let round = Arc::new(AtomicU32::new(0));
    let number = round.clone();
    let lie = move |message: &Message, reply: &mut Reply| {
        if is_data(message) {
            return;
        }
        let number = number.load(Ordering::Relaxed);
        reply.send_table(|entry| match number {
            1 => u32::MAX,
            2 => 0x8000_0000 | entry,
            3 => entry * 0x101,
            _ => 0,
        });
        let Some(Sent::InBand(_, mut bytes)) = reply.packets.pop() else {
            return;
        };
        match number {
            0 => return,
            5 => bytes.truncate(bytes.len() - 8),
            6 => bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes()),
            7 => bytes[4..8].copy_from_slice(&15_u32.to_le_bytes()),
            8 => bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes()),
            _ => {}
        }
        // Before the answer, so that it has come when that has.
        reply.packets.insert(0, Sent::InBand(0, bytes));
    };
    let opened = story_with_queues(QUEUES, LONG, lie, |network| {
        for number in 1..=8 {
            round.store(number, Ordering::Relaxed);
            let sent = || (0..4).map(|queue| network.queue_stats(queue).unwrap().sent);
            let before: Vec<_> = sent().collect();
            network.set_promiscuous(false).unwrap();
            frames_there_and_back(network);
            let by_queue: Vec<_> = sent()
                .zip(before)
                .map(|(now, before)| now - before)
                .collect();
            match number {
                // Modulo the queues that there are.
                1 => assert_eq!(by_queue, [0, 0, 0, 64]),
                2 | 3 => assert_eq!(by_queue, [16; 4]),
                // And one that cannot be leaves what there was before.
                _ => assert_eq!(by_queue, [64, 0, 0, 0], "{number}"),
            }
            let bad = network.channel().bus().stats().bad_packets;
            assert_eq!(
                bad,
                number.saturating_sub(4),
                "those that cannot be are counted"
            );
        }
    });
    assert_eq!(opened, Ok(()));
}
