//! PVH: `hvm_start_info`, version 1 (Xen's public header `arch-x86/hvm/start_info.h`).

use super::{BootInfo, Protocol, read_command_line};
use crate::memory::map::MemoryMap;
use crate::memory::phys;
use zerocopy_derive::{FromBytes, Immutable, KnownLayout};

/// `hvm_start_info.magic`: "xEn3" with the top bit of the E set.
const MAGIC: u32 = 0x336e_c578;

/// What EBX points at. All addresses are physical.
#[derive(FromBytes, KnownLayout, Immutable)]
#[repr(C)]
struct StartInfo {
    magic: u32,
    /// 1 and later have the memory map.
    version: u32,
    flags: u32,
    module_count: u32,
    module_list: u64,
    /// A zero-terminated string, or 0.
    command_line: u64,
    /// The ACPI root pointer, or 0.
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<StartInfo>() == 56);

/// One entry of the memory map.
#[derive(FromBytes, KnownLayout, Immutable)]
#[repr(C)]
struct MemoryMapEntry {
    address: u64,
    bytes: u64,
    /// As in the PC BIOS's E820 map: 1 is RAM.
    kind: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<MemoryMapEntry>() == 24);

pub(super) fn read(address: u64) -> Result<BootInfo, &'static str> {
    let info: StartInfo =
        phys::read(address).ok_or("hvm_start_info lies outside the first 4 GiB")?;
    if info.magic != MAGIC {
        return Err("hvm_start_info has the wrong magic number");
    }
    if info.version == 0 || info.memory_map_entries == 0 {
        return Err("hvm_start_info has no memory map: version 1 or later is needed");
    }
    let mut memory_map = MemoryMap::new();
    for index in 0..u64::from(info.memory_map_entries) {
        let entry: MemoryMapEntry =
            phys::read(info.memory_map + index * size_of::<MemoryMapEntry>() as u64)
                .ok_or("the PVH memory map lies outside the first 4 GiB")?;
        memory_map.add(entry.address, entry.bytes, entry.kind);
    }
    Ok(BootInfo {
        protocol: Protocol::Pvh,
        command_line: read_command_line(info.command_line),
        memory_map,
        rsdp: (info.rsdp != 0).then_some(info.rsdp),
    })
}
