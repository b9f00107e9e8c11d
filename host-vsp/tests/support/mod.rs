//! A guest made by hand: messages by calls, rings in plain memory, doorbells by name. It can lie
//! in ways that no driver does.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use host_vsp::hv::{Doorbells, Hypercalls, Interrupts, Messages, Partition};
use host_vsp::memory::GuestMemory;
use host_vsp::vmbus::VmBus;
use host_vsp::vmbus::bus::doorbell_id;
use host_vsp::vmbus::ring_memory::GuestRing;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmbus_proto::hv::hypercall::Status;
use vmbus_proto::message::gpadl::announce;
use vmbus_proto::message::*;
use vmbus_proto::packet::Outgoing;
use vmbus_proto::ring::{Consumer, Producer};
use vmbus_proto::version::Version;
use vmm_sys_util::eventfd::EventFd;

/// How long anything may take.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub const PAGES: u64 = 512;
pub const VPS: u32 = 2;

/// What the host did to the guest.
#[derive(Default)]
pub struct Log {
    inner: Mutex<LogInner>,
    changed: Condvar,
}

#[derive(Default)]
struct LogInner {
    messages: Vec<(u32, Vec<u8>)>,
    interrupts: HashMap<(u32, u32), u64>,
    doorbells: HashMap<u32, EventFd>,
}

impl Messages for Log {
    fn post(&self, vp: u32, payload: &[u8]) {
        self.inner
            .lock()
            .unwrap()
            .messages
            .push((vp, payload.to_vec()));
        self.changed.notify_all();
    }
    fn backlog(&self) -> usize {
        self.inner.lock().unwrap().messages.len()
    }
    fn clear(&self) {
        self.inner.lock().unwrap().messages.clear();
    }
}

impl Interrupts for Log {
    fn signal(&self, vp: u32, flag: u32) {
        *self
            .inner
            .lock()
            .unwrap()
            .interrupts
            .entry((vp, flag))
            .or_default() += 1;
        self.changed.notify_all();
    }
    fn signal_always(&self, vp: u32, flag: u32) {
        self.signal(vp, flag);
    }
    fn clear(&self, _vp: u32, _flag: u32) {}
}

impl Doorbells for Log {
    fn register(&self, connection_id: u32, event: &EventFd) -> io::Result<()> {
        let event = event.try_clone()?;
        self.inner
            .lock()
            .unwrap()
            .doorbells
            .insert(connection_id, event);
        Ok(())
    }
    fn unregister(&self, connection_id: u32) -> io::Result<()> {
        let removed = self.inner.lock().unwrap().doorbells.remove(&connection_id);
        removed
            .map(drop)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// The guest.
pub struct Guest {
    pub log: Arc<Log>,
    pub memory: Arc<dyn GuestMemory>,
}

/// The guest's end of a channel.
pub struct GuestChannel {
    pub relid: u32,
    pub to_host: Producer<GuestRing>,
    pub to_guest: Consumer<GuestRing>,
}

impl Guest {
    pub fn new() -> (Self, Partition) {
        let log = Arc::new(Log::default());
        let memory: Arc<dyn GuestMemory> = Arc::new(
            GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), PAGES as usize * 4096)])
                .unwrap(),
        );
        let guest = Self { log, memory };
        let partition = guest.partition();
        (guest, partition)
    }

    /// What a host needs of the hypervisor to serve this guest.
    pub fn partition(&self) -> Partition {
        Partition {
            memory: Arc::clone(&self.memory),
            messages: self.log.clone(),
            interrupts: self.log.clone(),
            doorbells: self.log.clone(),
            vp_count: VPS,
        }
    }

    /// Posts a message, as often as the host asks for.
    pub fn say(&self, bus: &VmBus, message: &[u8]) {
        let end = Instant::now() + DEADLINE;
        loop {
            match bus.post_message(0, CONNECTION_ID_MESSAGE, 1, message) {
                Status::SUCCESS => return,
                status => assert!(status.is_transient(), "{status:?}"),
            }
            assert!(Instant::now() < end, "the host takes no message");
            std::thread::yield_now();
        }
    }

    /// The next message from the host.
    pub fn hear(&self) -> Vec<u8> {
        let inner = self.log.inner.lock().unwrap();
        let wait = self
            .log
            .changed
            .wait_timeout_while(inner, DEADLINE, |i| i.messages.is_empty());
        let mut inner = wait.unwrap().0;
        assert!(!inner.messages.is_empty(), "the host says nothing");
        inner.messages.remove(0).1
    }

    /// Waits for an interrupt beyond the `seen` ones that were counted before.
    pub fn wait_interrupt(&self, vp: u32, relid: u32, seen: u64) -> u64 {
        let inner = self.log.inner.lock().unwrap();
        let count = |i: &LogInner| i.interrupts.get(&(vp, relid)).copied().unwrap_or(0);
        let wait = self
            .log
            .changed
            .wait_timeout_while(inner, DEADLINE, |i| count(i) <= seen);
        let now = count(&wait.unwrap().0);
        assert!(now > seen, "no interrupt for channel {relid}");
        now
    }

    pub fn interrupts(&self, vp: u32, relid: u32) -> u64 {
        self.log
            .inner
            .lock()
            .unwrap()
            .interrupts
            .get(&(vp, relid))
            .copied()
            .unwrap_or(0)
    }

    pub fn ring_doorbell(&self, relid: u32) {
        let inner = self.log.inner.lock().unwrap();
        inner
            .doorbells
            .get(&doorbell_id(relid))
            .expect("a doorbell")
            .write(1)
            .unwrap();
    }

    pub fn has_doorbell(&self, relid: u32) -> bool {
        self.log
            .inner
            .lock()
            .unwrap()
            .doorbells
            .contains_key(&doorbell_id(relid))
    }

    /// Makes contact and takes the offers.
    pub fn connect(&self, bus: &VmBus) -> Vec<OfferChannel> {
        let contact = InitiateContact::new(Version::V5_3, 0);
        self.say(bus, &Message::InitiateContact(contact).encode());
        let Ok(Message::VersionResponse(answer)) = Message::parse(&self.hear()) else {
            panic!()
        };
        assert_eq!(answer.supported, 1);
        self.say(bus, &Message::RequestOffers.encode());
        let mut offers = Vec::new();
        loop {
            match Message::parse(&self.hear()).unwrap() {
                Message::OfferChannel(offer) => offers.push(offer),
                Message::AllOffersDelivered => return offers,
                other => panic!("{other:?}"),
            }
        }
    }

    /// Opens channel `relid` with two rings of `ring_pages` pages each at page `first`.
    pub fn open(&self, bus: &VmBus, relid: u32, first: u64, ring_pages: u64) -> GuestChannel {
        for page in first..first + 2 * ring_pages {
            self.memory.write(page * 4096, &[0; 4096]).unwrap();
        }
        let pfns: Vec<u64> = (first..first + 2 * ring_pages).collect();
        let handle = 0xE1E10 + relid;
        for message in announce(relid, handle, pfns.len() as u32 * 4096, pfns.into_iter()).unwrap()
        {
            self.say(bus, &message);
        }
        let Ok(Message::GpadlCreated(created)) = Message::parse(&self.hear()) else {
            panic!()
        };
        assert_eq!(created.status.get(), 0);
        let ring = |first: u64| {
            let pages: Vec<u64> = (first..first + ring_pages).map(|pfn| pfn * 4096).collect();
            GuestRing::new(Arc::clone(&self.memory), &pages).unwrap()
        };
        for control in [first, first + ring_pages] {
            self.memory
                .write(control * 4096 + 64, &1u32.to_le_bytes())
                .unwrap();
        }
        self.say(
            bus,
            &Message::OpenChannel(OpenChannel {
                relid: relid.into(),
                open_id: 1.into(),
                ring_gpadl: handle.into(),
                target_vp: 0.into(),
                downstream_page_offset: (ring_pages as u32).into(),
                user_data: [0; 120],
            })
            .encode(),
        );
        let Ok(Message::OpenChannelResult(result)) = Message::parse(&self.hear()) else {
            panic!()
        };
        assert_eq!((result.relid.get(), result.status.get()), (relid, 0));
        GuestChannel {
            relid,
            to_host: Producer::attach(ring(first)).unwrap(),
            to_guest: Consumer::attach(ring(first + ring_pages)).unwrap(),
        }
    }

    pub fn close(&self, bus: &VmBus, relid: u32) {
        self.say(bus, &Message::CloseChannel(ChannelId::new(relid)).encode());
        let gpadl = GpadlTeardown {
            relid: relid.into(),
            gpadl: (0xE1E10 + relid).into(),
        };
        self.say(bus, &Message::GpadlTeardown(gpadl).encode());
        let heard = self.hear();
        assert!(
            matches!(Message::parse(&heard), Ok(Message::GpadlTorndown(_))),
            "{heard:?}"
        );
    }

    /// Sends a packet, waiting for room, and rings the doorbell where the rules say so.
    pub fn send(&self, channel: &mut GuestChannel, packet: &Outgoing<'_>) {
        let end = Instant::now() + DEADLINE;
        loop {
            match channel.to_host.send(packet) {
                Ok(signal) => {
                    if signal.is_needed() {
                        self.ring_doorbell(channel.relid);
                    }
                    return;
                }
                Err(error) => assert_eq!(error, vmbus_proto::ring::SendError::Full),
            }
            assert!(Instant::now() < end, "the host takes no packet");
            std::thread::yield_now();
        }
    }

    /// Receives a packet's payload, waiting for it by interrupts only.
    pub fn receive(&self, channel: &mut GuestChannel) -> Vec<u8> {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let seen = self.interrupts(0, channel.relid);
            if let Some(packet) = channel.to_guest.receive(&mut buffer).unwrap() {
                let payload = packet.payload.to_vec();
                if channel.to_guest.commit().unwrap().is_needed() {
                    self.ring_doorbell(channel.relid);
                }
                return payload;
            }
            self.wait_interrupt(0, channel.relid, seen);
        }
    }
}
