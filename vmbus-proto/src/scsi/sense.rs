//! Sense data: why a command failed.

use zerocopy::IntoBytes as _;
use zerocopy::big_endian::U32;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The kind of failure (SPC-4 4.5.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SenseKey {
    /// Nothing failed.
    NoSense = 0x0,
    /// Done after the device helped itself.
    RecoveredError = 0x1,
    /// The device cannot be accessed.
    NotReady = 0x2,
    /// The medium failed.
    MediumError = 0x3,
    /// The device failed.
    HardwareError = 0x4,
    /// The command or its parameters are wrong.
    IllegalRequest = 0x5,
    /// Something changed; send the command again.
    UnitAttention = 0x6,
    /// The medium must not be written.
    DataProtect = 0x7,
    /// A blank medium was met.
    BlankCheck = 0x8,
    /// Of the vendor.
    VendorSpecific = 0x9,
    /// A copy was aborted.
    CopyAborted = 0xa,
    /// The device gave up; the command may be sent again.
    AbortedCommand = 0xb,
    /// Reserved.
    Reserved = 0xc,
    /// Data is left that could not be written.
    VolumeOverflow = 0xd,
    /// Data did not compare.
    Miscompare = 0xe,
    /// Done, with news.
    Completed = 0xf,
}

impl SenseKey {
    /// The key in the low four bits of `value`.
    pub const fn from_wire(value: u8) -> Self {
        match value & 0xf {
            0x0 => Self::NoSense,
            0x1 => Self::RecoveredError,
            0x2 => Self::NotReady,
            0x3 => Self::MediumError,
            0x4 => Self::HardwareError,
            0x5 => Self::IllegalRequest,
            0x6 => Self::UnitAttention,
            0x7 => Self::DataProtect,
            0x8 => Self::BlankCheck,
            0x9 => Self::VendorSpecific,
            0xa => Self::CopyAborted,
            0xb => Self::AbortedCommand,
            0xc => Self::Reserved,
            0xd => Self::VolumeOverflow,
            0xe => Self::Miscompare,
            _ => Self::Completed,
        }
    }
}

/// Why a command failed: key, additional sense code and its qualifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    /// The kind of failure.
    pub key: SenseKey,
    /// Additional sense code (SPC-4 annex F).
    pub asc: u8,
    /// Its qualifier.
    pub ascq: u8,
}

impl Sense {
    /// Nothing to report.
    pub const NONE: Self = Self::new(SenseKey::NoSense, 0, 0);
    /// The medium could not be read.
    pub const UNRECOVERED_READ_ERROR: Self = Self::new(SenseKey::MediumError, 0x11, 0x00);
    /// The medium could not be written.
    pub const WRITE_ERROR: Self = Self::new(SenseKey::MediumError, 0x0c, 0x00);
    /// There is no such command.
    pub const INVALID_OPCODE: Self = Self::new(SenseKey::IllegalRequest, 0x20, 0x00);
    /// Blocks beyond the end.
    pub const LBA_OUT_OF_RANGE: Self = Self::new(SenseKey::IllegalRequest, 0x21, 0x00);
    /// A field of the CDB cannot be.
    pub const INVALID_FIELD_IN_CDB: Self = Self::new(SenseKey::IllegalRequest, 0x24, 0x00);
    /// There is no such logical unit.
    pub const LU_NOT_SUPPORTED: Self = Self::new(SenseKey::IllegalRequest, 0x25, 0x00);
    /// A field of the command's data cannot be.
    pub const INVALID_FIELD_IN_PARAMETERS: Self = Self::new(SenseKey::IllegalRequest, 0x26, 0x00);
    /// The length of the command's data cannot be.
    pub const PARAMETER_LIST_LENGTH: Self = Self::new(SenseKey::IllegalRequest, 0x1a, 0x00);
    /// Saved mode pages do not exist.
    pub const SAVING_NOT_SUPPORTED: Self = Self::new(SenseKey::IllegalRequest, 0x39, 0x00);
    /// The disk is read-only.
    pub const WRITE_PROTECTED: Self = Self::new(SenseKey::DataProtect, 0x27, 0x00);
    /// There is no room for what was written to a thin medium.
    pub const SPACE_ALLOCATION_FAILED: Self = Self::new(SenseKey::DataProtect, 0x27, 0x07);
    /// There is no medium.
    pub const MEDIUM_NOT_PRESENT: Self = Self::new(SenseKey::NotReady, 0x3a, 0x01);
    /// There is another medium than before, or one where there was none.
    pub const MEDIUM_MAY_HAVE_CHANGED: Self = Self::new(SenseKey::UnitAttention, 0x28, 0x00);
    /// The medium is locked in.
    pub const MEDIUM_REMOVAL_PREVENTED: Self = Self::new(SenseKey::IllegalRequest, 0x53, 0x02);
    /// The capacity has changed.
    pub const CAPACITY_CHANGED: Self = Self::new(SenseKey::UnitAttention, 0x2a, 0x09);
    /// A reset has happened.
    pub const RESET_OCCURRED: Self = Self::new(SenseKey::UnitAttention, 0x29, 0x00);
    /// The set of logical units has changed.
    pub const REPORTED_LUNS_CHANGED: Self = Self::new(SenseKey::UnitAttention, 0x3f, 0x0e);
    /// The device failed by itself.
    pub const INTERNAL_TARGET_FAILURE: Self = Self::new(SenseKey::HardwareError, 0x44, 0x00);

    /// Bytes of fixed-format sense data.
    pub const FIXED_SIZE: usize = 18;

    /// A sense of these three.
    pub const fn new(key: SenseKey, asc: u8, ascq: u8) -> Self {
        Self { key, asc, ascq }
    }

    /// As fixed-format sense data for the current command (SPC-4 4.5.3).
    pub fn to_fixed(self) -> [u8; Self::FIXED_SIZE] {
        zerocopy::transmute!(Fixed {
            response_code: 0x70,
            obsolete: 0,
            key: self.key as u8,
            information: 0.into(),
            // The bytes after this field.
            additional_length: 10,
            command_specific: 0.into(),
            asc: self.asc,
            ascq: self.ascq,
            unit_code: 0,
            key_specific: [0; 3],
        })
    }

    /// As descriptor-format sense data without descriptors (SPC-4 4.5.2).
    pub fn to_descriptor(self) -> [u8; 8] {
        [0x72, self.key as u8, self.asc, self.ascq, 0, 0, 0, 0]
    }

    /// Reads sense data of either format; `None` where it is neither, or too short for a key.
    ///
    /// Codes beyond the data's end are 0, as SPC-4 says.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let at = |index: usize| bytes.get(index).copied();
        match at(0)? & 0x7f {
            0x70 | 0x71 => {
                let mut fixed = Fixed::default();
                let length = bytes.len().min(Self::FIXED_SIZE);
                fixed
                    .as_mut_bytes()
                    .get_mut(..length)?
                    .copy_from_slice(bytes.get(..length)?);
                at(2)?;
                Some(Self::new(
                    SenseKey::from_wire(fixed.key),
                    fixed.asc,
                    fixed.ascq,
                ))
            }
            0x72 | 0x73 => Some(Self::new(
                SenseKey::from_wire(at(1)?),
                at(2).unwrap_or(0),
                at(3).unwrap_or(0),
            )),
            _ => None,
        }
    }
}

/// Fixed-format sense data (SPC-4 4.5.3).
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Fixed {
    /// Bits 0-6: 0x70 current, 0x71 deferred. Bit 7: `information` is valid.
    response_code: u8,
    obsolete: u8,
    /// Bits 0-3: the key.
    key: u8,
    information: U32,
    /// Bytes that follow this one.
    additional_length: u8,
    command_specific: U32,
    asc: u8,
    ascq: u8,
    unit_code: u8,
    key_specific: [u8; 3],
}
const _: () = assert!(size_of::<Fixed>() == Sense::FIXED_SIZE);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fixed_bytes() {
        assert_eq!(
            Sense::LBA_OUT_OF_RANGE.to_fixed(),
            [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x21, 0, 0, 0, 0, 0]
        );
        assert_eq!(Sense::parse(&[0x70, 0]), None);
        assert_eq!(
            Sense::parse(&[0x70, 0, 3]),
            Some(Sense::new(SenseKey::MediumError, 0, 0))
        );
        assert_eq!(Sense::parse(&[0x72, 7, 0x27]), Some(Sense::WRITE_PROTECTED));
    }

    proptest! {
        #[test]
        fn round_trips(key in 0u8..16, asc in any::<u8>(), ascq in any::<u8>()) {
            let sense = Sense::new(SenseKey::from_wire(key), asc, ascq);
            prop_assert_eq!(sense.key as u8, key);
            prop_assert_eq!(Sense::parse(&sense.to_fixed()), Some(sense));
            prop_assert_eq!(Sense::parse(&sense.to_descriptor()), Some(sense));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = Sense::parse(&bytes);
        }
    }
}
