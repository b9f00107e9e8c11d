// SPDX-License-Identifier: GPL-2.0

//! What a unit says of itself: whether it is a disk, how large, and what it can do.

use kernel::prelude::*;
use vmbus_proto::scsi::{
    vpd, BlockLimits, Capacity, Capacity16, Cdb, LogicalBlockProvisioning, ModeHeader6,
    StandardInquiry, VpdHeader, MODE_DEVICE_WRITE_PROTECT, PAGE_CACHING,
};

use crate::blk::{DiskOptions, Limits};
use crate::commands::Commands;
use crate::operations::{Address, PAGE};

/// Bytes of a sector, in which the block layer counts.
const SECTOR: u32 = 512;

/// Bit of a mode header: a write can be told to reach the medium (SBC-3 6.5.1, DPOFUA).
const MODE_DEVICE_FUA: u8 = 0x10;

/// Bit of the caching page's third byte: the unit caches writes (SBC-3 6.5.5, WCE).
const WRITE_CACHE_ENABLE: u8 = 0x04;

/// A disk, as it says of itself.
pub(crate) struct Identity {
    pub(crate) address: Address,
    pub(crate) options: DiskOptions,
}

/// Size and blocks.
#[derive(Clone, Copy)]
struct Shape {
    capacity: Capacity,
    physical_exponent: u8,
}

impl Identity {
    /// Asks a unit; nothing where it is no disk. `max_transfer` is the most that the controller moves
    /// for one request, in bytes.
    pub(crate) fn ask(commands: &Commands, lun: u8, max_transfer: u32) -> Result<Option<Self>> {
        let mut data = [0; size_of::<StandardInquiry>()];
        let cdb = Cdb::Inquiry {
            page: None,
            allocation_length: data.len() as u16,
        };
        let moved = commands.scsi(lun, cdb, &mut data)?;
        let standard = StandardInquiry::parse(data.get(..moved).unwrap_or_default());
        if !standard.is_some_and(|standard| standard.is_disk()) {
            return Ok(None);
        }
        let shape = Shape::ask(commands, lun)?;
        let block = shape.capacity.block_length;
        let address = Address {
            lun,
            block_shift: block.trailing_zeros() - SECTOR.trailing_zeros(),
        };
        let mode = Mode::ask(commands, lun)?;
        let limits = limits(commands, lun, shape, max_transfer, mode)?;
        Ok(Some(Self {
            address,
            options: DiskOptions {
                limits,
                sectors: shape.sectors(),
                read_only: mode.read_only,
            },
        }))
    }
}

/// A unit's size in sectors, and how it is addressed.
pub(crate) fn size(commands: &Commands, lun: u8) -> Result<(u64, u32)> {
    let shape = Shape::ask(commands, lun)?;
    Ok((shape.sectors(), shape.capacity.block_length))
}

impl Shape {
    fn ask(commands: &Commands, lun: u8) -> Result<Self> {
        let mut data = [0; size_of::<Capacity16>()];
        let cdb = Cdb::ReadCapacity16 {
            allocation_length: data.len() as u32,
        };
        let shape = match commands.scsi(lun, cdb, &mut data) {
            Ok(moved) => {
                let data = data.get(..moved).unwrap_or_default();
                let exponent = Capacity16::read_from_prefix(data)
                    .map_or(0, |(capacity, _)| capacity.physical_exponent & 0xf);
                Capacity::parse_16(data).map(|capacity| Self {
                    capacity,
                    physical_exponent: exponent,
                })
            }
            // An old unit knows the short command only.
            Err(EOPNOTSUPP | EREMOTEIO) => {
                let mut data = [0; 8];
                let moved = commands.scsi(lun, Cdb::ReadCapacity10, &mut data)?;
                let data = data.get(..moved).unwrap_or_default();
                Capacity::parse_10(data).flatten().map(|capacity| Self {
                    capacity,
                    physical_exponent: 0,
                })
            }
            Err(error) => return Err(error),
        };
        shape
            .filter(|shape| {
                let block = shape.capacity.block_length;
                block.is_power_of_two()
                    && (SECTOR..=PAGE).contains(&block)
                    && shape.capacity.blocks <= (i64::MAX as u64) / u64::from(block)
            })
            .ok_or(EPROTO)
    }

    fn sectors(self) -> u64 {
        self.capacity.blocks * u64::from(self.capacity.block_length / SECTOR)
    }
}

/// What the mode pages say. A unit without them caches nothing.
#[derive(Clone, Copy, Default)]
struct Mode {
    read_only: bool,
    fua: bool,
    write_cache: bool,
}

impl Mode {
    fn ask(commands: &Commands, lun: u8) -> Result<Self> {
        let mut data = [0; 192];
        let cdb = Cdb::ModeSense {
            long: false,
            no_block_descriptor: true,
            values: 0,
            page: PAGE_CACHING,
            subpage: 0,
            allocation_length: data.len() as u16,
        };
        let moved = commands.scsi_optional(lun, cdb, &mut data)?;
        let data = data.get(..moved).unwrap_or_default();
        let Ok((header, rest)) = ModeHeader6::read_from_prefix(data) else {
            return Ok(Self::default());
        };
        let page = rest.get(header.block_descriptor_length.into()..);
        let write_cache = match page {
            Some([page, _, flags, ..]) if page & 0x3f == PAGE_CACHING => {
                flags & WRITE_CACHE_ENABLE != 0
            }
            _ => false,
        };
        Ok(Self {
            read_only: header.device_specific & MODE_DEVICE_WRITE_PROTECT != 0,
            fua: header.device_specific & MODE_DEVICE_FUA != 0,
            write_cache,
        })
    }
}

/// A page of vital product data without its header, in `data`.
fn product_data<'a>(
    commands: &Commands,
    lun: u8,
    page: u8,
    data: &'a mut [u8; 64],
) -> Result<Option<&'a [u8]>> {
    let cdb = Cdb::Inquiry {
        page: Some(page),
        allocation_length: data.len() as u16,
    };
    let moved = commands.scsi_optional(lun, cdb, data)?;
    let parsed = data.get(..moved).and_then(VpdHeader::parse);
    Ok(parsed.and_then(|(told, rest)| (told == page).then_some(rest)))
}

/// What requests may be like.
fn limits(
    commands: &Commands,
    lun: u8,
    shape: Shape,
    max_transfer: u32,
    mode: Mode,
) -> Result<Limits> {
    let block = shape.capacity.block_length;
    let mut data = [0; 64];
    let told = product_data(commands, lun, vpd::BLOCK_LIMITS, &mut data)?
        .and_then(|page| BlockLimits::read_from_prefix(page).ok())
        .map(|(limits, _)| limits)
        .unwrap_or_default();
    let max_transfer = match told.max_transfer.get() {
        0 => max_transfer,
        blocks => max_transfer.min(blocks.saturating_mul(block)),
    };
    // Whole pages, and so whole blocks.
    let max_transfer = (max_transfer - max_transfer % PAGE).max(PAGE);
    let mut data = [0; 64];
    let provisioning = product_data(commands, lun, vpd::LOGICAL_BLOCK_PROVISIONING, &mut data)?
        .and_then(|page| LogicalBlockProvisioning::read_from_prefix(page).ok());
    let can_unmap = provisioning
        .is_some_and(|(page, _)| page.flags & LogicalBlockProvisioning::UNMAP != 0)
        && told.max_unmap_descriptors.get() > 0;
    // A request's length is 32 bits of bytes.
    let max_unmap = u64::from(told.max_unmap_blocks.get()) * u64::from(block);
    let max_unmap = max_unmap.min(u64::from(u32::MAX - u32::MAX % PAGE)) as u32;
    let granularity = told.optimal_unmap_granularity.get().saturating_mul(block);
    Ok(Limits {
        logical_block_size: block,
        physical_block_size: block << shape.physical_exponent.min(8),
        max_sectors: max_transfer / SECTOR,
        // One more page than the data has, as it may begin anywhere in a page.
        max_segments: max_transfer / PAGE + 1,
        virt_boundary_mask: u64::from(PAGE) - 1,
        max_discard_sectors: if can_unmap { max_unmap / SECTOR } else { 0 },
        discard_granularity: match granularity {
            power if power.is_power_of_two() && power >= block => power,
            _ => block,
        },
        write_cache: mode.write_cache,
        fua: mode.write_cache && mode.fua,
    })
}
