//! Adapters that lie at random.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use guest_vsc::network::PacketInfo;
use inproc::seeds;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use vmbus_proto::netvsp::{Message, rndis_channel};
use vmbus_proto::rndis::{Indication, status as rndis_status};

use super::lying::{QUEUES, Reply, Sent};
use super::queues::frame_of_flow;
use super::{LONG, story_with_queues};

/// Says something that nobody has asked for, where it may be out of place.
fn chatter(random: &mut SmallRng, reply: &mut Reply) {
    let some: u32 = random.random_range(0..8);
    match random.random_range(0..3) {
        0 => reply.send_table(|entry| entry.wrapping_mul(some)),
        1 => reply.send_table(|entry| u32::MAX << some >> entry),
        _ => {
            let mut bytes = [0; 64];
            let status = rndis_status::MEDIA_CONNECT + some % 2;
            let indication = Indication { status, value: &[] };
            let message = indication.encode(&mut bytes).expect("room").to_vec();
            reply.rndis(rndis_channel::CONTROL, some, &message);
        }
    }
}

/// Changes a reply at random, more often than not a little.
fn distort(random: &mut SmallRng, reply: &mut Reply) {
    let flip = |random: &mut SmallRng, bytes: &mut Vec<u8>| match random.random_range(0..6) {
        0 => bytes.truncate(random.random_range(0..=bytes.len())),
        1 => bytes.resize(random.random_range(0..1200), random.random()),
        2 if bytes.len() >= 4 => {
            let at = random.random_range(0..bytes.len() / 4) * 4;
            let value: u32 = match random.random_range(0..4) {
                0 => u32::MAX,
                1 => random.random_range(0..2000),
                2 => 0x8000_0000,
                _ => random.random(),
            };
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        _ if !bytes.is_empty() => {
            let at = random.random_range(0..bytes.len());
            bytes[at] ^= random.random::<u8>();
        }
        _ => {}
    };
    if random.random_bool(0.1) {
        chatter(random, reply);
    }
    for (offset, bytes) in &mut reply.writes {
        match random.random_range(0..4) {
            0 => *offset = random.random_range(0..3 << 20),
            _ => flip(random, bytes),
        }
    }
    if let Some(copy) = reply.packets.first().cloned()
        && random.random_bool(0.2)
    {
        let at = random.random_range(0..=reply.packets.len());
        reply.packets.insert(at, copy);
    }
    for sent in &mut reply.packets {
        match sent {
            Sent::Completion(id, bytes) | Sent::InBand(id, bytes) => {
                match random.random_range(0..8) {
                    0 => *id ^= 1 << random.random_range(0..64),
                    1 | 2 => flip(random, bytes),
                    3 => *sent = Sent::InBand(*id, bytes.clone()),
                    _ => {}
                }
            }
            Sent::Transfer(id, set, ranges, bytes) => match random.random_range(0..8) {
                0 => *set = random.random(),
                1 => flip(random, bytes),
                2 => *sent = Sent::Completion(*id, bytes.clone()),
                3 => ranges.clear(),
                4 | 5 => {
                    for _ in 0..random.random_range(0..200) {
                        let wide = random.random_bool(0.5);
                        ranges.push(if wide {
                            (random.random(), random.random())
                        } else {
                            (
                                random.random_range(0..2000),
                                random.random_range(0..2 << 20),
                            )
                        });
                    }
                }
                _ => {}
            },
        }
    }
}

#[test]
fn a_storm_of_random_lies() {
    let (mut opened, mut honest, mut errors, mut counted) = (0u64, 0u64, 0u64, 0u64);
    let mut queues = [0; QUEUES as usize];
    let lies = Arc::new(AtomicU32::new(0));
    let seeds = seeds(800, 20_000);
    let storms = seeds.end - seeds.start;
    for seed in seeds {
        let mut random = SmallRng::seed_from_u64(seed);
        // Some lie from the first word on, others only when they are trusted.
        let early = seed % 5 == 0;
        let often = [0.1, 0.5, 1.0][(seed % 7 % 3) as usize];
        let lies = lies.clone();
        let lie = move |message: &Message, reply: &mut Reply| {
            let is_data = matches!(message, Message::SendRndisPacket(p) if p.channel.get() == 0);
            if (early || is_data) && random.random_bool(often) {
                lies.fetch_add(1, Ordering::Relaxed);
                distort(&mut random, reply);
            }
        };
        let timeout = if early {
            Duration::from_millis(10)
        } else {
            LONG
        };
        let wanted = if seed % 2 == 0 { 1 } else { QUEUES };
        let told = story_with_queues(wanted, timeout, lie, |network| {
            opened += 1;
            queues[network.queues() - 1] += 1;
            let mut buffer = [0; 1514];
            for turn in 0..40u8 {
                // Whatever comes of it, each buffer comes back at most once.
                if turn % 2 == 0 {
                    let _ = network.try_send(&frame_of_flow(turn.into(), 60));
                } else {
                    let frame = frame_of_flow(turn.into(), 900);
                    let _ = network.submit(frame, &PacketInfo::default());
                }
                network.handle_interrupt();
                if turn % 8 == 7 {
                    let _ = network.wait_until_ready(Duration::from_millis(1));
                }
                for _ in 0..4 {
                    match network.try_receive(&mut buffer) {
                        Ok(Some(received)) => {
                            honest += u64::from(buffer[..received.length] == [7; 100]);
                        }
                        Ok(None) | Err(_) => break,
                    }
                }
                while let Some(sent) = network.poll_sent() {
                    assert_eq!(sent.buffer.len(), 900);
                }
            }
            errors += u64::from(network.check().is_err());
            let (ours, bus) = (network.stats(), network.channel().bus().stats());
            counted += ours.bad + ours.refused;
            counted += u64::from(bus.bad_completions) + u64::from(bus.bad_packets);
        });
        if let Err(error) = told {
            assert!(early, "{error}");
            errors += 1;
        }
    }
    let lies = u64::from(lies.load(Ordering::Relaxed));
    println!(
        "{storms} adapters, {opened} of them opened with {queues:?} queues, {lies} lies: {errors} errors, {counted} counted; \
         {honest} honest frames among them"
    );
    let enough =
        opened > storms / 2 && queues[3] > storms / 4 && honest > storms && lies > 10 * storms;
    // A lie may be of no consequence, as one about padding, or none at all, as one byte more.
    assert!(storms < 100 || enough && errors + counted > lies / 8);
}
