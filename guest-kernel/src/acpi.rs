//! The few facts that are only in ACPI tables: the CPUs, the way to power off, the way to reset.
//!
//! (Advanced Configuration and Power Interface Specification 6.5, chapter 5.)

use crate::memory::PAGE;
use crate::memory::phys;
use alloc::vec::Vec;
use zerocopy_derive::{FromBytes, Immutable, KnownLayout};

/// Where a PC's firmware keeps the root pointer, on a 16-byte boundary.
const FIRMWARE_AREA: core::ops::Range<u64> = 0xE_0000..0x10_0000;

/// SLP_TYP of S5 where the DSDT does not say. host-vsp uses this value.
const DEFAULT_SLEEP_TYPE: u8 = 5;

/// The root pointer, from revision 2 on (36 bytes).
#[derive(FromBytes, KnownLayout, Immutable)]
#[repr(C, packed)]
struct RootPointer {
    signature: [u8; 8],
    checksum: u8,
    oem: [u8; 6],
    revision: u8,
    rsdt: u32,
    length: u32,
    xsdt: u64,
    extended_checksum: u8,
    reserved: [u8; 3],
}

/// Every table starts like this.
#[derive(FromBytes, KnownLayout, Immutable)]
#[repr(C, packed)]
struct Header {
    signature: [u8; 4],
    /// Bytes of the table, this header included.
    length: u32,
    revision: u8,
    checksum: u8,
    oem: [u8; 6],
    oem_table: [u8; 8],
    oem_revision: u32,
    creator: u32,
    creator_revision: u32,
}

const HEADER_BYTES: u64 = size_of::<Header>() as u64;
const _: () = assert!(HEADER_BYTES == 36);

/// A register named by a table ("generic address structure").
#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable)]
#[repr(C, packed)]
struct RegisterAddress {
    /// 1 is the I/O port space.
    space: u8,
    bit_width: u8,
    bit_offset: u8,
    access: u8,
    address: u64,
}

/// What the tables say.
pub(crate) struct Acpi {
    /// The local APIC ids of the CPUs that may be started.
    pub(crate) cpus: Vec<u32>,
    /// Writing the value to the port powers off.
    pub(crate) power_off: Option<(u16, u16)>,
    /// Writing the value to the port resets.
    pub(crate) reset: Option<(u16, u8)>,
}

/// A table whose checksum is right.
#[derive(Clone, Copy)]
struct Table {
    address: u64,
    length: u64,
}

impl Acpi {
    /// Reads the tables. `rsdp` is the root pointer's address where the loader knew it.
    pub(crate) fn read(rsdp: Option<u64>) -> Option<Self> {
        let root = rsdp
            .filter(|&address| is_root_pointer(address))
            .or_else(|| {
                FIRMWARE_AREA
                    .step_by(16)
                    .find(|&address| is_root_pointer(address))
            })?;
        let tables = tables(root)?;
        let find = |signature: &[u8; 4]| {
            tables
                .iter()
                .copied()
                .find(|table| table.signature() == Some(*signature))
        };
        let fadt = find(b"FACP");
        Some(Self {
            cpus: find(b"APIC").map(cpus).unwrap_or_default(),
            power_off: fadt.and_then(power_off),
            reset: fadt.and_then(reset),
        })
    }
}

impl Table {
    fn open(address: u64) -> Option<Self> {
        let header: Header = phys::read(address)?;
        let length = u64::from(header.length);
        ((HEADER_BYTES..=256 * PAGE).contains(&length) && sums_to_zero(address, length))
            .then_some(Self { address, length })
    }

    fn signature(self) -> Option<[u8; 4]> {
        phys::read(self.address)
    }

    /// The `T` at a byte offset, unless it lies beyond the table's end.
    fn get<T: zerocopy::FromBytes>(self, offset: u64) -> Option<T> {
        (offset + size_of::<T>() as u64 <= self.length)
            .then(|| phys::read(self.address + offset))
            .flatten()
    }
}

fn sums_to_zero(address: u64, bytes: u64) -> bool {
    (0..bytes)
        .try_fold(0_u8, |sum, offset| {
            phys::read::<u8>(address + offset).map(|byte| sum.wrapping_add(byte))
        })
        .is_some_and(|sum| sum == 0)
}

fn is_root_pointer(address: u64) -> bool {
    phys::read::<[u8; 8]>(address) == Some(*b"RSD PTR ") && sums_to_zero(address, 20)
}

fn tables(root: u64) -> Option<Vec<Table>> {
    let pointer: RootPointer = phys::read(root)?;
    let extended = pointer.revision >= 2 && pointer.xsdt != 0;
    let (list, entry_bytes) = if extended {
        (Table::open(pointer.xsdt)?, 8)
    } else {
        (Table::open(pointer.rsdt.into())?, 4)
    };
    let offsets = (HEADER_BYTES..list.length).step_by(entry_bytes);
    let addresses = offsets.filter_map(|offset| {
        if extended {
            list.get::<u64>(offset)
        } else {
            list.get::<u32>(offset).map(u64::from)
        }
    });
    Some(addresses.filter_map(Table::open).collect())
}

/// The MADT's local APICs (entry type 0) and local x2APICs (type 9) that are enabled.
fn cpus(madt: Table) -> Vec<u32> {
    const ENABLED: u32 = 1 << 0;
    let mut cpus = Vec::new();
    let mut offset = HEADER_BYTES + 8;
    while let Some([kind, length]) = madt.get::<[u8; 2]>(offset) {
        let (id, flags) = match kind {
            0 => (
                madt.get::<u8>(offset + 3).map(u32::from),
                madt.get::<u32>(offset + 4),
            ),
            9 => (madt.get::<u32>(offset + 4), madt.get::<u32>(offset + 8)),
            _ => (None, None),
        };
        if let (Some(id), Some(flags)) = (id, flags)
            && flags & ENABLED != 0
            && !cpus.contains(&id)
        {
            cpus.push(id);
        }
        if length < 2 {
            break;
        }
        offset += u64::from(length);
    }
    cpus
}

fn power_off(fadt: Table) -> Option<(u16, u16)> {
    const SLEEP_ENABLE: u16 = 1 << 13;
    let short = fadt.get::<u32>(64).map(u64::from).filter(|&port| port != 0);
    let extended = fadt
        .get::<RegisterAddress>(172)
        .filter(|register| register.space == 1 && register.address != 0)
        .map(|register| register.address);
    let port = u16::try_from(extended.or(short)?).ok()?;
    let dsdt = fadt
        .get::<u64>(140)
        .filter(|&address| address != 0)
        .or_else(|| fadt.get::<u32>(40).map(u64::from))
        .and_then(Table::open);
    let sleep_type = dsdt.and_then(soft_off_type).unwrap_or(DEFAULT_SLEEP_TYPE);
    Some((port, u16::from(sleep_type & 0b111) << 10 | SLEEP_ENABLE))
}

/// The first element of the package `\_S5_`, found by its name: running AML for one constant
/// would be too much. In AML that is the name, a package opcode, its length in one to four bytes,
/// the number of elements, and then the constants 0 or 1, or a prefix and a byte.
fn soft_off_type(dsdt: Table) -> Option<u8> {
    const PACKAGE: u8 = 0x12;
    const BYTE_PREFIX: u8 = 0x0A;
    let name = (HEADER_BYTES..dsdt.length)
        .find(|&offset| dsdt.get::<[u8; 5]>(offset) == Some(*b"_S5_\x12"))?;
    let package = name + 4;
    debug_assert_eq!(dsdt.get::<u8>(package), Some(PACKAGE));
    let more_length_bytes = u64::from(dsdt.get::<u8>(package + 1)? >> 6);
    let first = package + 3 + more_length_bytes;
    match dsdt.get::<u8>(first)? {
        BYTE_PREFIX => dsdt.get::<u8>(first + 1),
        constant => Some(constant),
    }
}

fn reset(fadt: Table) -> Option<(u16, u8)> {
    const RESET_SUPPORTED: u32 = 1 << 10;
    let flags: u32 = fadt.get(112)?;
    let register: RegisterAddress = fadt.get(116)?;
    let value: u8 = fadt.get(128)?;
    let port = u16::try_from(register.address).ok()?;
    (flags & RESET_SUPPORTED != 0 && register.space == 1).then_some((port, value))
}
