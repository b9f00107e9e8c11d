//! Commands: parsed from a CDB at the host, built into one at the guest.

mod build;
mod parse;

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
    /// The first `length` of `bytes`.
    pub(super) fn new(bytes: [u8; 16], length: u8) -> Self {
        Self { bytes, length }
    }

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
