//! The disk on Hyper-V: `guest-vsc`'s storage driver behind the scenarios' [`Disk`].

use super::KernelBus;
use crate::devices::{Disk, DiskError};
use crate::hal::KernelHal;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use guest_vsc::storage::{self, SECTOR_SIZE, Storage, StorageError, StorageMemory, StorageOptions};

/// How many requests can be in flight.
pub(crate) const REQUESTS: usize = 64;

/// The places for them. One disk is open at a time.
static MEMORY: StorageMemory<KernelHal, Vec<u8>, REQUESTS> = StorageMemory::new();

/// The driver, with buffers from the heap for the requests that nobody waits for.
pub(crate) type KernelStorage = Storage<'static, KernelHal, Vec<u8>>;

/// A disk behind a synthetic SCSI controller.
pub(crate) struct VmbusDisk {
    storage: Arc<KernelStorage>,
    name: String,
}

impl VmbusDisk {
    /// Opens a unit of the controller that was offered as number `index`, counted from 0.
    pub(crate) fn open(
        bus: &'static KernelBus,
        index: u64,
        options: &StorageOptions,
    ) -> Result<Self, String> {
        let offer = super::offer(bus, storage::CLASS, index, "storage")?;
        let storage = Storage::open(bus, &offer, &MEMORY, options)
            .map_err(|error| format!("the disk does not open: {error}"))?;
        Ok(Self {
            storage: Arc::new(storage),
            name: format!(
                "VMBus disk, channel {}, unit {}",
                offer.relid(),
                options.lun
            ),
        })
    }

    /// The driver itself.
    pub(crate) fn storage(&self) -> &Arc<KernelStorage> {
        &self.storage
    }

    /// The driver counts in sectors of 512 bytes, the scenarios in blocks.
    fn sector(&self, lba: u64) -> u64 {
        lba.saturating_mul(self.sectors_per_block())
    }

    fn sectors_per_block(&self) -> u64 {
        (self.storage.block_size() / SECTOR_SIZE) as u64
    }
}

impl Disk for VmbusDisk {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn blocks(&self) -> u64 {
        self.storage.capacity() / self.sectors_per_block()
    }

    fn block_bytes(&self) -> usize {
        self.storage.block_size()
    }

    fn is_read_only(&self) -> bool {
        self.storage.readonly()
    }

    fn read(&mut self, lba: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.storage
            .read_blocks(self.sector(lba), buffer)
            .map_err(DiskError::from)
    }

    fn write(&mut self, lba: u64, data: &[u8]) -> Result<(), DiskError> {
        self.storage
            .write_blocks(self.sector(lba), data)
            .map_err(DiskError::from)
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        self.storage.flush().map_err(DiskError::from)
    }
}

impl From<StorageError> for DiskError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Device(sense) => Self::Sense(sense),
            other => Self::Other(other.to_string()),
        }
    }
}
