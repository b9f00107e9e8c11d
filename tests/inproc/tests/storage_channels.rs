//! Disks over several channels: one for each of four processors, each with its interrupts, and a
//! controller with several units.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use guest_vsc::bus::{BusMemory, Options, VmBus};
use guest_vsc::error::Error;
use guest_vsc::storage::{
    self, Controller, Storage, StorageError, StorageMemory, StorageOptions, Token, UnitChange,
};
use host_vsp::storage::{Controller as HostController, ControllerHandle, RawFile};
use host_vsp::vmbus::DeviceId;
use inproc::{FakeHal, Machine, RamBuffer, VECTOR};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use vmbus_proto::guid::Guid;

type Bus<'m> = VmBus<'m, FakeHal>;
type Disk<'b> = Storage<'b, FakeHal, RamBuffer>;

const PROCESSORS: u32 = 4;
/// Long enough for anything on a busy machine.
const LONG: Duration = Duration::from_secs(60);

/// An image of `bytes` zeros.
fn image(bytes: usize) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes as u64).unwrap();
    file
}

/// Offers a controller with a channel for each processor and these images, by LUN.
fn add(
    machine: &Machine,
    images: &[(u8, &tempfile::NamedTempFile)],
) -> (DeviceId, ControllerHandle) {
    let instance = Guid::new(0x1111_2222, 3, 4, 5, 6);
    let controller = HostController::new(instance).expect("threads");
    let mut controller = controller.with_channels_for(PROCESSORS);
    for (lun, image) in images {
        let disk = RawFile::open(image.path(), false).unwrap();
        controller.attach(*lun, disk).unwrap();
    }
    let handle = controller.disks();
    let id = machine.host.offer(Box::new(controller)).expect("a relid");
    (id, handle)
}

/// Runs a story on processor 0 of a connected guest whose processors all can be interrupted.
fn story(machine: &Machine, tell: impl FnOnce(&Bus<'_>)) {
    let _cpu = machine.hypervisor.enter(0);
    let memory = BusMemory::<FakeHal, 4, 8>::new();
    let bus = VmBus::new(&memory, VECTOR).unwrap();
    for vp in 1..PROCESSORS {
        let _cpu = machine.hypervisor.enter(vp);
        bus.start_cpu().unwrap();
    }
    bus.connect(&Options::default()).unwrap();
    tell(&bus);
    for vp in 1..PROCESSORS {
        let _cpu = machine.hypervisor.enter(vp);
        bus.stop_cpu();
    }
    drop(bus);
    assert_eq!(machine.hypervisor.counts().pages, 0, "pages were lost");
}

fn with_channels() -> StorageOptions {
    StorageOptions {
        sub_channels: PROCESSORS as u16 - 1,
        ..StorageOptions::default()
    }
}

/// Runs `work` while every processor has a thread that plays its interrupt handler.
fn with_handlers<R>(
    machine: &Machine,
    bus: &Bus<'_>,
    controller: &Controller<'_, FakeHal, RamBuffer>,
    work: impl FnOnce() -> R,
) -> R {
    let stop = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        for vp in 0..PROCESSORS {
            scope.spawn(move || {
                let cpu = machine.hypervisor.enter(vp);
                while !stop.load(Ordering::Relaxed) {
                    cpu.wait_for_interrupt();
                    bus.handle_interrupt();
                    controller.handle_interrupt();
                }
            });
        }
        let result = work();
        stop.store(true, Ordering::Relaxed);
        result
    })
}

/// Requests of the story below; a million of them in a soak.
fn requests_wanted() -> u32 {
    match std::env::var_os("VMBUS_SOAK") {
        Some(_) => 1_000_000,
        None => 10_000,
    }
}

/// Places on the disk, each for one request at a time, of so many bytes.
const PLACES: usize = 96;
const PLACE: usize = 64 << 10;

/// A place, and what is in it.
struct Place {
    number: usize,
    seed: u64,
    length: usize,
}

impl Place {
    fn sector(&self) -> u64 {
        (self.number * PLACE / storage::SECTOR_SIZE) as u64
    }

    fn words(&self) -> impl Iterator<Item = u64> {
        let seed = self.seed;
        (0..self.length as u64 / 8).map(move |n| seed.wrapping_add(n))
    }
}

/// What the processors share.
struct Shared {
    free: Vec<Place>,
    in_flight: HashMap<Token, (Place, bool)>,
    issued: u32,
    done: u32,
}

/// Sends requests of all sizes and takes completions, whoever's they are, until all are done.
fn work(machine: &Machine, disk: &Disk<'_>, vp: u32, shared: &Mutex<Shared>) {
    let _cpu = machine.hypervisor.enter(vp);
    let mut random = SmallRng::seed_from_u64(u64::from(vp));
    let end = Instant::now() + 60 * LONG;
    loop {
        while let Some(done) = disk.poll() {
            let entry = shared.lock().unwrap().in_flight.remove(&done.token);
            let (place, is_write) = entry.expect("completed once, and only what is in flight");
            done.result.unwrap();
            assert_eq!(done.buffer.len(), place.length);
            if !is_write {
                let (words, _) = done.buffer.as_chunks::<8>();
                let words = words.iter().map(|word| u64::from_le_bytes(*word));
                assert!(words.eq(place.words()), "another one's data");
            }
            let mut shared = shared.lock().unwrap();
            shared.done += 1;
            shared.free.push(place);
        }
        let next = {
            let mut shared = shared.lock().unwrap();
            if shared.done == requests_wanted() {
                return;
            }
            let wanted = shared.issued < requests_wanted() && !shared.free.is_empty();
            wanted.then(|| {
                shared.issued += 1;
                let at = random.random_range(0..shared.free.len());
                shared.free.swap_remove(at)
            })
        };
        assert!(Instant::now() < end, "requests were lost");
        let Some(mut place) = next else {
            std::thread::yield_now();
            continue;
        };
        // What was written is read once or more, then written anew.
        let is_write = place.length == 0 || random.random_bool(0.4);
        if is_write {
            let sectors: usize = [1, 1, 1, 2, 8, 8, 16, 127][random.random_range(0..8)];
            place.length = sectors * storage::SECTOR_SIZE;
            place.seed = random.random();
        }
        let offset = random.random_range(0..4096);
        let mut buffer = RamBuffer::new(&machine.hypervisor, offset, place.length);
        if is_write {
            for (to, word) in buffer.as_chunks_mut::<8>().0.iter_mut().zip(place.words()) {
                *to = word.to_le_bytes();
            }
        }
        let sector = place.sector();
        // Under the lock, so that nobody takes the completion before it is known.
        let mut all = shared.lock().unwrap();
        let submitted = match is_write {
            true => disk.submit_write(sector, buffer),
            false => disk.submit_read(sector, buffer),
        };
        match submitted {
            Ok(token) => assert!(all.in_flight.insert(token, (place, is_write)).is_none()),
            Err((StorageError::Bus(Error::Full), _)) => {
                // Where it is a write, the place holds what it held before: nobody knows what.
                place.length = if is_write { 0 } else { place.length };
                all.issued -= 1;
                all.free.push(place);
            }
            Err((error, _)) => panic!("{error}"),
        }
    }
}

#[test]
fn requests_on_four_processors_are_done_once_each() {
    let file = image(PLACES * PLACE);
    let machine = Machine::new(PROCESSORS);
    add(&machine, &[(0, &file)]);
    story(&machine, |bus| {
        let memory = StorageMemory::<FakeHal, RamBuffer, 64>::new();
        let offer = bus.find(storage::CLASS).unwrap();
        let disk = Storage::open(bus, &offer, &memory, &with_channels()).unwrap();
        let controller = disk.controller();
        let mut cpus: Vec<_> = controller.channels().map(|channel| channel.cpu()).collect();
        cpus.sort_unstable();
        assert_eq!(cpus, [0, 1, 2, 3], "a channel for each processor");
        let before: Vec<u32> = controller.channels().map(|c| c.news()).collect();
        let free = (0..PLACES).map(|number| Place {
            number,
            seed: 0,
            length: 0,
        });
        let shared = &Mutex::new(Shared {
            free: free.collect(),
            in_flight: HashMap::new(),
            issued: 0,
            done: 0,
        });
        let begin = Instant::now();
        with_handlers(&machine, bus, controller, || {
            std::thread::scope(|scope| {
                for vp in 0..PROCESSORS {
                    let (machine, disk) = (&machine, &disk);
                    scope.spawn(move || work(machine, disk, vp, shared));
                }
            });
        });
        let took = begin.elapsed();
        println!("{} requests in {took:?}", requests_wanted());
        let shared = shared.lock().unwrap();
        assert_eq!(
            (shared.done, shared.issued),
            (requests_wanted(), requests_wanted())
        );
        assert!(shared.in_flight.is_empty());
        assert_eq!((disk.in_flight(), disk.poll().is_none()), (0, true));
        assert_eq!(bus.stats().bad_completions, 0);
        // Each channel had its part, and each processor its interrupts.
        for (channel, before) in controller.channels().zip(before) {
            let events = channel.news().wrapping_sub(before);
            assert!(events > 20, "channel {}: {events} events", channel.relid());
        }
        for vp in 0..PROCESSORS {
            assert!(machine.hypervisor.interrupts(vp) > 20, "processor {vp}");
        }
    });
}

/// Devices that are taken away in mid-flight; more in a soak.
fn rescinds_wanted() -> u64 {
    match std::env::var_os("VMBUS_SOAK") {
        Some(_) => 500,
        None => 20,
    }
}

#[test]
fn dropped_futures_and_a_rescind_leave_no_buffer_with_the_host() {
    let machine = Machine::new(PROCESSORS);
    let dropped = AtomicU32::new(0);
    story(&machine, |bus| {
        for seed in 0..rescinds_wanted() {
            let file = image(1 << 20);
            let (id, _) = add(&machine, &[(0, &file)]);
            let end = Instant::now() + LONG;
            let offer = loop {
                bus.poll();
                if let Some(offer) = bus.find(storage::CLASS) {
                    break offer;
                }
                assert!(Instant::now() < end, "the device is not offered anew");
                std::thread::yield_now();
            };
            let pages = machine.hypervisor.counts().pages;
            let memory = StorageMemory::<FakeHal, RamBuffer, 32>::new();
            let disk = &Storage::open(bus, &offer, &memory, &with_channels()).unwrap();
            let ended = with_handlers(&machine, bus, disk.controller(), || {
                std::thread::scope(|scope| {
                    for vp in 0..PROCESSORS {
                        let (machine, dropped) = (&machine, &dropped);
                        scope.spawn(move || {
                            let _cpu = machine.hypervisor.enter(vp);
                            let mut random = SmallRng::seed_from_u64(seed << 8 | u64::from(vp));
                            while disk.controller().check().is_ok() {
                                let buffer = RamBuffer::new(&machine.hypervisor, 100, 4096);
                                let sector = random.random_range(0..2000);
                                let mut request = pin!(match random.random_bool(0.5) {
                                    true => disk.write_async(sector, buffer),
                                    false => disk.read_async(sector, buffer),
                                });
                                let mut context = Context::from_waker(Waker::noop());
                                // Some are waited for, some a while, some not at all.
                                for _ in 0..random.random_range(1..2000) {
                                    if request.as_mut().poll(&mut context).is_ready() {
                                        break;
                                    }
                                    dropped.fetch_add(1, Ordering::Relaxed);
                                    if random.random_bool(0.3) {
                                        break;
                                    }
                                    std::thread::yield_now();
                                }
                            }
                        });
                    }
                    std::thread::sleep(Duration::from_micros(500 * (seed % 7)));
                    machine.host.rescind(id);
                });
                disk.shutdown()
            });
            assert_eq!(ended, Ok(()), "seed {seed}");
            while disk.reclaim().is_some() {}
            assert_eq!(disk.in_flight(), 0, "seed {seed}");
            // But for the channels' rings, which go with the disk.
            let kept = machine.hypervisor.counts().pages - pages;
            assert!(kept <= 4 * 34, "seed {seed}: {kept} pages");
        }
        bus.poll();
    });
    assert!(dropped.load(Ordering::Relaxed) > 0);
}

#[test]
fn units_come_and_go() {
    let files = [(); 4].map(|()| image(1 << 16));
    let machine = Machine::new(PROCESSORS);
    let [first, second, third, fourth] = &files;
    let (_, host) = add(&machine, &[(0, first), (3, second), (63, third)]);
    story(&machine, |bus| {
        let memory = StorageMemory::<FakeHal, RamBuffer, 8>::new();
        let offer = bus.find(storage::CLASS).unwrap();
        let controller = Controller::open(bus, &offer, &memory, &with_channels()).unwrap();
        let before = controller.scan().unwrap();
        assert_eq!(before.iter().collect::<Vec<_>>(), [0, 3, 63]);
        assert!(controller.unit(1).is_err());
        let units = [0, 3, 63].map(|lun| controller.unit(lun).unwrap());
        for unit in &units {
            let data = [unit.lun() + 1; 512];
            unit.write_blocks(5, &data).unwrap();
        }
        // Each takes its own completions only, whoever's come first.
        for unit in units.iter().rev() {
            let buffer = RamBuffer::new(&machine.hypervisor, 0, 512);
            unit.submit_read(5, buffer)
                .map_err(|(error, _)| error)
                .unwrap();
        }
        for unit in &units {
            let done = unit.wait().unwrap();
            assert_eq!(
                (done.result, done.buffer[..] == [unit.lun() + 1; 512]),
                (Ok(()), true)
            );
            assert!(unit.poll().is_none());
        }
        assert!(!controller.take_changed());
        host.detach(3).unwrap();
        let fourth = RawFile::open(fourth.path(), false).unwrap();
        host.attach(7, fourth).unwrap();
        let end = Instant::now() + LONG;
        while !controller.take_changed() {
            assert!(Instant::now() < end, "the host says nothing");
            controller.handle_interrupt();
            std::thread::yield_now();
        }
        let after = controller.scan().unwrap();
        let changes: Vec<_> = before.changes_to(&after).collect();
        assert_eq!(changes, [UnitChange::Removed(3), UnitChange::Added(7)]);
        let [first, gone, _] = &units;
        assert!(gone.read_blocks(0, &mut [0; 512]).is_err());
        first.read_blocks(5, &mut [0; 512]).unwrap();
        let added = controller.unit(7).unwrap();
        added.read_blocks(0, &mut [0; 512]).unwrap();
        assert_eq!(added.capacity(), 128);
        host.resize(7, 1 << 17).unwrap();
        assert_eq!(added.refresh_capacity(), Ok(256));
        assert_eq!(added.capacity(), 256);
        added.read_blocks(255, &mut [0; 512]).unwrap();
    });
    for (file, lun) in files.iter().zip([0u8, 3, 63]) {
        let content = std::fs::read(file.path()).unwrap();
        assert_eq!(content[5 * 512..6 * 512], [lun + 1; 512]);
    }
}

#[test]
fn a_controller_without_a_first_unit() {
    let file = image(1 << 16);
    let machine = Machine::new(PROCESSORS);
    add(&machine, &[(2, &file)]);
    story(&machine, |bus| {
        let memory = StorageMemory::<FakeHal, RamBuffer, 8>::new();
        let offer = bus.find(storage::CLASS).unwrap();
        let controller = Controller::open(bus, &offer, &memory, &StorageOptions::default());
        let controller = controller.unwrap();
        assert_eq!(controller.scan().unwrap().iter().collect::<Vec<_>>(), [2]);
        assert_eq!(controller.channels().count(), 1);
    });
}

#[test]
fn a_disk_with_channels_is_opened_again_and_again() {
    let file = image(1 << 16);
    let machine = Machine::new(PROCESSORS);
    add(&machine, &[(0, &file)]);
    story(&machine, |bus| {
        let memory = StorageMemory::<FakeHal, RamBuffer, 8>::new();
        for turn in 0..20u16 {
            let offer = bus.find(storage::CLASS).unwrap();
            let options = StorageOptions {
                sub_channels: turn % 6,
                ..StorageOptions::default()
            };
            let disk = Storage::open(bus, &offer, &memory, &options).unwrap();
            // As many as were asked for, and no more than the controller has.
            let channels = usize::from(turn % 6).min(3) + 1;
            assert_eq!(disk.controller().channels().count(), channels);
            disk.read_blocks(0, &mut [0; 512]).unwrap();
        }
        let stats = bus.stats();
        assert_eq!((stats.bad_offers, stats.dropped_offers), (0, 0));
    });
}
