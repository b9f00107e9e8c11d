//! The SCSI subset that disks and DVD drives on [`storvsp`](crate::storvsp) speak.
//!
//! [`Cdb`] is a command, parsed or built; [`Sense`] why one failed; the other types are what
//! commands return in their data. All multi-byte fields of SCSI are big-endian. Sources: SPC-4
//! (commands and data common to all devices), SBC-3 (disks) and MMC-6 (optical drives, in
//! [`MmcCommand`]), by section at each item.

mod cdb;
mod data;
mod inquiry;
mod mmc;
mod sense;

pub use cdb::{Cdb, CdbBytes, CdbError, opcode};
pub use data::{
    Capacity, Capacity10, Capacity16, MODE_DEVICE_WRITE_PROTECT, ModeHeader6, ModeHeader10,
    PAGE_ALL, PAGE_CACHING, PAGE_CONTROL, ReportLuns, UnmapDescriptor, caching_page, control_page,
    unmap_descriptors,
};
pub use inquiry::{
    BlockLimits, LogicalBlockProvisioning, NaaDesignation, StandardInquiry, VpdHeader, vpd,
};
pub use mmc::{
    CLASS_MEDIA, ConfigurationHeader, EventHeader, MediaEvent, MmcCommand, PAGE_CAPABILITIES,
    PROFILE_DVD_ROM, SECTOR, capabilities_page, mmc_opcode,
};
pub use sense::{Sense, SenseKey};

/// SCSI status codes (SAM-5 5.3).
pub mod status {
    /// Done.
    pub const GOOD: u8 = 0x00;
    /// Failed; sense data says why.
    pub const CHECK_CONDITION: u8 = 0x02;
    /// Not now.
    pub const BUSY: u8 = 0x08;
    /// Not now: the unit has as many commands as it takes.
    pub const TASK_SET_FULL: u8 = 0x28;
}
