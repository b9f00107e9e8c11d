//! The controller: its channels, and the requests that are in flight on them.
//!
//! A controller has one channel, and sub-channels where a driver asks for them
//! ([`StorageOptions::sub_channels`]). A request goes over the channel that interrupts the processor
//! it is made on, or over any other that has room; its completion comes back the same way. All share
//! one table of requests, so that whoever looks for completions finds those of every channel.

use core::sync::atomic::{AtomicBool, Ordering};
use core::task::Waker;
use core::time::Duration;

use vmbus_proto::gpa::GpaRangeWriter;
use vmbus_proto::packet::{Outgoing, Packet, PacketKind};
use vmbus_proto::storvsp::{Operation, ProtocolVersion, VstorPacket};

use super::request::{Entry, Table, Taker};
use super::{
    Buffer, Luns, MAX_PAGES, Mapping, Storage, StorageError, StorageMemory, StorageOptions, Token,
    Unit,
};
use crate::PAGE;
use crate::bus::{Claim, Offer, VmBus, count};
use crate::channel::Channel;
use crate::channels::Channels;
use crate::clock::Deadline;
use crate::error::{Error, Waited};
use crate::hal::{BufferDirection, Hal};
use crate::sub_channels::SubChannels;
use crate::sync::IrqMutex;

/// Longest packet the controller sends, descriptor not counted, in bytes.
const MAX_PACKET: usize = 256;

/// Packets taken in one go, so that a storm of them cannot keep a processor for ever.
const PACKETS_AT_ONCE: u32 = 1024;

/// A SCSI controller, with as many disks as there are. Dropped, it is closed, which waits for the
/// host; buffers still in flight are dropped when the host has given them back, else lost.
pub struct Controller<'b, H: Hal, B: Buffer = &'static mut [u8]> {
    pub(super) channel: Channel<'b, H>,
    sub_channels: SubChannels<'b, H>,
    pub(super) table: &'b IrqMutex<H, Table<[Entry<B>]>>,
    pub(super) timeout: Duration,
    /// Bytes of a packet, as of the negotiated version.
    pub(super) packet_size: usize,
    /// Most bytes of one request; whole pages.
    pub(super) max_transfer: usize,
    /// The host said that the set of units has changed.
    changed: AtomicBool,
    _claim: Claim<'b>,
}

impl<'b, H: Hal, B: Buffer> Controller<'b, H, B> {
    /// Opens the controller that `offer` names, whatever unit `options` name. Waits for the host.
    ///
    /// # Errors
    /// The channel cannot be opened, or the controller refuses. Sub-channels that it does not give
    /// are done without.
    pub fn open<const REQUESTS: usize>(
        bus: &'b VmBus<'b, H>,
        offer: &Offer,
        memory: &'b StorageMemory<H, B, REQUESTS>,
        options: &StorageOptions,
    ) -> Result<Self, StorageError> {
        let claim = Claim::new(&memory.claimed).ok_or(Error::MemoryInUse)?;
        let table: &IrqMutex<H, Table<[Entry<B>]>> = &memory.table;
        table.with(Table::reset);
        let mut controller = Self {
            channel: Channel::open(bus, offer, &options.channel)?,
            sub_channels: SubChannels::none(),
            table,
            timeout: options.timeout,
            packet_size: ProtocolVersion::V5_1.packet_size(),
            max_transfer: PAGE as usize,
            changed: AtomicBool::new(false),
            _claim: claim,
        };
        let sub_channels = controller.initialize(options.sub_channels)?;
        if sub_channels > 0 {
            let Self {
                channel,
                sub_channels: further,
                ..
            } = &mut controller;
            further.open(channel, offer, sub_channels, &options.channel);
        }
        Ok(controller)
    }

    /// Opens the disk at `lun`. As many may be open as there are, each as often as wanted; all share
    /// the places for requests. Waits for the device.
    ///
    /// # Errors
    /// There is no such unit, or the disk does not answer.
    pub fn unit(&self, lun: u8) -> Result<Unit<'_, 'b, H, B>, StorageError> {
        Storage::attach(self, lun, self.timeout)
    }

    /// Asks which units there are: at the beginning, and whenever the host has said that they have
    /// changed ([`take_changed`](Self::take_changed)). Waits for the device.
    ///
    /// # Errors
    /// The controller fails.
    pub fn scan(&self) -> Result<Luns, StorageError> {
        super::luns::scan(self)
    }

    /// Whether the host has said, since the last call, that the controller's set of units has
    /// changed. Never waits.
    pub fn take_changed(&self) -> bool {
        self.changed.swap(false, Ordering::Relaxed)
    }

    /// The first channel.
    pub fn channel(&self) -> &Channel<'b, H> {
        &self.channel
    }

    /// All channels, the first one first.
    pub fn channels(&self) -> impl Iterator<Item = &Channel<'b, H>> + Clone {
        self.every_channel()
    }

    fn every_channel(&self) -> Channels<'_, 'b, H> {
        self.sub_channels.after(&self.channel)
    }

    /// That requests may go, or why not: the end of any channel is that of the controller.
    ///
    /// # Errors
    /// As for [`Channel::check`].
    pub fn check(&self) -> Result<(), Error> {
        self.channels().try_for_each(Channel::check)
    }

    /// Most bytes of one request.
    pub fn max_transfer(&self) -> usize {
        self.max_transfer
    }

    /// Requests that are in flight, or done and not yet taken, of all units.
    pub fn in_flight(&self) -> usize {
        self.table.with(|table| table.busy())
    }

    /// Takes what the host has completed, and wakes the futures that wait for it. For an interrupt
    /// handler, after [`VmBus::handle_interrupt`]; also harmless at any other time. Never waits.
    pub fn handle_interrupt(&self) {
        // The end of the channel is told by `check`.
        let _ = self.drain();
    }

    /// Takes back the buffer of a request whose future was dropped, when the host is done with it.
    /// Where nobody calls this, such buffers are dropped when the next future is polled first, at
    /// the latest with the controller.
    pub fn reclaim(&self) -> Option<B> {
        // One without a buffer was a flush.
        while let Some(orphan) = self.table.with(Table::take_orphan) {
            self.wake_for_room();
            if orphan.owned.is_some() {
                return orphan.owned;
            }
        }
        None
    }

    /// Wakes the futures that wait for a place.
    pub(super) fn wake_for_room(&self) {
        // Each once: one that finds no place comes back, and is not to be woken for ever.
        let mut places = self.table.with(|table| table.places());
        while places > 0
            && let Some(waker) = self.table.with(Table::take_room_waker)
        {
            waker.wake();
            places = places.saturating_sub(1);
        }
    }

    /// Waits until `done` has a value, letting time pass while no channel has news.
    pub(super) fn wait<T>(
        &self,
        what: Waited,
        timeout: Duration,
        done: impl FnMut() -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        let deadline = Deadline::new(self.channel.bus().clock(), timeout);
        self.every_channel().wait(what, deadline, done)
    }

    /// Closes the channels and takes all buffers back from the host: requests in flight are done,
    /// as failed, and wait to be taken by [`Storage::poll`]. Waits for the host; where another
    /// processor does it already, for that.
    ///
    /// # Errors
    /// The host did not give its memory back: buffers in flight are lost.
    pub fn shutdown(&self) -> Result<(), Error> {
        // What was completed before stays completed.
        let _ = self.drain();
        let reason = match self.check() {
            Err(error) => error,
            Ok(()) => Error::Closed,
        };
        // The host takes sub-channels away with the first channel, so they go before it.
        let closed = self.sub_channels.close().and(self.channel.close());
        let kept = closed.is_err();
        for place in 0..self.table.with(|table| table.places()) {
            let waker = self
                .table
                .with(|table| table.fail::<H>(place, reason, kept));
            waker.into_iter().for_each(Waker::wake);
        }
        self.wake_for_room();
        closed
    }

    /// Takes packets from all channels until there are none.
    pub(super) fn drain(&self) -> Result<(), Error> {
        let mut completed = false;
        let mut result = Ok(());
        for channel in self.channels() {
            result = result.and(self.drain_one(channel, &mut completed));
        }
        if completed {
            // Perhaps for a request that another processor is about to sleep on.
            self.channel.tell();
            self.wake_for_room();
        }
        if result.is_err() || self.check().is_err() {
            // Nothing more will come: futures have to look at that.
            for place in 0..self.table.with(|table| table.places()) {
                let waker = self.table.with(|table| table.take_waker(place));
                waker.into_iter().for_each(Waker::wake);
            }
            self.wake_for_room();
        }
        result
    }

    /// Takes packets from a channel until there are none.
    fn drain_one(&self, channel: &Channel<'b, H>, completed: &mut bool) -> Result<(), Error> {
        let mut buffer = [0; MAX_PACKET];
        for _ in 0..PACKETS_AT_ONCE {
            let Some(packet) = channel.receive(&mut buffer)? else {
                break;
            };
            if !self.take_packet(&packet, completed) {
                count(&channel.bus().counters.bad_completions);
            }
        }
        Ok(())
    }

    /// Takes a packet; says whether it meant something.
    fn take_packet(&self, packet: &Packet<'_>, completed: &mut bool) -> bool {
        match (packet.kind, VstorPacket::parse(packet.payload)) {
            (PacketKind::Completion, Some(answer))
                if answer.operation() == Some(Operation::CompleteIo) =>
            {
                let id = packet.transaction_id;
                *completed = true;
                let completed = self.table.with(|table| table.complete::<H>(id, answer));
                // Outside the lock: a waker is anybody's code.
                let known = completed.is_some();
                completed.flatten().into_iter().for_each(Waker::wake);
                known
            }
            (PacketKind::InBand, Some(news)) => {
                let change = matches!(
                    news.operation(),
                    Some(Operation::EnumerateBus | Operation::RemoveDevice)
                );
                self.changed.fetch_or(change, Ordering::Relaxed);
                change
            }
            _ => false,
        }
    }

    /// Sends a request for unit `lun` whose buffer is given away.
    pub(super) fn start_owned(
        &self,
        taker: Taker,
        packet: &VstorPacket,
        lun: u8,
        buffer: B,
        direction: BufferDirection,
    ) -> Result<Token, (Error, B)> {
        let send = |token, mapping: &_| self.send(packet, token, mapping);
        self.table
            .with(|table| table.start_owned::<H>(taker, lun, buffer, direction, send))
    }

    /// Puts a packet into a ring, with the pages of its buffer.
    pub(super) fn send(
        &self,
        packet: &VstorPacket,
        token: Token,
        mapping: &Mapping,
    ) -> Result<(), Error> {
        // A GPA-direct header, one range, and its frame numbers.
        let mut ranges = [0; 16 + 8 * MAX_PAGES];
        let payload = packet.wire_bytes(self.packet_size);
        let id = token.transaction_id();
        if mapping.pfns().len() == 0 {
            return self.send_by_any(&Outgoing::in_band(id, payload, true));
        }
        let length = packet.srb().data_transfer_length.get();
        let mut writer = GpaRangeWriter::gpa_direct(&mut ranges, 1).ok_or(Error::TooLong)?;
        writer
            .range(length, mapping.byte_offset())
            .ok_or(Error::TooLong)?;
        for pfn in mapping.pfns() {
            writer.pfn(pfn).ok_or(Error::TooLong)?;
        }
        self.send_by_any(&Outgoing::gpa_direct(id, writer.finish(), payload))
    }

    /// Sends over the channel that interrupts this processor, or else over the next one with room.
    fn send_by_any(&self, packet: &Outgoing<'_>) -> Result<(), Error> {
        // By the time that it is known it may be another one, which does no harm.
        let cpu = H::current_cpu();
        let count = self.channels().count();
        let own = self.channels().position(|channel| channel.cpu() == cpu);
        let first = own.unwrap_or(cpu.checked_rem(count).unwrap_or_default());
        let from_first = self
            .channels()
            .skip(first)
            .chain(self.channels().take(first));
        for channel in from_first {
            let result = channel.send(packet);
            if result != Err(Error::Full) {
                return result;
            }
        }
        Err(Error::Full)
    }
}

impl<H: Hal, B: Buffer> Drop for Controller<'_, H, B> {
    fn drop(&mut self) {
        // Nobody is left to be told: what the host did not give back stays lost.
        let _ = self.shutdown();
        while self.table.with(|table| table.take_next(None)).is_some() {}
        while self.reclaim().is_some() {}
        self.table.with(Table::reset);
    }
}
