//! A control plane that lies: errors and counts, never a panic or a hang.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use guest_vsc::bus::{BusMemory, Options, VmBus};
use guest_vsc::channel::{Channel, OpenOptions};
use guest_vsc::error::{Error, Waited};
use inproc::{FakeHal, FakeHypervisor, ScriptedHost, VECTOR, seeds};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use vmbus_proto::guid::Guid;
use vmbus_proto::message::{
    ChannelId, Encoded, GpadlCreated, GpadlId, InitiateContact, Message, OfferChannel, OpenResult,
    VersionResponse,
};
use vmbus_proto::version::Version;

type Memory = BusMemory<FakeHal, 2, 4>;

const CLASS: Guid = Guid::new(7, 7, 7, 7, 7);

fn offer(relid: u32) -> Encoded {
    let mut offer = OfferChannel {
        class: CLASS,
        instance: Guid::new(relid, 0, 0, 0, 0),
        ..OfferChannel::default()
    };
    offer.relid = relid.into();
    offer.connection_id = relid.into();
    Message::OfferChannel(offer).encode()
}

fn rescind(relid: u32) -> Encoded {
    Message::RescindChannelOffer(ChannelId::new(relid)).encode()
}

fn accepted() -> Encoded {
    Message::VersionResponse(VersionResponse {
        supported: 1,
        connection_state: 0,
        padding: 0.into(),
        message_connection_id: 1.into(),
    })
    .encode()
}

/// What a well-behaved host without channels of its own would answer.
fn proper(message: &Message<'_>) -> Vec<Encoded> {
    match message {
        Message::InitiateContact(_) => vec![accepted()],
        Message::RequestOffers => vec![offer(1), Message::AllOffersDelivered.encode()],
        Message::GpadlHeader(header, _) => {
            let created = GpadlCreated {
                relid: header.relid,
                gpadl: header.gpadl,
                status: 0.into(),
            };
            vec![Message::GpadlCreated(created).encode()]
        }
        Message::GpadlTeardown(teardown) => {
            let gpadl = teardown.gpadl;
            vec![Message::GpadlTorndown(GpadlId { gpadl }).encode()]
        }
        Message::OpenChannel(open) => {
            let result = OpenResult {
                relid: open.relid,
                open_id: open.open_id,
                status: 0.into(),
            };
            vec![Message::OpenChannelResult(result).encode()]
        }
        Message::Unload => vec![Message::UnloadResponse.encode()],
        _ => Vec::new(),
    }
}

fn soon() -> Options {
    Options {
        timeout: Duration::from_millis(100),
        ..Options::default()
    }
}

/// Small rings, so that a GPADL is one message.
fn small() -> OpenOptions {
    OpenOptions {
        to_host: 4096,
        to_guest: 4096,
        ..OpenOptions::default()
    }
}

/// Connects a guest to a host that follows `script`.
fn story(
    script: impl FnMut(Message<'_>) -> Vec<Encoded> + Send + 'static,
    tell: impl FnOnce(&FakeHypervisor, &VmBus<'_, FakeHal>),
) {
    let hypervisor = FakeHypervisor::new(1);
    ScriptedHost::serve(&hypervisor, script);
    let _cpu = hypervisor.enter(0);
    let memory = Memory::new();
    let bus = VmBus::new(&memory, VECTOR).unwrap();
    tell(&hypervisor, &bus);
}

#[test]
fn bad_and_repeated_offers_are_dropped_and_counted() {
    let script = |message: Message<'_>| match message {
        Message::RequestOffers => {
            let relids = [0, 2048, u32::MAX, 1, 1, 1, 2, 3, 4, 5, 6, 7];
            let mut answers: Vec<_> = relids.into_iter().map(offer).collect();
            answers.push(Message::AllOffersDelivered.encode());
            answers
        }
        message => proper(&message),
    };
    story(script, |_, bus| {
        bus.connect(&soon()).unwrap();
        let mut relids: Vec<_> = bus.offers().map(|offer| offer.relid()).collect();
        relids.sort_unstable();
        assert_eq!(relids, [1, 2, 3, 4]);
        let stats = bus.stats();
        assert_eq!((stats.bad_offers, stats.dropped_offers), (5, 3));
    });
}

#[test]
fn messages_that_are_none_are_counted() {
    story(
        |message| proper(&message),
        |hypervisor, bus| {
            // Before contact, offers and answers mean nothing.
            let partition = hypervisor.partition();
            let send = |message: &[u8]| partition.messages.post(0, message);
            for early in [offer(3), accepted(), rescind(3)] {
                send(&early);
            }
            bus.poll();
            assert_eq!(bus.stats().unexpected, 3);
            bus.connect(&soon()).unwrap();
            let good = Message::AllOffersDelivered.encode();
            // Too short, unknown, a guest's own, and one of another type.
            let contact = InitiateContact::new(Version::V5_3, 0);
            send(&[]);
            send(&good[..4]);
            send(&offer(3)[..100]);
            send(&[99, 0, 0, 0, 0, 0, 0, 0]);
            send(&Message::InitiateContact(contact).encode());
            hypervisor.send_raw(0, 0x8000_0010, &good);
            hypervisor.send_raw(0, 1, &[1; 255]);
            bus.poll();
            assert_eq!(bus.stats().bad_messages, 7);
            assert_eq!(bus.offers().count(), 1);
            // Answers that nobody waits for.
            send(&good);
            send(&Message::UnloadResponse.encode());
            send(&rescind(77));
            send(&rescind(0));
            bus.poll();
            assert_eq!(bus.stats().unexpected, 3 + 4);
            hypervisor.spurious_interrupt(0);
            assert_eq!(bus.handle_interrupt(), Default::default());
            bus.unload().unwrap();
        },
    );
}

#[test]
fn events_without_a_channel_are_counted() {
    story(
        |message| proper(&message),
        |hypervisor, bus| {
            bus.connect(&soon()).unwrap();
            let interrupts = hypervisor.partition().interrupts;
            for flag in [0, 1, 2, 63, 64, 2047] {
                interrupts.signal(0, flag);
            }
            let handled = bus.handle_interrupt();
            // Only up to the highest relid offered does anybody look, word by word.
            assert_eq!(handled.events, 4);
            assert_eq!(bus.stats().stray_events, 3);
        },
    );
}

#[test]
fn each_answer_has_to_have_its_own_key() {
    // The right answers come last, after wrong ones of the same kind.
    let script = |message: Message<'_>| {
        let wrong = match &message {
            Message::GpadlHeader(header, _) => [
                (header.relid.get() + 1, header.gpadl.get()),
                (header.relid.get(), header.gpadl.get() + 1),
            ]
            .map(|(relid, gpadl)| {
                Message::GpadlCreated(GpadlCreated {
                    relid: relid.into(),
                    gpadl: gpadl.into(),
                    status: 0xC000_0001.into(),
                })
                .encode()
            })
            .to_vec(),
            Message::OpenChannel(open) => [
                (open.relid.get() + 1, open.open_id.get()),
                (open.relid.get(), open.open_id.get() + 1),
            ]
            .map(|(relid, open_id)| {
                Message::OpenChannelResult(OpenResult {
                    relid: relid.into(),
                    open_id: open_id.into(),
                    status: 0xC000_0001.into(),
                })
                .encode()
            })
            .to_vec(),
            _ => Vec::new(),
        };
        [wrong, proper(&message)].concat()
    };
    story(script, |hypervisor, bus| {
        let before = hypervisor.counts().pages;
        bus.connect(&soon()).unwrap();
        let offer = bus.find(CLASS).unwrap();
        let channel = Channel::open(bus, &offer, &small()).unwrap();
        assert_eq!(bus.stats().unexpected, 4);
        assert_eq!(
            Channel::open(bus, &offer, &small()).err(),
            Some(Error::OfferInUse)
        );
        drop(channel);
        bus.unload().unwrap();
        assert_eq!(hypervisor.counts().pages, before);
    });
}

/// Opens a channel at a host that gives `wrong` answers to one kind of message.
fn open_with(
    mut wrong: impl FnMut(&Message<'_>) -> Option<Vec<Encoded>> + Send + 'static,
) -> (Option<Error>, usize) {
    let mut outcome = (None, 0);
    let script = move |message: Message<'_>| wrong(&message).unwrap_or_else(|| proper(&message));
    story(script, |hypervisor, bus| {
        bus.connect(&soon()).unwrap();
        let before = hypervisor.counts().pages;
        let offer = bus.find(CLASS).unwrap();
        let result = Channel::open(bus, &offer, &small()).err();
        outcome = (result, hypervisor.counts().pages - before);
        // Other exchanges go on.
        assert!(!bus.offers().any(|offer| offer.is_in_use()));
        bus.unload().unwrap();
    });
    outcome
}

#[test]
fn a_refused_or_unanswered_open() {
    // Two rings of two pages each are lost where the host does not say that it lets go.
    let gpadl = |status: u32| {
        open_with(move |message| match message {
            Message::GpadlHeader(header, _) => {
                let created = GpadlCreated {
                    relid: header.relid,
                    gpadl: header.gpadl,
                    status: status.into(),
                };
                Some(vec![Message::GpadlCreated(created).encode()])
            }
            _ => None,
        })
    };
    let refused = Error::Refused(Waited::GpadlCreated, 5);
    assert_eq!(gpadl(5), (Some(refused), 0));
    assert_eq!(gpadl(0), (None, 0));

    let silent =
        |what: fn(&Message<'_>) -> bool| open_with(move |message| what(message).then(Vec::new));
    assert_eq!(
        silent(|m| matches!(m, Message::GpadlHeader(..))),
        (Some(Error::Timeout(Waited::GpadlCreated)), 4)
    );
    assert_eq!(
        silent(|m| matches!(m, Message::OpenChannel(_))),
        (Some(Error::Timeout(Waited::Open)), 0)
    );
    let mute = |m: &Message<'_>| matches!(m, Message::OpenChannel(_) | Message::GpadlTeardown(_));
    assert_eq!(silent(mute), (Some(Error::Timeout(Waited::Open)), 4));

    let no = |message: &Message<'_>| match message {
        Message::OpenChannel(open) => {
            let result = OpenResult {
                relid: open.relid,
                open_id: open.open_id,
                status: 9.into(),
            };
            Some(vec![Message::OpenChannelResult(result).encode()])
        }
        _ => None,
    };
    assert_eq!(open_with(no), (Some(Error::Refused(Waited::Open, 9)), 0));
}

#[test]
fn a_rescind_ends_every_wait_and_the_relid_is_released() {
    // Rescinded instead of each answer in turn, and right after each.
    for silent in [false, true] {
        for step in 0..4 {
            let released = Arc::new(AtomicU32::new(0));
            let count = released.clone();
            let script = move |message: Message<'_>| {
                let at = match &message {
                    Message::GpadlHeader(..) => 0,
                    Message::OpenChannel(_) => 1,
                    Message::CloseChannel(_) => 2,
                    Message::GpadlTeardown(_) => 3,
                    Message::RelidReleased(id) => {
                        assert_eq!(id.relid.get(), 1);
                        count.fetch_add(1, Ordering::Relaxed);
                        return Vec::new();
                    }
                    _ => return proper(&message),
                };
                match (at == step, silent) {
                    (false, _) => proper(&message),
                    (true, true) => vec![rescind(1)],
                    (true, false) => [vec![rescind(1)], proper(&message)].concat(),
                }
            };
            story(script, |_, bus| {
                bus.connect(&soon()).unwrap();
                let offer = bus.find(CLASS).unwrap();
                let channel = Channel::open(bus, &offer, &small());
                drop(channel);
                bus.poll();
                assert_eq!(bus.offers().count(), 0, "step {step}, {silent}");
                assert_eq!(
                    Channel::open(bus, &offer, &small()).err(),
                    Some(Error::NoOffer)
                );
                bus.unload().unwrap();
            });
            assert_eq!(released.load(Ordering::Relaxed), 1, "step {step}, {silent}");
        }
    }
}

#[test]
fn a_relid_is_released_once_whoever_looks() {
    let released = Arc::new(Mutex::new(Vec::new()));
    let seen = released.clone();
    let script = move |message: Message<'_>| match message {
        Message::RequestOffers => {
            vec![offer(1), offer(2), Message::AllOffersDelivered.encode()]
        }
        Message::RelidReleased(id) => {
            seen.lock().unwrap().push(id.relid.get());
            // Time for another processor to look, while this one is at it.
            std::thread::sleep(Duration::from_millis(200));
            Vec::new()
        }
        message => proper(&message),
    };
    let hypervisor = FakeHypervisor::new(2);
    ScriptedHost::serve(&hypervisor, script);
    let messages = hypervisor.partition().messages;
    let _cpu = hypervisor.enter(0);
    let memory = Memory::new();
    let bus = VmBus::new(&memory, VECTOR).unwrap();
    bus.connect(&soon()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _cpu = hypervisor.enter(1);
            bus.start_cpu().unwrap();
            let end = Instant::now() + Duration::from_secs(10);
            while released.lock().unwrap().is_empty() {
                assert!(Instant::now() < end, "no relid was released");
                std::thread::yield_now();
            }
            messages.post(1, &rescind(2));
            bus.poll();
            bus.stop_cpu();
        });
        messages.post(0, &rescind(1));
        bus.poll();
    });
    bus.poll();
    assert_eq!(*released.lock().unwrap(), [1, 2]);
}

#[test]
fn a_thread_may_be_moved_while_it_takes_messages() {
    let hypervisor = FakeHypervisor::new(2);
    ScriptedHost::serve(&hypervisor, |message| proper(&message));
    let messages = hypervisor.partition().messages;
    let cpu = hypervisor.enter(0);
    let memory = Memory::new();
    let bus = VmBus::new(&memory, VECTOR).unwrap();
    bus.connect(&soon()).unwrap();
    // One in the slot, one that waits for its end of message.
    messages.post(0, &offer(2));
    messages.post(0, &offer(3));
    assert_eq!(messages.backlog(), 1);
    // Whichever processor the thread finds itself on, the slot and the register have to be that
    // one's.
    cpu.migrate(1);
    bus.handle_interrupt();
    cpu.migrate(0);
    bus.handle_interrupt();
    bus.handle_interrupt();
    assert_eq!((bus.offers().count(), messages.backlog()), (3, 0));
}

#[test]
fn a_forgotten_channel_does_not_keep_the_connection() {
    let unloads = Arc::new(AtomicU32::new(0));
    let count = unloads.clone();
    let script = move |message: Message<'_>| {
        if matches!(message, Message::Unload) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        proper(&message)
    };
    story(script, |_, bus| {
        bus.connect(&soon()).unwrap();
        let offer = bus.find(CLASS).unwrap();
        std::mem::forget(Channel::open(bus, &offer, &small()).unwrap());
        assert_eq!(bus.unload(), Err(Error::ChannelsOpen));
    });
    assert_eq!(unloads.load(Ordering::Relaxed), 1);
}

#[test]
fn a_storm_of_messages_starves_nobody() {
    story(
        |message| proper(&message),
        |hypervisor, bus| {
            // The last answer comes after all of them, however busy the machine is.
            bus.connect(&Options::default()).unwrap();
            let partition = hypervisor.partition();
            for _ in 0..10_000 {
                partition.messages.post(0, &offer(1));
            }
            // One call takes a bounded number of them.
            let handled = bus.handle_interrupt();
            assert!(handled.messages > 0 && handled.messages < 1000);
            bus.unload().unwrap();
        },
    );
}

#[test]
fn random_messages_at_random_moments() {
    let seeds = seeds(100, 20_000);
    let hosts = seeds.end - seeds.start;
    let (mut connected, mut counted) = (0u64, 0u64);
    // Each of them meets the guest four times.
    for seed in seeds {
        let random = Arc::new(Mutex::new(SmallRng::seed_from_u64(seed)));
        let script = move |message: Message<'_>| {
            let random = &mut *random.lock().unwrap();
            let mut answers = proper(&message);
            if random.random_bool(0.1) {
                answers.clear();
            }
            for _ in 0..random.random_range(0..4) {
                answers.insert(random.random_range(0..=answers.len()), noise(random));
            }
            answers
        };
        story(script, |hypervisor, bus| {
            let options = Options {
                timeout: Duration::from_millis(5),
                ..Options::default()
            };
            for _ in 0..4 {
                if bus.connect(&options).is_err() {
                    continue;
                }
                connected += 1;
                for offer in bus.offers().collect::<Vec<_>>() {
                    if let Ok(channel) = Channel::open(bus, &offer, &small()) {
                        let _ = channel.receive(&mut [0; 64]);
                        let _ = channel.set_cpu(0);
                    }
                }
                bus.poll();
                let _ = bus.unload();
            }
            assert!(hypervisor.counts().pages < 400);
            let stats = bus.stats();
            let refused = [stats.unexpected, stats.bad_offers, stats.dropped_offers];
            counted += refused.into_iter().map(u64::from).sum::<u64>();
        });
    }
    println!("{hosts} hosts, {connected} connections, {counted} messages refused and counted");
    assert!(hosts < 100 || connected > hosts && counted > hosts);
}

/// A message that a host might send, about anything.
fn noise(random: &mut SmallRng) -> Encoded {
    let relid = random.random_range(0..6u32).into();
    let number = random.random_range(0..4u32);
    let gpadl = (0x000E_1E10 + number).into();
    let status = random.random_range(0..2u32).into();
    match random.random_range(0..9) {
        0 => offer(random.random_range(0..8)),
        1 | 2 => rescind(random.random_range(0..6)),
        3 => Message::AllOffersDelivered.encode(),
        4 => Message::UnloadResponse.encode(),
        5 => accepted(),
        6 => Message::GpadlTorndown(GpadlId { gpadl }).encode(),
        7 => Message::GpadlCreated(GpadlCreated {
            relid,
            gpadl,
            status,
        })
        .encode(),
        _ => Message::OpenChannelResult(OpenResult {
            relid,
            open_id: number.into(),
            status,
        })
        .encode(),
    }
}
