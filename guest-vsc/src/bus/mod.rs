//! The bus: one connection to the host, its offers, and what the host says.
//!
//! [`VmBus`] finds the hypervisor, [connects](VmBus::connect), keeps the table of offers, and
//! hands messages and event flags on. Everything works through `&self`, from any processor.
//!
//! **Contexts.** [`VmBus::handle_interrupt`] is for the interrupt handler; it takes what the
//! hypervisor put into this processor's pages and never waits or allocates. All other methods are
//! for task context; those that wait for the host say so. The host answers on the processor that
//! connected: its handler, or a wait on that same processor, takes the answer, so a kernel
//! without interrupts works as long as it stays on that processor.
//!
//! **Waits** end at a deadline ([`Options::timeout`]) by the partition's reference time. A host
//! that is silent is an error, not a hang.
//!
//! **Memory** is the caller's: [`BusMemory`], a `static` or a box, has the places for processors
//! and channels. What finds no place is counted in [`Stats`].

mod contact;
mod exchange;
mod offers;
mod stats;

pub use contact::{Options, Versions};
pub use offers::Offer;
pub use stats::Stats;

pub(crate) use exchange::{Answer, Expected, Turn};
pub(crate) use offers::Slot;
pub(crate) use stats::{Counters, count};

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use core::time::Duration;

use vmbus_proto::guid::Guid;
use vmbus_proto::hv::hypercall::Status;
use vmbus_proto::hv::synic::MESSAGE_TYPE_CHANNEL;
use vmbus_proto::message::Message;
use vmbus_proto::version::Version;

use crate::clock::{Deadline, ReferenceClock};
use crate::error::{Error, Waited};
use crate::hal::Hal;
use crate::hypervisor::{Features, Hypervisor};
use crate::sync::{IrqMutex, without_interrupts};
use crate::synic::{SynicCpu, SynicPages};
use contact::Link;
use exchange::Exchange;

/// Memory of a bus: places for `CPUS` processors and `CHANNELS` offers. One bus uses it at a time.
pub struct BusMemory<H: Hal, const CPUS: usize = 16, const CHANNELS: usize = 32> {
    claimed: AtomicBool,
    cpus: [IrqMutex<H, Option<SynicCpu<H>>>; CPUS],
    slots: [Slot<H>; CHANNELS],
}

impl<H: Hal, const CPUS: usize, const CHANNELS: usize> BusMemory<H, CPUS, CHANNELS> {
    /// Memory that no bus uses yet.
    pub const fn new() -> Self {
        Self {
            claimed: AtomicBool::new(false),
            cpus: [const { IrqMutex::new(None) }; CPUS],
            slots: [const { Slot::new() }; CHANNELS],
        }
    }
}

impl<H: Hal, const CPUS: usize, const CHANNELS: usize> Default for BusMemory<H, CPUS, CHANNELS> {
    fn default() -> Self {
        Self::new()
    }
}

/// The use of a driver's memory; given back when dropped.
pub(crate) struct Claim<'m>(&'m AtomicBool);

impl<'m> Claim<'m> {
    pub(crate) fn new(flag: &'m AtomicBool) -> Option<Self> {
        (!flag.swap(true, Ordering::Acquire)).then_some(Self(flag))
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// What [`VmBus::handle_interrupt`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handled {
    /// Messages taken.
    pub messages: u32,
    /// Event flags taken.
    pub events: u32,
    /// There is something to do that needs task context: call [`VmBus::poll`].
    pub poll_due: bool,
}

/// Messages taken in one go, so that a storm of them cannot keep a processor for ever.
const MESSAGES_AT_ONCE: u32 = 256;

/// Hypervisors refuse lower ones, which are the processor's own.
const LOWEST_VECTOR: u8 = 16;

/// The VMBus of this machine.
pub struct VmBus<'m, H: Hal> {
    pub(crate) hypervisor: Hypervisor<H>,
    cpus: &'m [IrqMutex<H, Option<SynicCpu<H>>>],
    pub(crate) slots: &'m [Slot<H>],
    vector: u8,
    link: IrqMutex<H, Link<H>>,
    exchange: IrqMutex<H, Exchange>,
    /// Whether a processor has the turn to talk to the host.
    turn: AtomicBool,
    /// How long to wait for the host, in microseconds.
    timeout_us: AtomicU32,
    highest_relid: AtomicU32,
    pub(crate) next_gpadl: AtomicU32,
    pub(crate) next_open_id: AtomicU32,
    /// Whether a slot waits for its relid to be released.
    release_due: AtomicBool,
    pub(crate) counters: Counters,
    // Last, so that the memory is free only when nothing refers to it any more.
    _claim: Claim<'m>,
}

impl<'m, H: Hal> VmBus<'m, H> {
    /// Finds the hypervisor, enables its hypercall page, and enables the SynIC of the processor
    /// that runs this, with interrupts on `vector` (16 to 255).
    ///
    /// # Errors
    /// [`Error::Missing`] says why this machine has no VMBus; [`Error::MemoryInUse`] that another
    /// bus has the memory; [`Error::BadVector`] that no interrupt can have that vector.
    pub fn new<const CPUS: usize, const CHANNELS: usize>(
        memory: &'m BusMemory<H, CPUS, CHANNELS>,
        vector: u8,
    ) -> Result<Self, Error> {
        if vector < LOWEST_VECTOR {
            return Err(Error::BadVector(vector));
        }
        let claim = Claim::new(&memory.claimed).ok_or(Error::MemoryInUse)?;
        let bus = Self {
            hypervisor: Hypervisor::new()?,
            cpus: &memory.cpus,
            slots: &memory.slots,
            vector,
            link: IrqMutex::new(Link::down()),
            exchange: IrqMutex::new(Exchange::default()),
            turn: AtomicBool::new(false),
            timeout_us: AtomicU32::new(10_000_000),
            highest_relid: AtomicU32::new(0),
            // Any numbers do; these are easy to tell from others in a trace.
            next_gpadl: AtomicU32::new(0x000E_1E10),
            next_open_id: AtomicU32::new(1),
            release_due: AtomicBool::new(false),
            counters: Counters::default(),
            _claim: claim,
        };
        bus.start_cpu()?;
        Ok(bus)
    }

    /// Enables the SynIC of the processor that runs this; a second time it does nothing. Each
    /// processor that channels shall interrupt has to do it.
    ///
    /// # Errors
    /// [`Error::TooManyCpus`] or [`Error::OutOfMemory`].
    pub fn start_cpu(&self) -> Result<(), Error> {
        // Allocated before the lock is taken, and given back after it where there was no need.
        let mut pages = Some(SynicPages::new().ok_or(Error::OutOfMemory)?);
        self.on_this_cpu(|synic| {
            if synic.is_none() {
                *synic = pages.take().map(|p| SynicCpu::enable(p, self.vector));
            }
        })
        .ok_or(Error::TooManyCpus)
    }

    /// Disables the SynIC of the processor that runs this, before it goes offline. Channels and
    /// the connection must not point to it any more.
    pub fn stop_cpu(&self) {
        // Its pages are given back when the lock is released.
        let _stopped = self.on_this_cpu(|synic| {
            let stopped = synic.take();
            stopped.iter().for_each(SynicCpu::disable);
            stopped
        });
    }

    /// Runs `f` on the SynIC of the processor that runs this, and that cannot become another one
    /// before `f` is done. `None` where the memory has no place for it.
    fn on_this_cpu<R>(&self, f: impl FnOnce(&mut Option<SynicCpu<H>>) -> R) -> Option<R> {
        without_interrupts::<H, _>(|| {
            let place = self.cpus.get(H::current_cpu())?;
            Some(place.with_interrupts_off(f))
        })
    }

    /// The hypervisor's index of processor `cpu`, where its SynIC is enabled.
    pub fn vp_index(&self, cpu: usize) -> Option<u32> {
        let place = self.cpus.get(cpu)?;
        place.with(|synic| synic.as_ref().map(SynicCpu::vp_index))
    }

    /// The processor after `cpu`, round about, whose SynIC is enabled.
    pub(crate) fn started_cpu_after(&self, cpu: usize) -> usize {
        let following = cpu.saturating_add(1)..self.cpus.len();
        following
            .chain(0..cpu)
            .find(|cpu| self.vp_index(*cpu).is_some())
            .unwrap_or(cpu)
    }

    /// What the hypervisor offers.
    pub fn features(&self) -> &Features {
        self.hypervisor.features()
    }

    /// The partition's reference clock.
    pub fn clock(&self) -> &ReferenceClock<H> {
        self.hypervisor.clock()
    }

    /// The partition's reference time in units of 100 ns.
    pub fn reference_time(&self) -> u64 {
        self.clock().now()
    }

    /// The version that was negotiated; `None` while not connected.
    pub fn version(&self) -> Option<Version> {
        self.link.with(|link| link.version())
    }

    /// What was counted so far.
    pub fn stats(&self) -> Stats {
        self.counters.snapshot()
    }

    /// The offers in the table, used and unused, in no particular order.
    pub fn offers(&self) -> impl Iterator<Item = Offer> + '_ {
        self.slots.iter().filter_map(Slot::offer)
    }

    /// The offer of a device that this has not given out before, where there is one: first those that
    /// [`connect`](Self::connect) found, later devices that are added while the guest runs.
    /// Never waits. That a device is removed its driver says, by [`Error::Rescinded`]. Sub-channels,
    /// which drivers ask for themselves, are not given out.
    pub fn next_offer(&self) -> Option<Offer> {
        self.slots.iter().find_map(Slot::take_new)
    }

    /// The first unused offer of a primary channel of `class`.
    pub fn find(&self, class: Guid) -> Option<Offer> {
        self.find_channel(class, None, 0)
    }

    /// The first unused offer of channel `number`, 0 for the primary one, of `class`, and of one
    /// `instance` of it where that is named.
    #[inline(never)]
    pub(crate) fn find_channel(
        &self,
        class: Guid,
        instance: Option<Guid>,
        number: u16,
    ) -> Option<Offer> {
        self.offers().find(|offer| {
            offer.class() == class
                && offer.sub_channel_index() == number
                && instance.is_none_or(|instance| offer.instance() == instance)
                && !offer.in_use
        })
    }

    /// Takes what the hypervisor has for this processor: messages, then event flags. For the
    /// handler of the vector given to [`new`](Self::new), which then ends the interrupt at the
    /// APIC; also harmless at any other time. Never waits.
    pub fn handle_interrupt(&self) -> Handled {
        let mut handled = Handled::default();
        let _no_place = self.on_this_cpu(|synic| {
            let Some(synic) = synic else { return };
            while handled.messages < MESSAGES_AT_ONCE
                && let Some(message) = synic.take_message()
            {
                handled.messages = handled.messages.saturating_add(1);
                count(&self.counters.messages);
                if message.message_type == MESSAGE_TYPE_CHANNEL {
                    self.handle_message(message.payload());
                } else {
                    count(&self.counters.bad_messages);
                }
            }
            synic.take_events(self.highest_relid.load(Ordering::Relaxed), |relid| {
                handled.events = handled.events.saturating_add(1);
                count(&self.counters.events);
                match self.slots.iter().find(|slot| slot.relid() == relid) {
                    Some(slot) if relid != 0 => slot.event(),
                    _ => count(&self.counters.stray_events),
                }
            });
        });
        handled.poll_due = self.release_due.load(Ordering::Relaxed);
        handled
    }

    /// Does what is left to do in task context: takes what the hypervisor has for this processor,
    /// and gives the relids of rescinded offers back, unless another processor is talking to the
    /// host: then that waits for the next call. Posts messages, but does not wait for answers.
    pub fn poll(&self) {
        self.handle_interrupt();
        if self.release_due.load(Ordering::Relaxed)
            && let Some(turn) = self.try_turn()
        {
            self.release_leaving(&turn);
        }
    }

    /// Gives the relids of rescinded offers back. With the turn, so that no relid is released
    /// twice, or over a connection made since.
    fn release_leaving(&self, _turn: &Turn<'_>) {
        if self.release_due.swap(false, Ordering::Relaxed) {
            for slot in self.slots {
                if let Some(relid) = slot.leaving() {
                    self.release_relid(relid);
                    slot.free();
                }
            }
        }
    }

    fn handle_message(&self, bytes: &[u8]) {
        let Ok(message) = Message::parse_from_host(bytes) else {
            count(&self.counters.bad_messages);
            return;
        };
        let answer = match message {
            Message::OfferChannel(offer) => return self.offered(&offer),
            Message::RescindChannelOffer(id) => return self.rescinded(id.relid.get()),
            Message::AllOffersDelivered => Answer::offers(),
            Message::VersionResponse(r) => Answer::version(&r),
            Message::OpenChannelResult(r) => Answer::open(&r),
            Message::GpadlCreated(r) => Answer::gpadl_created(&r),
            Message::GpadlTorndown(r) => Answer::gpadl_torndown(&r),
            Message::ModifyChannelResponse(r) => Answer::modify(&r),
            Message::UnloadResponse => Answer::unload(),
            _ => {
                count(&self.counters.bad_messages);
                return;
            }
        };
        if !self.exchange.with(|exchange| exchange.take(answer)) {
            count(&self.counters.unexpected);
        }
    }

    /// Posts a message to `connection_id` until it is taken or the time is up. An id that is unknown
    /// is an error where it `exists_already`, else it may become known.
    fn post_to(
        &self,
        connection_id: u32,
        message: &[u8],
        exists_already: bool,
    ) -> Result<(), Error> {
        let mut deadline = self.deadline();
        loop {
            let status = self.hypervisor.post_message(connection_id, message);
            let unknown = status == Status::INVALID_CONNECTION_ID;
            let again = status.is_transient() || unknown && !exists_already;
            match status {
                Status::SUCCESS => return Ok(()),
                _ if !again => return Err(Error::Hypercall(status)),
                _ if deadline.is_over() => return Err(Error::Timeout(Waited::Post)),
                _ => {}
            }
            self.handle_interrupt();
            H::pause();
        }
    }

    /// Posts a message over the connection.
    pub(crate) fn post(&self, message: &[u8]) -> Result<(), Error> {
        let id = self.link.with(|link| link.message_connection_id());
        // The host makes its port only when it is ready.
        self.post_to(id.ok_or(Error::NotConnected)?, message, false)
    }

    /// Rings the doorbell of a channel. May be called in interrupt context and under a lock, so
    /// it does not let others run between its tries.
    pub(crate) fn signal(&self, relid: u32, connection_id: u32, dedicated: bool) {
        if !dedicated {
            self.link.with(|link| link.set_interrupt_bit(relid));
        }
        let mut status = self.hypervisor.signal_event(connection_id);
        for _ in 0..16 {
            if !status.is_transient() {
                break;
            }
            core::hint::spin_loop();
            status = self.hypervisor.signal_event(connection_id);
        }
        if status != Status::SUCCESS {
            count(&self.counters.failed_signals);
        }
    }

    /// Sets how long to wait for each of the host's answers, up to about an hour.
    pub fn set_timeout(&self, timeout: Duration) {
        let timeout = u32::try_from(timeout.as_micros()).unwrap_or(u32::MAX);
        self.timeout_us.store(timeout, Ordering::Relaxed);
    }

    /// The end of a wait that begins now.
    pub(crate) fn deadline(&self) -> Deadline<'_, H> {
        self.hypervisor.deadline(self.timeout())
    }

    /// How long to wait for the host.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_micros(u64::from(self.timeout_us.load(Ordering::Relaxed)))
    }

    /// Lets time pass in a wait, unless `news` has come by a last look with interrupts off.
    pub(crate) fn rest(&self, news: impl FnOnce() -> bool) {
        if !H::disable_interrupts() {
            H::pause();
        } else if news() {
            H::enable_interrupts();
        } else {
            H::wait_for_interrupt();
        }
    }

    /// Whether a message waits in this processor's slot.
    pub(crate) fn message_waits(&self) -> bool {
        self.on_this_cpu(|synic| synic.as_ref().is_some_and(SynicCpu::has_message))
            .unwrap_or_default()
    }
}

impl<H: Hal> Drop for VmBus<'_, H> {
    /// Unloads where connected, also where a channel was forgotten without being closed, and
    /// disables this processor's SynIC. Other processors should have called [`stop_cpu`](Self::stop_cpu); otherwise their pages stay with the hypervisor, and
    /// the next bus over the same memory goes on with them.
    fn drop(&mut self) {
        if self.version().is_some()
            && let Ok(turn) = self.turn()
        {
            // Nobody is left to be told: the pages stay lent if the host does not answer.
            let _ = self.say_good_bye(&turn);
        }
        for slot in self.slots {
            slot.free();
        }
        self.stop_cpu();
    }
}
