//! The integration services, against a guest made by hand.

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use host_vsp::ic::*;
use host_vsp::vmbus::VmBus;
use host_vsp::vsp::Vsp;
use support::{DEADLINE, Guest, GuestChannel};
use vmbus_proto::ic::{
    self as proto, FLAG_REQUEST, FLAG_RESPONSE, FLAG_TRANSACTION, Header, Message, Version,
    message_type, status,
};
use vmbus_proto::message::pipe_mode;
use vmbus_proto::packet::Outgoing;
use vmbus_proto::pipe::{self, PipeHeader};
use zerocopy::{FromBytes as _, IntoBytes as _};

/// A guest with one service's channel open.
struct Driver {
    guest: Guest,
    bus: VmBus,
    channel: GuestChannel,
}

impl Driver {
    fn new(vsp: Box<dyn Vsp>) -> Self {
        let (guest, partition) = Guest::new();
        let bus = VmBus::new(partition).unwrap();
        bus.offer(vsp).unwrap();
        let offers = guest.connect(&bus);
        assert_eq!(offers[0].pipe_mode(), Some(pipe_mode::MESSAGE));
        let channel = guest.open(&bus, 1, 16, 4);
        Self {
            guest,
            bus,
            channel,
        }
    }

    /// With versions agreed on: the highest ones.
    fn agreed(vsp: Box<dyn Vsp>) -> Self {
        let mut driver = Self::new(vsp);
        driver.choose(usize::MAX);
        driver
    }

    /// The next request.
    fn hear(&mut self) -> (Header, Vec<u8>) {
        let payload = self.guest.receive(&mut self.channel);
        let message = Message::parse(pipe::data(&payload).unwrap()).unwrap();
        let flags = message.header.flags;
        assert_eq!(flags, FLAG_TRANSACTION | FLAG_REQUEST);
        (message.header, message.body.to_vec())
    }

    fn say(&mut self, header: &Header, body: &[u8]) {
        let pipe = PipeHeader::data((20 + body.len()) as u32);
        let bytes = [pipe.bytes(), header.as_bytes(), body].concat();
        self.say_bytes(&bytes);
    }

    fn say_bytes(&mut self, payload: &[u8]) {
        let packet = Outgoing::in_band(0, payload, false);
        self.guest.send(&mut self.channel, &packet);
    }

    fn answer(&mut self, request: &Header, status: u32, body: &[u8]) {
        let header = Header {
            flags: FLAG_TRANSACTION | FLAG_RESPONSE,
            status: status.into(),
            size: (body.len() as u16).into(),
            ..*request
        };
        self.say(&header, body);
    }

    /// Takes the host's lists and chooses the `nth` version of the service, or its last.
    fn choose(&mut self, nth: usize) -> Version {
        let (header, body) = self.hear();
        assert_eq!(header.message_type, message_type::NEGOTIATE);
        let (counts, rest) = proto::NegotiateHeader::read_from_prefix(&body).unwrap();
        let versions = <[Version]>::ref_from_bytes(rest).unwrap();
        let (frameworks, services) = versions.split_at(counts.framework_count.get().into());
        assert_eq!(frameworks, [Version::new(1, 0), Version::new(3, 0)]);
        assert_eq!(services.len(), usize::from(counts.version_count.get()));
        let version = services[nth.min(services.len() - 1)];
        self.answer_choice(&header, 1, frameworks[1], version);
        version
    }

    fn answer_choice(&mut self, header: &Header, count: u16, framework: Version, version: Version) {
        let counts = proto::NegotiateHeader {
            framework_count: count.into(),
            version_count: count.into(),
            reserved: 0.into(),
        };
        let body = [counts.as_bytes(), framework.as_bytes(), version.as_bytes()].concat();
        self.answer(header, status::OK, &body);
    }
}

/// Waits for `condition`.
fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "{what} does not come");
        sleep(Duration::from_millis(2));
    }
}

/// Asks from another thread, plays the guest on this one.
fn asking<T: Send>(ask: impl FnOnce() -> T + Send, guest: impl FnOnce()) -> T {
    std::thread::scope(|scope| {
        let asker = scope.spawn(ask);
        guest();
        asker.join().unwrap()
    })
}

/// A clock that stands at known times.
struct Stopped(Mutex<Moment>);

impl Clock for Stopped {
    fn now(&self) -> Option<Moment> {
        Some(*self.0.lock().unwrap())
    }
}

fn stopped_clock() -> Arc<Stopped> {
    Arc::new(Stopped(Mutex::new(Moment {
        host: Duration::from_secs(1_000_000_000),
        reference: 77,
    })))
}

#[test]
fn hyper_vs_classes_and_instances() {
    let (vsps, _services) = Services::new(stopped_clock()).unwrap();
    let offers: Vec<_> = vsps
        .iter()
        .map(|vsp| {
            let offer = vsp.offer();
            assert_eq!(offer.pipe_mode(), Some(pipe_mode::MESSAGE));
            (offer.class.to_string(), offer.instance.to_string())
        })
        .collect();
    let known = [
        (
            "57164f39-9115-4e78-ab55-382f3bd5422d",
            "fd149e91-82e0-4a7d-afa6-2a4166cbd7c0",
        ),
        (
            "0e0b6031-5213-4934-818b-38d90ced39db",
            "b6650ff7-33bc-4840-8048-e0676786f393",
        ),
        (
            "9527e630-d0ae-497b-adce-e80ab0175caf",
            "2dd1ce17-079e-403c-b352-a1921ee207ee",
        ),
        (
            "a9a0f4e7-5a45-4d96-b827-8a841e8c03e6",
            "242ff919-07db-4180-9c2e-b86cb68c8c55",
        ),
        (
            "35fa2e29-ea23-4236-96ae-3a6ebacba440",
            "2450ee40-33bf-4fbd-892e-9fb06e9214cf",
        ),
    ];
    assert_eq!(
        offers,
        known.map(|(class, instance)| (class.to_owned(), instance.to_owned()))
    );
}

#[test]
fn shutdown_is_asked_for_and_answered() {
    let (vsp, shutdown) = Shutdown::new().unwrap();
    let ask = |kind| shutdown.request(kind, DEADLINE);
    assert_eq!(ask(ShutdownKind::PowerOff), Err(Error::NotReady));
    let mut driver = Driver::new(vsp);
    assert!(!shutdown.is_ready(), "no version is agreed on");
    assert_eq!(driver.choose(usize::MAX), Version::new(3, 2));
    until("the driver", || shutdown.is_ready());
    for (kind, flags, status, result) in [
        (ShutdownKind::Restart, 2, status::OK, Ok(())),
        (
            ShutdownKind::Hibernate,
            4,
            status::FAIL,
            Err(Error::Refused(status::FAIL)),
        ),
        (ShutdownKind::PowerOff, 0, status::OK, Ok(())),
    ] {
        let outcome = asking(
            || ask(kind),
            || {
                let (header, body) = driver.hear();
                assert_eq!(header.message_type, message_type::SHUTDOWN);
                assert_eq!(
                    (header.framework, header.version),
                    (Version::new(3, 0), Version::new(3, 2))
                );
                let (request, _) = proto::shutdown::Shutdown::read_from_prefix(&body).unwrap();
                assert_eq!(request.flags, flags);
                assert_eq!(request.reason, 0x8000_0000);
                driver.answer(&header, status, &body);
            },
        );
        assert_eq!(outcome, result);
    }
    driver.guest.close(&driver.bus, 1);
    assert!(!driver.guest.has_doorbell(1));
    assert!(!shutdown.is_ready());
    assert_eq!(ask(ShutdownKind::PowerOff), Err(Error::NotReady));
}

#[test]
fn a_guest_that_speaks_no_version_is_left_alone() {
    let (vsp, shutdown) = Shutdown::new().unwrap();
    let mut driver = Driver::new(vsp);
    let (header, _) = driver.hear();
    driver.answer_choice(&header, 0, Version::new(0, 0), Version::new(0, 0));
    // A later change of mind is not heard.
    driver.answer_choice(&header, 1, Version::new(3, 0), Version::new(3, 2));
    sleep(Duration::from_millis(50));
    assert!(!shutdown.is_ready());
    // But a new driver is.
    driver.guest.close(&driver.bus, 1);
    driver.channel = driver.guest.open(&driver.bus, 1, 16, 4);
    driver.choose(0);
    until("the driver", || shutdown.is_ready());
}

#[test]
fn answers_find_who_asked_or_nobody() {
    let (vsp, vss) = Vss::new().unwrap();
    let mut driver = Driver::agreed(vsp);
    until("the driver", || vss.is_ready());
    // One that gives up.
    let outcome = vss.freeze(Duration::from_millis(30));
    assert_eq!(outcome, Err(Error::NoAnswer));
    let (late, late_body) = driver.hear();
    assert_eq!(proto::vss::Message::parse(&late_body).unwrap().operation, 5);
    let outcome = asking(
        || vss.thaw(DEADLINE),
        || {
            // The second waits until the first is answered, which goes nowhere, and hears only its own.
            driver.answer(&late, status::FAIL, &late_body);
            let (header, body) = driver.hear();
            assert_eq!(proto::vss::Message::parse(&body).unwrap().operation, 6);
            driver.answer(&late, status::FAIL, &body);
            driver.answer(&header, status::OK, &body);
            driver.answer(&header, status::FAIL, &body);
        },
    );
    assert_eq!(outcome, Ok(()));
    // One whose driver goes away.
    let outcome = asking(
        || vss.freeze(DEADLINE),
        || {
            driver.hear();
            driver.guest.close(&driver.bus, 1);
            driver.channel = driver.guest.open(&driver.bus, 1, 16, 4);
        },
    );
    assert_eq!(outcome, Err(Error::Gone));
}

#[test]
fn too_many_askers_are_sent_away() {
    let (vsp, vss) = Vss::new().unwrap();
    let _driver = Driver::agreed(vsp);
    until("the driver", || vss.is_ready());
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let ask = || vss.freeze(Duration::from_secs(2));
        let askers: Vec<_> = (0..40).map(|_| scope.spawn(ask)).collect();
        askers.into_iter().map(|a| a.join().unwrap()).collect()
    });
    let busy = outcomes.iter().filter(|o| **o == Err(Error::Busy)).count();
    let late = outcomes.iter().filter(|o| **o == Err(Error::NoAnswer));
    // One with the guest, sixteen on the desk.
    assert_eq!((busy, late.count()), (23, 17));
}

#[test]
fn the_heart_beats() {
    let (vsp, heartbeat) = Heartbeat::new().unwrap();
    assert_eq!(heartbeat.status(), Life::NoContact);
    let mut driver = Driver::agreed(vsp);
    let mut last = None;
    for (application, life) in [
        (0, Life::Alive { healthy: false }),
        (1, Life::Alive { healthy: true }),
        (2, Life::Critical),
    ] {
        let (header, body) = driver.hear();
        let mut beat = proto::heartbeat::Heartbeat::parse(&body).unwrap();
        assert!(last.is_none_or(|last| beat.sequence.get() > last));
        last = Some(beat.sequence.get());
        let before = heartbeat.beats();
        // The wrong number is no beat.
        driver.answer(&header, status::OK, beat.as_bytes());
        beat.sequence = (beat.sequence.get() + 1).into();
        beat.application = application.into();
        driver.answer(&header, status::OK, beat.as_bytes());
        until("a beat", || heartbeat.beats() > before);
        assert_eq!(heartbeat.beats(), before + 1);
        assert_eq!(heartbeat.status(), life);
    }
    driver.guest.close(&driver.bus, 1);
    assert_eq!(heartbeat.status(), Life::NoContact);
}

#[test]
fn a_dead_guest_gets_one_beat_and_no_more() {
    let (vsp, heartbeat) = Heartbeat::new().unwrap();
    let mut driver = Driver::agreed(vsp);
    let (header, body) = driver.hear();
    sleep(Duration::from_millis(4500));
    assert!(
        driver
            .channel
            .to_guest
            .receive(&mut [0; 256])
            .unwrap()
            .is_none()
    );
    assert_eq!(heartbeat.beats(), 0);
    // Alive again, it gets the next at once.
    let mut beat = proto::heartbeat::Heartbeat::parse(&body).unwrap();
    beat.sequence = (beat.sequence.get() + 1).into();
    driver.answer(&header, status::OK, beat.as_bytes());
    driver.hear();
    assert_eq!(heartbeat.beats(), 1);
}

#[test]
fn the_time_comes_first_as_an_order_then_as_a_hint() {
    let clock = stopped_clock();
    let (vsp, time_sync) = TimeSync::new(clock.clone()).unwrap();
    let mut driver = Driver::agreed(vsp);
    let hear = |driver: &mut Driver| {
        let (header, body) = driver.hear();
        driver.answer(&header, status::OK, &body);
        assert_eq!(header.message_type, message_type::TIME_SYNC);
        let (time, _) = proto::timesync::ReferencedTime::read_from_prefix(&body).unwrap();
        (time.flags, time.host_time.get(), time.reference_time.get())
    };
    let then = 116_444_736_000_000_000 + 10_000_000_000_000_000;
    assert_eq!(hear(&mut driver), (proto::timesync::FLAG_SYNC, then, 77));
    let begin = Instant::now();
    *clock.0.lock().unwrap() = Moment {
        host: Duration::from_secs(1_000_000_001),
        reference: 78,
    };
    let next = then + 10_000_000;
    assert_eq!(hear(&mut driver), (proto::timesync::FLAG_SAMPLE, next, 78));
    assert!(begin.elapsed() < Duration::from_secs(7));
    time_sync.sync();
    assert_eq!(hear(&mut driver), (proto::timesync::FLAG_SYNC, next, 78));
    // A pause in place.
    driver.bus.pause().unwrap();
    driver.bus.resume();
    assert_eq!(hear(&mut driver), (proto::timesync::FLAG_SYNC, next, 78));
}

#[test]
fn an_old_guest_gets_the_time_in_the_old_way() {
    let (vsp, _time_sync) = TimeSync::new(stopped_clock()).unwrap();
    let mut driver = Driver::new(vsp);
    assert_eq!(driver.choose(1), Version::new(3, 0));
    let (header, body) = driver.hear();
    assert_eq!(header.version, Version::new(3, 0));
    let (time, _) = proto::timesync::Time::read_from_prefix(&body).unwrap();
    assert_eq!(
        (time.flags, time.host_time.get()),
        (1, 126_444_736_000_000_000)
    );
}

/// Answers requests for pairs as Linux's daemon does, until `ends` says that it is enough.
fn serve_pairs(driver: &mut Driver, pairs: &mut BTreeMap<(u8, String), String>, requests: usize) {
    use proto::kvp::{Exchange, Pair, operation};
    let text = |units: Vec<u16>| String::from_utf16(&units).unwrap();
    for _ in 0..requests {
        let (header, mut body) = driver.hear();
        assert_eq!(header.message_type, message_type::KVP);
        let request = Exchange::parse(&body).unwrap();
        let pool = request.pool();
        let mut found = None;
        let mut status = status::NO_MORE_ITEMS;
        match request.operation() {
            operation::SET => {
                let pair = request.pair();
                let (key, value) = (text(pair.key().collect()), text(pair.value().collect()));
                pairs.insert((pool, key), value);
                status = status::OK;
            }
            operation::GET => {
                let key = text(request.pair().key().collect());
                found = pairs
                    .get(&(pool, key.clone()))
                    .map(|value| (4, key, value.clone()));
            }
            operation::DELETE => {
                let key = text(request.deleted_key().collect());
                if pairs.remove(&(pool, key)).is_some() {
                    status = status::OK;
                }
            }
            operation::ENUMERATE => {
                let index = request.indexed_pair().0 as usize;
                let of_pool = pairs.iter().filter(|((p, _), _)| *p == pool);
                found = of_pool
                    .map(|((_, key), value)| (8, key.clone(), value.clone()))
                    .nth(index);
            }
            other => panic!("operation {other}"),
        }
        if let Some((at, key, value)) = found {
            let pair = Pair::new(&key, &value).unwrap();
            body[at..][..size_of::<Pair>()].copy_from_slice(pair.as_bytes());
            status = status::OK;
        }
        driver.answer(&header, status, &body);
    }
}

#[test]
fn pairs_are_written_read_listed_and_taken_away() {
    let (vsp, kvp) = Kvp::new().unwrap();
    let mut driver = Driver::agreed(vsp);
    until("the driver", || kvp.is_ready());
    let mut pairs = BTreeMap::new();
    pairs.insert((2, "OSName".to_owned()), "Grüße".to_owned());
    pairs.insert((2, "OSVersion".to_owned()), "7.3".to_owned());
    asking(
        || {
            kvp.set(Pool::External, "greeting", "hello", DEADLINE)
                .unwrap();
            let get = |key| kvp.get(Pool::External, key, DEADLINE).unwrap();
            assert_eq!(get("greeting").as_deref(), Some("hello"));
            assert_eq!(get("parting"), None);
            let all = kvp.enumerate(Pool::Auto, DEADLINE).unwrap();
            let all: Vec<_> = all.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            assert_eq!(all, [("OSName", "Grüße"), ("OSVersion", "7.3")]);
            assert!(kvp.delete(Pool::External, "greeting", DEADLINE).unwrap());
            assert!(!kvp.delete(Pool::External, "greeting", DEADLINE).unwrap());
            let long = "x".repeat(3000);
            let set = kvp.set(Pool::External, "long", &long, DEADLINE);
            assert_eq!(set, Err(Error::Unsuitable));
        },
        || serve_pairs(&mut driver, &mut pairs, 8),
    );
    assert_eq!(pairs.len(), 2);
}

#[test]
fn a_guest_with_endless_or_senseless_pairs() {
    let (vsp, kvp) = Kvp::new().unwrap();
    let mut driver = Driver::agreed(vsp);
    until("the driver", || kvp.is_ready());
    let all = asking(
        || kvp.enumerate(Pool::Guest, DEADLINE).unwrap(),
        || {
            for _ in 0..1024 {
                let (header, mut body) = driver.hear();
                // Sizes far beyond the fields, and half of a surrogate pair.
                body[8..20].copy_from_slice(&[1, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255]);
                body[20..22].copy_from_slice(&0xD800u16.to_le_bytes());
                driver.answer(&header, status::OK, &body);
            }
        },
    );
    assert_eq!(all.len(), 1024);
    assert_eq!(all[0], ("\u{FFFD}".to_owned(), String::new()));
    for body in [&[][..], &[0; 100], &[0; 2580]] {
        let outcome = asking(
            || kvp.get(Pool::Guest, "key", DEADLINE),
            || {
                let (header, _) = driver.hear();
                driver.answer(&header, status::OK, body);
            },
        );
        assert_eq!(outcome, Err(Error::Malformed));
    }
}

#[test]
fn what_breaks_the_framework_stops_the_channel_only() {
    let mut long = PipeHeader::data(20).bytes().to_vec();
    long.extend([0; 10]);
    let mut wrong_size = PipeHeader::data(20).bytes().to_vec();
    wrong_size.extend([
        0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 255, 255, 0, 0, 0, 0, 0, 5, 0, 0,
    ]);
    for bytes in [&[][..], &[1, 0, 0, 0], &long, &wrong_size] {
        let (vsp, shutdown) = Shutdown::new().unwrap();
        let mut driver = Driver::agreed(vsp);
        until("the driver", || shutdown.is_ready());
        driver.say_bytes(bytes);
        until("the end", || !shutdown.is_ready());
        driver.guest.close(&driver.bus, 1);
        driver.channel = driver.guest.open(&driver.bus, 1, 16, 4);
        driver.choose(0);
        until("the driver", || shutdown.is_ready());
    }
    // Versions that nobody offered.
    let (vsp, shutdown) = Shutdown::new().unwrap();
    let mut driver = Driver::new(vsp);
    let (header, _) = driver.hear();
    driver.answer_choice(&header, 1, Version::new(3, 0), Version::new(9, 9));
    sleep(Duration::from_millis(50));
    assert!(!shutdown.is_ready());
}

#[test]
fn answers_to_nothing_do_no_harm() {
    let (vsp, shutdown) = Shutdown::new().unwrap();
    let mut driver = Driver::agreed(vsp);
    until("the driver", || shutdown.is_ready());
    let header = |kind: u16, flags| Header {
        framework: Version::new(3, 0),
        message_type: kind.into(),
        version: Version::new(3, 2),
        size: 0.into(),
        status: 0.into(),
        transaction_id: 1,
        flags,
        reserved: [0; 2],
    };
    for round in 0..5000u16 {
        let kind = round % 9;
        driver.say(&header(kind, (round / 9) as u8), &[0; 64]);
    }
    let outcome = asking(
        || shutdown.request(ShutdownKind::PowerOff, DEADLINE),
        || {
            let (header, body) = driver.hear();
            driver.answer(&header, status::OK, &body);
        },
    );
    assert_eq!(outcome, Ok(()));
}

#[test]
fn a_paused_guest_is_asked_again_elsewhere() {
    let clock = stopped_clock();
    let (vsps, services) = Services::new(clock.clone()).unwrap();
    let (guest, partition) = Guest::new();
    let bus = VmBus::new(partition.clone()).unwrap();
    for vsp in vsps {
        bus.offer(vsp).unwrap();
    }
    guest.connect(&bus);
    // The shutdown service, with a request that the guest has not answered.
    let channel = guest.open(&bus, 2, 32, 4);
    let mut driver = Driver {
        guest,
        bus,
        channel,
    };
    driver.choose(usize::MAX);
    let shutdown = services.shutdown;
    until("the driver", || shutdown.is_ready());
    let outcome = shutdown.request(ShutdownKind::PowerOff, Duration::from_millis(20));
    assert_eq!(outcome, Err(Error::NoAnswer));
    let saved = driver.bus.pause().unwrap();
    assert!(!shutdown.is_ready());
    let bytes = postcard::to_stdvec(&saved).unwrap();
    drop(driver.bus);

    let (vsps, services) = Services::new(clock).unwrap();
    let saved = postcard::from_bytes(&bytes).unwrap();
    driver.bus = VmBus::restore(partition, vsps, saved).unwrap();
    driver.bus.resume();
    let shutdown = services.shutdown;
    until("the driver", || shutdown.is_ready());
    let (old, old_body) = driver.hear();
    let outcome = asking(
        || shutdown.request(ShutdownKind::Restart, DEADLINE),
        || {
            driver.answer(&old, status::FAIL, &old_body);
            let (header, body) = driver.hear();
            driver.answer(&header, status::OK, &body);
        },
    );
    assert_eq!(outcome, Ok(()));
}
