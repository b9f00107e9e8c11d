//! Integration services and what else a guest hears of its host: the drivers against the host's
//! services.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use guest_vsc::bus::{BusMemory, Options, VmBus};
use guest_vsc::crash::CrashReporter;
use guest_vsc::error::Error;
use guest_vsc::hypervisor::Missing;
use guest_vsc::ic::{self, Health, Heartbeat, Shutdown, ShutdownKind, TimeSync};
use host_vsp::ic::{Error as HostError, Life, ShutdownKind as HostKind};
use inproc::{FakeHal, FakeHypervisor, Machine, VECTOR};
use vm_memory::{Bytes as _, GuestAddress};
use vmbus_proto::hv::cpuid;

const LONG: Duration = Duration::from_secs(20);

fn story(machine: &Machine, tell: impl FnOnce(&VmBus<'_, FakeHal>)) {
    let _cpu = machine.hypervisor.enter(0);
    let memory = BusMemory::<FakeHal, 1, 8>::new();
    let bus = VmBus::new(&memory, VECTOR).unwrap();
    bus.connect(&Options::default()).unwrap();
    tell(&bus);
    assert_eq!(bus.stats().bad_packets, 0);
    drop(bus);
    assert_eq!(machine.hypervisor.counts().pages, 0, "pages were lost");
}

/// Polls until there is something.
fn until<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LONG;
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(Instant::now() < end, "{what} does not come");
        std::thread::yield_now();
    }
}

#[test]
fn the_host_hears_the_heart_beat() {
    let machine = Machine::new(1);
    let (_, services) = machine.add_services();
    story(&machine, |bus| {
        let offer = bus.find(ic::heartbeat::CLASS).unwrap();
        let heartbeat = Heartbeat::open(bus, &offer, &ic::open_options()).unwrap();
        assert_eq!(services.heartbeat.status(), Life::NoContact);
        heartbeat.set_health(Health::Healthy);
        until("a beat", || {
            heartbeat.poll().unwrap();
            let status = services.heartbeat.status();
            (status == Life::Alive { healthy: true }).then_some(())
        });
        heartbeat.set_health(Health::Critical);
        until("a second beat", || {
            heartbeat.poll().unwrap();
            (services.heartbeat.status() == Life::Critical).then_some(())
        });
        assert!(heartbeat.beats() >= 2);
    });
}

#[test]
fn the_host_asks_the_guest_to_end() {
    let machine = Machine::new(1);
    let (_, services) = machine.add_services();
    story(&machine, |bus| {
        let offer = bus.find(ic::shutdown::CLASS).unwrap();
        let shutdown = Shutdown::open(bus, &offer, &ic::open_options()).unwrap();
        until("the agreement", || {
            assert!(shutdown.poll().unwrap().is_none());
            services.shutdown.is_ready().then_some(())
        });
        let kinds = [
            (HostKind::PowerOff, ShutdownKind::PowerOff),
            (HostKind::Restart, ShutdownKind::Restart),
            (HostKind::Hibernate, ShutdownKind::Hibernate),
        ];
        for (asked, heard) in kinds {
            for accept in [true, false] {
                std::thread::scope(|scope| {
                    let host = scope.spawn(|| services.shutdown.request(asked, LONG));
                    let request = until("a request", || shutdown.poll().unwrap());
                    assert_eq!((request.kind, request.force), (heard, false));
                    assert_eq!(request.timeout, Duration::ZERO);
                    // One at a time: the host waits for the answer.
                    assert!(shutdown.poll().unwrap().is_none());
                    if accept {
                        request.accept().unwrap();
                        assert_eq!(host.join().unwrap(), Ok(()));
                    } else {
                        drop(request);
                        assert_eq!(host.join().unwrap(), Err(HostError::Refused(0x8000_4005)));
                    }
                });
            }
        }
    });
}

#[test]
fn the_guest_hears_what_time_it_is() {
    let machine = Machine::new(1);
    let (_, services) = machine.add_services();
    story(&machine, |bus| {
        let offer = bus.find(ic::timesync::CLASS).unwrap();
        let time = TimeSync::open(bus, &offer, &ic::open_options()).unwrap();
        for _ in 0..3 {
            let heard = until("the time", || time.poll().unwrap());
            assert!(
                heard.set,
                "the first after a start and after `sync` sets the clock"
            );
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            let said = heard.at(bus.clock().now());
            assert!(
                said.abs_diff(now) < Duration::from_secs(1),
                "{said:?}, {now:?}"
            );
            services.time_sync.sync();
        }
    });
}

#[test]
fn every_service_may_be_taken_away() {
    let machine = Machine::new(1);
    let (devices, _services) = machine.add_services();
    story(&machine, |bus| {
        let find = |class| bus.find(class).unwrap();
        let options = ic::open_options();
        let heartbeat = Heartbeat::open(bus, &find(ic::heartbeat::CLASS), &options).unwrap();
        let shutdown = Shutdown::open(bus, &find(ic::shutdown::CLASS), &options).unwrap();
        let time = TimeSync::open(bus, &find(ic::timesync::CLASS), &options).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                devices
                    .iter()
                    .for_each(|device| machine.host.rescind(*device))
            });
            // A real kernel's interrupt handler; the drivers see what it has taken.
            let ended = |result: Result<(), Error>| {
                bus.poll();
                match result {
                    Ok(()) => None,
                    Err(Error::Rescinded) => Some(()),
                    Err(error) => panic!("{error}"),
                }
            };
            until("the end", || ended(heartbeat.poll()));
            until("the end", || {
                ended(shutdown.poll().map(|request| assert!(request.is_none())))
            });
            until("the end", || ended(time.poll().map(drop)));
        });
    });
}

#[test]
fn a_crash_is_reported_once() {
    let hypervisor = FakeHypervisor::new(1);
    let _cpu = hypervisor.enter(0);
    let reporter = CrashReporter::<FakeHal>::new().unwrap();
    assert!(hypervisor.crashes().is_empty());
    assert!(reporter.report([7, 8, 9], format_args!("no {} left", "coffee")));
    assert!(!reporter.report([1, 1, 1], "again"));
    let [[a, b, c, address, length]] = hypervisor.crashes()[..] else {
        panic!("{:?}", hypervisor.crashes());
    };
    assert_eq!([a, b, c], [7, 8, 9]);
    let mut text = vec![0; length as usize];
    let ram = hypervisor.memory();
    ram.read_slice(&mut text, GuestAddress(address)).unwrap();
    assert_eq!(text, b"no coffee left");
}

#[test]
fn a_long_message_is_cut_and_a_missing_register_is_an_error() {
    let hypervisor = FakeHypervisor::new(1);
    let _cpu = hypervisor.enter(0);
    let reporter = CrashReporter::<FakeHal>::new().unwrap();
    // Ends amid a character at the end of the page.
    assert!(reporter.report([0; 3], format_args!("x{}", "é".repeat(5000))));
    let [.., length] = hypervisor.crashes()[0];
    assert_eq!(length, 4095);
    hypervisor.set_cpuid(cpuid::LEAF_FEATURES, |leaf| leaf.edx = 0);
    let error = CrashReporter::<FakeHal>::new().err();
    assert_eq!(error, Some(Error::Missing(Missing::CrashMsrs)));
}
