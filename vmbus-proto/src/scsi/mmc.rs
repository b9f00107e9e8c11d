//! What drives of optical media have beyond other SCSI devices.
//!
//! [`MmcCommand`] is a command that only they know; the types are what those return. A medium is
//! in blocks of [`SECTOR`] bytes. Source: MMC-6, by section at each item.

use zerocopy::big_endian::{U16, U32};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{CdbBytes, CdbError};

/// Bytes of a block of a data medium.
pub const SECTOR: u32 = 2048;

/// First byte of a CDB (MMC-6 6.1).
pub mod mmc_opcode {
    #![expect(missing_docs, reason = "the standard's names say it")]
    pub const PREVENT_ALLOW_MEDIUM_REMOVAL: u8 = 0x1e;
    pub const READ_TOC: u8 = 0x43;
    pub const GET_CONFIGURATION: u8 = 0x46;
    pub const GET_EVENT_STATUS_NOTIFICATION: u8 = 0x4a;
    pub const READ_DISC_INFORMATION: u8 = 0x51;
    pub const READ_TRACK_INFORMATION: u8 = 0x52;
    pub const READ_12: u8 = 0xa8;
    pub const READ_DISC_STRUCTURE: u8 = 0xad;
    pub const MECHANISM_STATUS: u8 = 0xbd;
}

/// A command of optical drives. Lengths are in bytes, addresses in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmcCommand {
    /// Lock the medium in, or let it out (MMC-6 6.15).
    PreventAllowMediumRemoval {
        /// Lock it in.
        prevent: bool,
    },
    /// READ TOC/PMA/ATIP (MMC-6 6.25).
    ReadToc {
        /// Addresses as minute, second and frame.
        msf: bool,
        /// 0 tracks, 1 sessions, 2 all of the lead-in.
        format: u8,
        /// First track or session to tell of.
        first: u8,
        /// Room for the answer.
        allocation_length: u16,
    },
    /// Features of drive and medium (MMC-6 6.6).
    GetConfiguration {
        /// 0 all, 1 the current ones, 2 just `first`.
        which: u8,
        /// First feature to tell of.
        first: u16,
        /// Room for the answer.
        allocation_length: u16,
    },
    /// What has happened (MMC-6 6.7).
    GetEventStatusNotification {
        /// Answer at once, also where nothing has.
        polled: bool,
        /// Bit *n*: events of class *n* are asked for.
        classes: u8,
        /// Room for the answer.
        allocation_length: u16,
    },
    /// READ DISC INFORMATION (MMC-6 6.22).
    ReadDiscInformation {
        /// 0 for the standard data.
        kind: u8,
        /// Room for the answer.
        allocation_length: u16,
    },
    /// READ TRACK INFORMATION (MMC-6 6.27).
    ReadTrackInformation {
        /// What `address` is: 0 a block, 1 a track, 2 a session.
        kind: u8,
        /// Which track it is about.
        address: u32,
        /// Room for the answer.
        allocation_length: u16,
    },
    /// Blocks to the guest; READ(10) with a longer count.
    Read12 {
        /// First block.
        lba: u32,
        /// Number of blocks.
        blocks: u32,
    },
    /// READ DISC STRUCTURE, once READ DVD STRUCTURE (MMC-6 6.23).
    ReadDiscStructure {
        /// 0 for DVDs.
        media: u8,
        /// Layer of the medium.
        layer: u8,
        /// What to tell of.
        format: u8,
        /// Room for the answer.
        allocation_length: u16,
    },
    /// MECHANISM STATUS (MMC-6 6.10).
    MechanismStatus {
        /// Room for the answer.
        allocation_length: u16,
    },
}

impl MmcCommand {
    /// Parses a CDB; `Ok(None)` where it is no command that only optical drives have. Bytes beyond
    /// the command's length are ignored.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(cdb: &[u8]) -> Result<Option<Self>, CdbError> {
        let code = *cdb.first().ok_or(CdbError::InvalidField)?;
        Ok(Some(match code {
            mmc_opcode::PREVENT_ALLOW_MEDIUM_REMOVAL => {
                let [_, _, _, _, flags, _] = fields(cdb)?;
                // Bit 1 is for jukeboxes.
                Self::PreventAllowMediumRemoval {
                    prevent: flags & 1 != 0,
                }
            }
            mmc_opcode::READ_TOC => {
                let [_, b1, b2, _, _, _, first, l1, l0, control] = fields(cdb)?;
                // Where the format was before it had a field of its own.
                let old = control >> 6;
                let format = if b2 & 0xf != 0 { b2 & 0xf } else { old };
                Self::ReadToc {
                    msf: b1 & 2 != 0,
                    format,
                    first,
                    allocation_length: u16::from_be_bytes([l1, l0]),
                }
            }
            mmc_opcode::GET_CONFIGURATION => {
                let [_, b1, f1, f0, _, _, _, l1, l0, _] = fields(cdb)?;
                Self::GetConfiguration {
                    which: b1 & 3,
                    first: u16::from_be_bytes([f1, f0]),
                    allocation_length: u16::from_be_bytes([l1, l0]),
                }
            }
            mmc_opcode::GET_EVENT_STATUS_NOTIFICATION => {
                let [_, b1, _, _, classes, _, _, l1, l0, _] = fields(cdb)?;
                Self::GetEventStatusNotification {
                    polled: b1 & 1 != 0,
                    classes,
                    allocation_length: u16::from_be_bytes([l1, l0]),
                }
            }
            mmc_opcode::READ_DISC_INFORMATION => {
                let [_, b1, _, _, _, _, _, l1, l0, _] = fields(cdb)?;
                Self::ReadDiscInformation {
                    kind: b1 & 7,
                    allocation_length: u16::from_be_bytes([l1, l0]),
                }
            }
            mmc_opcode::READ_TRACK_INFORMATION => {
                let [_, b1, a3, a2, a1, a0, _, l1, l0, _] = fields(cdb)?;
                Self::ReadTrackInformation {
                    kind: b1 & 3,
                    address: u32::from_be_bytes([a3, a2, a1, a0]),
                    allocation_length: u16::from_be_bytes([l1, l0]),
                }
            }
            mmc_opcode::READ_12 => {
                let [_, _, a3, a2, a1, a0, n3, n2, n1, n0, _, _] = fields(cdb)?;
                Self::Read12 {
                    lba: u32::from_be_bytes([a3, a2, a1, a0]),
                    blocks: u32::from_be_bytes([n3, n2, n1, n0]),
                }
            }
            mmc_opcode::READ_DISC_STRUCTURE => {
                let [_, media, _, _, _, _, layer, format, l1, l0, _, _] = fields(cdb)?;
                Self::ReadDiscStructure {
                    media: media & 0xf,
                    layer,
                    format,
                    allocation_length: u16::from_be_bytes([l1, l0]),
                }
            }
            mmc_opcode::MECHANISM_STATUS => {
                let [_, _, _, _, _, _, _, _, l1, l0, _, _] = fields(cdb)?;
                Self::MechanismStatus {
                    allocation_length: u16::from_be_bytes([l1, l0]),
                }
            }
            _ => return Ok(None),
        }))
    }

    /// Builds the CDB.
    pub fn to_bytes(&self) -> CdbBytes {
        let ten = |code, b1, [b2, b3, b4, b5]: [u8; 4], b6, length: u16| {
            let [l1, l0] = length.to_be_bytes();
            CdbBytes::new(
                [code, b1, b2, b3, b4, b5, b6, l1, l0, 0, 0, 0, 0, 0, 0, 0],
                10,
            )
        };
        match *self {
            Self::PreventAllowMediumRemoval { prevent } => {
                let mut bytes = [0; 16];
                bytes[0] = mmc_opcode::PREVENT_ALLOW_MEDIUM_REMOVAL;
                bytes[4] = u8::from(prevent);
                CdbBytes::new(bytes, 6)
            }
            Self::ReadToc {
                msf,
                format,
                first,
                allocation_length,
            } => {
                let msf = if msf { 2 } else { 0 };
                let format = [format & 0xf, 0, 0, 0];
                ten(mmc_opcode::READ_TOC, msf, format, first, allocation_length)
            }
            Self::GetConfiguration {
                which,
                first,
                allocation_length,
            } => {
                let [f1, f0] = first.to_be_bytes();
                let code = mmc_opcode::GET_CONFIGURATION;
                ten(code, which & 3, [f1, f0, 0, 0], 0, allocation_length)
            }
            Self::GetEventStatusNotification {
                polled,
                classes,
                allocation_length,
            } => {
                let code = mmc_opcode::GET_EVENT_STATUS_NOTIFICATION;
                ten(
                    code,
                    u8::from(polled),
                    [0, 0, classes, 0],
                    0,
                    allocation_length,
                )
            }
            Self::ReadDiscInformation {
                kind,
                allocation_length,
            } => {
                let code = mmc_opcode::READ_DISC_INFORMATION;
                ten(code, kind & 7, [0; 4], 0, allocation_length)
            }
            Self::ReadTrackInformation {
                kind,
                address,
                allocation_length,
            } => {
                let code = mmc_opcode::READ_TRACK_INFORMATION;
                ten(code, kind & 3, address.to_be_bytes(), 0, allocation_length)
            }
            Self::Read12 { lba, blocks } => {
                let [a3, a2, a1, a0] = lba.to_be_bytes();
                let [n3, n2, n1, n0] = blocks.to_be_bytes();
                let code = mmc_opcode::READ_12;
                let bytes = [code, 0, a3, a2, a1, a0, n3, n2, n1, n0, 0, 0, 0, 0, 0, 0];
                CdbBytes::new(bytes, 12)
            }
            Self::ReadDiscStructure {
                media,
                layer,
                format,
                allocation_length,
            } => {
                let [l1, l0] = allocation_length.to_be_bytes();
                let code = mmc_opcode::READ_DISC_STRUCTURE;
                let media = media & 0xf;
                let bytes = [
                    code, media, 0, 0, 0, 0, layer, format, l1, l0, 0, 0, 0, 0, 0, 0,
                ];
                CdbBytes::new(bytes, 12)
            }
            Self::MechanismStatus { allocation_length } => {
                let [l1, l0] = allocation_length.to_be_bytes();
                let code = mmc_opcode::MECHANISM_STATUS;
                let bytes = [code, 0, 0, 0, 0, 0, 0, 0, l1, l0, 0, 0, 0, 0, 0, 0];
                CdbBytes::new(bytes, 12)
            }
        }
    }
}

/// The first `N` bytes of a CDB.
fn fields<const N: usize>(cdb: &[u8]) -> Result<[u8; N], CdbError> {
    cdb.first_chunk().copied().ok_or(CdbError::InvalidField)
}

/// Class of [`MediaEvent`] in GET EVENT STATUS NOTIFICATION (MMC-6 6.7.2).
pub const CLASS_MEDIA: u8 = 4;

/// GET EVENT STATUS NOTIFICATION data: the header (MMC-6 6.7.2.2), and where there is an event of
/// its class, that.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct EventHeader {
    /// Bytes that follow this field.
    pub length: U16,
    /// Bits 0-2: class of the event that follows. Bit 7: none of the classes asked for is there.
    pub class: u8,
    /// Bit *n*: there is a class *n*.
    pub supported: u8,
}
const _: () = assert!(size_of::<EventHeader>() == 4);

impl EventHeader {
    /// Bit of [`class`](Self::class): no event is available (NEA).
    pub const NONE: u8 = 0x80;
}

/// What has happened to a medium (MMC-6 6.7.2.5).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct MediaEvent {
    /// A value of this type's constants.
    pub code: u8,
    /// Bit 0: the tray is open. Bit 1: a medium is there.
    pub status: u8,
    /// Slots of a changer that it is about.
    pub start_slot: u8,
    /// Its end.
    pub end_slot: u8,
}
const _: () = assert!(size_of::<MediaEvent>() == 4);

impl MediaEvent {
    /// [`code`](Self::code): nothing.
    pub const NO_CHANGE: u8 = 0;
    /// [`code`](Self::code): the user wants the medium back.
    pub const EJECT_REQUEST: u8 = 1;
    /// [`code`](Self::code): a medium has come.
    pub const NEW_MEDIUM: u8 = 2;
    /// [`code`](Self::code): the medium has gone.
    pub const MEDIUM_REMOVAL: u8 = 3;
    /// Bit of [`status`](Self::status): a medium is there.
    pub const PRESENT: u8 = 2;
}

/// Header of GET CONFIGURATION data (MMC-6 6.6.2.1); features follow.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ConfigurationHeader {
    /// Bytes that follow this field.
    pub length: U32,
    /// Zero.
    pub reserved: U16,
    /// Profile of the medium that is there, 0 for none.
    pub profile: U16,
}
const _: () = assert!(size_of::<ConfigurationHeader>() == 8);

/// Profile: DVD-ROM.
pub const PROFILE_DVD_ROM: u16 = 0x10;

/// Mode page: capabilities and mechanical status (MMC-3 5.5.10; later standards list it as legacy,
/// and everybody still asks for it).
pub const PAGE_CAPABILITIES: u8 = 0x2a;

/// The capabilities mode page of a drive with a tray that reads CDs and DVDs, and writes nothing.
pub const fn capabilities_page(locked: bool) -> [u8; 22] {
    /// 16 times, in units of 176 400 bytes a second; rates stand for nothing in a file.
    const SPEED: [u8; 2] = (16 * 1411_u16).to_be_bytes();
    let mut page = [0; 22];
    page[0] = PAGE_CAPABILITIES;
    page[1] = 20;
    // CD-R, CD-RW and DVD-ROM are read; then what is written: nothing.
    page[2] = 0x0b;
    // Multi-session; two forms of mode 2.
    page[4] = 0x70;
    // A tray, which ejects, and can be locked.
    page[6] = 0x20 | 0x08 | 0x01 | if locked { 0x02 } else { 0 };
    page[8] = SPEED[0];
    page[9] = SPEED[1];
    page[14] = SPEED[0];
    page[15] = SPEED[1];
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_bytes() {
        let check = |command: MmcCommand, bytes: &[u8]| {
            assert_eq!(command.to_bytes().as_slice(), bytes, "{command:?}");
            assert_eq!(MmcCommand::parse(bytes), Ok(Some(command)));
        };
        let prevent = MmcCommand::PreventAllowMediumRemoval { prevent: true };
        check(prevent, &[0x1e, 0, 0, 0, 1, 0]);
        let toc = MmcCommand::ReadToc {
            msf: true,
            format: 2,
            first: 0xaa,
            allocation_length: 0x0102,
        };
        check(toc, &[0x43, 2, 2, 0, 0, 0, 0xaa, 1, 2, 0]);
        let events = MmcCommand::GetEventStatusNotification {
            polled: true,
            classes: 1 << CLASS_MEDIA,
            allocation_length: 8,
        };
        check(events, &[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8, 0]);
        let configuration = MmcCommand::GetConfiguration {
            which: 2,
            first: 0x0105,
            allocation_length: 8,
        };
        check(configuration, &[0x46, 2, 1, 5, 0, 0, 0, 0, 8, 0]);
        let read = MmcCommand::Read12 {
            lba: 0x01020304,
            blocks: 0x05060708,
        };
        check(read, &[0xa8, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0]);
    }

    #[test]
    fn the_old_place_of_the_format_counts() {
        let Ok(Some(MmcCommand::ReadToc { format, .. })) =
            MmcCommand::parse(&[0x43, 0, 0, 0, 0, 0, 0, 0, 12, 0x40])
        else {
            panic!("no READ TOC");
        };
        assert_eq!(format, 1);
    }

    proptest! {
        #[test]
        fn what_parses_builds_the_same(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            if let Ok(Some(command)) = MmcCommand::parse(&bytes) {
                let again = MmcCommand::parse(command.to_bytes().as_slice());
                prop_assert_eq!(again, Ok(Some(command)));
            }
        }
    }
}
