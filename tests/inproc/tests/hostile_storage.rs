//! Controllers that lie at random, about everything they say: lengths, ids, contents, order, time and
//! channels. Whatever comes of it, nothing panics or hangs, no buffer comes back twice or stays with
//! the host, and what cannot be is an error or is counted.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use guest_vsc::bus::{BusMemory, Options, VmBus};
use guest_vsc::channel::OpenOptions;
use guest_vsc::error::Error;
use guest_vsc::storage::{self, Data, Storage, StorageError, StorageMemory, StorageOptions};
use host_vsp::vmbus::channel::{Channel, ChannelError};
use host_vsp::vsp::{StateError, Vsp, plain_offer};
use inproc::{FakeHal, Machine, VECTOR, seeds};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use vmbus_proto::guid::Guid;
use vmbus_proto::message::OfferChannel;
use vmbus_proto::packet::{Outgoing, Packet, PacketKind};
use vmbus_proto::scsi::{Capacity, Cdb, ReportLuns, Sense};
use vmbus_proto::storvsp::{
    ChannelProperties, Operation, PROPERTY_MULTI_CHANNEL, SCSI_CLASS, VstorPacket, srb_status,
    status,
};
use zerocopy::IntoBytes as _;

/// A packet to send.
#[derive(Clone)]
enum Sent {
    Completion(u64, Vec<u8>),
    InBand(u64, Vec<u8>),
    Transfer(u64, Vec<u8>),
}

impl Sent {
    fn send(&self, channel: &mut Channel) {
        // A full ring swallows what does not fit: this device has nothing to lose.
        let _ = match self {
            Self::Completion(id, bytes) => channel.send(&Outgoing::completion(*id, bytes)),
            Self::InBand(id, bytes) => channel.send(&Outgoing::in_band(*id, bytes, true)),
            Self::Transfer(id, bytes) => {
                channel.send(&Outgoing::transfer_pages(*id, &[0; 8], bytes))
            }
        };
    }
}

/// What all channels of a lying controller share.
struct Plan {
    random: SmallRng,
    /// How often it lies.
    often: f64,
    /// Whether it does so before it is trusted with reads and writes.
    early: bool,
    /// Sub-channels that it offers.
    granted: u16,
    lies: u64,
}

/// A channel of it.
struct Liar {
    plan: Arc<Mutex<Plan>>,
    /// What it says later than it should.
    held: Vec<Sent>,
}

/// The true answer to a packet, which leaves all data alone but what is short.
fn truth(channel: &Channel, packet: &Packet<'_>, plan: &mut Plan) -> (VstorPacket, bool) {
    let request = VstorPacket::parse(packet.payload).expect("guests send good packets");
    let answer = request.answer(status::SUCCESS);
    match request.operation() {
        Some(Operation::QueryProperties) => {
            let properties = ChannelProperties {
                max_channel_count: 3.into(),
                flags: PROPERTY_MULTI_CHANNEL.into(),
                max_transfer_bytes: (64 << 10).into(),
                ..ChannelProperties::default()
            };
            (answer.with_properties(&properties), false)
        }
        Some(Operation::CreateSubChannels) => {
            let asked = request.sub_channel_count();
            // Seldom, as those that do not come are waited for a while.
            let odd = plan.early && plan.random.random_bool(0.05);
            plan.granted = if odd {
                plan.random.random_range(0..6)
            } else {
                asked
            };
            (answer, false)
        }
        Some(Operation::ExecuteSrb) => {
            let srb = request.srb();
            let length = srb.data_transfer_length.get();
            let capacity = Capacity {
                blocks: 2048,
                block_length: 512,
            };
            let list = ReportLuns {
                list_length: 16.into(),
                reserved: 0.into(),
            };
            let (data, is_data) = match srb.cdb().map(Cdb::parse) {
                Some(Ok(Cdb::ReadCapacity10)) => (capacity.to_10().as_bytes().to_vec(), false),
                Some(Ok(Cdb::ReportLuns { .. })) => {
                    let luns = [ReportLuns::lun(0), ReportLuns::lun(9)];
                    ([list.as_bytes(), luns.as_bytes()].concat(), false)
                }
                Some(Ok(Cdb::ModeSense { .. })) => (vec![3, 0, 0, 0], false),
                Some(Ok(Cdb::Read { .. } | Cdb::Write { .. })) => (Vec::new(), true),
                _ => (Vec::new(), false),
            };
            if let PacketKind::GpaDirect(ranges) = packet.kind {
                let mut rest = &data[..];
                for (gpa, length) in ranges.iter().flat_map(|range| range.pieces()).flatten() {
                    let (now, later) = rest.split_at(length.min(rest.len()));
                    channel.memory().write(gpa, now).expect("guests name RAM");
                    rest = later;
                }
            }
            let moved = if is_data {
                length
            } else {
                length.min(data.len() as u32)
            };
            let srb = srb.answer(srb_status::SUCCESS, 0, moved, &[]);
            (answer.with_srb(&srb), is_data)
        }
        _ => (answer, false),
    }
}

/// Changes a packet at random, more often than not a little.
fn distort(random: &mut SmallRng, id: u64, answer: VstorPacket) -> Vec<Sent> {
    let mut bytes = answer.as_bytes().to_vec();
    let mut srb = answer.srb();
    match random.random_range(0..12) {
        0 => bytes.truncate(random.random_range(0..=64)),
        1 => bytes.resize(random.random_range(0..400), random.random()),
        2..5 => {
            let at = random.random_range(0..64);
            bytes[at] ^= random.random::<u8>();
        }
        5 => {
            let at = random.random_range(0..16) * 4;
            let value: u32 = match random.random_range(0..4) {
                0 => u32::MAX,
                1 => 0x8000_0000,
                2 => random.random_range(0..70_000),
                _ => random.random(),
            };
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        6 => {
            let sense = Sense::WRITE_ERROR.to_fixed();
            srb = srb.answer(srb_status::ERROR, 2, random.random(), &sense);
            bytes = answer.with_srb(&srb).as_bytes().to_vec();
        }
        7 => {
            srb.srb_status = random.random();
            srb.scsi_status = random.random();
            srb.sense_length = random.random();
            bytes = answer.with_srb(&srb).as_bytes().to_vec();
        }
        8 => return Vec::new(),
        9 => {
            let news = [Operation::EnumerateBus, Operation::RemoveDevice];
            let news = VstorPacket::request(news[random.random_range(0..2)]);
            return vec![
                Sent::InBand(0, news.as_bytes().to_vec()),
                Sent::Completion(id, bytes),
            ];
        }
        10 => return vec![Sent::InBand(id, bytes)],
        _ => return vec![Sent::Transfer(id, bytes)],
    }
    let id = match random.random_range(0..5) {
        0 => id ^ 1 << random.random_range(0..64),
        1 => random.random::<u64>() & 0x3_0000_000f,
        _ => id,
    };
    let sent = Sent::Completion(id, bytes);
    // Some twice.
    vec![sent; random.random_range(1..3)]
}

impl Vsp for Liar {
    fn offer(&self) -> OfferChannel {
        plain_offer(SCSI_CLASS, Guid::new(1, 2, 3, 4, 5))
    }

    fn opened(&mut self) {
        self.held.clear();
    }

    fn service(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        let mut buffer = [0; 4096];
        loop {
            let Some(packet) = channel.receive(&mut buffer)? else {
                return Ok(());
            };
            let id = packet.transaction_id;
            let plan = &mut *self.plan.lock().unwrap();
            let (answer, is_data) = truth(channel, &packet, plan);
            let mut sent = vec![Sent::Completion(id, answer.as_bytes().to_vec())];
            if (plan.early || is_data) && plan.random.random_bool(plan.often) {
                plan.lies += 1;
                sent = distort(&mut plan.random, id, answer);
                if plan.random.random_bool(0.3) {
                    // Later, and in another order.
                    self.held.append(&mut sent);
                } else if plan.random.random_bool(0.5) {
                    sent.extend(self.held.drain(..).rev());
                }
            }
            sent.iter().for_each(|sent| sent.send(channel));
        }
    }

    fn sub_channels(&self) -> u16 {
        self.plan.lock().unwrap().granted
    }

    fn sub_channel(&mut self, _index: u16) -> io::Result<Box<dyn Vsp>> {
        Ok(Box::new(Self {
            plan: Arc::clone(&self.plan),
            held: Vec::new(),
        }))
    }

    fn quiesce(&mut self) {}

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&mut self, _state: &[u8]) -> Result<(), StateError> {
        Ok(())
    }
}

/// Uses a disk until it fails, or for a while; returns the errors that there were.
fn use_it(disk: &Storage<'_, FakeHal, Vec<u8>>, random: &mut SmallRng) -> u64 {
    let (mut errors, mut out) = (0u64, 0i32);
    let mut note = |result: Result<(), StorageError>| errors += u64::from(result.is_err());
    for _ in 0..24 {
        let sector = random.random_range(0..2000);
        match random.random_range(0..8) {
            0 => note(disk.read_blocks(sector, &mut [0; 1024])),
            1 => note(disk.write_blocks(sector, &[1; 1024])),
            2 => note(disk.flush()),
            3 => note(
                disk.controller()
                    .scan()
                    .map(|luns| assert!(luns.iter().count() <= 256)),
            ),
            4 => note(
                disk.execute(&[0x12, 0, 0, 0, 36, 0], Data::In(&mut [0; 36]))
                    .map(|_| ()),
            ),
            5 => {
                let mut request = pin!(disk.read_async(sector, vec![0; 512]));
                let mut context = Context::from_waker(Waker::noop());
                // Dropped at once where it is not done.
                let _ = request.as_mut().poll(&mut context);
            }
            _ => {
                let submitted = match random.random_bool(0.5) {
                    true => disk.submit_read(sector, vec![0; 4096]),
                    false => disk.submit_write(sector, vec![2; 4096]),
                };
                out += i32::from(submitted.is_ok());
                note(submitted.map(|_| ()).map_err(|(error, _)| error));
            }
        }
        disk.handle_interrupt();
        while let Some(done) = disk.poll() {
            assert_eq!(done.buffer.len(), 4096);
            out -= 1;
            note(done.result);
        }
        disk.take_changed();
    }
    // What was not answered comes back with the end of the channel, and what was not is a lie.
    disk.shutdown().expect("the bus is an honest one");
    while disk.poll().is_some() {
        out -= 1;
    }
    while disk.reclaim().is_some() {}
    assert_eq!((out, disk.in_flight()), (0, 0));
    errors
}

#[test]
fn controllers_that_lie_about_everything() {
    let machine = Machine::new(2);
    let plan = Arc::new(Mutex::new(Plan {
        random: SmallRng::seed_from_u64(0),
        often: 0.0,
        early: false,
        granted: 0,
        lies: 0,
    }));
    let offer = || {
        let plan = Arc::clone(&plan);
        let held = Vec::new();
        machine.host.offer(Box::new(Liar { plan, held })).unwrap()
    };
    let _cpu = machine.hypervisor.enter(0);
    let memory = BusMemory::<FakeHal, 2, 16>::new();
    let bus = VmBus::new(&memory, VECTOR).unwrap();
    bus.connect(&Options::default()).unwrap();
    let requests = StorageMemory::<FakeHal, Vec<u8>, 16>::new();
    let pages = machine.hypervisor.counts().pages;
    let mut device = offer();
    let (mut cases, mut opened, mut errors) = (0u64, 0u64, 0u64);
    for seed in seeds(400, 20_000) {
        cases += 1;
        let mut random = SmallRng::seed_from_u64(!seed);
        {
            let mut plan = plan.lock().unwrap();
            plan.random = SmallRng::seed_from_u64(seed);
            plan.often = [0.05, 0.2, 0.6][(seed % 3) as usize];
            plan.early = seed.is_multiple_of(4);
            plan.granted = 0;
        }
        let end = Instant::now() + Duration::from_secs(60);
        let found = loop {
            bus.poll();
            if let Some(found) = bus.find(storage::CLASS) {
                break found;
            }
            assert!(Instant::now() < end, "seed {seed}: no device");
            std::thread::yield_now();
        };
        let options = StorageOptions {
            timeout: Duration::from_millis(10),
            sub_channels: (seed % 5) as u16,
            channel: OpenOptions {
                to_host: 8192,
                to_guest: 8192,
                ..OpenOptions::default()
            },
            ..StorageOptions::default()
        };
        let disk = Storage::open(&bus, &found, &requests, &options);
        match disk {
            Ok(disk) => {
                opened += 1;
                if seed.is_multiple_of(10) {
                    machine.host.rescind(device);
                }
                errors += use_it(&disk, &mut random);
            }
            Err(StorageError::Bus(Error::Rescinded)) => panic!("seed {seed}"),
            Err(_) => {
                errors += 1;
                if seed.is_multiple_of(10) {
                    machine.host.rescind(device);
                }
            }
        }
        if seed.is_multiple_of(10) {
            device = offer();
        }
        bus.poll();
        assert_eq!(
            machine.hypervisor.counts().pages,
            pages,
            "seed {seed}: pages were lost"
        );
    }
    let lies = plan.lock().unwrap().lies;
    let counted = u64::from(bus.stats().bad_completions);
    println!(
        "{cases} controllers, {opened} of them opened, {lies} lies: {errors} errors, {counted} counted"
    );
    assert!(cases < 100 || (opened > cases / 2 && lies > cases && errors + counted > lies / 4));
}
