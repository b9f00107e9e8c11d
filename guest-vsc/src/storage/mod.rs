//! Disks: SCSI over a VMBus channel.
//!
//! [`Storage`] is one disk behind a synthetic SCSI controller. Where there are more, [`Controller`]
//! opens each as a [`Unit`], says which there are, and hears of those that come and go. With
//! [`StorageOptions::sub_channels`] a controller has a channel for each processor. A read goes so: the driver builds
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
mod controller;
mod error;
#[cfg(feature = "async")]
mod future;
mod identify;
mod luns;
mod request;

pub use crate::buffer::Buffer;
pub use crate::sub_channels::MAX_SUB_CHANNELS;
pub use crate::token::Token;
pub use blocking::Data;
pub use controller::Controller;
pub use error::StorageError;
#[cfg(feature = "async")]
pub use future::Request;
pub use luns::{Luns, UnitChange};
pub use request::StorageMemory;

use core::borrow::Borrow;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use vmbus_proto::scsi::{Capacity, Cdb};
use vmbus_proto::storvsp::{DATA_IN, DATA_OUT, Srb, VstorPacket};

use crate::bus::{Offer, VmBus};
use crate::channel::{Channel, OpenOptions};
use crate::error::{Error, Waited};
use crate::hal::{BufferDirection, Hal};
use error::outcome;
use request::{Finished, Taker};

/// Class of the controller, for [`VmBus::find`].
pub use vmbus_proto::storvsp::SCSI_CLASS as CLASS;

/// Bytes of a sector, the unit of addresses and of [`Storage::capacity`].
pub const SECTOR_SIZE: usize = 512;

/// Pages that one request can name: 256 KiB wherever they begin.
const MAX_PAGES: usize = 65;

/// The pages of a request's buffer.
type Mapping = crate::buffer::Mapping<MAX_PAGES>;

/// How to open a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StorageOptions {
    /// The logical unit.
    pub lun: u8,
    /// How long a request may take where the caller waits for it.
    pub timeout: Duration,
    /// Most channels besides the first one, up to [`MAX_SUB_CHANNELS`]: one less than there are
    /// processors to take interrupts, as a rule. Each interrupts one of those whose SynIC is enabled,
    /// and takes a place of [`BusMemory`](crate::bus::BusMemory)'s.
    pub sub_channels: u16,
    /// Rings and processor of the channel; sub-channels have such rings, too.
    pub channel: OpenOptions,
}

impl Default for StorageOptions {
    /// Unit 0, 30 seconds, one channel, rings of 64 KiB.
    fn default() -> Self {
        Self {
            lun: 0,
            timeout: Duration::from_secs(30),
            sub_channels: 0,
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

/// A disk: of a controller of its own, or [one of several](Unit). Dropped, it is closed with its
/// controller.
pub struct Storage<'b, H: Hal, B: Buffer = &'static mut [u8], C = Controller<'b, H, B>> {
    controller: C,
    lun: u8,
    timeout: Duration,
    /// Most bytes of one request; whole blocks.
    max_transfer: usize,
    capacity: Capacity,
    read_only: bool,
    /// Capacity in sectors, as the device said last.
    sectors: AtomicU64,
    kind: PhantomData<fn() -> Controller<'b, H, B>>,
}

/// A disk of a controller that has others, too; see [`Controller::unit`].
pub type Unit<'c, 'b, H, B> = Storage<'b, H, B, &'c Controller<'b, H, B>>;

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
        let controller = Controller::open(bus, offer, memory, options)?;
        Self::attach(controller, options.lun, options.timeout)
    }
}

impl<'b, H: Hal, B: Buffer, C: Borrow<Controller<'b, H, B>>> Storage<'b, H, B, C> {
    /// Opens unit `lun` of a controller.
    fn attach(controller: C, lun: u8, timeout: Duration) -> Result<Self, StorageError> {
        let max_transfer = Borrow::<Controller<'b, H, B>>::borrow(&controller).max_transfer;
        let mut disk = Self {
            controller,
            lun,
            timeout,
            max_transfer,
            capacity: Capacity {
                blocks: 0,
                block_length: SECTOR_SIZE as u32,
            },
            read_only: false,
            sectors: AtomicU64::new(0),
            kind: PhantomData,
        };
        disk.identify()?;
        Ok(disk)
    }

    /// The controller.
    pub fn controller(&self) -> &Controller<'b, H, B> {
        self.controller.borrow()
    }

    /// The number of the logical unit.
    pub fn lun(&self) -> u8 {
        self.lun
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
        self.controller().take_changed()
    }

    /// The first channel.
    pub fn channel(&self) -> &Channel<'b, H> {
        self.controller().channel()
    }

    /// Requests that are in flight, or done and not yet taken, of all units.
    pub fn in_flight(&self) -> usize {
        self.controller().in_flight()
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
        self.controller()
            .start_owned(Taker::Poll, &packet, self.lun, buffer, direction)
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

    /// Takes a submitted request of this disk that is done. Never waits.
    ///
    /// After the end of the channel ([`Channel::check`]) nothing more comes until
    /// [`shutdown`](Self::shutdown) has taken the buffers back from the host.
    pub fn poll(&self) -> Option<Completion<B>> {
        let controller = self.controller();
        // The end of the channel is told by `check`.
        let _ = controller.drain();
        let lun = Some(self.lun);
        let next = controller.table.with(|table| table.take_next(lun));
        if next.is_some() {
            controller.wake_for_room();
        }
        next.and_then(completion)
    }

    /// Takes what the host has completed; see [`Controller::handle_interrupt`].
    pub fn handle_interrupt(&self) {
        self.controller().handle_interrupt();
    }

    /// Takes back the buffer of a request whose future was dropped; see [`Controller::reclaim`].
    pub fn reclaim(&self) -> Option<B> {
        self.controller().reclaim()
    }

    /// Waits for a submitted request to be done.
    ///
    /// # Errors
    /// [`Error::Timeout`] where none was in time; requests stay in flight. Where the channel has
    /// come to an end, it is shut down, all requests come back as failed, and then this says
    /// why.
    pub fn wait(&self) -> Result<Completion<B>, Error> {
        let controller = self.controller();
        let waited = controller.wait(Waited::Completion, self.timeout, || match self.poll() {
            Some(completion) => Ok(Some(completion)),
            None => controller.check().map(|()| None),
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

    /// Closes the controller and takes all buffers back from the host; see
    /// [`Controller::shutdown`].
    ///
    /// # Errors
    /// The host did not give its memory back: buffers in flight are lost.
    pub fn shutdown(&self) -> Result<(), Error> {
        self.controller().shutdown()
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
