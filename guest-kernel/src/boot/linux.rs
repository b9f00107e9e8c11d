//! The 64-bit Linux boot protocol: the fields of `boot_params` (the "zero page") that matter here
//! (Linux's `Documentation/arch/x86/zero-page.rst` and `boot.rst`).

use super::{BootInfo, Protocol, read_command_line};
use crate::memory::map::MemoryMap;
use crate::memory::phys;
use zerocopy_derive::{FromBytes, Immutable, KnownLayout};

/// Byte offset of the ACPI root pointer's address, a `u64`, or 0.
const ACPI_RSDP_ADDR: u64 = 0x070;
/// Byte offset of the upper half of the command line's address, a `u32`.
const EXT_CMD_LINE_PTR: u64 = 0x0C8;
/// Byte offset of the number of E820 entries, a `u8`.
const E820_ENTRIES: u64 = 0x1E8;
/// Byte offset of the lower half of the command line's address, a `u32`.
const CMD_LINE_PTR: u64 = 0x228;
/// Byte offset of the E820 table.
const E820_TABLE: u64 = 0x2D0;
/// The number of entries that fit the table.
const E820_MAX_ENTRIES: u8 = 128;

/// One E820 entry: no padding, so every other entry is misaligned.
#[derive(FromBytes, KnownLayout, Immutable)]
#[repr(C, packed)]
struct E820Entry {
    address: u64,
    bytes: u64,
    /// 1 is RAM.
    kind: u32,
}

const _: () = assert!(size_of::<E820Entry>() == 20);

pub(super) fn read(address: u64) -> Result<BootInfo, &'static str> {
    const OUTSIDE: &str = "boot_params lies outside the first 4 GiB";
    let entries: u8 = phys::read(address + E820_ENTRIES).ok_or(OUTSIDE)?;
    if entries == 0 {
        return Err("boot_params has no E820 memory map");
    }
    let mut memory_map = MemoryMap::new();
    for index in 0..u64::from(entries.min(E820_MAX_ENTRIES)) {
        let offset = E820_TABLE + index * size_of::<E820Entry>() as u64;
        let entry: E820Entry = phys::read(address + offset).ok_or(OUTSIDE)?;
        memory_map.add(entry.address, entry.bytes, entry.kind);
    }
    let low: u32 = phys::read(address + CMD_LINE_PTR).ok_or(OUTSIDE)?;
    let high: u32 = phys::read(address + EXT_CMD_LINE_PTR).ok_or(OUTSIDE)?;
    let rsdp: u64 = phys::read(address + ACPI_RSDP_ADDR).ok_or(OUTSIDE)?;
    Ok(BootInfo {
        protocol: Protocol::Linux64,
        command_line: read_command_line(u64::from(high) << 32 | u64::from(low)),
        memory_map,
        rsdp: (rsdp != 0).then_some(rsdp),
    })
}
