//! The PVH boot protocol: the start info.
//!
//! Source: Xen `xen/include/public/arch-x86/hvm/start_info.h` and `docs/misc/pvh.pandoc`.

use linux_loader::loader::elf::start_info::{
    XEN_HVM_MEMMAP_TYPE_ACPI, XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_MEMMAP_TYPE_RESERVED,
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use super::{Error, Initrd};
use crate::layout::{self, MemoryKind};

/// The version of the start info with the memory map.
const VERSION: u32 = 1;
/// Address of the module list: one module, the initial RAM disk.
const MODULES: u64 = layout::PVH_START_INFO + 0x100;
/// Address of the memory map.
const MEMORY_MAP: u64 = layout::PVH_START_INFO + 0x200;

/// Puts the start info where the boot processor's EBX points.
pub fn write(
    memory: &GuestMemoryMmap<()>,
    ram_size: u64,
    rsdp: u64,
    initrd: Option<Initrd>,
) -> Result<(), Error> {
    let does_not_fit = |_| Error::DoesNotFit {
        what: "the PVH start info",
    };
    let map = layout::memory_map(ram_size);
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: VERSION,
        nr_modules: initrd.is_some().into(),
        modlist_paddr: if initrd.is_some() { MODULES } else { 0 },
        cmdline_paddr: layout::COMMAND_LINE,
        rsdp_paddr: rsdp,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    memory
        .write_obj(info, GuestAddress(layout::PVH_START_INFO))
        .map_err(does_not_fit)?;
    if let Some(initrd) = initrd {
        let module = hvm_modlist_entry {
            paddr: initrd.address,
            size: initrd.size,
            ..Default::default()
        };
        memory
            .write_obj(module, GuestAddress(MODULES))
            .map_err(does_not_fit)?;
    }
    for (index, (range, kind)) in map.into_iter().enumerate() {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.end - range.start,
            type_: match kind {
                MemoryKind::Ram => XEN_HVM_MEMMAP_TYPE_RAM,
                MemoryKind::Reserved => XEN_HVM_MEMMAP_TYPE_RESERVED,
                MemoryKind::Acpi => XEN_HVM_MEMMAP_TYPE_ACPI,
            },
            reserved: 0,
        };
        let at = MEMORY_MAP + (index * size_of::<hvm_memmap_table_entry>()) as u64;
        memory
            .write_obj(entry, GuestAddress(at))
            .map_err(does_not_fit)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_info_leads_to_module_map_and_tables() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let initrd = Initrd {
            address: 0x80_0000,
            size: 77,
        };
        write(&memory, 16 << 20, 0xE_0000, Some(initrd)).unwrap();
        let info: hvm_start_info = memory
            .read_obj(GuestAddress(layout::PVH_START_INFO))
            .unwrap();
        assert_eq!(info.magic, 0x336E_C578);
        assert_eq!(
            (info.nr_modules, info.rsdp_paddr, info.memmap_entries),
            (1, 0xE_0000, 4)
        );
        let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!((module.paddr, module.size), (0x80_0000, 77));
        let last = GuestAddress(info.memmap_paddr + 3 * 24);
        let entry: hvm_memmap_table_entry = memory.read_obj(last).unwrap();
        assert_eq!(
            (entry.addr, entry.size, entry.type_),
            (1 << 20, 15 << 20, 1)
        );
    }
}
