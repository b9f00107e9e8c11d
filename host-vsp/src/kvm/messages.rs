//! Messages to the guest: a queue per processor, and the one slot that a SINT has.
//!
//! The slot is free while its type is 0. The guest empties it by writing 0 to the type and then,
//! where the *pending* flag is set, writes the end-of-message register. So, without losing a
//! wake-up on either side:
//!
//! 1. The slot is free: write payload, size and flags, then the type; raise the SINT. The pending
//!    flag is set where more messages wait.
//! 2. It is in use: set the pending flag, full barrier, read the type again. The guest writes the
//!    type, fences, then reads the flag; whichever comes second sees the other's write. If the
//!    type is 0 now, go on as in 1, else an end of message will come.
//!
//! KVM tells of an end of message by the SINT's resample event, and rings the same event at every
//! end of *interrupt*. It rings the event of the processor that wrote the register, and that need
//! not be the slot's: a kernel that dies empties all slots from the processor it dies on. So the
//! [`Pump`], a thread, waits for every processor's event, but only while a message waits for a
//! slot, and does nothing but bring the slot's processor out of the guest. That thread delivers:
//! KVM's own timer messages use the same slot from there, so nobody else may.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vm_memory::VolatileMemory as _;
use vmbus_proto::hv::synic::{
    MESSAGE_FLAG_PENDING, MESSAGE_PAYLOAD, MESSAGE_SIZE, MESSAGE_TYPE_CHANNEL, MESSAGE_TYPE_NONE,
    SLOT_FLAGS, SLOT_PAYLOAD, SLOT_PAYLOAD_SIZE, SLOT_TYPE,
};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::synic::{Kick, Processor};
use crate::memory::GuestMemory;

/// Bytes of a message slot.
pub(super) const SLOT_SIZE: usize = MESSAGE_SIZE;

/// Most messages that may wait for one processor. The control plane has at most one answer per
/// request and one offer per channel outstanding, far below this.
const MOST_WAITING: usize = 8192;

/// A message that waits.
struct Message {
    payload: [u8; MESSAGE_PAYLOAD],
    length: u8,
}

/// The messages that wait for one processor's slot, oldest first.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<VecDeque<Message>>,
    /// Length of `waiting`, so that the processor's thread need not take the lock to see that it
    /// is empty. Written under the lock.
    length: AtomicUsize,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Message>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a message; false where it is too long or too many wait.
    pub(super) fn push(&self, payload: &[u8]) -> bool {
        let mut message = Message {
            payload: [0; MESSAGE_PAYLOAD],
            length: payload.len() as u8,
        };
        let mut waiting = self.lock();
        let Some(room) = message.payload.get_mut(..payload.len()) else {
            tracing::warn!(
                length = payload.len(),
                "a message beyond 240 bytes is dropped"
            );
            return false;
        };
        if waiting.len() >= MOST_WAITING {
            tracing::warn!("too many messages wait for the guest; one is dropped");
            return false;
        }
        room.copy_from_slice(payload);
        waiting.push_back(message);
        self.length.store(waiting.len(), Ordering::SeqCst);
        true
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.length.load(Ordering::SeqCst)
    }

    /// Forgets all messages.
    pub(super) fn clear(&self) {
        let mut waiting = self.lock();
        waiting.clear();
        self.length.store(0, Ordering::SeqCst);
    }
}

/// Moves the oldest message of `processor` into its slot, if the slot is free. Calls `forget`
/// before it looks: acknowledges so far mean nothing to what it sees then. Calls `watch` where
/// a message is left waiting: the acknowledge event must then lead to another call.
pub(super) fn deliver(
    processor: &Processor,
    memory: &dyn GuestMemory,
    forget: impl FnOnce(),
    watch: impl FnOnce(),
) {
    if processor.queue.len() == 0 {
        return;
    }
    let Some(slot) = processor
        .slot_address()
        .and_then(|at| memory.slice(at, SLOT_SIZE))
    else {
        // Delivered when the guest enables the page: that is an exit, and this is called again.
        return;
    };
    let (Ok(kind), Ok(flags)) = (
        slot.get_atomic_ref::<AtomicU32>(SLOT_TYPE),
        slot.get_atomic_ref::<AtomicU8>(SLOT_FLAGS),
    ) else {
        return;
    };
    let mut waiting = processor.queue.lock();
    forget();
    if kind.load(Ordering::SeqCst) != MESSAGE_TYPE_NONE {
        flags.fetch_or(MESSAGE_FLAG_PENDING, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if kind.load(Ordering::SeqCst) != MESSAGE_TYPE_NONE {
            drop(waiting);
            watch();
            return;
        }
    }
    let Some(message) = waiting.pop_front() else {
        return;
    };
    processor
        .queue
        .length
        .store(waiting.len(), Ordering::SeqCst);
    let more = !waiting.is_empty();
    drop(waiting);
    let header = [message.length, if more { MESSAGE_FLAG_PENDING } else { 0 }];
    // The slot is 256 bytes, so the copies cannot fail.
    if let (Ok(rest), Ok(payload)) = (slot.offset(SLOT_PAYLOAD_SIZE), slot.offset(SLOT_PAYLOAD)) {
        // Size and flags, two reserved bytes, the port of origin: zero.
        let mut fields = [0; SLOT_PAYLOAD - SLOT_PAYLOAD_SIZE];
        fields[..2].copy_from_slice(&header);
        rest.copy_from(&fields);
        payload.copy_from(&message.payload);
    }
    // The guest reads the rest only after it has seen the type.
    kind.store(MESSAGE_TYPE_CHANNEL, Ordering::SeqCst);
    processor.raise();
    if more {
        watch();
    }
}

/// A thread that waits for acknowledges while messages wait for slots.
pub(super) struct Pump {
    epoll: Arc<Epoll>,
    kick: Kick,
    waiting: Arc<Waiting>,
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

/// The processors with a message that waits for their slot.
#[derive(Default)]
struct Waiting(Mutex<BTreeSet<u32>>);

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Marks the pump's own stop event among the processors' indices.
const STOP: u64 = u64::MAX;

impl Pump {
    pub(super) fn new(processors: &[Processor], kick: Kick) -> io::Result<Self> {
        let epoll = Arc::new(Epoll::new()?);
        let waiting = Arc::new(Waiting::default());
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let add = |event: &EventFd, set, data| {
            epoll.ctl(
                ControlOperation::Add,
                event.as_raw_fd(),
                EpollEvent::new(set, data),
            )
        };
        add(&stop, EventSet::IN, STOP)?;
        for (vp, processor) in processors.iter().enumerate() {
            // Present, but asleep until `watch`.
            add(&processor.acknowledge, EventSet::empty(), vp as u64)?;
        }
        let thread = std::thread::Builder::new().name("messages".into()).spawn({
            let (epoll, kick, waiting) =
                (Arc::clone(&epoll), Arc::clone(&kick), Arc::clone(&waiting));
            move || run(&epoll, &kick, &waiting)
        })?;
        Ok(Self {
            epoll,
            kick,
            waiting,
            stop,
            thread: Some(thread),
        })
    }

    /// Makes all acknowledges of the past go away, for processor `vp`, which is about to look at
    /// its slot. Others that wait for one of them look too.
    pub(super) fn forget(&self, vp: u32, processors: &[Processor]) {
        let mut rung = false;
        for processor in processors {
            rung |= processor.acknowledge.read().is_ok();
        }
        if rung {
            let others: Vec<u32> = self.waiting.lock().iter().copied().collect();
            others
                .into_iter()
                .filter(|&other| other != vp)
                .for_each(|other| (self.kick)(other));
        }
    }

    /// The next acknowledge of any processor kicks `vp`, once.
    pub(super) fn watch(&self, vp: u32, processors: &[Processor]) {
        self.waiting.lock().insert(vp);
        for (index, processor) in processors.iter().enumerate() {
            let event = EpollEvent::new(EventSet::IN | EventSet::ONE_SHOT, index as u64);
            let fd = processor.acknowledge.as_raw_fd();
            if let Err(error) = self.epoll.ctl(ControlOperation::Modify, fd, event) {
                tracing::error!(vp, %error, "a message to the guest may be late");
            }
        }
    }
}

fn run(epoll: &Epoll, kick: &Kick, waiting: &Waiting) {
    let mut events = [EpollEvent::default(); 16];
    loop {
        let count = match epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                tracing::error!(%error, "messages to the guest stop here");
                return;
            }
        };
        if events[..count].iter().any(|event| event.data() == STOP) {
            return;
        }
        let all = std::mem::take(&mut *waiting.lock());
        all.into_iter().for_each(|vp| kick(vp));
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::synic::tests::{Bench, MESSAGE_PAGE};
    use super::*;
    use crate::hv::Messages as _;

    const SLOT: u64 = MESSAGE_PAGE + 2 * MESSAGE_SIZE as u64;

    impl Bench {
        /// The message in the slot: type, flags and payload.
        fn slot(&self) -> (u32, u8, Vec<u8>) {
            let mut slot = [0; MESSAGE_SIZE];
            self.memory.read(SLOT, &mut slot).unwrap();
            let length = slot[SLOT_PAYLOAD_SIZE] as usize;
            (
                u32::from_le_bytes(slot[..4].try_into().unwrap()),
                slot[SLOT_FLAGS],
                slot[SLOT_PAYLOAD..SLOT_PAYLOAD + length].to_vec(),
            )
        }

        /// What a guest does with a message; returns whether it would write end-of-message.
        fn empty_slot(&self) -> bool {
            self.memory.write(SLOT, &[0; 4]).unwrap();
            let pending = self.slot().1 & MESSAGE_FLAG_PENDING != 0;
            if pending {
                self.synic.lines(0).unwrap().1.write(1).unwrap();
            }
            pending
        }

        fn wait_for_kick(&self) {
            let deadline = Instant::now() + Duration::from_secs(10);
            while self.kicked.lock().unwrap().pop() != Some(0) {
                assert!(Instant::now() < deadline, "nobody kicked the processor");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    #[test]
    fn messages_come_one_by_one_in_order() {
        let bench = Bench::new();
        bench.enable(0);
        for text in [&b"one"[..], b"two", b"three"] {
            bench.synic.post(0, text);
        }
        bench.kicked.lock().unwrap().clear();
        bench.synic.deliver(0);
        assert_eq!(bench.slot(), (1, MESSAGE_FLAG_PENDING, b"one".to_vec()));
        assert_eq!(bench.raised(0), 1);
        // Still in use: nothing moves, nothing is raised.
        bench.synic.deliver(0);
        assert_eq!((bench.slot().2, bench.raised(0)), (b"one".to_vec(), 0));
        assert!(bench.empty_slot());
        bench.wait_for_kick();
        bench.synic.deliver(0);
        assert_eq!(bench.slot().2, b"two");
        assert!(bench.empty_slot());
        bench.wait_for_kick();
        bench.synic.deliver(0);
        assert_eq!(bench.slot(), (1, 0, b"three".to_vec()));
        assert!(
            !bench.empty_slot(),
            "the last message asks for no end-of-message"
        );
    }

    #[test]
    fn a_message_that_finds_the_slot_in_use_asks_for_the_end_of_message() {
        let bench = Bench::new();
        bench.enable(0);
        bench.synic.post(0, b"first");
        bench.synic.deliver(0);
        assert_eq!(bench.slot().1, 0);
        bench.synic.post(0, b"second");
        bench.kicked.lock().unwrap().clear();
        bench.synic.deliver(0);
        assert!(bench.empty_slot());
        bench.wait_for_kick();
        bench.synic.deliver(0);
        assert_eq!(bench.slot().2, b"second");
    }

    #[test]
    fn an_end_of_message_on_another_processor_counts() {
        let bench = Bench::new();
        bench.enable(0);
        bench.synic.post(0, b"first");
        bench.synic.deliver(0);
        bench.synic.post(0, b"second");
        // An older acknowledge of the other processor means nothing.
        bench.synic.lines(1).unwrap().1.write(1).unwrap();
        bench.synic.deliver(0);
        bench.kicked.lock().unwrap().clear();
        std::thread::sleep(Duration::from_millis(20));
        assert!(bench.kicked.lock().unwrap().is_empty());
        // The guest empties the slot from processor 1.
        bench.memory.write(SLOT, &[0; 4]).unwrap();
        bench.synic.lines(1).unwrap().1.write(1).unwrap();
        bench.wait_for_kick();
        bench.synic.deliver(0);
        assert_eq!(bench.slot().2, b"second");
    }

    #[test]
    fn acknowledges_wake_nobody_while_nothing_waits() {
        let bench = Bench::new();
        bench.enable(0);
        for _ in 0..100 {
            bench.synic.lines(0).unwrap().1.write(1).unwrap();
        }
        std::thread::sleep(Duration::from_millis(20));
        assert!(bench.kicked.lock().unwrap().is_empty());
    }

    #[test]
    fn a_message_waits_for_the_page() {
        let bench = Bench::new();
        bench.synic.post(0, b"early");
        bench.synic.deliver(0);
        bench.enable(0);
        bench.synic.deliver(0);
        assert_eq!(bench.slot().2, b"early");
    }

    #[test]
    fn the_queue_is_bounded_and_so_is_a_message() {
        let queue = Queue::default();
        assert!(!queue.push(&[0; MESSAGE_PAYLOAD + 1]));
        assert!(queue.push(&[0; MESSAGE_PAYLOAD]));
        for _ in 1..MOST_WAITING {
            assert!(queue.push(b"x"));
        }
        assert!(!queue.push(b"x"));
    }
}
