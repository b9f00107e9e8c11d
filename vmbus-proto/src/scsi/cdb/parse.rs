//! From CDB to command.

use super::{Cdb, CdbError, FUA, READ_CAPACITY_16, opcode};

impl Cdb {
    /// Parses a CDB. Bytes beyond the command's length are ignored.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(cdb: &[u8]) -> Result<Self, CdbError> {
        let code = *cdb.first().ok_or(CdbError::InvalidField)?;
        // The upper three bits of the code tell the length (SPC-4 4.2.5.1).
        match code >> 5 {
            0 => Self::parse6(code, fields(cdb)?),
            1 | 2 => Self::parse10(code, fields(cdb)?),
            4 => Self::parse16(code, fields(cdb)?),
            5 => Self::parse12(code, fields(cdb)?),
            _ => Err(CdbError::InvalidOpcode),
        }
    }

    fn parse6(code: u8, cdb: [u8; 6]) -> Result<Self, CdbError> {
        let [_, b1, b2, b3, b4, _] = cdb;
        let lba = u64::from(u32::from_be_bytes([0, b1 & 0x1f, b2, b3]));
        // The 6-byte commands have no use for 0 blocks: it means 256.
        let blocks = if b4 == 0 { 256 } else { u32::from(b4) };
        Ok(match code {
            opcode::TEST_UNIT_READY => Self::TestUnitReady,
            opcode::REQUEST_SENSE => Self::RequestSense {
                descriptor: b1 & 1 != 0,
                allocation_length: b4,
            },
            opcode::READ_6 => Self::Read {
                lba,
                blocks,
                fua: false,
            },
            opcode::WRITE_6 => Self::Write {
                lba,
                blocks,
                fua: false,
            },
            opcode::INQUIRY => {
                let evpd = b1 & 1 != 0;
                // Without EVPD there is no page to name; bit 1 was CmdDt, long gone.
                if b1 & 2 != 0 || (!evpd && b2 != 0) {
                    return Err(CdbError::InvalidField);
                }
                Self::Inquiry {
                    page: if evpd { Some(b2) } else { None },
                    allocation_length: u16::from_be_bytes([b3, b4]),
                }
            }
            opcode::MODE_SENSE_6 => Self::ModeSense {
                long: false,
                no_block_descriptor: b1 & 8 != 0,
                values: b2 >> 6,
                page: b2 & 0x3f,
                subpage: b3,
                allocation_length: u16::from(b4),
            },
            opcode::START_STOP_UNIT => Self::StartStopUnit {
                start: b4 & 1 != 0,
                load_eject: b4 & 2 != 0,
                power_condition: b4 >> 4,
            },
            opcode::PREVENT_ALLOW_MEDIUM_REMOVAL => Self::PreventAllowMediumRemoval,
            _ => return Err(CdbError::InvalidOpcode),
        })
    }

    fn parse10(code: u8, cdb: [u8; 10]) -> Result<Self, CdbError> {
        let [_, b1, b2, b3, b4, b5, _, b7, b8, _] = cdb;
        let lba = u64::from(u32::from_be_bytes([b2, b3, b4, b5]));
        let short = u16::from_be_bytes([b7, b8]);
        let blocks = u32::from(short);
        Ok(match code {
            opcode::READ_CAPACITY_10 => {
                // PMI is obsolete; without it an address has no meaning.
                if lba != 0 || b8 & 1 != 0 {
                    return Err(CdbError::InvalidField);
                }
                Self::ReadCapacity10
            }
            opcode::READ_10 => Self::Read {
                lba,
                blocks,
                fua: fua(b1)?,
            },
            opcode::WRITE_10 => Self::Write {
                lba,
                blocks,
                fua: fua(b1)?,
            },
            opcode::VERIFY_10 => Self::Verify {
                lba,
                blocks,
                compare: b1 & 6 != 0,
            },
            opcode::SYNCHRONIZE_CACHE_10 => Self::SynchronizeCache { lba, blocks },
            opcode::UNMAP => Self::Unmap {
                anchor: b1 & 1 != 0,
                parameter_list_length: short,
            },
            opcode::MODE_SENSE_10 => Self::ModeSense {
                long: true,
                no_block_descriptor: b1 & 8 != 0,
                values: b2 >> 6,
                page: b2 & 0x3f,
                subpage: b3,
                allocation_length: short,
            },
            _ => return Err(CdbError::InvalidOpcode),
        })
    }

    fn parse12(code: u8, cdb: [u8; 12]) -> Result<Self, CdbError> {
        let [_, _, select, _, _, _, b6, b7, b8, b9, _, _] = cdb;
        match code {
            opcode::REPORT_LUNS => Ok(Self::ReportLuns {
                select,
                allocation_length: u32::from_be_bytes([b6, b7, b8, b9]),
            }),
            _ => Err(CdbError::InvalidOpcode),
        }
    }

    fn parse16(code: u8, cdb: [u8; 16]) -> Result<Self, CdbError> {
        let [_, b1, l0, l1, l2, l3, l4, l5, l6, l7, c0, c1, c2, c3, _, _] = cdb;
        let lba = u64::from_be_bytes([l0, l1, l2, l3, l4, l5, l6, l7]);
        let blocks = u32::from_be_bytes([c0, c1, c2, c3]);
        Ok(match code {
            opcode::READ_16 => Self::Read {
                lba,
                blocks,
                fua: fua(b1)?,
            },
            opcode::WRITE_16 => Self::Write {
                lba,
                blocks,
                fua: fua(b1)?,
            },
            opcode::VERIFY_16 => Self::Verify {
                lba,
                blocks,
                compare: b1 & 6 != 0,
            },
            opcode::SYNCHRONIZE_CACHE_16 => Self::SynchronizeCache { lba, blocks },
            opcode::SERVICE_ACTION_IN_16 if b1 & 0x1f == READ_CAPACITY_16 => Self::ReadCapacity16 {
                allocation_length: blocks,
            },
            _ => return Err(CdbError::InvalidOpcode),
        })
    }
}

/// The first `N` bytes of a CDB.
fn fields<const N: usize>(cdb: &[u8]) -> Result<[u8; N], CdbError> {
    cdb.first_chunk().copied().ok_or(CdbError::InvalidField)
}

/// FUA of byte 1 of READ and WRITE. A protection field is refused: units have no protection.
fn fua(byte1: u8) -> Result<bool, CdbError> {
    if byte1 >> 5 != 0 {
        return Err(CdbError::InvalidField);
    }
    Ok(byte1 & FUA != 0)
}
