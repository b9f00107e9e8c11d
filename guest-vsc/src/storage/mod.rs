//! Disks: SCSI over a VMBus channel.
//!
//! [`Storage`] is one disk behind a synthetic SCSI controller. A read goes so: the driver builds
//! a CDB ([`vmbus_proto::scsi`]), wraps it into a packet ([`vmbus_proto::storvsp`]) together with
//! the list of the buffer's pages, and sends that over the [`channel`](crate::channel); the host
//! moves the data straight between disk and buffer and completes the packet.
//!
//! There are these ways to use it, side by side and from any processor:
//!
//! - [`read_blocks`](Storage::read_blocks), [`write_blocks`](Storage::write_blocks),
//!   [`flush`](Storage::flush) borrow a buffer and wait.
//! - [`submit_read`](Storage::submit_read) and [`submit_write`](Storage::submit_write) take a
//!   buffer by value, return a [`Token`] and do not wait. [`poll`](Storage::poll), also from an
//!   interrupt handler, gives the buffer back when the host is done with it. Many requests may be
//!   in flight, as many as [`StorageMemory`] has places.
//!
//! - With the feature `async`, `read_async`, `write_async` and `flush_async` are futures over
//!   owned buffers. They need no executor of a certain kind; an interrupt handler wakes them by
//!   [`handle_interrupt`](Storage::handle_interrupt).
//!
//! A buffer may lie anywhere, in any alignment. The host's answers are checked: a completion that
//! answers nothing is counted and dropped, a length that cannot be is an error.

mod blocking;
mod error;
#[cfg(feature = "async")]
mod future;
mod identify;
mod request;

pub use crate::buffer::Buffer;
pub use crate::token::Token;
pub use blocking::Data;
pub use error::StorageError;
#[cfg(feature = "async")]
pub use future::Request;
pub use request::StorageMemory;

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::task::Waker;
use core::time::Duration;

use vmbus_proto::PAGE_SIZE;
use vmbus_proto::gpa::GpaRangeWriter;
use vmbus_proto::packet::{Outgoing, PacketKind};
use vmbus_proto::scsi::{Capacity, Cdb};
use vmbus_proto::storvsp::{DATA_IN, DATA_OUT, Operation, ProtocolVersion, Srb, VstorPacket};

use crate::bus::{Claim, Offer, VmBus, count};
use crate::channel::{Channel, OpenOptions};
use crate::clock::Deadline;
use crate::error::{Error, Waited};
use crate::hal::{BufferDirection, Hal};
use crate::sync::IrqMutex;
use error::outcome;
use request::{Entry, Finished, Table, Taker};

/// Class of the controller, for [`VmBus::find`].
pub use vmbus_proto::storvsp::SCSI_CLASS as CLASS;

/// Bytes of a sector, the unit of addresses and of [`Storage::capacity`].
pub const SECTOR_SIZE: usize = 512;

/// Pages that one request can name: 256 KiB wherever they begin.
const MAX_PAGES: usize = 65;

/// The pages of a request's buffer.
type Mapping = crate::buffer::Mapping<MAX_PAGES>;

/// Longest packet the controller sends, descriptor not counted, in bytes.
const MAX_PACKET: usize = 256;

/// Packets taken in one go, so that a storm of them cannot keep a processor for ever.
const PACKETS_AT_ONCE: u32 = 1024;

/// How to open a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StorageOptions {
    /// The logical unit.
    pub lun: u8,
    /// How long a request may take where the caller waits for it.
    pub timeout: Duration,
    /// Rings and processor of the channel.
    pub channel: OpenOptions,
}

impl Default for StorageOptions {
    /// Unit 0, 30 seconds, rings of 64 KiB.
    fn default() -> Self {
        Self {
            lun: 0,
            timeout: Duration::from_secs(30),
            channel: OpenOptions::default(),
        }
    }
}

/// A request that is done.
#[derive(Debug)]
pub struct Completion<B> {
    /// Which one.
    pub token: Token,
    /// Its buffer.
    pub buffer: B,
    /// What came of it.
    pub result: Result<(), StorageError>,
}

/// A disk. Dropped, it is closed, which waits for the host; buffers still in flight are dropped
/// when the host has given them back, else lost.
pub struct Storage<'b, H: Hal, B: Buffer = &'static mut [u8]> {
    channel: Channel<'b, H>,
    table: &'b IrqMutex<H, Table<[Entry<B>]>>,
    lun: u8,
    timeout: Duration,
    /// Bytes of a packet, as of the negotiated version.
    packet_size: usize,
    /// Most bytes of one request; whole pages.
    max_transfer: usize,
    capacity: Capacity,
    read_only: bool,
    /// Capacity in sectors, as the device said last.
    sectors: AtomicU64,
    /// The host said that the set of units has changed.
    changed: AtomicBool,
    _claim: Claim<'b>,
}

impl<'b, H: Hal, B: Buffer> Storage<'b, H, B> {
    /// Opens a disk of the controller that `offer` names. Waits for the host.
    ///
    /// # Errors
    /// The channel cannot be opened, the controller refuses, or the disk does not answer.
    pub fn open<const REQUESTS: usize>(
        bus: &'b VmBus<'b, H>,
        offer: &Offer,
        memory: &'b StorageMemory<H, B, REQUESTS>,
        options: &StorageOptions,
    ) -> Result<Self, StorageError> {
        let claim = Claim::new(&memory.claimed).ok_or(Error::MemoryInUse)?;
        let table: &IrqMutex<H, Table<[Entry<B>]>> = &memory.table;
        table.with(Table::reset);
        let mut disk = Self {
            channel: Channel::open(bus, offer, &options.channel)?,
            table,
            lun: options.lun,
            timeout: options.timeout,
            packet_size: ProtocolVersion::V5_1.packet_size(),
            max_transfer: PAGE_SIZE,
            capacity: Capacity {
                blocks: 0,
                block_length: SECTOR_SIZE as u32,
            },
            read_only: false,
            sectors: AtomicU64::new(0),
            changed: AtomicBool::new(false),
            _claim: claim,
        };
        disk.initialize()?;
        disk.identify()?;
        Ok(disk)
    }

    /// Size in sectors of 512 bytes.
    pub fn capacity(&self) -> u64 {
        self.sectors.load(Ordering::Relaxed)
    }

    /// Bytes of a block: what is read and written at least.
    pub fn block_size(&self) -> usize {
        self.capacity.block_length as usize
    }

    /// Whether the disk must not be written to.
    pub fn readonly(&self) -> bool {
        self.read_only
    }

    /// Sets how long a request may take where the caller waits for it.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Most bytes of one submitted request.
    pub fn max_transfer(&self) -> usize {
        self.max_transfer
    }

    /// Whether the host has said, since the last call, that the controller's set of units has
    /// changed.
    pub fn take_changed(&self) -> bool {
        self.changed.swap(false, Ordering::Relaxed)
    }

    /// The channel.
    pub fn channel(&self) -> &Channel<'b, H> {
        &self.channel
    }

    /// Requests that are in flight, or done and not yet taken.
    pub fn in_flight(&self) -> usize {
        self.table.with(|table| table.busy())
    }

    /// Starts to read whole blocks from `sector` (of 512 bytes) on. Never waits.
    ///
    /// # Errors
    /// [`Error::Full`] where as many requests are in flight as fit; the buffer comes back.
    pub fn submit_read(&self, sector: u64, buffer: B) -> Result<Token, (StorageError, B)> {
        self.submit(sector, buffer, BufferDirection::DeviceToDriver)
    }

    /// Starts to write whole blocks from `sector` (of 512 bytes) on. Never waits.
    ///
    /// # Errors
    /// [`Error::Full`] where as many requests are in flight as fit; the buffer comes back.
    pub fn submit_write(&self, sector: u64, buffer: B) -> Result<Token, (StorageError, B)> {
        self.submit(sector, buffer, BufferDirection::DriverToDevice)
    }

    fn submit(
        &self,
        sector: u64,
        mut buffer: B,
        direction: BufferDirection,
    ) -> Result<Token, (StorageError, B)> {
        let packet = match self.transfer(sector, buffer.region().len(), direction) {
            Ok(packet) => packet,
            Err(error) => return Err((error, buffer)),
        };
        self.start_owned(Taker::Poll, &packet, buffer, direction)
            .map_err(|(error, buffer)| (error.into(), buffer))
    }

    /// The packet that moves `length` bytes.
    fn transfer(
        &self,
        sector: u64,
        length: usize,
        direction: BufferDirection,
    ) -> Result<VstorPacket, StorageError> {
        if length > self.max_transfer {
            return Err(StorageError::TooLong);
        }
        let lba = self.block_of(sector, length as u64)?;
        let (blocks, fua) = (self.blocks_in(length as u64), false);
        let (cdb, data_in) = if direction == BufferDirection::DeviceToDriver {
            (Cdb::Read { lba, blocks, fua }, DATA_IN)
        } else {
            (Cdb::Write { lba, blocks, fua }, DATA_OUT)
        };
        let srb = Srb::request(self.lun, cdb.to_bytes().as_slice(), data_in, length as u32);
        Ok(VstorPacket::execute_srb(&srb))
    }

    fn start_owned(
        &self,
        taker: Taker,
        packet: &VstorPacket,
        buffer: B,
        direction: BufferDirection,
    ) -> Result<Token, (Error, B)> {
        self.table.with(|table| {
            table.start_owned::<H>(taker, buffer, direction, |token, mapping| {
                self.send(packet, token, mapping)
            })
        })
    }

    /// Takes a submitted request that is done. Never waits.
    ///
    /// After the end of the channel ([`Channel::check`]) nothing more comes until
    /// [`shutdown`](Self::shutdown) has taken the buffers back from the host.
    pub fn poll(&self) -> Option<Completion<B>> {
        // The end of the channel is told by `Channel::check`.
        let _ = self.drain();
        let next = self.table.with(Table::take_next);
        if next.is_some() {
            self.wake_for_room();
        }
        next.and_then(completion)
    }

    /// Takes what the host has completed, and wakes the futures that wait for it. For an interrupt
    /// handler, after [`VmBus::handle_interrupt`]; also harmless at any other time. Never waits.
    pub fn handle_interrupt(&self) {
        // The end of the channel is told by `Channel::check`.
        let _ = self.drain();
    }

    /// Takes back the buffer of a request whose future was dropped, when the host is done with it.
    /// Where nobody calls this, such buffers are dropped when the next future is polled first, at
    /// the latest with the disk.
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
    fn wake_for_room(&self) {
        // Each once: one that finds no place comes back, and is not to be woken for ever.
        let mut places = self.table.with(|table| table.places());
        while places > 0
            && let Some(waker) = self.table.with(Table::take_room_waker)
        {
            waker.wake();
            places = places.saturating_sub(1);
        }
    }

    /// Waits for a submitted request to be done.
    ///
    /// # Errors
    /// [`Error::Timeout`] where none was in time; requests stay in flight. Where the channel has
    /// come to an end, it is shut down, all requests come back as failed, and then this says
    /// why.
    pub fn wait(&self) -> Result<Completion<B>, Error> {
        let waited = self
            .channel
            .wait(Waited::Completion, self.deadline(), || match self.poll() {
                Some(completion) => Ok(Some(completion)),
                None => self.channel.check().map(|()| None),
            });
        match waited {
            Err(error) if !matches!(error, Error::Timeout(_)) => {
                // What it could not take back is lost, and never waited for again.
                let _ = self.shutdown();
                self.poll().ok_or(error)
            }
            waited => waited,
        }
    }

    /// Closes the channel and takes all buffers back from the host: requests in flight are done,
    /// as failed, and wait to be taken by [`poll`](Self::poll). Waits for the host; where another
    /// processor does it already, for that.
    ///
    /// # Errors
    /// The host did not give its memory back: buffers in flight are lost.
    pub fn shutdown(&self) -> Result<(), Error> {
        // What was completed before stays completed.
        let _ = self.drain();
        let reason = match self.channel.check() {
            Err(error) => error,
            Ok(()) => Error::Closed,
        };
        let closed = self.channel.close();
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

    /// Takes packets from the channel until there are none.
    fn drain(&self) -> Result<(), Error> {
        let mut buffer = [0; MAX_PACKET];
        let mut completed = false;
        let counters = &self.channel.bus().counters;
        let mut result = Ok(());
        for _ in 0..PACKETS_AT_ONCE {
            let packet = match self.channel.receive(&mut buffer) {
                Ok(Some(packet)) => packet,
                Ok(None) => break,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            };
            let body = VstorPacket::parse(packet.payload);
            let known = match (packet.kind, body) {
                (PacketKind::Completion, Some(answer))
                    if answer.operation() == Some(Operation::CompleteIo) =>
                {
                    let id = packet.transaction_id;
                    completed = true;
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
            };
            if !known {
                count(&counters.bad_completions);
            }
        }
        if completed {
            // Perhaps for a request that another processor is about to sleep on.
            self.channel.tell();
            self.wake_for_room();
        }
        if result.is_err() || self.channel.check().is_err() {
            // Nothing more will come: futures have to look at that.
            for place in 0..self.table.with(|table| table.places()) {
                let waker = self.table.with(|table| table.take_waker(place));
                waker.into_iter().for_each(Waker::wake);
            }
            self.wake_for_room();
        }
        result
    }

    /// Puts a packet into the ring, with the pages of its buffer.
    fn send(&self, packet: &VstorPacket, token: Token, mapping: &Mapping) -> Result<(), Error> {
        // A GPA-direct header, one range, and its frame numbers.
        let mut ranges = [0; 16 + 8 * MAX_PAGES];
        let payload = packet.wire_bytes(self.packet_size);
        let id = token.transaction_id();
        let length = packet.srb().data_transfer_length.get();
        if mapping.pfns().len() == 0 {
            return self.channel.send(&Outgoing::in_band(id, payload, true));
        }
        let mut writer = GpaRangeWriter::gpa_direct(&mut ranges, 1).ok_or(Error::TooLong)?;
        writer
            .range(length, mapping.byte_offset())
            .ok_or(Error::TooLong)?;
        for pfn in mapping.pfns() {
            writer.pfn(pfn).ok_or(Error::TooLong)?;
        }
        let ranges = writer.finish();
        self.channel
            .send(&Outgoing::gpa_direct(id, ranges, payload))
    }

    fn lun(&self) -> u8 {
        self.lun
    }

    fn deadline(&self) -> Deadline<'_, H> {
        self.channel.bus().hypervisor.deadline(self.timeout)
    }

    /// The block that starts at `sector`, if that and `length` are whole blocks.
    fn block_of(&self, sector: u64, length: u64) -> Result<u64, StorageError> {
        // `identify` made sure that a block is at least one sector, and a power of two.
        let block = self.block_size().max(SECTOR_SIZE);
        let sectors = (block / SECTOR_SIZE) as u64;
        let block = block as u64;
        if length == 0 || !length.is_multiple_of(block) || !sector.is_multiple_of(sectors) {
            return Err(StorageError::Unaligned);
        }
        Ok(sector.checked_div(sectors).unwrap_or_default())
    }

    /// Whole blocks in `length` bytes.
    fn blocks_in(&self, length: u64) -> u32 {
        let block = self.block_size() as u64;
        let blocks = length.checked_div(block).unwrap_or_default();
        u32::try_from(blocks).unwrap_or(u32::MAX)
    }
}

fn completion<B>(finished: Finished<B>) -> Option<Completion<B>> {
    let result = match finished.answer {
        Err(error) => Err(error.into()),
        Ok(answer) => match outcome(&answer, finished.length) {
            Ok(moved) if moved == finished.length => Ok(()),
            Ok(moved) => Err(StorageError::Short(moved)),
            Err(error) => Err(error),
        },
    };
    // Only requests that own a buffer are queued.
    Some(Completion {
        token: finished.token,
        buffer: finished.owned?,
        result,
    })
}

impl<H: Hal, B: Buffer> Drop for Storage<'_, H, B> {
    fn drop(&mut self) {
        // Nobody is left to be told: what the host did not give back stays lost.
        let _ = self.shutdown();
        while self.poll().is_some() {}
        while self.reclaim().is_some() {}
        self.table.with(Table::reset);
    }
}
