//! Disks: the guest's driver against the host's controller.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use guest_vsc::bus::{BusMemory, Options, Versions, VmBus};
use guest_vsc::channel::OpenOptions;
use guest_vsc::error::{Error, Waited};
use guest_vsc::storage::{
    self, Buffer, Data, Storage, StorageError, StorageMemory, StorageOptions,
};
use host_vsp::storage::RawFile;
use host_vsp::storage::backend::{FaultyBackend, Operation};
use inproc::{FakeHal, Machine, RamBuffer, VECTOR};
use rand::RngExt as _;
use vmbus_proto::hv::hypercall::Status;
use vmbus_proto::scsi::{Cdb, Sense, StandardInquiry};
use vmbus_proto::version::Version;

type Bus<'m> = VmBus<'m, FakeHal>;
type Memory = BusMemory<FakeHal, 4, 4>;

/// Pieces that opening a disk copies, as its own buffers are on the test's stack: those of READ
/// CAPACITY and MODE SENSE.
const BOUNCED_BY_OPENING: u32 = 2;

/// An image of `bytes` random bytes.
fn image(bytes: usize) -> (tempfile::NamedTempFile, Vec<u8>) {
    let mut content = vec![0; bytes];
    rand::rng().fill(content.as_mut_slice());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &content).unwrap();
    (file, content)
}

fn random(bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    rand::rng().fill(content.as_mut_slice());
    content
}

/// Opens the first disk.
fn open<'b, B: Buffer, const N: usize>(
    bus: &'b Bus<'b>,
    memory: &'b StorageMemory<FakeHal, B, N>,
) -> Storage<'b, FakeHal, B> {
    open_with(bus, memory, &StorageOptions::default()).unwrap()
}

fn open_with<'b, B: Buffer, const N: usize>(
    bus: &'b Bus<'b>,
    memory: &'b StorageMemory<FakeHal, B, N>,
    options: &StorageOptions,
) -> Result<Storage<'b, FakeHal, B>, StorageError> {
    let offer = bus.find(storage::CLASS).expect("an offer");
    Storage::open(bus, &offer, memory, options)
}

/// Runs a story on processor 0 of a connected guest.
fn story(machine: &Machine, tell: impl FnOnce(&Bus<'_>)) {
    let _cpu = machine.hypervisor.enter(0);
    let memory = Memory::new();
    let bus = VmBus::new(&memory, VECTOR).unwrap();
    bus.connect(&Options::default()).unwrap();
    tell(&bus);
    drop(bus);
    assert_eq!(machine.hypervisor.counts().pages, 0, "pages were lost");
}

#[test]
fn what_is_written_is_in_the_file() {
    let (file, mut content) = image(1 << 20);
    let machine = Machine::new(1);
    machine.add_disk(RawFile::open(file.path(), false).unwrap());
    story(&machine, |bus| {
        let memory: StorageMemory<FakeHal> = StorageMemory::new();
        let disk = open(bus, &memory);
        assert_eq!((disk.capacity(), disk.block_size()), (2048, 512));
        assert!(!disk.readonly());
        let mut sector = [0; 512];
        disk.read_blocks(0, &mut sector).unwrap();
        assert_eq!(sector, content[..512]);
        let pattern = random(512);
        disk.write_blocks(7, &pattern).unwrap();
        disk.flush().unwrap();
        content[7 * 512..8 * 512].copy_from_slice(&pattern);
        disk.read_blocks(7, &mut sector).unwrap();
        assert_eq!(sector[..], pattern);
    });
    assert_eq!(std::fs::read(file.path()).unwrap(), content);
}

#[test]
fn a_transfer_longer_than_a_request_is_split() {
    let (file, mut content) = image(4 << 20);
    let machine = Machine::new(1);
    machine.add_disk(RawFile::open(file.path(), false).unwrap());
    story(&machine, |bus| {
        let memory: StorageMemory<FakeHal> = StorageMemory::new();
        let disk = open(bus, &memory);
        let mut all = vec![0; content.len()];
        assert!(disk.max_transfer() < all.len());
        disk.read_blocks(0, &mut all).unwrap();
        assert!(all == content);
        content[512..].reverse();
        disk.write_blocks(1, &content[512..]).unwrap();
    });
    assert!(std::fs::read(file.path()).unwrap() == content);
}

#[test]
fn buffers_at_odd_offsets_across_many_pages() {
    let (file, mut content) = image(1 << 20);
    let machine = Machine::new(1);
    machine.add_disk(RawFile::open(file.path(), false).unwrap());
    story(&machine, |bus| {
        let memory = StorageMemory::<FakeHal, RamBuffer, 8>::new();
        let disk = open(bus, &memory);
        // In guest RAM the host writes to the very bytes, at any offset.
        let places = [
            (0, 512),
            (1, 512),
            (3585, 512),
            (4095, 1024),
            (511, 200 << 10),
        ];
        for (at, (offset, length)) in places.into_iter().enumerate() {
            let buffer = RamBuffer::new(&machine.hypervisor, offset, length);
            let token = disk
                .submit_read(at as u64, buffer)
                .map_err(|e| e.0)
                .unwrap();
            let done = disk.wait().unwrap();
            assert_eq!((done.token, done.result), (token, Ok(())));
            assert!(done.buffer[..] == content[at * 512..at * 512 + length]);

            let bytes = random(length);
            content[at * 512..at * 512 + length].copy_from_slice(&bytes);
            let buffer = RamBuffer::with(&machine.hypervisor, offset, &bytes);
            disk.submit_write(at as u64, buffer)
                .map_err(|e| e.0)
                .unwrap();
            assert_eq!(disk.wait().unwrap().result, Ok(()));
        }
        let longest = RamBuffer::new(&machine.hypervisor, 4095, disk.max_transfer());
        disk.submit_read(0, longest).map_err(|e| e.0).unwrap();
        let done = disk.wait().unwrap();
        assert!(done.buffer[..] == content[..disk.max_transfer()]);
        drop(done);
        assert_eq!(machine.hypervisor.counts().bounced, BOUNCED_BY_OPENING);
    });
    assert!(std::fs::read(file.path()).unwrap() == content);
}

#[test]
fn sixty_four_in_flight_complete_once_each() {
    let (file, content) = image(1 << 20);
    let backend = FaultyBackend::new(RawFile::open(file.path(), true).unwrap());
    let machine = Machine::new(1);
    machine.add_disk(backend.clone());
    story(&machine, |bus| {
        let memory = StorageMemory::<FakeHal, Box<[u8]>, 64>::new();
        let disk = open(bus, &memory);
        for round in 0..3 {
            let held = backend.hold();
            let mut expected = HashMap::new();
            for n in 0..64u64 {
                let sector = (n * 31 + round) % 2040;
                let buffer = vec![0; 4096].into_boxed_slice();
                let token = disk.submit_read(sector, buffer).map_err(|e| e.0).unwrap();
                assert!(expected.insert(token, sector).is_none());
            }
            assert_eq!(disk.in_flight(), 64);
            let one_more = vec![1; 512].into_boxed_slice();
            let (error, back) = disk.submit_read(0, one_more).unwrap_err();
            assert_eq!(error, StorageError::Bus(Error::Full));
            assert_eq!(back[..], [1; 512]);
            drop(held);
            while !expected.is_empty() {
                let done = disk.wait().unwrap();
                let sector = expected.remove(&done.token).expect("completed once") as usize;
                assert_eq!(done.result, Ok(()));
                assert!(done.buffer[..] == content[sector * 512..sector * 512 + 4096]);
            }
            assert!(disk.poll().is_none());
            assert_eq!(disk.in_flight(), 0);
        }
        assert_eq!(bus.stats().bad_completions, 0);
    });
}

#[test]
fn refusals_say_why() {
    let (file, content) = image(1 << 20);
    let backend = FaultyBackend::new(RawFile::open(file.path(), false).unwrap());
    let machine = Machine::new(1);
    machine.add_disk(backend.clone());
    story(&machine, |bus| {
        let memory: StorageMemory<FakeHal> = StorageMemory::new();
        let disk = open(bus, &memory);
        let mut sector = [0; 512];
        let device = |sense| Err(StorageError::Device(sense));
        let beyond = device(Sense::LBA_OUT_OF_RANGE);
        assert_eq!(disk.read_blocks(2048, &mut sector), beyond);
        assert_eq!(disk.read_blocks(1 << 40, &mut sector), beyond);
        assert_eq!(disk.write_blocks(2047, &[0; 1024]), beyond);
        let unaligned = Err(StorageError::Unaligned);
        assert_eq!(disk.read_blocks(0, &mut sector[..511]), unaligned);
        assert_eq!(disk.read_blocks(0, &mut []), unaligned);

        // A bad block is a medium error, and the disk lives on.
        backend.fail(Operation::Read, 512..1024, 1, 5);
        assert_eq!(
            disk.read_blocks(1, &mut sector),
            device(Sense::UNRECOVERED_READ_ERROR)
        );
        disk.read_blocks(1, &mut sector).unwrap();
        assert_eq!(sector, content[512..1024]);
        backend.fail(Operation::Write, 0..512, 1, 5);
        assert_eq!(disk.write_blocks(0, &sector), device(Sense::WRITE_ERROR));
        disk.write_blocks(0, &content[..512]).unwrap();
    });
    assert!(std::fs::read(file.path()).unwrap() == content);
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let (file, content) = image(1 << 16);
    let machine = Machine::new(1);
    machine.add_disk(RawFile::open(file.path(), true).unwrap());
    story(&machine, |bus| {
        let memory: StorageMemory<FakeHal> = StorageMemory::new();
        let disk = open(bus, &memory);
        assert!(disk.readonly());
        assert_eq!(
            disk.write_blocks(0, &[0; 512]),
            Err(StorageError::Device(Sense::WRITE_PROTECTED))
        );
    });
    assert!(std::fs::read(file.path()).unwrap() == content);
}

#[test]
fn a_flush_reaches_the_backend() {
    let (file, _) = image(1 << 16);
    let backend = FaultyBackend::new(RawFile::open(file.path(), false).unwrap());
    let machine = Machine::new(1);
    machine.add_disk(backend.clone());
    story(&machine, |bus| {
        let memory: StorageMemory<FakeHal> = StorageMemory::new();
        let disk = open(bus, &memory);
        disk.write_blocks(0, &[7; 512]).unwrap();
        assert_eq!(backend.count(Operation::Flush), 0);
        disk.flush().unwrap();
        assert_eq!(backend.log().last(), Some(&Operation::Flush));
        backend.fail(Operation::Flush, 0..u64::MAX, 1, 5);
        assert!(matches!(disk.flush(), Err(StorageError::Device(_))));
    });
}

#[test]
fn a_disk_over_two_tebibytes() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(3 << 40).unwrap();
    let machine = Machine::new(1);
    machine.add_disk(RawFile::open(file.path(), false).unwrap());
    story(&machine, |bus| {
        let memory: StorageMemory<FakeHal> = StorageMemory::new();
        let disk = open(bus, &memory);
        let sectors = disk.capacity();
        assert_eq!(sectors, (3 << 40) / 512);
        let pattern = random(512);
        disk.write_blocks(sectors - 1, &pattern).unwrap();
        let mut sector = [0; 512];
        disk.read_blocks(sectors - 1, &mut sector).unwrap();
        assert_eq!(sector[..], pattern);
        assert_eq!(
            disk.read_blocks(sectors, &mut sector),
            Err(StorageError::Device(Sense::LBA_OUT_OF_RANGE))
        );
    });
}

#[test]
fn commands_by_hand() {
    let (file, _) = image(1 << 16);
    let machine = Machine::new(1);
    machine.add_disk(RawFile::open(file.path(), false).unwrap());
    story(&machine, |bus| {
        let memory: StorageMemory<FakeHal> = StorageMemory::new();
        let disk = open(bus, &memory);
        let mut data = [0; 96];
        let cdb = Cdb::Inquiry {
            page: None,
            allocation_length: 96,
        };
        let moved = disk
            .execute(cdb.to_bytes().as_slice(), Data::In(&mut data))
            .unwrap();
        let inquiry = StandardInquiry::parse(&data[..moved as usize]).unwrap();
        assert!(inquiry.is_disk());
        assert_eq!(
            disk.execute(&[0xE0; 6], Data::None),
            Err(StorageError::Device(Sense::INVALID_OPCODE))
        );
        // Unmapped blocks read as zeros.
        disk.unmap(8, 8).unwrap();
        let mut block = [1; 4096];
        disk.read_blocks(8, &mut block).unwrap();
        assert_eq!(block, [0; 4096]);
    });
}

#[test]
fn no_such_unit() {
    let (file, _) = image(1 << 16);
    let machine = Machine::new(1);
    machine.add_disk(RawFile::open(file.path(), false).unwrap());
    story(&machine, |bus| {
        let memory: StorageMemory<FakeHal> = StorageMemory::new();
        let options = StorageOptions {
            lun: 5,
            ..StorageOptions::default()
        };
        assert!(open_with(bus, &memory, &options).is_err());
        // The controller and the memory are free for another try.
        open(bus, &memory);
    });
}

#[test]
fn all_of_it_again_at_every_version() {
    let (file, content) = image(1 << 16);
    let machine = Machine::new(1);
    machine.add_disk(RawFile::open(file.path(), false).unwrap());
    let _cpu = machine.hypervisor.enter(0);
    let memory = Memory::new();
    let bus = VmBus::new(&memory, VECTOR).unwrap();
    for version in Version::SUPPORTED {
        let options = Options {
            versions: Versions::Exactly(version),
            ..Options::default()
        };
        assert_eq!(bus.connect(&options), Ok(version));
        let memory: StorageMemory<FakeHal> = StorageMemory::new();
        for _ in 0..2 {
            let disk = open(&bus, &memory);
            assert_eq!(bus.unload(), Err(Error::ChannelsOpen));
            let mut all = vec![0; content.len()];
            disk.read_blocks(0, &mut all).unwrap();
            assert!(all == content);
            let moved = disk.channel().set_cpu(0);
            if version < Version::V4_1 {
                assert_eq!(moved, Err(Error::NotInThisVersion));
            } else {
                moved.unwrap();
            }
            disk.read_blocks(0, &mut all).unwrap();
        }
        bus.unload().unwrap();
    }
}

#[test]
fn four_processors_share_a_disk() {
    const SECTORS: u64 = 4096;
    let (file, content) = image(SECTORS as usize * 512);
    let machine = Machine::new(4);
    machine.add_disk(RawFile::open(file.path(), false).unwrap());
    story(&machine, |bus| {
        let memory = StorageMemory::<FakeHal, Vec<u8>, 16>::new();
        let disk = open(bus, &memory);
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // The interrupt handler of processor 0, where the channel's interrupts go.
            scope.spawn(|| {
                let cpu = machine.hypervisor.enter(0);
                while !ended.load(Ordering::Relaxed) {
                    cpu.wait_for_interrupt();
                    bus.handle_interrupt();
                }
            });
            let workers: Vec<_> = (0..4u64)
                .map(|cpu| {
                    let (disk, content, machine) = (&disk, &content, &machine);
                    scope.spawn(move || {
                        let _cpu = machine.hypervisor.enter(cpu as u32);
                        bus.start_cpu().unwrap();
                        // Each has a quarter of the disk to write to.
                        let mine = cpu * SECTORS / 4;
                        for n in 0..200u64 {
                            let sector = mine + n * 5 % 1000;
                            let at = sector as usize * 512;
                            let mut buffer = [0; 1024];
                            disk.read_blocks(sector, &mut buffer).unwrap();
                            assert_eq!(buffer, content[at..at + 1024]);
                            disk.write_blocks(sector, &buffer).unwrap();
                        }
                        if cpu != 0 {
                            bus.stop_cpu();
                        }
                    })
                })
                .collect();
            for worker in workers {
                worker.join().unwrap();
            }
            ended.store(true, Ordering::Relaxed);
        });
        assert_eq!(disk.in_flight(), 0);
        assert_eq!(bus.stats().bad_completions, 0);
    });
    assert!(std::fs::read(file.path()).unwrap() == content);
}

#[test]
fn a_small_ring_stops_nobody_for_good() {
    let (file, content) = image(1 << 20);
    let machine = Machine::new(1);
    machine.add_disk(RawFile::open(file.path(), false).unwrap());
    story(&machine, |bus| {
        let memory = StorageMemory::<FakeHal, Vec<u8>, 64>::new();
        let options = StorageOptions {
            channel: OpenOptions {
                to_host: 4096,
                to_guest: 4096,
                ..OpenOptions::default()
            },
            ..StorageOptions::default()
        };
        let disk = open_with(bus, &memory, &options).unwrap();
        let (mut submitted, mut done, mut full) = (0u64, 0, 0);
        while done < 2000 {
            while submitted < 2000 {
                // Many pages make a long packet.
                match disk.submit_read(submitted % 1024, vec![0; 128 << 10]) {
                    Ok(_) => submitted += 1,
                    Err((StorageError::Bus(Error::Full), _)) => {
                        full += 1;
                        break;
                    }
                    Err((error, _)) => panic!("{error}"),
                }
            }
            let completion = disk.wait().unwrap();
            assert_eq!(completion.result, Ok(()));
            done += 1;
        }
        assert!(full > 0, "the ring was never full");
        let mut sector = [0; 512];
        disk.read_blocks(3, &mut sector).unwrap();
        assert_eq!(sector, content[3 * 512..4 * 512]);
    });
}

#[test]
fn a_device_may_be_taken_away_at_any_time() {
    let (file, _) = image(1 << 20);
    let backend = FaultyBackend::new(RawFile::open(file.path(), false).unwrap());
    let machine = Machine::new(1);
    let device = machine.add_disk(backend.clone());
    story(&machine, |bus| {
        let memory = StorageMemory::<FakeHal, Vec<u8>, 16>::new();
        let disk = open(bus, &memory);
        let held = backend.hold();
        for sector in 0..8 {
            disk.submit_read(sector, vec![0; 512])
                .map_err(|e| e.0)
                .unwrap();
        }
        let (host, waiting) = (&machine.host, &backend);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                while waiting.waiting() == 0 {
                    std::thread::yield_now();
                }
                drop(held);
                host.rescind(device);
            });
            // Every buffer comes back, read or not, and nothing hangs.
            for _ in 0..8 {
                let done = disk.wait().unwrap();
                assert!(matches!(
                    done.result,
                    Ok(()) | Err(StorageError::Bus(Error::Rescinded))
                ));
            }
        });
        let mut sector = [0; 512];
        while disk.read_blocks(0, &mut sector).is_ok() {}
        assert!(disk.submit_read(0, vec![0; 512]).is_err());
        assert_eq!(disk.in_flight(), 0);
        drop(disk);
        assert!(bus.find(storage::CLASS).is_none());

        // The relid was released, so another device may have it.
        let (other, _) = image(1 << 16);
        machine.add_disk(RawFile::open(other.path(), true).unwrap());
        while bus.find(storage::CLASS).is_none() {
            bus.poll();
        }
        open(bus, &memory).read_blocks(0, &mut sector).unwrap();
    });
}

#[test]
fn a_request_that_takes_too_long_gives_its_buffer_back() {
    let (file, content) = image(1 << 16);
    let backend = FaultyBackend::new(RawFile::open(file.path(), false).unwrap());
    let machine = Machine::new(1);
    machine.add_disk(backend.clone());
    story(&machine, |bus| {
        let memory: StorageMemory<FakeHal> = StorageMemory::new();
        let options = StorageOptions {
            timeout: Duration::from_millis(100),
            ..StorageOptions::default()
        };
        let disk = open_with(bus, &memory, &options).unwrap();
        let held = backend.hold();
        let mut sector = [0; 512];
        let result = std::thread::scope(|scope| {
            scope.spawn(move || {
                // The driver closes the channel, and the host's end of it waits for the disk.
                std::thread::sleep(Duration::from_millis(300));
                drop(held);
            });
            disk.read_blocks(0, &mut sector)
        });
        let timeout = Error::Timeout(Waited::Completion);
        assert_eq!(result, Err(StorageError::Bus(timeout)));
        assert_eq!(
            disk.read_blocks(0, &mut sector),
            Err(StorageError::Bus(Error::Closed))
        );
        drop(disk);
        let disk = open(bus, &memory);
        disk.read_blocks(0, &mut sector).unwrap();
        assert_eq!(sector, content[..512]);
    });
}

#[test]
fn a_doorbell_is_rung_again_where_the_hypervisor_is_short_of_memory() {
    let (file, content) = image(1 << 20);
    let machine = Machine::new(1);
    machine.add_disk(RawFile::open(file.path(), false).unwrap());
    story(&machine, |bus| {
        let memory: StorageMemory<FakeHal> = StorageMemory::new();
        let disk = open(bus, &memory);
        // Under the driver's lock: it must not let another thread run in between.
        let statuses = [Status::INSUFFICIENT_MEMORY, Status::INSUFFICIENT_BUFFERS];
        machine.hypervisor.fail_signals(statuses);
        // A host that is awake needs no doorbell, so this may take some reads.
        let signals = || machine.hypervisor.counts().signals;
        let enough = signals() + statuses.len() as u32 + 1;
        let end = Instant::now() + Duration::from_secs(10);
        while signals() < enough {
            assert!(Instant::now() < end, "the doorbell is not rung");
            let mut sector = [0; 512];
            disk.read_blocks(7, &mut sector).unwrap();
            assert_eq!(sector, content[7 * 512..8 * 512]);
        }
        assert_eq!(bus.stats().failed_signals, 0);
    });
}
