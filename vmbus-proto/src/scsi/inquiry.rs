//! INQUIRY data: the standard data and the vital product data (VPD) pages.

use zerocopy::FromBytes as _;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Codes of VPD pages (SPC-4 7.8, SBC-3 6.6).
pub mod vpd {
    /// Which pages there are.
    pub const SUPPORTED_PAGES: u8 = 0x00;
    /// The unit's serial number, ASCII.
    pub const UNIT_SERIAL_NUMBER: u8 = 0x80;
    /// Names of the unit.
    pub const DEVICE_IDENTIFICATION: u8 = 0x83;
    /// How large transfers may be.
    pub const BLOCK_LIMITS: u8 = 0xb0;
    /// Whether it turns.
    pub const BLOCK_DEVICE_CHARACTERISTICS: u8 = 0xb1;
    /// What UNMAP does.
    pub const LOGICAL_BLOCK_PROVISIONING: u8 = 0xb2;
}

/// Standard INQUIRY data (SPC-4 6.6.2).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct StandardInquiry {
    /// Bits 0-4: device type, 0 a disk. Bits 5-7: qualifier, 0 connected, 3 no such unit.
    pub peripheral: u8,
    /// Bit 7: the medium is removable.
    pub removable: u8,
    /// Standard it conforms to: 5 SPC-3, 6 SPC-4.
    pub version: u8,
    /// Bits 0-3: 2. Bit 4: hierarchical LUNs.
    pub response_format: u8,
    /// Bytes that follow this one.
    pub additional_length: u8,
    /// Bits that are all 0 here.
    pub flags5: u8,
    /// Bits that are all 0 here.
    pub flags6: u8,
    /// Bit 1: takes many commands at a time.
    pub flags7: u8,
    /// Vendor, ASCII padded with blanks.
    pub vendor: [u8; 8],
    /// Product, ASCII padded with blanks.
    pub product: [u8; 16],
    /// Revision, ASCII padded with blanks.
    pub revision: [u8; 4],
}
const _: () = assert!(size_of::<StandardInquiry>() == 36);

impl StandardInquiry {
    /// [`peripheral`](Self::peripheral) of a connected disk.
    pub const DISK: u8 = 0x00;
    /// [`peripheral`](Self::peripheral) of a connected drive of CDs and DVDs.
    pub const OPTICAL: u8 = 0x05;
    /// Bit of [`removable`](Self::removable): it is.
    pub const REMOVABLE: u8 = 0x80;
    /// [`peripheral`](Self::peripheral) where there is no logical unit.
    pub const NO_UNIT: u8 = 0x7f;

    /// The data of a unit of this [`peripheral`](Self::peripheral) value.
    pub const fn new(
        peripheral: u8,
        vendor: &[u8; 8],
        product: &[u8; 16],
        revision: &[u8; 4],
    ) -> Self {
        Self {
            peripheral,
            removable: 0,
            version: 6,
            response_format: 0x12,
            additional_length: 31,
            flags5: 0,
            flags6: 0,
            flags7: 0x02,
            vendor: *vendor,
            product: *product,
            revision: *revision,
        }
    }

    /// Reads the data; `None` where it is too short.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        Self::read_from_prefix(bytes).ok().map(|(data, _)| data)
    }

    /// Whether this is a disk that is there.
    pub const fn is_disk(&self) -> bool {
        self.peripheral == Self::DISK
    }
}

/// Start of every VPD page (SPC-4 7.8.1).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct VpdHeader {
    /// As in [`StandardInquiry`].
    pub peripheral: u8,
    /// One of [`vpd`].
    pub page: u8,
    /// Bytes that follow.
    pub length: U16,
}
const _: () = assert!(size_of::<VpdHeader>() == 4);

impl VpdHeader {
    /// Splits a page into its code and what follows the header, cut at the page's own length.
    pub fn parse(bytes: &[u8]) -> Option<(u8, &[u8])> {
        let (header, rest) = Self::read_from_prefix(bytes).ok()?;
        let length = usize::from(header.length.get()).min(rest.len());
        Some((header.page, rest.get(..length)?))
    }
}

/// An NAA name of the unit in page 83 (SPC-4 7.8.6.6), with its descriptor's header.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct NaaDesignation {
    /// 1: binary.
    pub code_set: u8,
    /// Bits 0-3: 3, NAA. Bits 4-5: 0, names the logical unit.
    pub designator_type: u8,
    /// Zero.
    pub reserved: u8,
    /// Bytes of the name: 8.
    pub length: u8,
    /// The name; its upper four bits tell the kind, 3 for "locally assigned".
    pub name: U64,
}
const _: () = assert!(size_of::<NaaDesignation>() == 12);

impl NaaDesignation {
    /// A locally assigned name of the lower 60 bits of `value`.
    pub fn local(value: u64) -> Self {
        let name = (value & (u64::MAX >> 4)) | (3 << 60);
        Self {
            code_set: 1,
            designator_type: 3,
            reserved: 0,
            length: 8,
            name: name.into(),
        }
    }
}

/// VPD page B0 after its header (SBC-3 6.6.3). Lengths in blocks; 0 means "not told".
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct BlockLimits {
    /// Bit 0: WRITE SAME of 0 blocks is refused.
    pub flags: u8,
    /// Most blocks of COMPARE AND WRITE.
    pub max_compare_and_write: u8,
    /// Transfers are best a multiple of this.
    pub optimal_granularity: U16,
    /// Most blocks of a transfer.
    pub max_transfer: U32,
    /// Best length of a transfer.
    pub optimal_transfer: U32,
    /// Most blocks of a prefetch.
    pub max_prefetch: U32,
    /// Most blocks of an UNMAP, all descriptors together.
    pub max_unmap_blocks: U32,
    /// Most descriptors of an UNMAP.
    pub max_unmap_descriptors: U32,
    /// UNMAP works in units of this.
    pub optimal_unmap_granularity: U32,
    /// Where these units begin; bit 31: this is valid.
    pub unmap_alignment: U32,
    /// Most blocks of a WRITE SAME.
    pub max_write_same: U64,
    /// Zero.
    pub reserved: [u8; 20],
}
const _: () = assert!(size_of::<BlockLimits>() == 60);

/// VPD page B2 after its header (SBC-3 6.6.4).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct LogicalBlockProvisioning {
    /// Thresholds are in units of 2 to this many blocks.
    pub threshold_exponent: u8,
    /// Bits of this type's constants.
    pub flags: u8,
    /// 0 fully provisioned, 2 thin.
    pub provisioning_type: u8,
    /// 0.
    pub threshold_percentage: u8,
}
const _: () = assert!(size_of::<LogicalBlockProvisioning>() == 4);

impl LogicalBlockProvisioning {
    /// Bit of [`flags`](Self::flags): UNMAP is supported (LBPU).
    pub const UNMAP: u8 = 0x80;
    /// Bit of [`flags`](Self::flags): unmapped blocks read as zeros (LBPRZ).
    pub const READS_ZEROS: u8 = 0x04;
    /// [`provisioning_type`](Self::provisioning_type) of a thin unit.
    pub const THIN: u8 = 2;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    #[test]
    fn standard_data() {
        let data = StandardInquiry::new(0, b"VENDOR  ", b"A PRODUCT       ", b"1.0 ");
        let mut golden = [0; 36];
        golden[2..8].copy_from_slice(&[6, 0x12, 31, 0, 0, 2]);
        golden[8..].copy_from_slice(b"VENDOR  A PRODUCT       1.0 ");
        assert_eq!(data.as_bytes(), golden);
        assert_eq!(StandardInquiry::parse(&golden), Some(data));
        assert!(data.is_disk());
        assert_eq!(StandardInquiry::parse(&golden[..35]), None);
    }

    #[test]
    fn naa() {
        let name = NaaDesignation::local(0xf123_4567_89ab_cdef);
        assert_eq!(
            name.as_bytes(),
            [1, 3, 0, 8, 0x31, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef]
        );
    }

    #[test]
    fn limits_stand_where_the_standard_says() {
        let limits = BlockLimits {
            max_transfer: 0x1234.into(),
            max_unmap_blocks: 0x5678.into(),
            max_unmap_descriptors: 9.into(),
            optimal_unmap_granularity: 8.into(),
            ..Default::default()
        };
        // Offsets in the page, less the header's 4 bytes.
        let bytes = limits.as_bytes();
        assert_eq!(bytes[8 - 4..12 - 4], [0, 0, 0x12, 0x34]);
        assert_eq!(bytes[20 - 4..24 - 4], [0, 0, 0x56, 0x78]);
        assert_eq!(bytes[24 - 4..28 - 4], [0, 0, 0, 9]);
        assert_eq!(bytes[28 - 4..32 - 4], [0, 0, 0, 8]);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = StandardInquiry::parse(&bytes);
            if let Some((_, rest)) = VpdHeader::parse(&bytes) {
                prop_assert!(rest.len() + 4 <= bytes.len());
            }
        }
    }
}
