//! Keyboards, consoles and integration services that lie: whatever they send, the guest's drivers
//! neither panic nor hang, count what means nothing, and get their memory back.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use guest_vsc::balloon::{self, Balloon};
use guest_vsc::bus::{BusMemory, Offer, Options, VmBus};
use guest_vsc::channel::OpenOptions;
use guest_vsc::console::{self, Console};
use guest_vsc::error::{Error, Waited};
use guest_vsc::ic::{self, Heartbeat, Shutdown, TimeSync};
use guest_vsc::keyboard::{self, Keyboard};
use host_vsp::vmbus::channel::{Channel, ChannelError};
use host_vsp::vsp::{StateError, Vsp, plain_offer};
use inproc::{FakeHal, Machine, VECTOR};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use vmbus_proto::balloon::{BalloonRequest, FlagsResponse, HotAddResponse};
use vmbus_proto::guid::Guid;
use vmbus_proto::ic::{FLAG_REQUEST, FLAG_TRANSACTION, Header, Version, message_type};
use vmbus_proto::keyboard::{Keystroke, ProtocolResponse};
use vmbus_proto::message::OfferChannel;
use vmbus_proto::packet::Outgoing;
use vmbus_proto::pipe::PipeHeader;
use zerocopy::IntoBytes as _;

type Bus<'m> = VmBus<'m, FakeHal>;

/// A packet that a device sends.
#[derive(Clone, Debug)]
enum Sent {
    InBand(u64, Vec<u8>),
    Completion(u64, Vec<u8>),
    /// About page sets that nobody made.
    TransferPages(Vec<u8>),
}

/// What a device does: at once, and then whenever the guest sends something.
#[derive(Clone, Debug)]
struct Case {
    at_once: Vec<Sent>,
    then: Vec<Sent>,
    /// It is taken away in the middle of it.
    rescinded: bool,
}

/// A device that follows a script.
struct Liar {
    class: Guid,
    script: Arc<Mutex<VecDeque<Sent>>>,
    at_once: Arc<Mutex<usize>>,
}

impl Liar {
    fn send_next(&self, channel: &mut Channel) -> bool {
        let Some(sent) = self.script.lock().unwrap().pop_front() else {
            return false;
        };
        // A full ring swallows what does not fit: this device has nothing to lose.
        let _ = match &sent {
            Sent::InBand(id, bytes) => channel.send(&Outgoing::in_band(*id, bytes, false)),
            Sent::Completion(id, bytes) => channel.send(&Outgoing::completion(*id, bytes)),
            Sent::TransferPages(bytes) => {
                let none = [0; 8];
                channel.send(&Outgoing::transfer_pages(0, &none, bytes))
            }
        };
        true
    }
}

impl Vsp for Liar {
    fn offer(&self) -> OfferChannel {
        plain_offer(self.class, Guid::new(6, 6, 6, 6, 6))
    }

    fn opened(&mut self) {}

    fn service(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        let mut at_once = std::mem::take(&mut *self.at_once.lock().unwrap());
        while at_once > 0 && self.send_next(channel) {
            at_once -= 1;
        }
        let mut buffer = [0; 8192];
        while channel.receive(&mut buffer)?.is_some() {
            self.send_next(channel);
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

/// Runs many cases of a device of `class` that sends `packets`, and at once the `last` ones, where the
/// guest waits for them when it opens the device; `use_it` opens the driver and uses
/// it until it fails, or often enough.
fn lies(
    class: Guid,
    packets: impl Strategy<Value = Sent> + Clone,
    last: &[Sent],
    use_it: impl Fn(&Bus<'_>, &Offer, &mut dyn FnMut()) -> Result<(), Error>,
) {
    let machine = Machine::new(1);
    let script = Arc::new(Mutex::new(VecDeque::new()));
    let at_once = Arc::new(Mutex::new(0));
    let offer = || {
        let liar = Liar {
            class,
            script: script.clone(),
            at_once: at_once.clone(),
        };
        machine.host.offer(Box::new(liar)).unwrap()
    };
    let _cpu = machine.hypervisor.enter(0);
    let memory = BusMemory::<FakeHal, 1, 4>::new();
    let bus = VmBus::new(&memory, VECTOR).unwrap();
    bus.connect(&Options::default()).unwrap();
    let pages = machine.hypervisor.counts().pages;
    let cases = (
        vec(packets.clone(), 0..12),
        vec(packets, 0..12),
        prop::bool::weighted(0.1),
    );
    let cases = cases.prop_map(|(mut at_once, then, rescinded)| {
        at_once.extend_from_slice(last);
        Case {
            at_once,
            then,
            rescinded,
        }
    });
    let device = std::cell::RefCell::new(offer());
    let mut ends = [0u32; 4];
    let config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    let counts = std::cell::RefCell::new(&mut ends);
    TestRunner::new(config)
        .run(&cases, |case| {
            *at_once.lock().unwrap() = case.at_once.len();
            *script.lock().unwrap() = case.at_once.iter().chain(&case.then).cloned().collect();
            let offered = loop {
                bus.poll();
                if let Some(offered) = bus.find(class) {
                    break offered;
                }
                std::thread::yield_now();
            };
            let mut rescinded = case.rescinded;
            let outcome = use_it(&bus, &offered, &mut || {
                if std::mem::take(&mut rescinded) {
                    machine.host.rescind(*device.borrow());
                }
            });
            let kind = match outcome {
                Ok(()) => 0,
                Err(Error::Timeout(_) | Error::Refused(..) | Error::Protocol(_)) => 1,
                Err(Error::Corrupt(_)) => 2,
                Err(Error::Rescinded) => 3,
                Err(error) => panic!("{error:?}"),
            };
            counts.borrow_mut()[kind] += 1;
            if case.rescinded && !rescinded {
                *device.borrow_mut() = offer();
            }
            prop_assert_eq!(machine.hypervisor.counts().pages, pages, "pages were lost");
            Ok(())
        })
        .unwrap();
    let [fine, given_up, corrupt, rescinded] = ends;
    let bad = bus.stats().bad_packets;
    println!(
        "{fine} used to the end, {given_up} given up, {corrupt} corrupt, {rescinded} rescinded; {bad} bad packets counted"
    );
    assert!(bad > 0 && rescinded > 0, "the device told no lies");
}

/// Bytes without meaning.
fn noise() -> impl Strategy<Value = Vec<u8>> + Clone {
    prop_oneof![9 => vec(any::<u8>(), 0..64), 1 => vec(any::<u8>(), 0..6000)].boxed()
}

/// Anything, more or less framed.
fn packets(good: impl Strategy<Value = Vec<u8>> + 'static) -> BoxedStrategy<Sent> {
    let good = good.boxed();
    let bent = (good.clone(), any::<prop::sample::Index>(), any::<u8>()).prop_map(
        |(mut bytes, at, flip)| {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] ^= flip;
            }
            bytes
        },
    );
    let cut = (good.clone(), any::<prop::sample::Index>()).prop_map(|(mut bytes, at)| {
        bytes.truncate(at.index(bytes.len() + 1));
        bytes
    });
    prop_oneof![
        6 => good.prop_map(|bytes| Sent::InBand(0, bytes)),
        3 => bent.prop_map(|bytes| Sent::InBand(0, bytes)),
        2 => cut.prop_map(|bytes| Sent::InBand(0, bytes)),
        1 => (any::<u64>(), noise()).prop_map(|(id, bytes)| Sent::InBand(id, bytes)),
        1 => (0..4u64, noise()).prop_map(|(id, bytes)| Sent::Completion(id, bytes)),
        1 => noise().prop_map(Sent::TransferPages),
    ]
    .boxed()
}

fn piped(data: Vec<u8>) -> Vec<u8> {
    [PipeHeader::data(data.len() as u32).bytes(), &data].concat()
}

/// Messages of a service of `kind` whose requests have a body of `body` bytes.
fn service(kind: u16, versions: &'static [Version], body: usize) -> BoxedStrategy<Sent> {
    let message = |kind: u16, id: u8, version: Version, body: Vec<u8>| {
        let header = Header {
            framework: Version::new(3, 0),
            message_type: kind.into(),
            version,
            size: (body.len() as u16).into(),
            status: 0.into(),
            transaction_id: id,
            flags: FLAG_TRANSACTION | FLAG_REQUEST,
            reserved: [0; 2],
        };
        piped([header.as_bytes(), &body].concat())
    };
    let negotiate = (any::<u8>(), 0..=versions.len()).prop_map(move |(id, count)| {
        let versions = &versions[..count];
        let counts = [2u16, count as u16, 0, 0];
        let frameworks = [Version::new(1, 0), Version::new(3, 0)];
        let body = [
            counts.as_bytes(),
            frameworks.as_bytes(),
            versions.as_bytes(),
        ]
        .concat();
        message(message_type::NEGOTIATE, id, Version::new(0, 0), body)
    });
    let request = (
        any::<u8>(),
        prop::sample::select(versions),
        vec(any::<u8>(), body..=body + 8),
    )
        .prop_map(move |(id, version, body)| message(kind, id, version, body));
    packets(prop_oneof![2 => negotiate, 5 => request])
}

#[test]
fn a_keyboard_that_lies() {
    let response = any::<bool>().prop_map(|yes| ProtocolResponse::new(yes).as_bytes().to_vec());
    let yes = Just(ProtocolResponse::new(true).as_bytes().to_vec());
    let stroke = (any::<u16>(), 0..16u32)
        .prop_map(|(code, flags)| Keystroke::new(code, flags).as_bytes().to_vec());
    let messages = prop_oneof![3 => yes, 1 => response, 4 => stroke];
    let last = Sent::InBand(0, ProtocolResponse::new(true).as_bytes().to_vec());
    lies(
        keyboard::CLASS,
        packets(messages),
        &[last],
        |bus, offer, midway| {
            let keyboard = Keyboard::open(bus, offer, &OpenOptions::default())?;
            for turn in 0..40 {
                if turn == 20 {
                    midway();
                }
                bus.poll();
                while let Some(event) = keyboard.try_read()? {
                    assert!(event.scan_code().count() <= 2);
                }
                keyboard.set_lights(keyboard::Lights::default())?;
            }
            Ok(())
        },
    );
}

#[test]
fn a_console_that_lies() {
    let data = vec(any::<u8>(), 0..200).prop_map(piped);
    lies(console::CLASS, packets(data), &[], |bus, offer, midway| {
        let console = Console::open(bus, offer, &OpenOptions::default())?;
        let mut buffer = [0; 64];
        for turn in 0..40 {
            if turn == 20 {
                midway();
            }
            bus.poll();
            while console.try_read(&mut buffer)? != 0 {}
            console.try_write(b"what?")?;
        }
        Ok(())
    });
}

#[test]
fn a_heartbeat_that_lies() {
    let versions = vmbus_proto::ic::heartbeat::VERSIONS;
    let packets = service(message_type::HEARTBEAT, versions, 16);
    lies(ic::heartbeat::CLASS, packets, &[], |bus, offer, midway| {
        let heartbeat = Heartbeat::open(bus, offer, &ic::open_options())?;
        for turn in 0..40 {
            if turn == 20 {
                midway();
            }
            bus.poll();
            heartbeat.poll()?;
        }
        Ok(())
    });
}

#[test]
fn a_shutdown_that_lies() {
    let versions = vmbus_proto::ic::shutdown::VERSIONS;
    let packets = service(message_type::SHUTDOWN, versions, 2060);
    lies(ic::shutdown::CLASS, packets, &[], |bus, offer, midway| {
        let shutdown = Shutdown::open(bus, offer, &ic::open_options())?;
        for turn in 0..40 {
            if turn == 20 {
                midway();
            }
            bus.poll();
            if let Some(request) = shutdown.poll()? {
                // Nothing comes while the host waits for an answer.
                assert!(shutdown.poll()?.is_none());
                if turn % 2 == 0 {
                    request.accept()?;
                }
            }
        }
        Ok(())
    });
}

#[test]
fn a_clock_that_lies() {
    let versions = vmbus_proto::ic::timesync::VERSIONS;
    let packets = service(message_type::TIME_SYNC, versions, 24);
    lies(ic::timesync::CLASS, packets, &[], |bus, offer, midway| {
        let time = TimeSync::open(bus, offer, &ic::open_options())?;
        for turn in 0..40 {
            if turn == 20 {
                midway();
            }
            bus.poll();
            if let Some(heard) = time.poll()? {
                // Whatever it says, there is a time.
                let _ = (heard.at(0), heard.at(u64::MAX), heard.at(bus.clock().now()));
            }
        }
        Ok(())
    });
}

#[test]
fn a_balloon_that_lies() {
    let messages = (0..6u32, 0..5).prop_map(|(id, kind)| match kind {
        0 => FlagsResponse::version(id, 1).as_bytes().to_vec(),
        1 => FlagsResponse::capabilities(id, 1).as_bytes().to_vec(),
        // What only a guest says.
        2 => HotAddResponse::nothing(id).as_bytes().to_vec(),
        _ => BalloonRequest::new(id, u32::MAX).as_bytes().to_vec(),
    });
    let [version, capabilities] = [
        FlagsResponse::version(1, 1),
        FlagsResponse::capabilities(2, 1),
    ];
    let last = [version, capabilities].map(|answer| Sent::InBand(0, answer.as_bytes().to_vec()));
    lies(
        balloon::CLASS,
        packets(messages),
        &last,
        |bus, offer, midway| {
            let balloon = Balloon::open(bus, offer, &OpenOptions::default())?;
            for turn in 0..40 {
                if turn == 20 {
                    midway();
                }
                bus.poll();
                balloon.poll()?;
                balloon.report(turn, 1)?;
            }
            Ok(())
        },
    );
}

#[test]
fn a_keyboard_that_never_answers() {
    let machine = Machine::new(1);
    let liar = Liar {
        class: keyboard::CLASS,
        script: Arc::default(),
        at_once: Arc::default(),
    };
    machine.host.offer(Box::new(liar)).unwrap();
    let _cpu = machine.hypervisor.enter(0);
    let memory = BusMemory::<FakeHal, 1, 4>::new();
    let bus = VmBus::new(&memory, VECTOR).unwrap();
    bus.connect(&Options::default()).unwrap();
    let offer = bus.find(keyboard::CLASS).unwrap();
    bus.set_timeout(Duration::from_millis(500));
    let error = Keyboard::open(&bus, &offer, &OpenOptions::default()).err();
    assert_eq!(error, Some(Error::Timeout(Waited::ProtocolVersion)));
}
