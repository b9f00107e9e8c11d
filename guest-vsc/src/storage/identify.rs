//! The first conversation with a controller and its disk: version, limits, size.

use core::borrow::Borrow;
use core::sync::atomic::Ordering;

use vmbus_proto::PAGE_SIZE;
use vmbus_proto::scsi::{Capacity, Cdb, MODE_DEVICE_WRITE_PROTECT, PAGE_ALL};
use vmbus_proto::storvsp::{Operation, ProtocolVersion, VstorPacket, status};

use super::{Controller, Data, MAX_PAGES, SECTOR_SIZE, Storage, StorageError};
use crate::buffer::Buffer;
use crate::error::Error;
use crate::hal::Hal;
use crate::sub_channels::MAX_SUB_CHANNELS;

impl<H: Hal, B: Buffer> Controller<'_, H, B> {
    /// The conversation that begins every use of a controller. At its end `sub_channels` are asked
    /// for, or as many as the controller has; returns how many will be offered.
    pub(super) fn initialize(&mut self, sub_channels: u16) -> Result<u16, StorageError> {
        self.expect_done(&VstorPacket::request(Operation::BeginInitialization))?;
        let mut refusal = StorageError::Bus(Error::Protocol("no version"));
        let mut agreed = None;
        for version in ProtocolVersion::NEWEST_FIRST {
            match self.expect_done(&VstorPacket::query_protocol_version(version as u16)) {
                Ok(_) => {
                    agreed = Some(version);
                    break;
                }
                Err(error @ StorageError::Refused(..)) => refusal = error,
                Err(error) => return Err(error),
            }
        }
        self.packet_size = agreed.ok_or(refusal)?.packet_size();
        let properties = self
            .expect_done(&VstorPacket::request(Operation::QueryProperties))?
            .properties();
        let pages = properties.max_transfer_bytes.get() as usize / PAGE_SIZE;
        // One page more than the data has, as a buffer may begin anywhere in a page.
        let pages = pages.clamp(1, MAX_PAGES.saturating_sub(1));
        self.max_transfer = pages.saturating_mul(PAGE_SIZE);
        self.expect_done(&VstorPacket::request(Operation::EndInitialization))?;
        let count = sub_channels
            .min(properties.sub_channels())
            .min(MAX_SUB_CHANNELS as u16);
        if count == 0 {
            return Ok(0);
        }
        match self.expect_done(&VstorPacket::create_sub_channels(count)) {
            Ok(_) => Ok(count),
            // One channel does.
            Err(StorageError::Refused(..)) => Ok(0),
            Err(error) => Err(error),
        }
    }

    fn expect_done(&self, packet: &VstorPacket) -> Result<VstorPacket, StorageError> {
        let answer = self.ask(packet)?;
        match answer.status.get() {
            status::SUCCESS => Ok(answer),
            refused => {
                let operation = packet.operation().unwrap_or(Operation::CompleteIo);
                Err(StorageError::Refused(operation, refused))
            }
        }
    }
}

impl<'b, H: Hal, B: Buffer, C: Borrow<Controller<'b, H, B>>> Storage<'b, H, B, C> {
    /// Asks the disk for its size, and whether it may be written to.
    pub(super) fn identify(&mut self) -> Result<(), StorageError> {
        match self.ask(&Cdb::TestUnitReady, &mut Data::None) {
            // Not ready now may be ready later; its size tells.
            Ok(_) | Err(StorageError::Device(_)) => {}
            Err(error) => return Err(error),
        }
        self.capacity = self.read_capacity()?;
        // So far reads and writes counted in sectors; from here on in the disk's own blocks.
        let per_block = self.block_size() / SECTOR_SIZE;
        let sectors = self.capacity.blocks.saturating_mul(per_block as u64);
        // Blocks are powers of two, so this rounds down to whole ones.
        self.max_transfer &= !self.block_size().saturating_sub(1);
        self.sectors.store(sectors, Ordering::Relaxed);
        self.read_only = self.read_write_protect()?;
        Ok(())
    }

    /// Sends a command again while the device answers with news; returns how many bytes were moved.
    pub(super) fn ask(&self, cdb: &Cdb, data: &mut Data<'_>) -> Result<u32, StorageError> {
        self.controller().with_attention(self.address(), cdb, data)
    }

    /// Asks the disk for its size again, in sectors: it may have grown, which the host tells like
    /// other news of its units. Waits for the device.
    ///
    /// # Errors
    /// The disk does not answer, or has blocks of another length now.
    pub fn refresh_capacity(&self) -> Result<u64, StorageError> {
        let now = self.read_capacity()?;
        if now.block_length != self.capacity.block_length {
            return Err(Error::Protocol("another block length than before").into());
        }
        let per_block = self.block_size() / SECTOR_SIZE;
        let sectors = now.blocks.saturating_mul(per_block as u64);
        self.sectors.store(sectors, Ordering::Relaxed);
        Ok(sectors)
    }

    fn read_capacity(&self) -> Result<Capacity, StorageError> {
        let mut data = [0; 32];
        let moved = self.ask(&Cdb::ReadCapacity10, &mut Data::In(&mut data[..8]))?;
        let short = data.get(..moved as usize).unwrap_or_default();
        let capacity = match Capacity::parse_10(short) {
            Some(Some(capacity)) => Some(capacity),
            // Too large to say in 32 bits.
            Some(None) => {
                let cdb = Cdb::ReadCapacity16 {
                    allocation_length: data.len() as u32,
                };
                let moved = self.ask(&cdb, &mut Data::In(&mut data))?;
                Capacity::parse_16(data.get(..moved as usize).unwrap_or_default())
            }
            None => None,
        };
        // Blocks are whole sectors, and a block fits one request.
        capacity
            .filter(|capacity| {
                let length = capacity.block_length as usize;
                length.is_power_of_two() && length >= SECTOR_SIZE && length <= self.max_transfer
            })
            .ok_or(StorageError::Bus(Error::Protocol("absurd capacity")))
    }

    /// Whether the disk says that it must not be written to. One that has no mode pages says no.
    fn read_write_protect(&self) -> Result<bool, StorageError> {
        let mut data = [0; 192];
        let cdb = Cdb::ModeSense {
            long: false,
            no_block_descriptor: false,
            values: 0,
            page: PAGE_ALL,
            subpage: 0,
            allocation_length: data.len() as u16,
        };
        match self.ask(&cdb, &mut Data::In(&mut data)) {
            Ok(moved) if moved >= 4 => Ok(data[2] & MODE_DEVICE_WRITE_PROTECT != 0),
            Ok(_) => Ok(false),
            Err(StorageError::Device(_) | StorageError::Status { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
