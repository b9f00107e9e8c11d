//! Sub-channels: a controller's further channels, from the guest's wish to their end, with guests
//! that behave and guests that do not.

mod support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use host_vsp::hv::Messages as _;
use host_vsp::storage::backend::{FaultyBackend, Operation as Io};
use host_vsp::storage::{Controller, MAX_SUB_CHANNELS, RawFile};
use host_vsp::vmbus::{DeviceId, VmBus};
use host_vsp::vsp::Vsp;
use support::{DEADLINE, Guest, GuestChannel};
use vmbus_proto::guid::Guid;
use vmbus_proto::message::{ChannelId, GpadlTeardown, Message, OfferChannel, OpenChannel};
use vmbus_proto::packet::Outgoing;
use vmbus_proto::storvsp::{
    DATA_NONE, Operation, PROPERTY_MULTI_CHANNEL, ProtocolVersion, Srb, VstorPacket, status,
};

const INSTANCE: Guid = Guid::new(1, 2, 3, 4, 5);
/// Sub-channels of the controller.
const MOST: u16 = 3;
/// Pages of a ring, and the first page of the first one.
const RING: u64 = 2;
const FIRST: u64 = 16;

struct Machine {
    _dir: tempfile::TempDir,
    image: PathBuf,
    guest: Guest,
    bus: VmBus,
    device: DeviceId,
    disk: FaultyBackend,
}

/// A controller for a guest with one processor more than sub-channels, and what its disk does.
fn controller(image: &std::path::Path) -> (Box<dyn Vsp>, FaultyBackend) {
    let disk = FaultyBackend::new(RawFile::open(image, false).unwrap());
    let controller = Controller::new(INSTANCE).unwrap();
    let mut controller = controller.with_channels_for(u32::from(MOST) + 1);
    controller.attach(0, disk.clone()).unwrap();
    (Box::new(controller), disk)
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk");
        std::fs::write(&image, vec![7; 1 << 20]).unwrap();
        let (guest, partition) = Guest::new();
        let bus = VmBus::new(partition).unwrap();
        let (vsp, disk) = controller(&image);
        let device = bus.offer(vsp).unwrap();
        guest.connect(&bus);
        Self {
            _dir: dir,
            image,
            guest,
            bus,
            device,
            disk,
        }
    }

    /// A fresh host that goes on for the one before; the guest notices nothing.
    fn rebuilt(self) -> Self {
        let saved = postcard::to_stdvec(&self.bus.pause().unwrap()).unwrap();
        drop((self.bus, self.disk));
        let (vsp, disk) = controller(&self.image);
        let saved = postcard::from_bytes(&saved).unwrap();
        let bus = VmBus::restore(self.guest.partition(), vec![vsp], saved).unwrap();
        Self { bus, disk, ..self }
    }

    fn open(&self, relid: u32) -> GuestChannel {
        let first = FIRST + u64::from(relid) * 2 * RING;
        self.guest.open(&self.bus, relid, first, RING)
    }

    fn send(&self, channel: &mut GuestChannel, packet: &VstorPacket) {
        let bytes = packet.wire_bytes(64);
        self.guest.send(channel, &Outgoing::in_band(1, bytes, true));
    }

    fn answer(&self, channel: &mut GuestChannel) -> VstorPacket {
        let answer = VstorPacket::parse(&self.guest.receive(channel)).unwrap();
        assert_eq!(answer.operation(), Some(Operation::CompleteIo));
        answer
    }

    fn ask(&self, channel: &mut GuestChannel, packet: &VstorPacket) -> VstorPacket {
        self.send(channel, packet);
        self.answer(channel)
    }

    fn status(&self, channel: &mut GuestChannel, packet: &VstorPacket) -> u32 {
        self.ask(channel, packet).status.get()
    }

    /// Opens the primary channel and goes on to QUERY_PROPERTIES; what that said.
    fn begin(&self, version: ProtocolVersion) -> (GuestChannel, VstorPacket) {
        let mut channel = self.open(1);
        let begin = VstorPacket::request(Operation::BeginInitialization);
        assert_eq!(self.status(&mut channel, &begin), 0);
        let version = VstorPacket::query_protocol_version(version as u16);
        assert_eq!(self.status(&mut channel, &version), 0);
        let query = VstorPacket::request(Operation::QueryProperties);
        let properties = self.ask(&mut channel, &query);
        (channel, properties)
    }

    fn end(&self, channel: &mut GuestChannel) {
        let end = VstorPacket::request(Operation::EndInitialization);
        assert_eq!(self.status(channel, &end), 0);
    }

    /// The primary channel and all its sub-channels, open and in use.
    fn all_open(&self) -> Vec<GuestChannel> {
        let (mut primary, _) = self.begin(ProtocolVersion::V6_2);
        self.end(&mut primary);
        let create = VstorPacket::create_sub_channels(MOST);
        assert_eq!(self.status(&mut primary, &create), 0);
        let mut all = vec![primary];
        // All are offered before the first is opened, so that no answer comes in between.
        let relids: Vec<u32> = (1..=MOST).map(|index| self.hear_offer(index)).collect();
        all.extend(relids.into_iter().map(|relid| self.open(relid)));
        all
    }

    /// Hears the offer of sub-channel `index`; its relid.
    fn hear_offer(&self, index: u16) -> u32 {
        let heard = self.guest.hear();
        let Ok(Message::OfferChannel(offer)) = Message::parse(&heard) else {
            panic!("{heard:?}");
        };
        assert_eq!(offer.sub_channel_index.get(), index);
        let blank = OfferChannel::default();
        assert_eq!((offer.instance, offer.flags), (INSTANCE, blank.flags));
        offer.relid.get()
    }

    fn hear_rescind(&self) -> u32 {
        let heard = self.guest.hear();
        match Message::parse(&heard) {
            Ok(Message::RescindChannelOffer(channel)) => channel.relid.get(),
            _ => panic!("{heard:?}"),
        }
    }

    fn say(&self, message: Message<'_>) {
        self.guest.say(&self.bus, &message.encode());
    }

    fn teardown(&self, relid: u32) {
        self.say(Message::GpadlTeardown(GpadlTeardown {
            relid: relid.into(),
            gpadl: (0xE1E10 + relid).into(),
        }));
        let heard = self.guest.hear();
        assert!(
            matches!(Message::parse(&heard), Ok(Message::GpadlTorndown(_))),
            "{heard:?}"
        );
    }

    /// Closes the primary channel, whose sub-channels are closed; lets them go.
    fn close_primary(&self, sub_channels: &[u32]) {
        self.say(Message::CloseChannel(ChannelId::new(1)));
        let mut gone: Vec<u32> = sub_channels.iter().map(|_| self.hear_rescind()).collect();
        gone.sort_unstable();
        assert_eq!(gone, sub_channels);
        self.teardown(1);
        for &relid in sub_channels {
            self.say(Message::RelidReleased(ChannelId::new(relid)));
        }
    }

    /// Waits until so many operations are held back.
    fn wait_held(&self, count: usize) {
        let end = Instant::now() + DEADLINE;
        while self.disk.waiting() != count {
            assert!(Instant::now() < end, "{} wait", self.disk.waiting());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// SYNCHRONIZE CACHE(10) of all of LUN 0: it reaches the disk's backend and moves no data.
fn flush() -> VstorPacket {
    let mut cdb = [0; 10];
    cdb[0] = 0x35;
    VstorPacket::execute_srb(&Srb::request(0, &cdb, DATA_NONE, 0))
}

fn assert_done(answer: &VstorPacket) {
    let srb = answer.srb();
    assert_eq!((answer.status.get(), srb.srb_status), (0, 1), "{srb:?}");
}

#[test]
fn each_channel_carries_requests() {
    let machine = Machine::new();
    let (mut primary, properties) = machine.begin(ProtocolVersion::V6_2);
    let properties = properties.properties();
    assert_eq!(properties.max_channel_count.get(), MOST);
    assert_eq!(properties.flags.get(), PROPERTY_MULTI_CHANNEL);
    machine.end(&mut primary);
    machine.say(Message::CloseChannel(ChannelId::new(1)));
    machine.teardown(1);

    let mut channels = machine.all_open();
    for channel in &mut channels {
        let before = machine.guest.interrupts(0, channel.relid);
        assert_done(&machine.ask(channel, &flush()));
        assert!(machine.guest.interrupts(0, channel.relid) > before);
    }
    assert_eq!(machine.disk.count(Io::Flush), 4);
}

#[test]
fn sub_channels_go_with_the_primary_channel_and_come_again() {
    let machine = Machine::new();
    for round in 0..50 {
        let channels = machine.all_open();
        let relids: Vec<u32> = channels[1..].iter().map(|channel| channel.relid).collect();
        assert_eq!(relids, [2, 3, 4], "round {round}: relids are lost");
        if round % 2 == 0 {
            // As Linux: sub-channels first.
            for &relid in &relids {
                machine.guest.close(&machine.bus, relid);
            }
            machine.close_primary(&relids);
        } else {
            // The host closes what the guest left open, and gives its rings back.
            machine.say(Message::CloseChannel(ChannelId::new(1)));
            for relid in &relids {
                assert_eq!(machine.hear_rescind(), *relid);
            }
            for relid in &relids {
                assert!(!machine.guest.has_doorbell(*relid));
                machine.say(Message::CloseChannel(ChannelId::new(*relid)));
                machine.teardown(*relid);
                machine.say(Message::RelidReleased(ChannelId::new(*relid)));
            }
            machine.teardown(1);
        }
        let left = machine.bus.counters();
        assert_eq!((left.channels.len(), left.gpadls), (1, 0), "left behind");
    }
}

#[test]
fn a_guest_that_releases_nothing_gets_no_more() {
    let machine = Machine::new();
    let channels = machine.all_open();
    drop(channels);
    for round in 0..20 {
        machine.say(Message::CloseChannel(ChannelId::new(1)));
        if round == 0 {
            for relid in 2..=4 {
                assert_eq!(machine.hear_rescind(), relid);
            }
        }
        machine.teardown(1);
        let (mut primary, _) = machine.begin(ProtocolVersion::V6_2);
        machine.end(&mut primary);
        let create = VstorPacket::create_sub_channels(MOST);
        assert_eq!(machine.status(&mut primary, &create), 0);
        // New ones have relids, but the guest is not told while it holds the old ones.
        wait_until(|| machine.bus.counters().channels.len() == 4);
        assert_eq!(machine.guest.log.backlog(), 0);
    }
    // What it was not told of, it cannot open.
    machine.say(Message::OpenChannel(OpenChannel {
        relid: 5.into(),
        open_id: 1.into(),
        ring_gpadl: 1.into(),
        target_vp: 0.into(),
        downstream_page_offset: 2.into(),
        user_data: [0; 120],
    }));
    let heard = machine.guest.hear();
    assert!(
        matches!(Message::parse(&heard), Ok(Message::OpenChannelResult(result)) if result.status.get() != 0),
        "{heard:?}"
    );
    for (relid, index) in (2..=4).zip(1..) {
        machine.say(Message::RelidReleased(ChannelId::new(relid)));
        let new = machine.hear_offer(index);
        assert!((5..=7).contains(&new), "relid {new}");
        assert_done(&machine.ask(&mut machine.open(new), &flush()));
    }
}

fn wait_until(mut done: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < end, "it does not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn wishes_that_cannot_be_are_refused() {
    let machine = Machine::new();
    let mut channels = machine.all_open();
    let [primary, sub_channel, ..] = channels.as_mut_slice() else {
        panic!()
    };
    let create = VstorPacket::create_sub_channels;
    // Twice.
    assert_eq!(
        machine.status(primary, &create(1)),
        status::INVALID_DEVICE_STATE
    );
    for count in [MOST + 1, u16::MAX] {
        assert_eq!(
            machine.status(primary, &create(count)),
            status::INVALID_PARAMETER
        );
    }
    assert_eq!(
        machine.status(sub_channel, &create(1)),
        status::INVALID_PARAMETER
    );
    let begin = VstorPacket::request(Operation::BeginInitialization);
    assert_eq!(
        machine.status(sub_channel, &begin),
        status::INVALID_DEVICE_STATE
    );
    assert_done(&machine.ask(sub_channel, &flush()));
    assert_eq!(machine.guest.log.backlog(), 0, "nothing else was offered");
    assert_eq!(machine.bus.counters().channels.len(), 4);
}

#[test]
fn versions_without_sub_channels_have_none() {
    let machine = Machine::new();
    let (mut primary, properties) = machine.begin(ProtocolVersion::V4_2);
    assert_eq!(properties.properties().max_channel_count.get(), 0);
    assert_eq!(properties.properties().flags.get(), 0);
    machine.end(&mut primary);
    assert_eq!(
        machine.status(&mut primary, &VstorPacket::create_sub_channels(1)),
        status::INVALID_PARAMETER
    );
}

#[test]
fn there_are_not_more_channels_than_processors_nor_than_the_limit() {
    for (processors, channels) in [(1, 0), (2, 1), (255, MAX_SUB_CHANNELS)] {
        let (guest, partition) = Guest::new();
        let bus = VmBus::new(partition).unwrap();
        let controller = Controller::new(INSTANCE).unwrap();
        bus.offer(Box::new(controller.with_channels_for(processors)))
            .unwrap();
        guest.connect(&bus);
        let mut channel = guest.open(&bus, 1, FIRST, RING);
        let mut answer = Vec::new();
        for packet in [
            VstorPacket::request(Operation::BeginInitialization),
            VstorPacket::query_protocol_version(ProtocolVersion::V6_2 as u16),
            VstorPacket::request(Operation::QueryProperties),
        ] {
            guest.send(
                &mut channel,
                &Outgoing::in_band(1, packet.wire_bytes(64), true),
            );
            answer = guest.receive(&mut channel);
        }
        let properties = VstorPacket::parse(&answer).unwrap().properties();
        assert_eq!(properties.max_channel_count.get(), channels);
    }
}

/// Windows asks before the end of the initialization.
#[test]
fn requests_on_sub_channels_wait_for_the_end_of_the_initialization() {
    let machine = Machine::new();
    let (mut primary, _) = machine.begin(ProtocolVersion::V6_2);
    let create = VstorPacket::create_sub_channels(1);
    assert_eq!(machine.status(&mut primary, &create), 0);
    let relid = machine.hear_offer(1);
    let mut sub_channel = machine.open(relid);
    machine.send(&mut sub_channel, &flush());
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(machine.disk.count(Io::Flush), 0, "it was too early");
    machine.end(&mut primary);
    assert_done(&machine.answer(&mut sub_channel));
}

#[test]
fn a_reset_waits_for_the_requests_of_all_channels() {
    let machine = Machine::new();
    let mut channels = machine.all_open();
    let [primary, first, second, third] = channels.as_mut_slice() else {
        panic!()
    };
    for operation in [Operation::ResetBus, Operation::ResetLun] {
        let before = machine.disk.count(Io::Flush);
        let held = machine.disk.hold();
        machine.send(first, &flush());
        machine.send(second, &flush());
        machine.wait_held(2);
        // On the primary channel, and on one without requests of its own.
        machine.send(primary, &VstorPacket::request(operation));
        machine.send(third, &VstorPacket::request(operation));
        // What is asked after the reset waits for it.
        std::thread::sleep(Duration::from_millis(20));
        machine.send(first, &flush());
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(machine.disk.waiting(), 2, "a request overtook a reset");
        for channel in [&mut *primary, &mut *third] {
            let mut buffer = [0; 256];
            let answer = channel.to_guest.receive(&mut buffer).unwrap();
            assert!(answer.is_none(), "a reset overtook requests");
        }
        drop(held);
        assert_eq!(machine.answer(primary).status.get(), 0);
        assert!(machine.disk.count(Io::Flush) >= before + 2);
        assert_eq!(machine.answer(third).status.get(), 0);
        assert_done(&machine.answer(first));
        assert_done(&machine.answer(first));
        assert_done(&machine.answer(second));
    }
}

#[test]
fn a_removed_controller_takes_its_sub_channels_along() {
    let machine = Machine::new();
    let mut channels = machine.all_open();
    machine.send(&mut channels[2], &flush());
    machine.bus.rescind(machine.device);
    for relid in [2, 3, 4, 1] {
        assert_eq!(machine.hear_rescind(), relid);
        assert!(!machine.guest.has_doorbell(relid));
    }
    assert!(machine.bus.counters().channels.is_empty());
}

#[test]
fn unload_contact_and_reset_end_sub_channels() {
    for end in 0..3 {
        let machine = Machine::new();
        drop(machine.all_open());
        match end {
            0 => {
                machine.say(Message::Unload);
                let heard = machine.guest.hear();
                assert!(matches!(
                    Message::parse(&heard),
                    Ok(Message::UnloadResponse)
                ));
            }
            1 => machine.bus.reset(),
            _ => {}
        }
        let offers = machine.guest.connect(&machine.bus);
        assert_eq!(offers.len(), 1, "only the primary channel is offered");
        assert_eq!(machine.bus.counters().channels.len(), 1);
        for relid in 1..=4 {
            assert!(!machine.guest.has_doorbell(relid));
        }
        let relids: Vec<u32> = machine.all_open().iter().map(|c| c.relid).collect();
        assert_eq!(relids, [1, 2, 3, 4]);
    }
}

#[test]
fn a_wish_in_a_conversation_that_has_ended_is_forgotten() {
    let machine = Machine::new();
    for _ in 0..50 {
        let (mut primary, _) = machine.begin(ProtocolVersion::V6_2);
        machine.send(&mut primary, &VstorPacket::create_sub_channels(MOST));
        machine.say(Message::CloseChannel(ChannelId::new(1)));
        machine.say(Message::GpadlTeardown(GpadlTeardown {
            relid: 1.into(),
            gpadl: (0xE1E10 + 1).into(),
        }));
        // Whatever was offered is taken away again.
        let mut there = 0;
        loop {
            match Message::parse(&machine.guest.hear()).unwrap() {
                Message::OfferChannel(_) => there += 1,
                Message::RescindChannelOffer(channel) => {
                    there -= 1;
                    machine.say(Message::RelidReleased(channel));
                }
                Message::GpadlTorndown(_) => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(there, 0);
        assert_eq!(machine.bus.counters().channels.len(), 1);
    }
}

#[test]
fn a_paused_machine_goes_on_with_all_its_channels() {
    let machine = Machine::new();
    let mut channels = machine.all_open();
    for round in 0..10 {
        for channel in &mut channels {
            machine.send(channel, &flush());
        }
        // In flight, in the ring, or answered: whatever the pause meets.
        machine.send(&mut channels[0], &VstorPacket::request(Operation::ResetBus));
        let saved = machine.bus.pause().unwrap();
        assert_eq!(saved.open_channels(), 4, "round {round}");
        machine.bus.resume();
        for channel in &mut channels {
            assert_done(&machine.answer(channel));
        }
        assert_eq!(machine.answer(&mut channels[0]).status.get(), 0);
    }
    assert_eq!(machine.guest.log.backlog(), 0, "nothing is offered anew");
}

#[test]
fn a_restored_machine_has_all_its_channels() {
    let mut machine = Machine::new();
    let mut channels = machine.all_open();
    for _ in 0..5 {
        for channel in &mut channels {
            machine.send(channel, &flush());
        }
        machine = machine.rebuilt();
        machine.bus.resume();
        for channel in &mut channels {
            assert_done(&machine.answer(channel));
            assert_done(&machine.ask(channel, &flush()));
        }
    }
    assert_eq!(machine.guest.log.backlog(), 0);
    // And the bus still knows what belongs together.
    machine.say(Message::CloseChannel(ChannelId::new(1)));
    for relid in 2..=4 {
        assert_eq!(machine.hear_rescind(), relid);
    }
}
