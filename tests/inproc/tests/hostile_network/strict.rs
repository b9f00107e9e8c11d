//! An adapter that takes nothing before it has said what it has to say.

use std::collections::VecDeque;

use guest_vsc::bus::{BusMemory, Options, VmBus};
use guest_vsc::channel::OpenOptions;
use guest_vsc::error::Error;
use guest_vsc::network::{self, Network, NetworkMemory, NetworkOptions};
use host_vsp::vmbus::channel::{Channel, ChannelError};
use host_vsp::vsp::{StateError, Vsp};
use inproc::{FakeHal, Machine, VECTOR};
use vmbus_proto::message::OfferChannel;
use vmbus_proto::netvsp::Message;
use vmbus_proto::ring::SendError;
use vmbus_proto::rndis::packet::PacketInfo as Info;

use super::SHORT;
use super::lying::{Lying, SECTIONS, Sent};

/// Frames that answer each frame.
const ANSWERS: u32 = 4;

/// It is honest, and stands still while the guest's ring is full.
struct Strict {
    adapter: Box<Lying>,
    waiting: VecDeque<Sent>,
    section: u32,
}

impl Vsp for Strict {
    fn offer(&self) -> OfferChannel {
        self.adapter.offer()
    }

    fn opened(&mut self) {
        self.adapter.opened();
    }

    fn service(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        loop {
            while let Some(sent) = self.waiting.front() {
                match sent.send(channel) {
                    Ok(()) => self.waiting.pop_front(),
                    Err(SendError::Full) => return Ok(()),
                    Err(error) => panic!("{error:?}"),
                };
            }
            let Some((message, mut reply)) = self.adapter.next(channel)? else {
                return Ok(());
            };
            if matches!(message, Message::SendRndisPacket(p) if p.channel.get() == 0) {
                for _ in 1..ANSWERS {
                    self.section += 1;
                    // Beside the sections of the adapter's own answers.
                    reply.frame(500 + self.section % 500, &[7; 100], &Info::default());
                }
            }
            self.adapter.write(channel, &reply);
            self.waiting.extend(reply.packets);
        }
    }

    fn quiesce(&mut self) {}

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&mut self, _state: &[u8]) -> Result<(), StateError> {
        Ok(())
    }
}

#[test]
fn two_full_rings_do_not_stop_each_other() {
    let machine = Machine::new(1);
    let strict = Strict {
        adapter: Lying::new(|_, _| {}),
        waiting: VecDeque::new(),
        section: 0,
    };
    machine.host.offer(Box::new(strict)).unwrap();
    let _cpu = machine.hypervisor.enter(0);
    let memory = BusMemory::<FakeHal, 1, 4>::new();
    let bus = VmBus::new(&memory, VECTOR).unwrap();
    bus.connect(&Options::default()).unwrap();
    // More places than the ring has room for.
    let places = NetworkMemory::<FakeHal, Vec<u8>, 64, 8>::new();
    let options = NetworkOptions {
        channel: OpenOptions {
            to_host: 4096,
            to_guest: 4096,
            ..OpenOptions::default()
        },
        ..NetworkOptions::default()
    };
    let offer = bus.find(network::CLASS).unwrap();
    let network = Network::open(&bus, &offer, &places, &options).unwrap();
    let (mut sent, mut received) = (0u32, 0u32);
    let mut buffer = [0; 1514];
    // In all fewer frames than the receive buffer has sections, as this adapter does not look which
    // are free.
    while sent * ANSWERS < SECTIONS / 2 {
        // Until both rings are full, or close to it.
        let mut refused = 0;
        while refused < 100 {
            match network.try_send(&[9; 60]) {
                Ok(()) => sent += 1,
                Err(Error::Full) => {
                    refused += 1;
                    std::thread::yield_now();
                }
                Err(error) => panic!("{error}"),
            }
        }
        while received < sent * ANSWERS {
            match network.try_receive(&mut buffer).unwrap() {
                Some(frame) => {
                    assert_eq!(buffer[..frame.length], [7; 100]);
                    received += 1;
                }
                None => assert!(
                    network.wait_until_ready(20 * SHORT).unwrap(),
                    "{received} of {ANSWERS} times {sent} frames: {:?}",
                    network.stats()
                ),
            }
        }
    }
    assert_eq!((network.stats().lost, network.stats().bad), (0, 0));
    drop(network);
    drop(bus);
    assert_eq!(machine.hypervisor.counts().pages, 0, "pages were lost");
}
