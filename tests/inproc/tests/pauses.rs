//! State is values: the host is taken apart and rebuilt from bytes, again and again, under a guest
//! that works on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use guest_vsc::bus::{BusMemory, Options, VmBus};
use guest_vsc::storage::{self, Storage, StorageMemory, StorageOptions};
use host_vsp::storage::{Controller, RawFile};
use host_vsp::vmbus::{SavedBus, VmBus as HostBus};
use inproc::{FakeHal, FakeHypervisor, VECTOR};
use rand::RngExt as _;
use vmbus_proto::guid::Guid;

/// Times the host is rebuilt; more in a soak.
fn pauses_wanted() -> u32 {
    if std::env::var_os("VMBUS_SOAK").is_some() {
        5000
    } else {
        100
    }
}

/// Blocks of the disk, and how many requests are in flight at a time.
const BLOCKS: u64 = 256;
const DEPTH: usize = 16;

/// For all of it; a pause takes some milliseconds.
const DEADLINE: Duration = Duration::from_secs(600);

/// A fresh controller over the image at `path`, without any memory of the one before.
fn controller(path: &std::path::Path) -> Controller {
    let mut controller = Controller::new(Guid::new(1, 2, 3, 4, 5)).unwrap();
    controller
        .attach(0, RawFile::open(path, false).unwrap())
        .unwrap();
    controller
}

/// The content of `block` after it was written for the `version`-th time.
fn content(block: u64, version: u64) -> Vec<u8> {
    let mut state = block << 32 | version;
    let mut bytes = Vec::with_capacity(512);
    while bytes.len() < 512 {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// Writes and reads until `ended`, through channels that are opened and connections that are made
/// anew all the time; counts requests in `done` and returns how often each block was written.
fn work(ended: &AtomicBool, done: &AtomicU64) -> Vec<u64> {
    let bus_memory = BusMemory::<FakeHal, 1, 4>::new();
    let bus = VmBus::new(&bus_memory, VECTOR).unwrap();
    let mut versions = vec![0u64; BLOCKS as usize];
    let mut rng = rand::rng();
    while !ended.load(Ordering::Relaxed) {
        bus.connect(&Options::default()).unwrap();
        for _ in 0..2 {
            let offer = bus.find(storage::CLASS).expect("an offer");
            let memory: StorageMemory<FakeHal, Vec<u8>, DEPTH> = StorageMemory::new();
            let disk = Storage::open(&bus, &offer, &memory, &StorageOptions::default()).unwrap();
            for _ in 0..30 {
                some_requests(&disk, &mut versions, &mut rng);
                done.fetch_add(DEPTH as u64, Ordering::Relaxed);
            }
            disk.flush().unwrap();
        }
        bus.unload().unwrap();
    }
    assert_eq!(
        bus.stats().bad_completions,
        0,
        "a request was answered twice"
    );
    versions
}

/// `DEPTH` requests at once to different blocks, each completed exactly once with its own data.
fn some_requests(
    disk: &Storage<'_, FakeHal, Vec<u8>>,
    versions: &mut [u64],
    rng: &mut impl rand::Rng,
) {
    let first = rng.random_range(0..BLOCKS);
    let mut expected = Vec::new();
    for block in (0..DEPTH as u64).map(|i| (first + i) % BLOCKS) {
        let version = &mut versions[block as usize];
        let write = *version == 0 || rng.random();
        *version += u64::from(write);
        let data = content(block, *version);
        let token = if write {
            disk.submit_write(block, data.clone())
        } else {
            disk.submit_read(block, vec![0; 512])
        };
        expected.push((token.map_err(|(error, _)| error).unwrap(), data));
    }
    while !expected.is_empty() {
        let completion = disk.wait().unwrap();
        completion.result.unwrap();
        let place = expected
            .iter()
            .position(|(token, _)| *token == completion.token);
        let (_, data) = expected.swap_remove(place.expect("a request in flight"));
        assert!(
            completion.buffer == data,
            "a request has another one's data"
        );
    }
}

#[test]
fn a_hundred_pauses() {
    let wanted = pauses_wanted();
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(BLOCKS * 512).unwrap();
    let hypervisor = FakeHypervisor::new(1);
    let first = Arc::new(HostBus::new(hypervisor.partition()).unwrap());
    first.offer(Box::new(controller(file.path()))).unwrap();
    hypervisor.serve_shared(first.clone());
    let mut host = Some(first);

    let (ended, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let begin = Instant::now();
    let (mut with_channel, mut before) = (0, 0);
    let versions = std::thread::scope(|scope| {
        let guest = scope.spawn(|| {
            let _cpu = hypervisor.enter(0);
            work(&ended, &done)
        });
        let mut pauses = 0;
        while pauses < wanted && !guest.is_finished() {
            assert!(
                begin.elapsed() < DEADLINE,
                "the guest stands still after {pauses} pauses"
            );
            std::thread::sleep(Duration::from_micros(rand::rng().random_range(0..8000)));
            // The guest has done something since the last one.
            let now = done.load(Ordering::Relaxed);
            if now == before && pauses % 4 != 0 {
                continue;
            }
            before = now;

            let frozen = hypervisor.freeze();
            let old = host.take().expect("a host");
            let saved = postcard::to_stdvec(&old.pause().unwrap()).unwrap();
            hypervisor.unserve();
            drop(Arc::into_inner(old).expect("nobody else holds the host"));
            let saved: SavedBus = postcard::from_bytes(&saved).unwrap();
            with_channel += u32::from(saved.open_channels() != 0);
            let devices = vec![Box::new(controller(file.path())) as Box<dyn host_vsp::vsp::Vsp>];
            let fresh = HostBus::restore(hypervisor.partition(), devices, saved).unwrap();
            let fresh = Arc::new(fresh);
            hypervisor.serve_shared(fresh.clone());
            fresh.resume();
            host = Some(fresh);
            drop(frozen);
            pauses += 1;
        }
        ended.store(true, Ordering::Relaxed);
        let versions = guest.join().expect("the guest's work");
        assert_eq!(pauses, wanted);
        versions
    });
    assert!(
        with_channel > wanted / 4,
        "only {with_channel} pauses met an open channel"
    );
    hypervisor.unserve();
    drop(host);
    let image = std::fs::read(file.path()).unwrap();
    for (block, version) in versions.into_iter().enumerate() {
        let expected = if version == 0 {
            vec![0; 512]
        } else {
            content(block as u64, version)
        };
        assert!(
            image[block * 512..][..512] == expected,
            "block {block} of the file"
        );
    }
    println!(
        "{} requests over {wanted} pauses",
        done.load(Ordering::Relaxed)
    );
}
