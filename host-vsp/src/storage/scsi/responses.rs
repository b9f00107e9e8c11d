//! The data that commands return, but for the disk's own.

use vmbus_proto::scsi::{
    BlockLimits, Capacity, Capacity16, Cdb, LogicalBlockProvisioning, MODE_DEVICE_WRITE_PROTECT,
    ModeHeader6, ModeHeader10, NaaDesignation, PAGE_ALL, PAGE_CACHING, PAGE_CONTROL, ReportLuns,
    Sense, StandardInquiry, VpdHeader, caching_page, control_page, vpd,
};
use zerocopy::IntoBytes;

use super::{MAX_UNMAP_DESCRIPTORS, Unit};
use crate::storage::MAX_TRANSFER_BYTES;

/// The names by which Hyper-V's disks go: guests have quirks and udev rules keyed on them.
const VENDOR: &[u8; 8] = b"Msft    ";
const PRODUCT: &[u8; 16] = b"Virtual Disk    ";
const REVISION: &[u8; 4] = b"1.0 ";

/// Bit of a mode header's device-specific byte: FUA is supported.
const MODE_DEVICE_FUA: u8 = 0x10;

/// Standard INQUIRY data where there is no logical unit.
pub(super) fn no_unit() -> Vec<u8> {
    StandardInquiry::new(StandardInquiry::NO_UNIT, VENDOR, PRODUCT, REVISION)
        .as_bytes()
        .to_vec()
}

/// REPORT LUNS data.
pub(super) fn report_luns(select: u8, luns: &[u8]) -> Result<Vec<u8>, Sense> {
    let luns = match select {
        0 | 2 => luns,
        // The well-known units, of which there are none.
        1 => &[],
        _ => return Err(Sense::INVALID_FIELD_IN_CDB),
    };
    // At most 256 of them.
    let length = (luns.len() as u32).saturating_mul(8);
    let header = ReportLuns {
        list_length: length.into(),
        reserved: 0.into(),
    };
    let list = luns.iter().flat_map(|&lun| ReportLuns::lun(lun));
    Ok(header.as_bytes().iter().copied().chain(list).collect())
}

/// INQUIRY data.
pub(super) fn inquiry(unit: &Unit, page: Option<u8>) -> Result<Vec<u8>, Sense> {
    let Some(page) = page else {
        let data = StandardInquiry::new(StandardInquiry::DISK, VENDOR, PRODUCT, REVISION);
        return Ok(data.as_bytes().to_vec());
    };
    let body = match page {
        vpd::SUPPORTED_PAGES => vec![
            vpd::SUPPORTED_PAGES,
            vpd::UNIT_SERIAL_NUMBER,
            vpd::DEVICE_IDENTIFICATION,
            vpd::BLOCK_LIMITS,
            vpd::BLOCK_DEVICE_CHARACTERISTICS,
            vpd::LOGICAL_BLOCK_PROVISIONING,
        ],
        vpd::UNIT_SERIAL_NUMBER => unit.identity.serial.as_bytes().to_vec(),
        vpd::DEVICE_IDENTIFICATION => NaaDesignation::local(unit.identity.name)
            .as_bytes()
            .to_vec(),
        vpd::BLOCK_LIMITS => block_limits(unit).as_bytes().to_vec(),
        // Its first field is the rotation rate: 1 says that nothing turns.
        vpd::BLOCK_DEVICE_CHARACTERISTICS => [0, 1].into_iter().chain([0; 58]).collect(),
        vpd::LOGICAL_BLOCK_PROVISIONING => provisioning(unit).as_bytes().to_vec(),
        _ => return Err(Sense::INVALID_FIELD_IN_CDB),
    };
    let header = VpdHeader {
        peripheral: StandardInquiry::DISK,
        page,
        length: (body.len() as u16).into(),
    };
    Ok([header.as_bytes(), &body].concat())
}

fn block_limits(unit: &Unit) -> BlockLimits {
    // Guests are to align to physical blocks, and free whole ones.
    let physical = 1 << unit.block_size.physical_exponent();
    let most = MAX_TRANSFER_BYTES.checked_div(unit.block_size.bytes());
    let limits = BlockLimits {
        optimal_granularity: physical.into(),
        max_transfer: most.unwrap_or(0).into(),
        ..BlockLimits::default()
    };
    if !unit.backend.can_unmap() {
        return limits;
    }
    BlockLimits {
        max_unmap_blocks: u32::MAX.into(),
        max_unmap_descriptors: (MAX_UNMAP_DESCRIPTORS as u32).into(),
        optimal_unmap_granularity: u32::from(physical).into(),
        ..limits
    }
}

fn provisioning(unit: &Unit) -> LogicalBlockProvisioning {
    if !unit.backend.can_unmap() {
        return LogicalBlockProvisioning::default();
    }
    LogicalBlockProvisioning {
        flags: LogicalBlockProvisioning::UNMAP | LogicalBlockProvisioning::READS_ZEROS,
        provisioning_type: LogicalBlockProvisioning::THIN,
        ..LogicalBlockProvisioning::default()
    }
}

fn capacity(unit: &Unit) -> Capacity {
    Capacity {
        blocks: unit.blocks(),
        block_length: unit.block_size.bytes(),
    }
}

/// READ CAPACITY(10) data.
pub(super) fn capacity_10(unit: &Unit) -> Vec<u8> {
    capacity(unit).to_10().as_bytes().to_vec()
}

/// READ CAPACITY(16) data.
pub(super) fn capacity_16(unit: &Unit) -> Vec<u8> {
    let provisioning = if unit.backend.can_unmap() {
        Capacity16::PROVISIONING_MANAGED | Capacity16::READS_ZEROS
    } else {
        0
    };
    capacity(unit)
        .to_16(unit.block_size.physical_exponent(), provisioning)
        .as_bytes()
        .to_vec()
}

/// MODE SENSE data, of either length.
pub(super) fn mode_sense(unit: &Unit, cdb: Cdb) -> Result<Vec<u8>, Sense> {
    let Cdb::ModeSense {
        long,
        no_block_descriptor,
        values,
        page,
        subpage,
        ..
    } = cdb
    else {
        return Err(Sense::INVALID_OPCODE);
    };
    if values == 3 {
        return Err(Sense::SAVING_NOT_SUPPORTED);
    }
    let all_subpages = subpage == 0xff && page == PAGE_ALL;
    if subpage != 0 && !all_subpages {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }
    let (caching, control) = (caching_page(!unit.backend.read_only()), control_page());
    let pages: &[&[u8]] = match page {
        PAGE_ALL => &[&caching, &control],
        PAGE_CACHING => &[&caching],
        PAGE_CONTROL => &[&control],
        _ => return Err(Sense::INVALID_FIELD_IN_CDB),
    };
    let mut pages = pages.iter().map(|page| page.to_vec()).collect::<Vec<_>>();
    if values == 1 {
        // What could be changed: nothing.
        for byte in pages.iter_mut().flat_map(|page| page.iter_mut().skip(2)) {
            *byte = 0;
        }
    }
    let descriptor = if no_block_descriptor {
        Vec::new()
    } else {
        block_descriptor(unit)
    };
    let body = [descriptor.as_slice(), &pages.concat()].concat();
    let device_specific = if unit.backend.read_only() {
        MODE_DEVICE_FUA | MODE_DEVICE_WRITE_PROTECT
    } else {
        MODE_DEVICE_FUA
    };
    // The lengths are those of a descriptor and two pages: 40 bytes at most.
    let header = if long {
        ModeHeader10 {
            data_length: (body.len() as u16).saturating_add(6).into(),
            device_specific,
            block_descriptor_length: (descriptor.len() as u16).into(),
            ..ModeHeader10::default()
        }
        .as_bytes()
        .to_vec()
    } else {
        ModeHeader6 {
            data_length: (body.len() as u8).saturating_add(3),
            device_specific,
            block_descriptor_length: descriptor.len() as u8,
            ..ModeHeader6::default()
        }
        .as_bytes()
        .to_vec()
    };
    Ok([header, body].concat())
}

/// The short block descriptor (SBC-3 6.5.2.2): number of blocks, or all ones, and their length.
fn block_descriptor(unit: &Unit) -> Vec<u8> {
    let blocks = u32::try_from(unit.blocks()).unwrap_or(u32::MAX);
    [blocks, unit.block_size.bytes()]
        .map(u32::to_be_bytes)
        .concat()
}
