//! Commands: parsed from a CDB at the host, built into one at the guest.

/// First byte of a CDB: which command it is (SPC-4 and SBC-3, command tables).
pub mod opcode {
    #![expect(missing_docs, reason = "the standards' names say it")]
    pub const TEST_UNIT_READY: u8 = 0x00;
    pub const REQUEST_SENSE: u8 = 0x03;
    pub const READ_6: u8 = 0x08;
    pub const WRITE_6: u8 = 0x0a;
    pub const INQUIRY: u8 = 0x12;
    pub const MODE_SENSE_6: u8 = 0x1a;
    pub const START_STOP_UNIT: u8 = 0x1b;
    pub const PREVENT_ALLOW_MEDIUM_REMOVAL: u8 = 0x1e;
    pub const READ_CAPACITY_10: u8 = 0x25;
    pub const READ_10: u8 = 0x28;
    pub const WRITE_10: u8 = 0x2a;
    pub const VERIFY_10: u8 = 0x2f;
    pub const SYNCHRONIZE_CACHE_10: u8 = 0x35;
    pub const UNMAP: u8 = 0x42;
    pub const MODE_SENSE_10: u8 = 0x5a;
    pub const READ_16: u8 = 0x88;
    pub const WRITE_16: u8 = 0x8a;
    pub const VERIFY_16: u8 = 0x8f;
    pub const SYNCHRONIZE_CACHE_16: u8 = 0x91;
    pub const SERVICE_ACTION_IN_16: u8 = 0x9e;
    pub const REPORT_LUNS: u8 = 0xa0;
}

/// Service action of SERVICE ACTION IN(16): READ CAPACITY(16) (SBC-3 5.16).
const READ_CAPACITY_16: u8 = 0x10;

/// Bit of byte 1 of READ and WRITE: not from, not only to a volatile cache.
const FUA: u8 = 0x08;

/// A command. Lengths of data are in bytes, of the medium in logical blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cdb {
    /// Is the unit there?
    TestUnitReady,
    /// Sense data, in data.
    RequestSense {
        /// Descriptor format instead of fixed.
        descriptor: bool,
        /// Room for the answer.
        allocation_length: u8,
    },
    /// What the unit is.
    Inquiry {
        /// The vital product data page; `None` for the standard data.
        page: Option<u8>,
        /// Room for the answer.
        allocation_length: u16,
    },
    /// MODE SENSE, either length.
    ModeSense {
        /// The 10-byte command, with its longer header.
        long: bool,
        /// No block descriptor in the answer.
        no_block_descriptor: bool,
        /// Which values: 0 current, 1 changeable, 2 default, 3 saved.
        values: u8,
        /// The page, 0x3f for all.
        page: u8,
        /// The subpage, 0xff for all.
        subpage: u8,
        /// Room for the answer.
        allocation_length: u16,
    },
    /// Power and medium.
    StartStopUnit {
        /// Start rather than stop.
        start: bool,
        /// Load or eject the medium.
        load_eject: bool,
        /// Power condition, 0 for none.
        power_condition: u8,
    },
    /// Lock the medium in.
    PreventAllowMediumRemoval,
    /// Size of the medium, at most 2^32 - 1 blocks.
    ReadCapacity10,
    /// Size of the medium.
    ReadCapacity16 {
        /// Room for the answer.
        allocation_length: u32,
    },
    /// Blocks to the guest.
    Read {
        /// First block.
        lba: u64,
        /// Number of blocks.
        blocks: u32,
        /// From the medium, not a volatile cache.
        fua: bool,
    },
    /// Blocks from the guest.
    Write {
        /// First block.
        lba: u64,
        /// Number of blocks.
        blocks: u32,
        /// On the medium before the answer.
        fua: bool,
    },
    /// Check that blocks can be read; nothing is transferred unless `compare`.
    Verify {
        /// First block.
        lba: u64,
        /// Number of blocks.
        blocks: u32,
        /// BYTCHK: compare with data of the guest.
        compare: bool,
    },
    /// What was written goes to the medium.
    SynchronizeCache {
        /// First block.
        lba: u64,
        /// Number of blocks, 0 for all to the end.
        blocks: u32,
    },
    /// Blocks, listed in data from the guest, are not needed any more.
    Unmap {
        /// ANCHOR: keep room for them.
        anchor: bool,
        /// Length of the list.
        parameter_list_length: u16,
    },
    /// Which logical units there are.
    ReportLuns {
        /// 0 or 2 for all that matter; 1 for well-known ones.
        select: u8,
        /// Room for the answer.
        allocation_length: u32,
    },
}

/// Why bytes are not a command of this subset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CdbError {
    /// There is no such command, or service action: sense 20/00.
    InvalidOpcode,
    /// A field, or the length, cannot be: sense 24/00.
    InvalidField,
}

impl From<CdbError> for super::Sense {
    fn from(error: CdbError) -> Self {
        match error {
            CdbError::InvalidOpcode => Self::INVALID_OPCODE,
            CdbError::InvalidField => Self::INVALID_FIELD_IN_CDB,
        }
    }
}

/// The bytes of a command, at most 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CdbBytes {
    bytes: [u8; 16],
    length: u8,
}

impl CdbBytes {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        self.bytes
            .get(..usize::from(self.length))
            .unwrap_or_default()
    }
}

impl AsRef<[u8]> for CdbBytes {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

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

    /// Builds the CDB. Where a command has two lengths, the shorter one that can say it.
    pub fn to_bytes(&self) -> CdbBytes {
        match *self {
            Self::TestUnitReady => six(opcode::TEST_UNIT_READY, [0; 4]),
            Self::RequestSense {
                descriptor,
                allocation_length,
            } => six(
                opcode::REQUEST_SENSE,
                [u8::from(descriptor), 0, 0, allocation_length],
            ),
            Self::Inquiry {
                page,
                allocation_length,
            } => {
                let [high, low] = allocation_length.to_be_bytes();
                let evpd = u8::from(page.is_some());
                six(opcode::INQUIRY, [evpd, page.unwrap_or(0), high, low])
            }
            Self::ModeSense {
                long,
                no_block_descriptor,
                values,
                page,
                subpage,
                allocation_length,
            } => {
                let dbd = if no_block_descriptor { 8 } else { 0 };
                let page = (values << 6) | (page & 0x3f);
                if long {
                    let address = u32::from_be_bytes([page, subpage, 0, 0]);
                    ten(opcode::MODE_SENSE_10, dbd, address, allocation_length)
                } else {
                    let [_, low] = allocation_length.min(255).to_be_bytes();
                    six(opcode::MODE_SENSE_6, [dbd, page, subpage, low])
                }
            }
            Self::StartStopUnit {
                start,
                load_eject,
                power_condition,
            } => {
                let loej = if load_eject { 2 } else { 0 };
                let flags = (power_condition << 4) | loej | u8::from(start);
                six(opcode::START_STOP_UNIT, [0, 0, 0, flags])
            }
            Self::PreventAllowMediumRemoval => six(opcode::PREVENT_ALLOW_MEDIUM_REMOVAL, [0; 4]),
            Self::ReadCapacity10 => ten(opcode::READ_CAPACITY_10, 0, 0, 0),
            Self::ReadCapacity16 { allocation_length } => sixteen(
                opcode::SERVICE_ACTION_IN_16,
                READ_CAPACITY_16,
                0,
                allocation_length,
            ),
            Self::Read { lba, blocks, fua } => {
                let flags = if fua { FUA } else { 0 };
                ten_or_sixteen(opcode::READ_10, opcode::READ_16, flags, lba, blocks)
            }
            Self::Write { lba, blocks, fua } => {
                let flags = if fua { FUA } else { 0 };
                ten_or_sixteen(opcode::WRITE_10, opcode::WRITE_16, flags, lba, blocks)
            }
            Self::Verify {
                lba,
                blocks,
                compare,
            } => {
                let flags = if compare { 2 } else { 0 };
                ten_or_sixteen(opcode::VERIFY_10, opcode::VERIFY_16, flags, lba, blocks)
            }
            Self::SynchronizeCache { lba, blocks } => ten_or_sixteen(
                opcode::SYNCHRONIZE_CACHE_10,
                opcode::SYNCHRONIZE_CACHE_16,
                0,
                lba,
                blocks,
            ),
            Self::Unmap {
                anchor,
                parameter_list_length,
            } => ten(opcode::UNMAP, u8::from(anchor), 0, parameter_list_length),
            Self::ReportLuns {
                select,
                allocation_length,
            } => {
                let [a, b, c, d] = allocation_length.to_be_bytes();
                let bytes = [
                    opcode::REPORT_LUNS,
                    0,
                    select,
                    0,
                    0,
                    0,
                    a,
                    b,
                    c,
                    d,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                ];
                CdbBytes { bytes, length: 12 }
            }
        }
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

fn six(code: u8, [b1, b2, b3, b4]: [u8; 4]) -> CdbBytes {
    let bytes = [code, b1, b2, b3, b4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    CdbBytes { bytes, length: 6 }
}

fn ten(code: u8, flags: u8, address: u32, count: u16) -> CdbBytes {
    let [a, b, c, d] = address.to_be_bytes();
    let [high, low] = count.to_be_bytes();
    let bytes = [code, flags, a, b, c, d, 0, high, low, 0, 0, 0, 0, 0, 0, 0];
    CdbBytes { bytes, length: 10 }
}

fn sixteen(code: u8, flags: u8, address: u64, count: u32) -> CdbBytes {
    let [l0, l1, l2, l3, l4, l5, l6, l7] = address.to_be_bytes();
    let [c0, c1, c2, c3] = count.to_be_bytes();
    let bytes = [
        code, flags, l0, l1, l2, l3, l4, l5, l6, l7, c0, c1, c2, c3, 0, 0,
    ];
    CdbBytes { bytes, length: 16 }
}

fn ten_or_sixteen(code10: u8, code16: u8, flags: u8, lba: u64, blocks: u32) -> CdbBytes {
    match (u32::try_from(lba), u16::try_from(blocks)) {
        (Ok(address), Ok(count)) => ten(code10, flags, address, count),
        _ => sixteen(code16, flags, lba, blocks),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_bytes() {
        let check = |cdb: Cdb, bytes: &[u8]| {
            assert_eq!(cdb.to_bytes().as_slice(), bytes, "{cdb:?}");
            assert_eq!(Cdb::parse(bytes), Ok(cdb));
        };
        check(Cdb::TestUnitReady, &[0, 0, 0, 0, 0, 0]);
        check(
            Cdb::Inquiry {
                page: None,
                allocation_length: 36,
            },
            &[0x12, 0, 0, 0, 36, 0],
        );
        check(
            Cdb::Inquiry {
                page: Some(0xb0),
                allocation_length: 0x140,
            },
            &[0x12, 1, 0xb0, 1, 0x40, 0],
        );
        check(
            Cdb::Read {
                lba: 0x01020304,
                blocks: 0x0506,
                fua: true,
            },
            &[0x28, 8, 1, 2, 3, 4, 0, 5, 6, 0],
        );
        check(
            Cdb::Write {
                lba: 0x01_0000_0000,
                blocks: 8,
                fua: false,
            },
            &[0x8a, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0],
        );
        check(
            Cdb::ReadCapacity16 {
                allocation_length: 32,
            },
            &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0],
        );
        check(
            Cdb::SynchronizeCache { lba: 0, blocks: 0 },
            &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        );
        check(
            Cdb::Unmap {
                anchor: false,
                parameter_list_length: 24,
            },
            &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0],
        );
        check(
            Cdb::ReportLuns {
                select: 0,
                allocation_length: 16,
            },
            &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0],
        );
        check(
            Cdb::ModeSense {
                long: false,
                no_block_descriptor: true,
                values: 0,
                page: 8,
                subpage: 0,
                allocation_length: 255,
            },
            &[0x1a, 8, 8, 0, 255, 0],
        );
    }

    #[test]
    fn six_byte_transfers() {
        assert_eq!(
            Cdb::parse(&[0x08, 0xff, 0xff, 0xff, 0, 0]),
            Ok(Cdb::Read {
                lba: 0x1f_ffff,
                blocks: 256,
                fua: false
            })
        );
        assert_eq!(
            Cdb::parse(&[0x0a, 0, 0, 1, 2, 0]),
            Ok(Cdb::Write {
                lba: 1,
                blocks: 2,
                fua: false
            })
        );
    }

    #[test]
    fn refusals() {
        for (bytes, error) in [
            (&[][..], CdbError::InvalidField),
            (&[0x28, 0, 0, 0, 0, 0, 0, 0, 1], CdbError::InvalidField),
            (
                &[0x28, 0x20, 0, 0, 0, 0, 0, 0, 1, 0],
                CdbError::InvalidField,
            ),
            (&[0x12, 0, 0x80, 0, 36, 0], CdbError::InvalidField),
            (&[0xff, 0, 0, 0, 0, 0], CdbError::InvalidOpcode),
            (&[0x01, 0, 0, 0, 0, 0], CdbError::InvalidOpcode),
            (
                &[0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                CdbError::InvalidOpcode,
            ),
        ] {
            assert_eq!(Cdb::parse(bytes), Err(error), "{bytes:x?}");
        }
    }

    proptest! {
        #[test]
        fn what_parses_builds_the_same(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            if let Ok(cdb) = Cdb::parse(&bytes) {
                prop_assert_eq!(Cdb::parse(cdb.to_bytes().as_slice()), Ok(cdb));
            }
        }

        #[test]
        fn transfers_round_trip(lba in any::<u64>(), blocks in any::<u32>(), fua in any::<bool>()) {
            for cdb in [Cdb::Read { lba, blocks, fua }, Cdb::Write { lba, blocks, fua }] {
                prop_assert_eq!(Cdb::parse(cdb.to_bytes().as_slice()), Ok(cdb));
            }
        }
    }
}
