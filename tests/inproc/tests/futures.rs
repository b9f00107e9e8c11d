//! Requests as futures: driven by an executor of a few lines, dropped in mid-flight, and cut off by
//! a rescind.

use std::collections::HashMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use guest_vsc::bus::{BusMemory, Options, VmBus};
use guest_vsc::error::Error;
use guest_vsc::storage::{self, Storage, StorageError, StorageMemory, StorageOptions};
use host_vsp::storage::RawFile;
use host_vsp::vmbus::DeviceId;
use inproc::{FakeHal, FakeHypervisor, Machine, RamBuffer, VECTOR};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

const DEADLINE: Duration = Duration::from_secs(60);
const BLOCKS: u64 = 512;

type Disk<'b> = Storage<'b, FakeHal, RamBuffer>;

/// Wakes a thread.
struct Thread(std::thread::Thread, AtomicU32);

impl Wake for Thread {
    fn wake(self: Arc<Self>) {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.unpark();
    }
}

/// Runs a future on this thread, which sleeps until it is woken.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let thread = Arc::new(Thread(std::thread::current(), AtomicU32::new(0)));
    let waker = Waker::from(thread);
    let end = Instant::now() + DEADLINE;
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        assert!(Instant::now() < end, "nobody wakes the future");
        std::thread::park_timeout(DEADLINE);
    }
}

/// Polls all futures until all are ready.
async fn all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut outputs: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    let mut futures: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|context| {
        for (future, output) in futures.iter_mut().zip(&mut outputs) {
            if output.is_none()
                && let Poll::Ready(ready) = future.as_mut().poll(context)
            {
                *output = Some(ready);
            }
        }
        if outputs.iter().all(Option::is_some) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    outputs.into_iter().flatten().collect()
}

/// Runs a story with a disk of `DEPTH` places while another thread is the interrupt handler of the
/// processor; afterwards no page may be lost.
fn story<const DEPTH: usize>(tell: impl FnOnce(&Machine, DeviceId, &Disk<'_>)) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(BLOCKS * 512).unwrap();
    let machine = Machine::new(1);
    let device = machine.add_disk(RawFile::open(file.path(), false).unwrap());
    let _cpu = machine.hypervisor.enter(0);
    let memory = BusMemory::<FakeHal, 1, 4>::new();
    let bus = VmBus::new(&memory, VECTOR).unwrap();
    bus.connect(&Options::default()).unwrap();
    let requests = StorageMemory::<FakeHal, RamBuffer, DEPTH>::new();
    let offer = bus.find(storage::CLASS).unwrap();
    let disk = Storage::open(&bus, &offer, &requests, &StorageOptions::default()).unwrap();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (disk, bus, ended, hypervisor) = (&disk, &bus, &ended, &machine.hypervisor);
        scope.spawn(move || {
            let cpu = hypervisor.enter(0);
            while !ended.load(Ordering::Relaxed) {
                cpu.wait_for_interrupt();
                bus.handle_interrupt();
                disk.handle_interrupt();
            }
        });
        let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            tell(&machine, device, disk);
        }));
        ended.store(true, Ordering::Relaxed);
        if let Err(panic) = told {
            std::panic::resume_unwind(panic);
        }
    });
    drop(disk);
    assert_eq!(bus.stats().bad_completions, 0);
    drop(bus);
    assert_eq!(machine.hypervisor.counts().pages, 0, "pages were lost");
}

fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    SmallRng::seed_from_u64(seed).fill(bytes.as_mut_slice());
    bytes
}

fn buffer(hypervisor: &FakeHypervisor, bytes: &[u8]) -> RamBuffer {
    RamBuffer::with(hypervisor, 100, bytes)
}

#[test]
fn what_is_written_is_read() {
    story::<8>(|machine, _, disk| {
        block_on(async {
            let data = content(1, 8192);
            let written = disk
                .write_async(8, buffer(&machine.hypervisor, &data))
                .await;
            let back = written.map_err(|(error, _)| error).unwrap();
            assert!(*back == data, "the buffer comes back as it was");
            disk.flush_async().await.unwrap();
            let empty = buffer(&machine.hypervisor, &[0; 8192]);
            let read = disk.read_async(8, empty).await;
            assert!(*read.map_err(|(error, _)| error).unwrap() == data);
            // What cannot be comes back at once, with the buffer.
            let odd = buffer(&machine.hypervisor, &[0; 100]);
            let error = disk.read_async(0, odd).await.map(drop).unwrap_err();
            assert_eq!(error.0, StorageError::Unaligned);
            assert_eq!(error.1.map(|buffer| buffer.len()), Some(100));
        });
    });
}

#[test]
fn more_futures_than_places() {
    story::<4>(|machine, _, disk| {
        let write = |n: u64| disk.write_async(n, buffer(&machine.hypervisor, &content(n, 512)));
        block_on(async {
            for result in all((0..100).map(write).collect()).await {
                result.map_err(|(error, _)| error).unwrap();
            }
            let read = |n| disk.read_async(n, buffer(&machine.hypervisor, &[0; 512]));
            let results = all((0..100).map(read).collect()).await;
            for (n, result) in (0..).zip(results) {
                assert!(*result.map_err(|(error, _)| error).unwrap() == content(n, 512));
            }
        });
        assert_eq!(disk.in_flight(), 0);
    });
}

#[test]
fn futures_on_several_threads_share_the_places() {
    story::<4>(|machine, _, disk| {
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                scope.spawn(move || {
                    let _cpu = machine.hypervisor.enter(0);
                    for turn in 0..100 {
                        let data = content(thread << 32 | turn, 1024);
                        let sector = thread * 100;
                        let written = buffer(&machine.hypervisor, &data);
                        let written = block_on(disk.write_async(sector, written));
                        let empty = buffer(&machine.hypervisor, &[0; 1024]);
                        assert!(written.is_ok());
                        let read = block_on(disk.read_async(sector, empty));
                        assert!(*read.map_err(|(error, _)| error).unwrap() == data);
                    }
                });
            }
        });
    });
}

/// Requests of the story below; more in a soak.
fn requests_wanted() -> u32 {
    if std::env::var_os("VMBUS_SOAK").is_some() {
        1_000_000
    } else {
        4_000
    }
}

#[test]
fn requests_of_all_sizes_and_futures_that_are_dropped_amid_them() {
    let wanted = requests_wanted();
    story::<32>(|machine, _, disk| {
        let mut random = SmallRng::seed_from_u64(1);
        // What each block holds, where that is known: a write that was dropped may have happened.
        let mut known: HashMap<u64, u64> = HashMap::new();
        let waker = Waker::noop();
        let (mut done, mut dropped) = (0u32, 0u32);
        while done < wanted {
            let blocks = [1u64, 1, 2, 8, 16][random.random_range(0..5)];
            let sector = random.random_range(0..BLOCKS - blocks);
            let range = sector..sector + blocks;
            done += 1;
            if random.random_bool(0.2) {
                let write = random.random_bool(0.5);
                let bytes = vec![0xEE; blocks as usize * 512];
                let buffer = buffer(&machine.hypervisor, &bytes);
                let mut future = pin!(if write {
                    disk.write_async(sector, buffer)
                } else {
                    disk.read_async(sector, buffer)
                });
                if future
                    .as_mut()
                    .poll(&mut Context::from_waker(waker))
                    .is_pending()
                {
                    dropped += 1;
                }
                if write {
                    range.for_each(|block| {
                        known.remove(&block);
                    });
                }
                continue;
            }
            if random.random_bool(0.5) {
                let seed: u64 = random.random();
                let data: Vec<u8> = (0..blocks).flat_map(|b| content(seed ^ b, 512)).collect();
                // A write that was dropped before this one must not come after it.
                while disk.in_flight() != 0 {
                    disk.handle_interrupt();
                    while disk.reclaim().is_some() {}
                    std::thread::yield_now();
                }
                let written =
                    block_on(disk.write_async(sector, buffer(&machine.hypervisor, &data)));
                written.map_err(|(error, _)| error).unwrap();
                for (offset, block) in range.enumerate() {
                    known.insert(block, seed ^ offset as u64);
                }
            } else {
                let empty = vec![0; blocks as usize * 512];
                let read = block_on(disk.read_async(sector, buffer(&machine.hypervisor, &empty)));
                let read = read.map_err(|(error, _)| error).unwrap();
                for (data, block) in read.chunks(512).zip(range) {
                    if let Some(seed) = known.get(&block) {
                        assert!(data == content(*seed, 512), "block {block}");
                    }
                }
            }
        }
        println!("{done} requests, {dropped} of them dropped in flight");
        assert!(dropped > 0);
    });
}

#[test]
fn a_rescind_in_mid_flight_ends_every_future() {
    for _ in 0..20 {
        story::<8>(|machine, device, disk| {
            std::thread::scope(|scope| {
                for thread in 0..3 {
                    scope.spawn(move || {
                        let _cpu = machine.hypervisor.enter(0);
                        loop {
                            let buffer = buffer(&machine.hypervisor, &content(thread, 4096));
                            match block_on(disk.write_async(thread * 8, buffer)) {
                                Ok(_) => {}
                                Err((StorageError::Bus(error), buffer)) => {
                                    let ended = matches!(error, Error::Rescinded | Error::Closed);
                                    assert!(ended, "{error}");
                                    assert!(buffer.is_some(), "the host has kept a buffer");
                                    return;
                                }
                                Err((error, _)) => panic!("{error}"),
                            }
                        }
                    });
                }
                std::thread::sleep(Duration::from_millis(2));
                machine.host.rescind(device);
            });
            assert_eq!(disk.in_flight(), 0);
        });
    }
}
