//! A disk that lies, and rings that are written over: errors and counts, never a panic or a hang.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use guest_vsc::bus::{BusMemory, Options, VmBus};
use guest_vsc::error::Error;
use guest_vsc::storage::{self, Storage, StorageError, StorageMemory, StorageOptions};
use host_vsp::hv::Hypercalls;
use host_vsp::vmbus::channel::{Channel, ChannelError};
use host_vsp::vsp::{StateError, Vsp, plain_offer};
use inproc::{FakeHal, Machine, VECTOR};
use vm_memory::{Bytes as _, GuestAddress};
use vmbus_proto::guid::Guid;
use vmbus_proto::hv::hypercall::Status;
use vmbus_proto::message::{Message, OfferChannel};
use vmbus_proto::packet::Outgoing;
use vmbus_proto::scsi::{Capacity, Cdb, Sense};
use vmbus_proto::storvsp::{
    ChannelProperties, Operation, SCSI_CLASS, Srb, VstorPacket, srb_status, status,
};
use zerocopy::IntoBytes as _;

/// What a lie may do with a read: the packets to send about it.
type Lie = Box<dyn FnMut(u64, &Srb) -> Vec<Sent> + Send>;

/// A packet to send.
enum Sent {
    Completion(u64, Vec<u8>),
    InBand(u64, Vec<u8>),
}

/// A disk of 1 MiB that answers all but reads properly.
struct LyingDisk {
    lie: Lie,
}

impl LyingDisk {
    /// The true answer to an SRB that the lies do not touch.
    fn truth(channel: &Channel, srb: &Srb, data: &[(u64, usize)]) -> Srb {
        let capacity = Capacity {
            blocks: 2048,
            block_length: 512,
        };
        let bytes = match srb.cdb().map(Cdb::parse) {
            Some(Ok(Cdb::ReadCapacity10)) => capacity.to_10().as_bytes().to_vec(),
            Some(Ok(Cdb::ModeSense { .. })) => vec![3, 0, 0, 0],
            _ => Vec::new(),
        };
        let mut rest = bytes.as_slice();
        for &(gpa, length) in data {
            let (now, later) = rest.split_at(length.min(rest.len()));
            channel.memory().write(gpa, now).expect("RAM");
            rest = later;
        }
        srb.answer(srb_status::SUCCESS, 0, bytes.len() as u32, &[])
    }
}

impl Vsp for LyingDisk {
    fn offer(&self) -> OfferChannel {
        plain_offer(SCSI_CLASS, Guid::new(1, 2, 3, 4, 5))
    }

    fn opened(&mut self) {}

    fn service(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        let mut buffer = [0; 4096];
        loop {
            let Some(packet) = channel.receive(&mut buffer)? else {
                return Ok(());
            };
            let id = packet.transaction_id;
            let request = VstorPacket::parse(packet.payload).expect("guests send good packets");
            let data: Vec<(u64, usize)> = match packet.kind {
                vmbus_proto::packet::PacketKind::GpaDirect(ranges) => ranges
                    .iter()
                    .flat_map(|range| range.pieces())
                    .map(|piece| piece.expect("an address"))
                    .collect(),
                _ => Vec::new(),
            };
            let srb = request.srb();
            let is_read = matches!(srb.cdb().map(Cdb::parse), Some(Ok(Cdb::Read { .. })));
            let sent = match request.operation() {
                Some(Operation::ExecuteSrb) if is_read => (self.lie)(id, &srb),
                Some(Operation::ExecuteSrb) => {
                    let answer = Self::truth(channel, &srb, &data);
                    let packet = request.answer(status::SUCCESS).with_srb(&answer);
                    vec![Sent::Completion(id, packet.as_bytes().to_vec())]
                }
                Some(Operation::QueryProperties) => {
                    let properties = ChannelProperties {
                        max_transfer_bytes: u32::MAX.into(),
                        ..ChannelProperties::default()
                    };
                    let packet = request.answer(0).with_properties(&properties);
                    vec![Sent::Completion(id, packet.as_bytes().to_vec())]
                }
                _ => vec![Sent::Completion(id, request.answer(0).as_bytes().to_vec())],
            };
            for sent in &sent {
                // A full ring swallows what does not fit: this device has nothing to lose.
                let _ = match sent {
                    Sent::Completion(id, bytes) => channel.send(&Outgoing::completion(*id, bytes)),
                    Sent::InBand(id, bytes) => channel.send(&Outgoing::in_band(*id, bytes, false)),
                };
            }
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

/// A good answer to `srb`.
fn good(srb: &Srb) -> VstorPacket {
    let length = srb.data_transfer_length.get();
    let answer = srb.answer(srb_status::SUCCESS, 0, length, &[]);
    VstorPacket::request(Operation::ExecuteSrb)
        .answer(status::SUCCESS)
        .with_srb(&answer)
}

fn completion(id: u64, packet: VstorPacket) -> Sent {
    Sent::Completion(id, packet.as_bytes().to_vec())
}

/// Long enough for an honest answer on a busy machine.
const LONG: Duration = Duration::from_secs(10);
/// Long enough where there may be no answer.
const SHORT: Duration = Duration::from_millis(200);

/// Opens a lying disk, lets `tell` use it, and returns the completions the driver did not like.
fn story(
    timeout: Duration,
    lie: impl FnMut(u64, &Srb) -> Vec<Sent> + Send + 'static,
    tell: impl FnOnce(&Storage<'_, FakeHal, Vec<u8>>),
) -> u32 {
    let machine = Machine::new(1);
    let lie = Box::new(lie);
    machine.host.offer(Box::new(LyingDisk { lie })).unwrap();
    let _cpu = machine.hypervisor.enter(0);
    let memory = BusMemory::<FakeHal, 1, 4>::new();
    let bus = VmBus::new(&memory, VECTOR).unwrap();
    bus.connect(&Options::default()).unwrap();
    let requests = StorageMemory::<FakeHal, Vec<u8>, 64>::new();
    let options = StorageOptions::default();
    let offer = bus.find(storage::CLASS).unwrap();
    let mut disk = Storage::open(&bus, &offer, &requests, &options).unwrap();
    disk.set_timeout(timeout);
    tell(&disk);
    drop(disk);
    let bad = bus.stats().bad_completions;
    drop(bus);
    assert_eq!(machine.hypervisor.counts().pages, 0, "pages were lost");
    bad
}

#[test]
fn completions_that_answer_nothing_are_dropped() {
    let lies = |id: u64, srb: &Srb| {
        let answer = good(srb);
        vec![
            // Of the host's own, of another place, of another generation, of no place.
            completion(0, answer),
            completion(id ^ 1, answer),
            completion(id ^ 1 << 32, answer),
            completion(id | 0xFFFF, answer),
            completion(u64::MAX, answer),
            // Not a completion of storvsp; too short for one; nothing at all.
            completion(id, VstorPacket::request(Operation::ExecuteSrb)),
            Sent::Completion(id, vec![1, 0, 0, 0]),
            Sent::Completion(id, Vec::new()),
            Sent::InBand(id, answer.as_bytes().to_vec()),
            Sent::InBand(0, Vec::new()),
            // The truth, and twice more.
            completion(id, answer),
            completion(id, answer),
            completion(id, answer),
        ]
    };
    let bad = story(LONG, lies, |disk| {
        let mut sector = [0; 512];
        for _ in 0..10 {
            disk.read_blocks(0, &mut sector).unwrap();
        }
        // All that came after the last answer has been seen when the next one has.
        assert!(disk.poll().is_none());
        assert_eq!(disk.in_flight(), 0);
    });
    assert!(bad >= 9 * 12, "only {bad} were counted");
}

#[test]
fn lengths_and_sense_are_checked() {
    let mut n = 0;
    let lies = move |id: u64, srb: &Srb| {
        n += 1;
        let length = srb.data_transfer_length.get();
        let mut answer = srb.answer(srb_status::SUCCESS, 0, length, &[]);
        match n {
            1 => answer.data_transfer_length = (length + 1).into(),
            2 => answer.data_transfer_length = u32::MAX.into(),
            3 => answer.data_transfer_length = (length - 1).into(),
            // Sense that claims to be longer than it can be; and is nothing known.
            4 => {
                answer.srb_status = srb_status::ERROR | srb_status::AUTOSENSE_VALID;
                answer.scsi_status = 2;
                answer.sense_length = 255;
                answer.payload = [0xFF; 20];
            }
            5 => {
                answer = srb.answer(srb_status::ERROR, 2, 0, &Sense::WRITE_ERROR.to_fixed());
            }
            6 => answer.srb_status = 0,
            _ => {
                let refused = VstorPacket::request(Operation::ExecuteSrb);
                let refused = refused.answer(status::INVALID_PARAMETER);
                return vec![completion(id, refused.with_srb(&answer))];
            }
        }
        let packet = VstorPacket::request(Operation::ExecuteSrb).answer(0);
        vec![completion(id, packet.with_srb(&answer))]
    };
    story(LONG, lies, |disk| {
        let mut sector = [0; 512];
        let mut read = || disk.read_blocks(0, &mut sector).unwrap_err();
        assert!(matches!(read(), StorageError::Bus(Error::Protocol(_))));
        assert!(matches!(read(), StorageError::Bus(Error::Protocol(_))));
        assert_eq!(read(), StorageError::Short(511));
        assert_eq!(read(), StorageError::Status { srb: 4, scsi: 2 });
        assert_eq!(read(), StorageError::Device(Sense::WRITE_ERROR));
        assert_eq!(read(), StorageError::Status { srb: 0, scsi: 0 });
        let refused = StorageError::Refused(Operation::ExecuteSrb, status::INVALID_PARAMETER);
        assert_eq!(read(), refused);
    });
}

#[test]
fn a_device_that_never_answers() {
    let bad = story(
        SHORT,
        |_, _| Vec::new(),
        |disk| {
            for sector in 0..8 {
                disk.submit_read(sector, vec![0; 512])
                    .map_err(|e| e.0)
                    .unwrap();
            }
            assert!(matches!(disk.wait(), Err(Error::Timeout(_))));
            let mut sector = [0; 512];
            assert!(matches!(
                disk.read_blocks(0, &mut sector),
                Err(StorageError::Bus(Error::Timeout(_)))
            ));
            // That closed the channel, so the other buffers are back too.
            for _ in 0..8 {
                let done = disk.poll().unwrap();
                assert_eq!(done.result, Err(StorageError::Bus(Error::Closed)));
            }
            assert_eq!(disk.wait().unwrap_err(), Error::Closed);
        },
    );
    assert_eq!(bad, 0);
}

/// A host that is slow to let go of a channel's memory.
struct Slow {
    host: Arc<host_vsp::vmbus::VmBus>,
    has_let_go: Arc<AtomicBool>,
}

impl Hypercalls for Slow {
    fn post_message(&self, vp: u32, id: u32, message_type: u32, payload: &[u8]) -> Status {
        let lets_go = matches!(Message::parse(payload), Ok(Message::GpadlTeardown(_)));
        if lets_go {
            std::thread::sleep(Duration::from_millis(500));
        }
        let status = self.host.post_message(vp, id, message_type, payload);
        self.has_let_go.fetch_or(lets_go, Ordering::Release);
        status
    }

    fn signal_event(&self, vp: u32, id: u32, flag: u16) -> Status {
        self.host.signal_event(vp, id, flag)
    }
}

#[test]
fn nobody_gets_a_buffer_back_before_the_host_lets_go() {
    let machine = Machine::new(3);
    let lie = Box::new(|_, _: &Srb| Vec::new());
    machine.host.offer(Box::new(LyingDisk { lie })).unwrap();
    let has_let_go = Arc::new(AtomicBool::new(false));
    machine.hypervisor.serve_shared(Arc::new(Slow {
        host: machine.host.clone(),
        has_let_go: has_let_go.clone(),
    }));
    let _cpu = machine.hypervisor.enter(0);
    let memory = BusMemory::<FakeHal, 3, 4>::new();
    let bus = VmBus::new(&memory, VECTOR).unwrap();
    bus.connect(&Options::default()).unwrap();
    let requests = StorageMemory::<FakeHal, Vec<u8>, 8>::new();
    let offer = bus.find(storage::CLASS).unwrap();
    let mut disk = Storage::open(&bus, &offer, &requests, &StorageOptions::default()).unwrap();
    disk.set_timeout(SHORT);
    let disk = &disk;
    std::thread::scope(|scope| {
        for vp in 0..3 {
            let (hypervisor, has_let_go) = (&machine.hypervisor, &has_let_go);
            scope.spawn(move || {
                let _cpu = hypervisor.enter(vp);
                // The first to lose patience closes the channel. The others must not take their
                // buffers back at the mere sight of that.
                let mut sector = [0; 512];
                assert!(disk.read_blocks(0, &mut sector).is_err());
                assert!(has_let_go.load(Ordering::Acquire), "too early");
            });
        }
    });
}

#[test]
fn a_packet_that_is_too_long_ends_the_channel() {
    let lies = |id: u64, _: &Srb| vec![Sent::Completion(id, vec![1; 4000])];
    story(LONG, lies, |disk| {
        let mut sector = [0; 512];
        assert!(matches!(
            disk.read_blocks(0, &mut sector),
            Err(StorageError::Bus(Error::Corrupt(_)))
        ));
    });
}

/// The host, with an ear on where the guest puts its rings.
struct Spy {
    host: Arc<host_vsp::vmbus::VmBus>,
    /// Frame number of the first GPADL's first page.
    rings: Arc<Mutex<Option<u64>>>,
}

impl Hypercalls for Spy {
    fn post_message(&self, vp: u32, id: u32, message_type: u32, payload: &[u8]) -> Status {
        if let Ok(Message::GpadlHeader(_, ranges)) = Message::parse(payload) {
            let first = ranges[8..16].try_into().unwrap();
            let mut rings = self.rings.lock().unwrap();
            rings.get_or_insert(u64::from_le_bytes(first));
        }
        self.host.post_message(vp, id, message_type, payload)
    }

    fn signal_event(&self, vp: u32, id: u32, flag: u16) -> Status {
        self.host.signal_event(vp, id, flag)
    }
}

/// Writes `value` into a field of one of the disk's control pages while it is being used.
fn scribble(to_guest: bool, field: u64, value: u32) -> Result<(), StorageError> {
    let machine = Machine::new(1);
    let lie = Box::new(|id, srb: &Srb| vec![completion(id, good(srb))]);
    machine.host.offer(Box::new(LyingDisk { lie })).unwrap();
    let rings = Arc::new(Mutex::new(None));
    machine.hypervisor.serve_shared(Arc::new(Spy {
        host: machine.host.clone(),
        rings: rings.clone(),
    }));
    let _cpu = machine.hypervisor.enter(0);
    let memory = BusMemory::<FakeHal, 1, 4>::new();
    let bus = VmBus::new(&memory, VECTOR).unwrap();
    bus.connect(&Options::default()).unwrap();
    let requests = StorageMemory::<FakeHal, Vec<u8>, 8>::new();
    let options = StorageOptions::default();
    let offer = bus.find(storage::CLASS).unwrap();
    let mut disk = Storage::open(&bus, &offer, &requests, &options).unwrap();
    let mut sector = [0; 512];
    disk.read_blocks(0, &mut sector).unwrap();
    disk.set_timeout(SHORT);

    // Both rings are 16 pages of data after one of control, and lie in a row here.
    let first = rings.lock().unwrap().expect("a GPADL") * 4096;
    let page = first + if to_guest { 17 * 4096 } else { 0 };
    let stop = AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            // The host's end writes the field too, so keep at it.
            while !stop.load(Ordering::Relaxed) {
                let at = GuestAddress(page + field);
                machine.hypervisor.memory().write_obj(value, at).unwrap();
                std::thread::yield_now();
            }
        });
        let mut result = Ok(());
        for _ in 0..1000 {
            result = disk.read_blocks(0, &mut sector);
            if result.is_err() {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        result
    });
    // The channel is finished, the disk can be opened anew.
    drop(disk);
    let offer = bus.find(storage::CLASS).unwrap();
    let disk = Storage::open(&bus, &offer, &requests, &options).unwrap();
    disk.read_blocks(0, &mut sector).unwrap();
    result
}

#[test]
fn ring_indices_that_cannot_be_end_the_channel() {
    let (write_index, read_index) = (0, 4);
    for value in [u32::MAX, 0x1_0000, 0x1_0008, 4, 1] {
        for (to_guest, field) in [(true, write_index), (false, read_index)] {
            // The host's end checks the other way round, and may stop first: then it is silent.
            let result = scribble(to_guest, field, value);
            assert!(
                matches!(
                    result,
                    Err(StorageError::Bus(Error::Corrupt(_) | Error::Timeout(_)))
                ),
                "{value:#x}: {result:?}"
            );
        }
    }
}

#[test]
fn any_other_control_field_does_no_harm() {
    // Interrupt mask, pending send size, a reserved word and the feature bits, of either ring.
    for field in [8, 12, 16, 64] {
        for to_guest in [false, true] {
            match scribble(to_guest, field, u32::MAX) {
                // With its signals masked, the other end may sleep too long.
                Ok(()) | Err(StorageError::Bus(Error::Timeout(_))) => {}
                Err(error) => panic!("{field}: {error}"),
            }
        }
    }
}
