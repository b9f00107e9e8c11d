//! A channel: two rings shared with the host, and a doorbell each way.
//!
//! Opening makes both rings, tells the host of their pages by one GPADL (`to_host` first), and
//! opens the channel over it. From then on packets need neither the bus nor the other processors:
//! [`Channel::send`] puts a packet into `to_host` and rings the host's doorbell where the ring's
//! rules ask for it; [`Channel::receive`] takes one from `to_guest`.
//!
//! On the way of a packet this is the station between the device's driver
//! ([`storage`](crate::storage), [`console`](crate::console)) and the ring
//! ([`vmbus_proto::ring`]).

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use vmbus_proto::message::{ChannelId, Message, ModifyChannel, OpenChannel};
use vmbus_proto::packet::{Outgoing, Packet};
use vmbus_proto::ring::{
    Consumer, Control, Corrupt, FEATURE_PENDING_SEND_SIZE, Producer, RingMemory, Signal,
};
use vmbus_proto::version::Version;

use crate::bus::{Expected, Offer, Slot, Turn, VmBus};
use crate::channels::Channels;
use crate::clock::Deadline;
use crate::error::{Error, Waited};
use crate::hal::Hal;
use crate::shared::{Dma, Ring};
use crate::sync::IrqMutex;

/// How to open a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// Bytes of data in the `to_host` ring, rounded up to whole pages.
    pub to_host: u32,
    /// Bytes of data in the `to_guest` ring, rounded up to whole pages.
    pub to_guest: u32,
    /// The processor to interrupt; `None` for the one that opens the channel. Its SynIC has to be
    /// enabled.
    pub cpu: Option<usize>,
    /// For the device, by its own protocol.
    pub user_data: [u8; 120],
}

impl Default for OpenOptions {
    /// Rings of 64 KiB, interrupts to the processor that opens.
    fn default() -> Self {
        Self {
            to_host: 64 << 10,
            to_guest: 64 << 10,
            cpu: None,
            user_data: [0; 120],
        }
    }
}

/// Most buffers that a channel lends to the host besides its rings: netvsp has two.
const MAX_LENT: usize = 2;

/// [`Channel::state`]: packets may go both ways.
const OPEN: u32 = 0;
/// [`Channel::state`]: the host wrote what cannot be; only closing is left.
const BROKEN: u32 = 1;
/// [`Channel::state`]: some processor is closing it; the host may still use what it was given.
const CLOSING: u32 = 2;
/// [`Channel::state`]: closed, the rings are ours again or lost.
const CLOSED: u32 = 3;

/// An open channel. Dropped, it is closed, which waits for the host.
pub struct Channel<'b, H: Hal> {
    bus: &'b VmBus<'b, H>,
    slot: &'b Slot<H>,
    relid: u32,
    connection_id: u32,
    /// Whether the channel has an event port of its own.
    dedicated: bool,
    gpadl: u32,
    /// GPADLs of what was lent besides the rings; 0 where there is none.
    lent: [AtomicU32; MAX_LENT],
    state: AtomicU32,
    /// The processor that the host interrupts.
    cpu: AtomicUsize,
    /// What broke the channel, where it is broken.
    broken_by: IrqMutex<H, Option<Corrupt>>,
    /// What came of closing the channel, where it is closed.
    closed_with: IrqMutex<H, Result<(), Error>>,
    /// Bytes of data in the `to_host` ring.
    to_host_size: u32,
    to_host: IrqMutex<H, Producer<Ring<H>>>,
    to_guest: IrqMutex<H, Consumer<Ring<H>>>,
}

impl<'b, H: Hal> Channel<'b, H> {
    /// Opens the channel of `offer`. Waits for the host.
    ///
    /// # Errors
    /// The offer is gone or in use, there is no memory, the host refuses or is silent. The offer
    /// is unused again then.
    pub fn open(
        bus: &'b VmBus<'b, H>,
        offer: &Offer,
        options: &OpenOptions,
    ) -> Result<Self, Error> {
        let cpu = options.cpu.unwrap_or_else(H::current_cpu);
        let target_vp = bus.vp_index(cpu).ok_or(Error::TooManyCpus)?;
        // From here on nobody can end the connection that the offer belongs to.
        let turn = bus.turn()?;
        let slot = bus.slot_of(offer)?;
        let message = slot.claim()?;
        let channel = Self::establish(bus, &turn, slot, &message, options, (cpu, target_vp));
        drop(turn);
        if channel.is_err() {
            bus.unclaim(slot);
        }
        channel
    }

    fn establish(
        bus: &'b VmBus<'b, H>,
        turn: &Turn<'_>,
        slot: &'b Slot<H>,
        offer: &vmbus_proto::message::OfferChannel,
        options: &OpenOptions,
        (cpu, target_vp): (usize, u32),
    ) -> Result<Self, Error> {
        let to_host = Producer::attach(new_ring(options.to_host)?)?;
        let to_guest = Consumer::attach(new_ring(options.to_guest)?)?;
        let mut channel = Self {
            bus,
            slot,
            relid: offer.relid.get(),
            connection_id: offer.connection_id.get(),
            dedicated: offer.dedicated_interrupt.get() & 1 != 0,
            gpadl: 0,
            lent: [const { AtomicU32::new(0) }; MAX_LENT],
            // Dropped before it is open, it has nothing to close.
            state: AtomicU32::new(CLOSED),
            cpu: AtomicUsize::new(cpu),
            broken_by: IrqMutex::new(None),
            closed_with: IrqMutex::new(Ok(())),
            to_host_size: to_host.memory().data_size(),
            to_host: IrqMutex::new(to_host),
            to_guest: IrqMutex::new(to_guest),
        };

        let (upper, lower) = (channel.to_host.get_mut(), channel.to_guest.get_mut());
        let (upper, lower) = (upper.memory().dma(), lower.memory().dma());
        let downstream = upper.pfns().len();
        let pfns = Pfns {
            first: upper.pfns(),
            second: lower.pfns(),
        };
        upper.lend();
        lower.lend();
        channel.gpadl = bus.create_gpadl(turn, slot, pfns).inspect_err(|error| {
            if matches!(error, Error::Refused(..) | Error::TooLong) {
                upper.reclaim();
                lower.reclaim();
            }
        })?;

        let result = channel.ask_to_open(turn, options, target_vp, downstream as u32);
        if let Err(error) = result {
            if matches!(error, Error::Timeout(_)) {
                // It may have opened it all the same.
                let _ = bus.post(&Message::CloseChannel(ChannelId::new(channel.relid)).encode());
            }
            // The first error is the one to report; what is not given back stays lent.
            let _ = channel.take_rings_back(turn);
            return Err(error);
        }
        channel.state.store(OPEN, Ordering::Release);
        Ok(channel)
    }

    fn ask_to_open(
        &self,
        turn: &Turn<'_>,
        options: &OpenOptions,
        target_vp: u32,
        downstream_page_offset: u32,
    ) -> Result<(), Error> {
        let open_id = self.bus.next_open_id.fetch_add(1, Ordering::Relaxed);
        let body = OpenChannel {
            relid: self.relid.into(),
            open_id: open_id.into(),
            ring_gpadl: self.gpadl.into(),
            target_vp: target_vp.into(),
            downstream_page_offset: downstream_page_offset.into(),
            user_data: options.user_data,
        };
        let expected = Expected::keyed(Waited::Open, self.relid, open_id);
        let (question, slot) = (Message::OpenChannel(body), Some(self.slot));
        self.bus
            .ask(turn, &question, expected, slot, self.bus.timeout())?
            .success()
    }

    /// Lends `memory` to the host, besides the rings, until the channel is closed: it is the guest's
    /// again only where [`close`](Self::close) says so. Returns the GPADL by which the host knows
    /// it. Waits for the host.
    ///
    /// # Errors
    /// The host refuses or is silent. Where it refuses, the memory is not lent.
    pub(crate) fn lend(&self, memory: &Dma<H>) -> Result<u32, Error> {
        self.check()?;
        let free = |place: &&AtomicU32| place.load(Ordering::Relaxed) == 0;
        let place = self.lent.iter().find(free).ok_or(Error::OutOfMemory)?;
        let turn = self.bus.turn()?;
        memory.lend();
        let made = self.bus.create_gpadl(&turn, self.slot, memory.pfns());
        let gpadl = made.inspect_err(|error| {
            if matches!(error, Error::Refused(..) | Error::TooLong) {
                memory.reclaim();
            }
        })?;
        place.store(gpadl, Ordering::Relaxed);
        Ok(gpadl)
    }

    /// The bus.
    pub fn bus(&self) -> &'b VmBus<'b, H> {
        self.bus
    }

    /// The number by which host and guest name the channel.
    pub fn relid(&self) -> u32 {
        self.relid
    }

    /// Its number among the device's channels, 0 for the first one; 0 also when it is gone.
    pub(crate) fn sub_channel_index(&self) -> u16 {
        let offer = self.slot.offer();
        offer.map_or(0, |offer| offer.sub_channel_index())
    }

    /// The processor that the host interrupts for this channel.
    pub fn cpu(&self) -> usize {
        self.cpu.load(Ordering::Relaxed)
    }

    /// Whether the host has taken the device away.
    pub fn is_rescinded(&self) -> bool {
        self.slot.is_rescinded()
    }

    /// A number that changes when there was news: an event flag, or another processor's taking of
    /// packets.
    pub fn news(&self) -> u32 {
        self.slot.events()
    }

    /// Tells processors that wait on this channel that packets were taken.
    pub(crate) fn tell(&self) {
        self.slot.event();
    }

    /// That packets may go, or why not.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where the host wrote what cannot be into the rings, or
    /// [`Error::Rescinded`]: only closing is left then. [`Error::Closed`] when that is done.
    pub fn check(&self) -> Result<(), Error> {
        self.usable()?;
        if self.is_rescinded() {
            return Err(Error::Rescinded);
        }
        Ok(())
    }

    /// That the rings may be touched, or why not.
    fn usable(&self) -> Result<(), Error> {
        match self.state.load(Ordering::Acquire) {
            OPEN => Ok(()),
            BROKEN => {
                let why = self.broken_by.with(|why| *why);
                Err(why.map_or(Error::Closed, Error::Corrupt))
            }
            _ => Err(Error::Closed),
        }
    }

    /// Sends a packet and rings the doorbell where the host may sleep. Never waits; may be called
    /// in interrupt context.
    ///
    /// # Errors
    /// [`Error::Full`] when there is no room now: the host rings when there is.
    pub fn send(&self, packet: &Outgoing<'_>) -> Result<(), Error> {
        self.send_leaving(0, packet)
    }

    /// As [`send`](Self::send), but leaves one part in `parts` of the ring free, for packets that may
    /// not wait for these.
    ///
    /// # Errors
    /// As for `send`.
    pub(crate) fn send_sparing(&self, parts: u32, packet: &Outgoing<'_>) -> Result<(), Error> {
        self.send_leaving(
            self.to_host_size.checked_div(parts).unwrap_or_default(),
            packet,
        )
    }

    fn send_leaving(&self, spare: u32, packet: &Outgoing<'_>) -> Result<(), Error> {
        self.check()?;
        let signal = self
            .to_host
            .with(|ring| ring.send_leaving(spare, packet))
            .map_err(|error| self.ring_error(error.into()))?;
        self.ring_doorbell(signal);
        Ok(())
    }

    /// Takes the next packet, copied into `buffer` and checked; `None` when there is none. Never
    /// waits; may be called in interrupt context. Packets that came before the channel was
    /// rescinded can still be taken.
    ///
    /// # Errors
    /// A packet that cannot be, or is longer than `buffer`, ends the use of the channel.
    pub fn receive<'p>(&self, buffer: &'p mut [u8]) -> Result<Option<Packet<'p>>, Error> {
        self.usable()?;
        let (packet, signal) = self
            .to_guest
            .with(|ring| {
                let packet = ring.receive(buffer)?;
                Ok((packet, ring.commit()?))
            })
            .map_err(|corrupt| self.ring_error(Error::Corrupt(corrupt)))?;
        self.ring_doorbell(signal);
        Ok(packet)
    }

    /// Whether the host has taken every packet that was sent.
    ///
    /// # Errors
    /// The channel has come to an end.
    pub fn all_taken(&self) -> Result<bool, Error> {
        self.check()?;
        let free = self
            .to_host
            .with(|ring| Ok((ring.free()?, ring.capacity())));
        let (free, capacity) = free.map_err(|corrupt| self.ring_error(Error::Corrupt(corrupt)))?;
        // Only an empty ring has more room than its longest packet takes.
        Ok(free > capacity)
    }

    /// Whether a packet waits to be received, or the channel has come to an end.
    pub fn has_news(&self) -> bool {
        self.check().is_err() || self.to_guest.with(|ring| ring.available()) != Ok(0)
    }

    /// Waits until `done` has a value, letting time pass while the channel has no news.
    pub(crate) fn wait<T>(
        &self,
        what: Waited,
        deadline: Deadline<'_, H>,
        done: impl FnMut() -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        Channels::new(self, &[]).wait(what, deadline, done)
    }

    /// Has the host interrupt processor `cpu` for this channel from now on. Waits for the host,
    /// where the version has an answer to wait for.
    ///
    /// # Errors
    /// [`Error::NotInThisVersion`] below 4.1; [`Error::TooManyCpus`] where `cpu` has no SynIC.
    pub fn set_cpu(&self, cpu: usize) -> Result<(), Error> {
        self.check()?;
        let version = self.bus.version().ok_or(Error::NotConnected)?;
        if version < Version::V4_1 {
            return Err(Error::NotInThisVersion);
        }
        let target_vp = self.bus.vp_index(cpu).ok_or(Error::TooManyCpus)?;
        let body = ModifyChannel {
            relid: self.relid.into(),
            target_vp: target_vp.into(),
        };
        let turn = self.bus.turn()?;
        let expected = Expected::keyed(Waited::Modify, self.relid, 0);
        self.bus.expect(&turn, expected);
        self.bus.post(&Message::ModifyChannel(body).encode())?;
        if version >= Version::V5_3 {
            let slot = Some(self.slot);
            self.bus
                .answer(&turn, Waited::Modify, slot, self.bus.deadline())?
                .success()?;
        }
        self.cpu.store(cpu, Ordering::Relaxed);
        Ok(())
    }

    /// Closes the channel and takes the rings, and what else was lent, back. Waits for the host. A
    /// second call says the same as the first, and does not return before that is done either: after
    /// this call, whoever makes it, the host has let go of the memory or has not said so in time.
    ///
    /// # Errors
    /// The host did not give the memory back: the rings' pages are lost, and buffers that
    /// requests have handed to it must be held to be in its use for ever.
    pub fn close(&self) -> Result<(), Error> {
        if self.state.fetch_max(CLOSING, Ordering::AcqRel) >= CLOSING {
            return self.closed_elsewhere();
        }
        let result = self.bus.turn().and_then(|turn| {
            let message = Message::CloseChannel(ChannelId::new(self.relid));
            self.bus.post(&message.encode())?;
            self.take_rings_back(&turn)
        });
        self.closed_with.with(|with| *with = result);
        self.state.store(CLOSED, Ordering::Release);
        self.bus.unclaim(self.slot);
        result
    }

    /// Waits until whoever closes the channel has done so.
    fn closed_elsewhere(&self) -> Result<(), Error> {
        // That is a wait for the turn, for two messages to be taken and for one answer.
        let timeout = self.bus.timeout().saturating_mul(8);
        let mut deadline = self.bus.hypervisor.deadline(timeout);
        while self.state.load(Ordering::Acquire) != CLOSED {
            if deadline.is_over() {
                return Err(Error::Timeout(Waited::Turn));
            }
            self.bus.handle_interrupt();
            H::pause();
        }
        self.closed_with.with(|with| *with)
    }

    fn take_rings_back(&self, turn: &Turn<'_>) -> Result<(), Error> {
        self.bus.teardown_gpadl(turn, self.slot, self.gpadl)?;
        self.to_host.with(|ring| ring.memory().dma().reclaim());
        self.to_guest.with(|ring| ring.memory().dma().reclaim());
        for lent in &self.lent {
            let gpadl = lent.load(Ordering::Relaxed);
            if gpadl != 0 {
                self.bus.teardown_gpadl(turn, self.slot, gpadl)?;
            }
        }
        Ok(())
    }

    fn ring_doorbell(&self, signal: Signal) {
        if signal.is_needed() {
            self.bus
                .signal(self.relid, self.connection_id, self.dedicated);
        }
    }

    /// Notes that a corrupt ring is not to be used any more.
    fn ring_error(&self, error: Error) -> Error {
        if let Error::Corrupt(corrupt) = error {
            self.broken_by.with(|why| *why = Some(corrupt));
            // A closed channel stays closed.
            let _ = self
                .state
                .compare_exchange(OPEN, BROKEN, Ordering::AcqRel, Ordering::Relaxed);
        }
        error
    }
}

impl<H: Hal> Drop for Channel<'_, H> {
    fn drop(&mut self) {
        // Nobody is left to be told: pages the host did not give back stay lent.
        let _ = self.close();
    }
}

/// A ring with room for `size` bytes.
fn new_ring<H: Hal>(size: u32) -> Result<Ring<H>, Error> {
    let ring = Ring::new(size).ok_or(Error::OutOfMemory)?;
    // The host touches neither control page but for its own fields, so this bit is ours to set in
    // both.
    ring.store(Control::FeatureBits, FEATURE_PENDING_SEND_SIZE);
    Ok(ring)
}

/// The frame numbers of two rings, one after the other.
struct Pfns<I> {
    first: I,
    second: I,
}

impl<I: ExactSizeIterator<Item = u64>> Iterator for Pfns<I> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.first.next().or_else(|| self.second.next())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let length = self.first.len().saturating_add(self.second.len());
        (length, Some(length))
    }
}

impl<I: ExactSizeIterator<Item = u64>> ExactSizeIterator for Pfns<I> {}
