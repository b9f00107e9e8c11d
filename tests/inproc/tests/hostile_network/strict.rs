//! An adapter that takes nothing before it has said what it has to say.

use std::collections::VecDeque;
use std::io;

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
use super::lying::{Lying, QUEUES, SECTIONS, Sent};
use super::queues::frame_of_flow;

/// Frames that answer each frame.
const ANSWERS: u32 = 4;

/// It is honest, and stands still while the guest's ring is full.
struct Strict {
    adapter: Box<Lying>,
    waiting: VecDeque<Sent>,
    section: u32,
}

impl Strict {
    fn new(adapter: Box<Lying>) -> Box<Self> {
        Box::new(Self {
            adapter,
            waiting: VecDeque::new(),
            section: 0,
        })
    }
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
            self.adapter.offer_channels(&reply);
            self.waiting.extend(reply.packets);
        }
    }

    fn sub_channels(&self) -> u16 {
        self.adapter.sub_channels()
    }

    fn sub_channel(&mut self, index: u16) -> io::Result<Box<dyn Vsp>> {
        Ok(Self::new(self.adapter.sub_channel(index)))
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
    full_rings(1);
}

#[test]
fn nor_do_those_of_several_queues() {
    full_rings(QUEUES);
}

/// Fills all rings of so many queues, again and again, and empties them.
fn full_rings(queues: u32) {
    let machine = Machine::new(queues);
    let strict = Strict::new(Lying::new(|_, _| {}));
    machine.host.offer(strict).unwrap();
    let _cpu = machine.hypervisor.enter(0);
    let memory = BusMemory::<FakeHal, { QUEUES as usize }, 8>::new();
    let bus = VmBus::new(&memory, VECTOR).unwrap();
    for vp in 1..queues {
        let _cpu = machine.hypervisor.enter(vp);
        bus.start_cpu().unwrap();
    }
    bus.connect(&Options::default()).unwrap();
    // More places than the ring has room for.
    let places = NetworkMemory::<FakeHal, Vec<u8>, 256, 8, { QUEUES as usize }>::new();
    let options = NetworkOptions {
        channel: OpenOptions {
            to_host: 4096,
            to_guest: 4096,
            ..OpenOptions::default()
        },
        send_buffer: 256 * 6144,
        ..NetworkOptions::default()
    };
    let offer = bus.find(network::CLASS).unwrap();
    let wanted = queues as usize;
    let network = Network::open_with_queues(&bus, &offer, &places, &options, wanted).unwrap();
    assert_eq!(network.queues(), wanted);
    let (mut sent, mut received) = (0u32, 0u32);
    let mut buffer = [0; 1514];
    // In all fewer frames than the receive buffer has sections, as this adapter does not look which
    // are free.
    while sent * ANSWERS < SECTIONS / 2 {
        // Until both rings are full, or close to it.
        let mut refused = 0_u16;
        while refused < 100 {
            match network.try_send(&frame_of_flow(sent as u16 + refused, 60)) {
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
    for vp in 1..queues {
        let _cpu = machine.hypervisor.enter(vp);
        bus.stop_cpu();
    }
    drop(bus);
    assert_eq!(machine.hypervisor.counts().pages, 0, "pages were lost");
}
