//! Data of the other commands: capacity, mode pages, lists of LUNs and of blocks to unmap.

use zerocopy::FromBytes as _;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// READ CAPACITY(10) data (SBC-3 5.15.2).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Capacity10 {
    /// Address of the last block; 0xffff_ffff where it is that or more: ask READ CAPACITY(16).
    pub last_lba: U32,
    /// Bytes of a logical block.
    pub block_length: U32,
}
const _: () = assert!(size_of::<Capacity10>() == 8);

/// READ CAPACITY(16) data (SBC-3 5.16.2).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Capacity16 {
    /// Address of the last block.
    pub last_lba: U64,
    /// Bytes of a logical block.
    pub block_length: U32,
    /// Protection: 0.
    pub protection: u8,
    /// Bits 0-3: a physical block is 2 to this many logical ones.
    pub physical_exponent: u8,
    /// Bits of this type's constants; bits 0-13: first block that starts a physical one.
    pub provisioning: U16,
    /// Zero.
    pub reserved: [u8; 16],
}
const _: () = assert!(size_of::<Capacity16>() == 32);

impl Capacity16 {
    /// Bit of [`provisioning`](Self::provisioning): the unit is thin, see VPD page B2 (LBPME).
    pub const PROVISIONING_MANAGED: u16 = 0x8000;
    /// Bit of [`provisioning`](Self::provisioning): unmapped blocks read as zeros (LBPRZ).
    pub const READS_ZEROS: u16 = 0x4000;
}

/// Size of a medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Number of logical blocks, not 0.
    pub blocks: u64,
    /// Bytes of one.
    pub block_length: u32,
}

impl Capacity {
    /// As READ CAPACITY(10) data; a medium too large for it says 0xffff_ffff.
    pub fn to_10(self) -> Capacity10 {
        let last = self.blocks.saturating_sub(1);
        Capacity10 {
            last_lba: u32::try_from(last).unwrap_or(u32::MAX).into(),
            block_length: self.block_length.into(),
        }
    }

    /// As READ CAPACITY(16) data. `physical_exponent` and `provisioning` as in [`Capacity16`].
    pub fn to_16(self, physical_exponent: u8, provisioning: u16) -> Capacity16 {
        Capacity16 {
            last_lba: self.blocks.saturating_sub(1).into(),
            block_length: self.block_length.into(),
            protection: 0,
            physical_exponent,
            provisioning: provisioning.into(),
            reserved: [0; 16],
        }
    }

    /// Reads READ CAPACITY(10) data: `Some(None)` where the medium is too large for it, `None`
    /// where the data is too short.
    pub fn parse_10(bytes: &[u8]) -> Option<Option<Self>> {
        let (data, _) = Capacity10::read_from_prefix(bytes).ok()?;
        let blocks = data.last_lba.get().checked_add(1).map(u64::from);
        Some(blocks.map(|blocks| Self {
            blocks,
            block_length: data.block_length.get(),
        }))
    }

    /// Reads READ CAPACITY(16) data; `None` where it is too short, or the size absurd.
    pub fn parse_16(bytes: &[u8]) -> Option<Self> {
        // Twelve bytes are enough to say it.
        let (last, rest) = U64::read_from_prefix(bytes).ok()?;
        let (block_length, _) = U32::read_from_prefix(rest).ok()?;
        Some(Self {
            blocks: last.get().checked_add(1)?,
            block_length: block_length.get(),
        })
    }
}

/// Header of MODE SENSE(6) data (SPC-4 7.5.5).
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
pub struct ModeHeader6 {
    /// Bytes that follow this one.
    pub data_length: u8,
    /// 0 for a disk.
    pub medium_type: u8,
    /// Bit 7: [`MODE_DEVICE_WRITE_PROTECT`]. Bit 4: FUA is supported.
    pub device_specific: u8,
    /// Bytes of block descriptors.
    pub block_descriptor_length: u8,
}
const _: () = assert!(size_of::<ModeHeader6>() == 4);

/// Header of MODE SENSE(10) data (SPC-4 7.5.5).
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
pub struct ModeHeader10 {
    /// Bytes that follow this field.
    pub data_length: U16,
    /// 0 for a disk.
    pub medium_type: u8,
    /// Bit 7: [`MODE_DEVICE_WRITE_PROTECT`]. Bit 4: FUA is supported.
    pub device_specific: u8,
    /// Bit 0: the block descriptors are the long ones.
    pub long_lba: u8,
    /// Zero.
    pub reserved: u8,
    /// Bytes of block descriptors.
    pub block_descriptor_length: U16,
}
const _: () = assert!(size_of::<ModeHeader10>() == 8);

/// Bit of a mode header's device-specific byte: the medium must not be written.
pub const MODE_DEVICE_WRITE_PROTECT: u8 = 0x80;
/// Mode page: caching (SBC-3 6.5.5).
pub const PAGE_CACHING: u8 = 0x08;
/// Mode page: control (SPC-4 7.5.8).
pub const PAGE_CONTROL: u8 = 0x0a;
/// Mode page: all of them.
pub const PAGE_ALL: u8 = 0x3f;

/// The caching mode page. `write_cache`: a write may be answered before it is on the medium.
pub const fn caching_page(write_cache: bool) -> [u8; 20] {
    let mut page = [0; 20];
    page[0] = PAGE_CACHING;
    page[1] = 18;
    page[2] = if write_cache { 0x04 } else { 0 };
    page
}

/// The control mode page: fixed-format sense data, commands may be reordered.
pub const fn control_page() -> [u8; 12] {
    let mut page = [0; 12];
    page[0] = PAGE_CONTROL;
    page[1] = 10;
    page[3] = 0x10;
    page
}

/// Header of REPORT LUNS data (SPC-4 6.33); 8-byte LUNs follow.
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
pub struct ReportLuns {
    /// Bytes of LUNs, whether or not there was room for them.
    pub list_length: U32,
    /// Zero.
    pub reserved: U32,
}
const _: () = assert!(size_of::<ReportLuns>() == 8);

impl ReportLuns {
    /// A LUN below 256 by the peripheral method (SAM-5 4.7.7.2).
    pub const fn lun(lun: u8) -> [u8; 8] {
        [0, lun, 0, 0, 0, 0, 0, 0]
    }

    /// The LUNs below 256 in REPORT LUNS data; `None` where there is no header.
    pub fn parse(bytes: &[u8]) -> Option<impl Iterator<Item = u8> + '_> {
        let (header, list) = Self::read_from_prefix(bytes).ok()?;
        let length = (header.list_length.get() as usize).min(list.len());
        Some(
            list.get(..length)?
                .chunks_exact(8)
                .filter_map(|entry| match *entry {
                    [0, lun, 0, 0, 0, 0, 0, 0] => Some(lun),
                    _ => None,
                }),
        )
    }
}

/// Blocks that are not needed any more (SBC-3 5.28.2).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct UnmapDescriptor {
    /// First block.
    pub lba: U64,
    /// Number of blocks.
    pub blocks: U32,
    /// Zero.
    pub reserved: U32,
}
const _: () = assert!(size_of::<UnmapDescriptor>() == 16);

impl UnmapDescriptor {
    /// UNMAP data of this one descriptor.
    pub fn single(lba: u64, blocks: u32) -> [u8; 24] {
        let (header, descriptor) = (
            UnmapHeader {
                data_length: 22.into(),
                block_length: 16.into(),
                reserved: 0.into(),
            },
            Self {
                lba: lba.into(),
                blocks: blocks.into(),
                reserved: 0.into(),
            },
        );
        zerocopy::transmute!(Single { header, descriptor })
    }
}

/// Header of UNMAP data (SBC-3 5.28.2).
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct UnmapHeader {
    /// Bytes that follow this field.
    data_length: U16,
    /// Bytes of descriptors.
    block_length: U16,
    reserved: U32,
}
const _: () = assert!(size_of::<UnmapHeader>() == 8);

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Single {
    header: UnmapHeader,
    descriptor: UnmapDescriptor,
}

/// The descriptors in UNMAP data; `None` where its lengths contradict each other or the data.
pub fn unmap_descriptors(bytes: &[u8]) -> Option<&[UnmapDescriptor]> {
    let (header, list) = UnmapHeader::read_from_prefix(bytes).ok()?;
    let length = usize::from(header.block_length.get());
    // The two length fields say the same thing twice; the first counts 6 bytes more.
    if length.checked_add(6)? > usize::from(header.data_length.get()) {
        return None;
    }
    let whole = length.checked_sub(length.checked_rem(size_of::<UnmapDescriptor>())?)?;
    <[UnmapDescriptor]>::ref_from_bytes(list.get(..whole)?).ok()
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;
    use zerocopy::IntoBytes;

    #[test]
    fn capacities() {
        let small = Capacity {
            blocks: 0x1000,
            block_length: 512,
        };
        assert_eq!(small.to_10().as_bytes(), [0, 0, 0x0f, 0xff, 0, 0, 2, 0]);
        assert_eq!(
            Capacity::parse_10(small.to_10().as_bytes()),
            Some(Some(small))
        );
        let large = Capacity {
            blocks: 1 << 33,
            block_length: 512,
        };
        assert_eq!(large.to_10().as_bytes()[..4], [0xff; 4]);
        assert_eq!(Capacity::parse_10(large.to_10().as_bytes()), Some(None));
        let data = large.to_16(3, Capacity16::PROVISIONING_MANAGED);
        assert_eq!(
            data.as_bytes()[..16],
            [
                0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 2, 0, 0, 3, 0x80, 0
            ]
        );
        assert_eq!(Capacity::parse_16(data.as_bytes()), Some(large));
        assert_eq!(Capacity::parse_16(&[0xff; 32]), None);
    }

    #[test]
    fn luns() {
        let mut data = Vec::from(
            ReportLuns {
                list_length: 16.into(),
                reserved: 0.into(),
            }
            .as_bytes(),
        );
        data.extend(ReportLuns::lun(0));
        data.extend(ReportLuns::lun(7));
        assert_eq!(
            ReportLuns::parse(&data).unwrap().collect::<Vec<_>>(),
            [0, 7]
        );
        assert_eq!(
            ReportLuns::parse(&data[..17]).unwrap().collect::<Vec<_>>(),
            [0]
        );
        assert!(ReportLuns::parse(&data[..7]).is_none());
    }

    #[test]
    fn unmap_lists() {
        let bytes = UnmapDescriptor::single(0x10, 0x20);
        assert_eq!(bytes[..8], [0, 22, 0, 16, 0, 0, 0, 0]);
        let list = unmap_descriptors(&bytes).unwrap();
        assert_eq!(
            (list.len(), list[0].lba.get(), list[0].blocks.get()),
            (1, 0x10, 0x20)
        );
        assert!(unmap_descriptors(&bytes[..20]).is_none());
        assert_eq!(unmap_descriptors(&[0, 6, 0, 0, 0, 0, 0, 0]), Some(&[][..]));
        assert!(unmap_descriptors(&[0, 5, 0, 0, 0, 0, 0, 0]).is_none());
    }

    #[test]
    fn pages_say_their_length() {
        for page in [&caching_page(true)[..], &control_page()[..]] {
            assert_eq!(usize::from(page[1]) + 2, page.len());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = (Capacity::parse_10(&bytes), Capacity::parse_16(&bytes));
            let _ = unmap_descriptors(&bytes);
            if let Some(luns) = ReportLuns::parse(&bytes) {
                prop_assert!(luns.count() * 8 + 8 <= bytes.len());
            }
        }
    }
}
