//! Disks that come and go on a running bus: a sleeping channel wakes up to say so.

mod support;

use host_vsp::hv::Messages as _;
use host_vsp::storage::{Controller, RawFile};
use host_vsp::vmbus::VmBus;
use support::{Guest, GuestChannel};
use vmbus_proto::guid::Guid;
use vmbus_proto::message::{ChannelId, Message};
use vmbus_proto::packet::Outgoing;
use vmbus_proto::storvsp::{Operation, ProtocolVersion, VstorPacket};

const INSTANCE: Guid = Guid::new(1, 2, 3, 4, 5);

struct Machine {
    dir: tempfile::TempDir,
    guest: Guest,
    bus: VmBus,
}

impl Machine {
    fn new() -> Self {
        let (guest, partition) = Guest::new();
        Self {
            dir: tempfile::tempdir().unwrap(),
            guest,
            bus: VmBus::new(partition).unwrap(),
        }
    }

    fn image(&self, name: &str) -> RawFile {
        let path = self.dir.path().join(name);
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        RawFile::open(path, false).unwrap()
    }

    fn controller(&self) -> Controller {
        let mut controller = Controller::new(INSTANCE).unwrap();
        controller.attach(0, self.image("first")).unwrap();
        controller
    }

    /// Opens the channel and initializes the controller.
    fn ready(&self, relid: u32) -> GuestChannel {
        let mut channel = self.guest.open(&self.bus, relid, 16, 2);
        let version = ProtocolVersion::V6_2 as u16;
        for packet in [
            VstorPacket::request(Operation::BeginInitialization),
            VstorPacket::query_protocol_version(version),
            VstorPacket::request(Operation::QueryProperties),
            VstorPacket::request(Operation::EndInitialization),
        ] {
            let bytes = packet.wire_bytes(64);
            self.guest
                .send(&mut channel, &Outgoing::in_band(1, bytes, true));
            let answer = self.guest.receive(&mut channel);
            let answer = VstorPacket::parse(&answer).unwrap();
            assert_eq!(answer.operation(), Some(Operation::CompleteIo));
            assert_eq!(answer.status.get(), 0);
        }
        channel
    }

    /// Waits until the guest is interrupted and told to look for its disks.
    fn expect_news(&self, channel: &mut GuestChannel) {
        let packet = VstorPacket::parse(&self.guest.receive(channel)).unwrap();
        assert_eq!(packet.operation(), Some(Operation::EnumerateBus));
    }
}

#[test]
fn a_sleeping_channel_says_that_disks_have_changed() {
    let machine = Machine::new();
    let controller = machine.controller();
    let disks = controller.disks();
    machine.bus.offer(Box::new(controller)).unwrap();
    machine.guest.connect(&machine.bus);
    let mut channel = machine.ready(1);
    disks.attach(1, machine.image("second")).unwrap();
    machine.expect_news(&mut channel);
    disks.resize(1, 2 << 20).unwrap();
    machine.expect_news(&mut channel);
    disks.detach(1).unwrap();
    machine.expect_news(&mut channel);

    // Nobody is there to be told, and nothing waits for that.
    machine.guest.close(&machine.bus, 1);
    assert!(!machine.guest.has_doorbell(1));
    disks.attach(2, machine.image("third")).unwrap();
    disks.detach(2).unwrap();
}

#[test]
fn what_changes_in_a_pause_is_told_after_it() {
    let machine = Machine::new();
    let controller = machine.controller();
    let disks = controller.disks();
    machine.bus.offer(Box::new(controller)).unwrap();
    machine.guest.connect(&machine.bus);
    let mut channel = machine.ready(1);
    let saved = machine.bus.pause().unwrap();
    assert_eq!(saved.open_channels(), 1);
    disks.attach(1, machine.image("second")).unwrap();
    machine.bus.resume();
    machine.expect_news(&mut channel);
}

#[test]
fn a_controller_goes_with_its_disks_and_comes_again() {
    let machine = Machine::new();
    let device = machine.bus.offer(Box::new(machine.controller())).unwrap();
    machine.guest.connect(&machine.bus);
    drop(machine.ready(1));
    machine.bus.rescind(device);
    let heard = machine.guest.hear();
    let rescinded = matches!(
        Message::parse(&heard),
        Ok(Message::RescindChannelOffer(channel)) if channel.relid.get() == 1
    );
    assert!(rescinded, "{heard:?}");
    // Its images are free: the same one is opened again, for writing. The guest hears of it when
    // it has let the old one go, or it would take it for that.
    machine.bus.offer(Box::new(machine.controller())).unwrap();
    assert_eq!(machine.guest.log.backlog(), 0, "it was offered at once");
    let released = Message::RelidReleased(ChannelId::new(1)).encode();
    machine.guest.say(&machine.bus, &released);
    let heard = machine.guest.hear();
    let offered = matches!(
        Message::parse(&heard),
        Ok(Message::OfferChannel(offer))
            if offer.instance == INSTANCE && offer.relid.get() == 2
    );
    assert!(
        offered,
        "it has a relid of its own, and was offered once: {heard:?}"
    );
}
