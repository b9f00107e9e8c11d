//! Dynamic memory: the guest's driver against a device that follows the protocol. The project's host
//! has none.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use guest_vsc::balloon::{self, Balloon};
use guest_vsc::bus::{BusMemory, Options, VmBus};
use guest_vsc::channel::OpenOptions;
use guest_vsc::error::{Error, Waited};
use host_vsp::vmbus::channel::{Channel, ChannelError};
use host_vsp::vsp::{StateError, Vsp, plain_offer};
use inproc::{FakeHal, Machine, VECTOR};
use vmbus_proto::balloon::{
    BalloonRequest, CapabilitiesReport, FlagsResponse, Header, StatusReport, VersionRequest,
    message_type, response_flag,
};
use vmbus_proto::guid::Guid;
use vmbus_proto::message::OfferChannel;
use vmbus_proto::packet::Outgoing;
use zerocopy::{FromBytes as _, IntoBytes as _};

/// A host that speaks versions up to `newest`, and asks for everything once the guest is there.
struct Device {
    newest: u32,
    flags: u64,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Device {
    fn answers(&self, message: &[u8]) -> Vec<Vec<u8>> {
        let (header, _) = Header::read_from_prefix(message).unwrap();
        let id = header.transaction_id.get();
        match header.message_type.get() {
            message_type::VERSION_REQUEST => {
                let (request, _) = VersionRequest::read_from_prefix(message).unwrap();
                let accepted = request.version.get() <= self.newest;
                vec![
                    FlagsResponse::version(id, accepted.into())
                        .as_bytes()
                        .to_vec(),
                ]
            }
            message_type::CAPABILITIES_REPORT => {
                let (report, _) = CapabilitiesReport::read_from_prefix(message).unwrap();
                assert_eq!(report.capabilities.get(), 0, "it can do nothing");
                let answer = FlagsResponse::capabilities(id, self.flags);
                let back = Vec::from([8, 0, 24, 0, 12, 0, 0, 0]);
                let back = [back, vec![0; 4], vec![1, 0, 0, 0], vec![0; 8]].concat();
                let hot_add = [vec![10, 0, 16, 0, 13, 0, 0, 0], vec![1; 8]].concat();
                vec![
                    answer.as_bytes().to_vec(),
                    BalloonRequest::new(11, 77).as_bytes().to_vec(),
                    back,
                    hot_add,
                    vec![12, 0, 8, 0, 14, 0, 0, 0],
                ]
            }
            _ => vec![],
        }
    }
}

impl Vsp for Device {
    fn offer(&self) -> OfferChannel {
        plain_offer(balloon::CLASS, Guid::new(7, 7, 7, 7, 7))
    }

    fn opened(&mut self) {}

    fn service(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        let mut buffer = [0; 256];
        while let Some(packet) = channel.receive(&mut buffer)? {
            let message = packet.payload.to_vec();
            for answer in self.answers(&message) {
                channel
                    .send(&Outgoing::in_band(0, &answer, false))
                    .expect("room");
            }
            self.heard.lock().unwrap().push(message);
        }
        Ok(())
    }

    fn quiesce(&mut self) {}

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&mut self, _state: &[u8]) -> Result<(), StateError> {
        Ok(())
    }
}

/// Tells a story to a guest whose host speaks up to `newest`; what the guest said.
fn story(
    newest: u32,
    flags: u64,
    tell: impl FnOnce(&VmBus<'_, FakeHal>, Result<Balloon<'_, FakeHal>, Error>),
) -> Vec<Vec<u8>> {
    let machine = Machine::new(1);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let device = Device {
        newest,
        flags,
        heard: heard.clone(),
    };
    machine.host.offer(Box::new(device)).unwrap();
    let _cpu = machine.hypervisor.enter(0);
    let memory = BusMemory::<FakeHal, 1, 4>::new();
    let bus = VmBus::new(&memory, VECTOR).unwrap();
    bus.connect(&Options::default()).unwrap();
    let offer = bus.find(balloon::CLASS).unwrap();
    tell(&bus, Balloon::open(&bus, &offer, &OpenOptions::default()));
    assert_eq!(bus.stats().bad_packets, 0);
    drop(bus);
    assert_eq!(machine.hypervisor.counts().pages, 0, "pages were lost");
    let heard = heard.lock().unwrap();
    heard.clone()
}

#[test]
fn reports_arrive_and_nothing_is_given_up() {
    let heard = story(0x2_0000, response_flag::ACCEPTED, |bus, opened| {
        let balloon = opened.unwrap();
        assert_eq!(balloon.version(), (2, 0));
        assert!(balloon.reports_wanted());
        balloon.report(1000, 2000).unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        while !balloon.channel().all_taken().unwrap() || balloon.channel().has_news() {
            assert!(Instant::now() < end, "the device is silent");
            bus.poll();
            balloon.poll().unwrap();
        }
        balloon.poll().unwrap();
    });
    let kinds: Vec<(u8, u8)> = heard.iter().map(|it| (it[0], it[4])).collect();
    let mut answers = kinds.clone();
    answers.retain(|&(kind, _)| kind != 5);
    // The handshake, then: no pages, those that came back are here, nothing was added.
    assert_eq!(answers, [(1, 1), (3, 2), (7, 11), (9, 12), (11, 13)]);
    let report = heard.iter().find(|it| it[0] == 5).unwrap();
    let report = StatusReport::read_from_bytes(report).unwrap();
    assert_eq!(
        (report.available.get(), report.committed.get()),
        (1000, 2000)
    );
    let given = &heard[kinds.iter().position(|it| it.0 == 7).unwrap()];
    assert_eq!(given[8..16], [0; 8], "no range, and no more to come");
}

#[test]
fn an_older_host_is_met_half_way() {
    let flags = response_flag::ACCEPTED | response_flag::NO_STATUS_REPORTS;
    let heard = story(3, flags, |_, opened| {
        let balloon = opened.unwrap();
        assert_eq!(balloon.version(), (0, 3));
        assert!(!balloon.reports_wanted());
    });
    let versions = heard.iter().filter(|it| it[0] == 1);
    let versions: Vec<(u32, u8)> = versions
        .map(|it| (u32::from_le_bytes(it[8..12].try_into().unwrap()), it[12]))
        .collect();
    assert_eq!(versions, [(0x2_0000, 0), (0x1_0000, 0), (3, 1)]);
}

#[test]
fn refusals_are_told() {
    let refused = Some(Error::Refused(Waited::ProtocolVersion, 0));
    story(0, 0, |_, opened| assert_eq!(opened.err(), refused));
    story(3, 0, |_, opened| assert_eq!(opened.err(), refused));
}
