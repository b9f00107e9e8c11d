//! Requests that the caller waits for.
//!
//! The buffer is the caller's, borrowed for the time of the call, and the host moves the data
//! straight between it and the disk. So the call does not return before the host is done: not
//! even where the host is silent. Then the channel is closed, which makes the host acknowledge
//! that it touches no memory of ours any more.
#![expect(unsafe_code, reason = "a borrowed buffer is shared with the host here")]

use core::borrow::Borrow;
use core::ptr::NonNull;
use core::time::Duration;

use vmbus_proto::scsi::{Cdb, SenseKey};
use vmbus_proto::storvsp::{DATA_IN, DATA_NONE, DATA_OUT, Srb, VstorPacket};

use super::error::outcome;
use super::{Controller, SECTOR_SIZE, Storage, StorageError, Token};
use crate::buffer::Buffer;
use crate::error::{Error, Waited};
use crate::hal::{BufferDirection, Hal};

/// The data of a command.
#[derive(Debug)]
pub enum Data<'a> {
    /// None.
    None,
    /// From the device.
    In(&'a mut [u8]),
    /// To the device.
    Out(&'a [u8]),
}

impl Data<'_> {
    fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::In(buffer) => buffer.len(),
            Self::Out(buffer) => buffer.len(),
        }
    }
}

/// How often a command is sent again that met a unit attention: the device had news, no failure.
const ATTENTIONS: u32 = 4;

/// Which unit a command is for, and how long it may take.
#[derive(Clone, Copy)]
pub(super) struct Address {
    pub(super) lun: u8,
    pub(super) timeout: Duration,
}

impl<'b, H: Hal, B: Buffer, C: Borrow<Controller<'b, H, B>>> Storage<'b, H, B, C> {
    /// Reads whole blocks from `sector` (of 512 bytes) on, as many as `buffer` holds. Waits for
    /// the device.
    ///
    /// # Errors
    /// [`StorageError::Device`] where the device refuses or fails; the buffer may have been
    /// written to.
    pub fn read_blocks(&self, sector: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        let mut lba = self.block_of(sector, buffer.len() as u64)?;
        for part in buffer.chunks_mut(self.max_transfer()) {
            let blocks = self.blocks_in(part.len() as u64);
            let fua = false;
            let cdb = Cdb::Read { lba, blocks, fua };
            self.whole(&cdb, &mut Data::In(part))?;
            lba = lba.saturating_add(u64::from(blocks));
        }
        Ok(())
    }

    /// Writes whole blocks from `sector` (of 512 bytes) on, as many as `buffer` holds. Waits for
    /// the device, not for its cache: see [`flush`](Self::flush).
    ///
    /// # Errors
    /// [`StorageError::Device`] where the device refuses or fails; some blocks may have been
    /// written.
    pub fn write_blocks(&self, sector: u64, buffer: &[u8]) -> Result<(), StorageError> {
        let mut lba = self.block_of(sector, buffer.len() as u64)?;
        for part in buffer.chunks(self.max_transfer()) {
            let blocks = self.blocks_in(part.len() as u64);
            let fua = false;
            let cdb = Cdb::Write { lba, blocks, fua };
            self.whole(&cdb, &mut Data::Out(part))?;
            lba = lba.saturating_add(u64::from(blocks));
        }
        Ok(())
    }

    /// Makes all writes that have completed durable. Waits for the device.
    ///
    /// # Errors
    /// [`StorageError::Device`] where the device fails.
    pub fn flush(&self) -> Result<(), StorageError> {
        let cdb = Cdb::SynchronizeCache { lba: 0, blocks: 0 };
        self.whole(&cdb, &mut Data::None)
    }

    /// Says that the device may forget `sectors` sectors (of 512 bytes) from `sector` on. Waits
    /// for the device.
    ///
    /// # Errors
    /// [`StorageError::Device`] where the device cannot, or fails.
    pub fn unmap(&self, sector: u64, sectors: u32) -> Result<(), StorageError> {
        let length = u64::from(sectors).saturating_mul(SECTOR_SIZE as u64);
        let lba = self.block_of(sector, length)?;
        let data = vmbus_proto::scsi::UnmapDescriptor::single(lba, self.blocks_in(length));
        let cdb = Cdb::Unmap {
            anchor: false,
            parameter_list_length: data.len() as u16,
        };
        self.whole(&cdb, &mut Data::Out(&data))
    }

    /// Sends a SCSI command and returns how many bytes of data were moved. Waits for the device.
    ///
    /// # Errors
    /// [`StorageError::Device`] where the device refuses or fails; [`StorageError::TooLong`]
    /// where the data is longer than one request can move.
    pub fn execute(&self, cdb: &[u8], mut data: Data<'_>) -> Result<u32, StorageError> {
        let address = self.address();
        self.controller().command(address, cdb, &mut data)
    }

    /// Sends a command again while the device answers with news, and wants all its data moved.
    pub(super) fn whole(&self, cdb: &Cdb, data: &mut Data<'_>) -> Result<(), StorageError> {
        match self.ask(cdb, data)? {
            moved if moved as usize == data.len() => Ok(()),
            moved => Err(StorageError::Short(moved)),
        }
    }

    pub(super) fn address(&self) -> Address {
        Address {
            lun: self.lun,
            timeout: self.timeout,
        }
    }
}

impl<H: Hal, B: Buffer> Controller<'_, H, B> {
    /// Sends a command again while the device answers with news.
    pub(super) fn with_attention(
        &self,
        address: Address,
        cdb: &Cdb,
        data: &mut Data<'_>,
    ) -> Result<u32, StorageError> {
        let cdb = cdb.to_bytes();
        let mut attentions = 0;
        loop {
            match self.command(address, cdb.as_slice(), data) {
                Err(StorageError::Device(sense))
                    if sense.key == SenseKey::UnitAttention && attentions < ATTENTIONS =>
                {
                    attentions = attentions.saturating_add(1);
                }
                result => return result,
            }
        }
    }

    fn command(
        &self,
        address: Address,
        cdb: &[u8],
        data: &mut Data<'_>,
    ) -> Result<u32, StorageError> {
        if data.len() > self.max_transfer {
            return Err(StorageError::TooLong);
        }
        let length = data.len() as u32;
        let (direction, region) = match data {
            Data::In(buffer) if !buffer.is_empty() => (DATA_IN, Some(NonNull::from(&mut **buffer))),
            Data::Out(buffer) if !buffer.is_empty() => (DATA_OUT, Some(NonNull::from(*buffer))),
            _ => (DATA_NONE, None),
        };
        let srb = Srb::request(address.lun, cdb, direction, length);
        let packet = VstorPacket::execute_srb(&srb);
        let direction = if direction == DATA_IN {
            BufferDirection::DeviceToDriver
        } else {
            BufferDirection::DriverToDevice
        };
        // SAFETY: `data` is borrowed by this call, which does not touch it before `run` returns;
        // for `Data::Out` the host only reads.
        let answer = unsafe {
            self.run(
                &packet,
                address.timeout,
                region.map(|region| (region, direction)),
            )
        }?;
        outcome(&answer, length)
    }

    /// Sends a packet without data and waits for its answer.
    pub(super) fn ask(&self, packet: &VstorPacket) -> Result<VstorPacket, Error> {
        // SAFETY: there is no buffer.
        unsafe { self.run(packet, self.timeout, None) }
    }

    /// Sends a packet and waits for its answer. When this returns, the host is done with the
    /// buffer.
    ///
    /// # Safety
    /// The buffer is valid, and nobody accesses it, for the time of the call.
    unsafe fn run(
        &self,
        packet: &VstorPacket,
        timeout: Duration,
        buffer: Option<(NonNull<[u8]>, BufferDirection)>,
    ) -> Result<VstorPacket, Error> {
        let token = self.wait(Waited::Room, timeout, || {
            let started = self.table.with(|table| {
                // SAFETY: the caller's promise lasts until this function returns, and it does
                // not before the request is taken or abandoned.
                unsafe {
                    table.start_borrowed::<H>(buffer, |token, mapping| {
                        self.send(packet, token, mapping)
                    })
                }
            });
            match started {
                Ok(token) => Ok(Some(token)),
                Err(Error::Full) => self.drain().map(|()| None),
                Err(error) => Err(error),
            }
        })?;
        self.finish(token, timeout)
    }

    /// Waits for a request without an owned buffer.
    fn finish(&self, token: Token, timeout: Duration) -> Result<VstorPacket, Error> {
        let waited = self.wait(Waited::Completion, timeout, || {
            let drained = self.drain();
            match self.table.with(|table| table.take(token)) {
                Some(finished) => Ok(Some(finished)),
                None => drained.and_then(|()| self.check()).map(|()| None),
            }
        });
        match waited {
            Ok(finished) => finished.answer,
            Err(error) => {
                // The buffer goes back to the caller, so the host has to let go of it: closing
                // makes it say so. A host that does not say even that is past helping: it has all
                // of our memory anyway, or `Hal::unshare` keeps it from this buffer.
                let _ = self.shutdown();
                self.table.with(|table| table.abandon::<H>(token));
                Err(error)
            }
        }
    }
}
