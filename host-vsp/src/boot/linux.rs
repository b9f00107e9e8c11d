//! The Linux 64-bit boot protocol: the zero page.
//!
//! Source: Linux `Documentation/arch/x86/boot.rst` and `zero-page.rst`.

use std::ops::Range;

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use super::{Error, Initrd};
use crate::layout::{self, MemoryKind};

/// Offset of the 64-bit entry from the start of a bzImage's protected-mode part.
pub const BZIMAGE_64_BIT_ENTRY: u64 = 0x200;
/// Boot protocol 2.12, the first with `xloadflags`.
pub const VERSION_WITH_64_BIT_ENTRY: u16 = 0x020C;
/// `xloadflags`: the kernel has a 64-bit entry.
pub const HAS_64_BIT_ENTRY: u16 = 1;

/// Magic number of the boot sector.
const BOOT_FLAG: u16 = 0xAA55;
/// "HdrS".
const HEADER_MAGIC: u32 = 0x5372_6448;
/// A boot loader without an assigned number.
const UNKNOWN_LOADER: u8 = 0xFF;
/// `loadflags`: the kernel is loaded at 1 MiB or above.
const LOADED_HIGH: u8 = 1;
/// Where an uncompressed kernel's initial RAM disk may end at most.
const INITRD_LIMIT: u64 = 0x8000_0000;

/// Between which addresses the initial RAM disk of a kernel may be, for a kernel whose image
/// ends at `kernel_end`.
pub fn initrd_bounds(header: Option<&setup_header>, kernel_end: u64) -> Range<u64> {
    let Some(header) = header else {
        return kernel_end.next_multiple_of(0x1000)..INITRD_LIMIT;
    };
    // The kernel unpacks itself to its preferred address and needs `init_size` from there, or
    // from where it was loaded.
    let needs = u64::from(header.init_size);
    let start = kernel_end
        .max(header.pref_address.saturating_add(needs))
        .max(layout::HIGH_MEMORY + needs);
    start..u64::from(header.initrd_addr_max) + 1
}

/// The zero page. `header` is a bzImage's own; an ELF kernel has none.
pub fn boot_params(
    header: Option<setup_header>,
    ram_size: u64,
    rsdp: u64,
    command_line: &str,
    initrd: Option<Initrd>,
) -> Result<boot_params, Error> {
    let mut params = boot_params::default();
    let mut header = header.unwrap_or(setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        version: VERSION_WITH_64_BIT_ENTRY,
        kernel_alignment: 0x20_0000,
        cmdline_size: layout::COMMAND_LINE_MAX as u32 - 1,
        ..Default::default()
    });
    let most = header.cmdline_size as usize;
    if command_line.len() > most {
        return Err(Error::CommandLine(format!(
            "this kernel takes at most {most} bytes"
        )));
    }
    header.type_of_loader = UNKNOWN_LOADER;
    header.loadflags |= LOADED_HIGH;
    header.cmd_line_ptr = layout::COMMAND_LINE as u32;
    if let Some(initrd) = initrd {
        // Below 4 GiB, see `Payload::load_initrd`.
        header.ramdisk_image = initrd.address as u32;
        header.ramdisk_size = initrd.size as u32;
    }
    params.hdr = header;
    params.acpi_rsdp_addr = rsdp;
    for (slot, (range, kind)) in layout::memory_map(ram_size).into_iter().enumerate() {
        params.e820_table[slot] = boot_e820_entry {
            addr: range.start,
            size: range.end - range.start,
            r#type: match kind {
                MemoryKind::Ram => 1,
                MemoryKind::Reserved => 2,
                MemoryKind::Acpi => 3,
            },
        };
        params.e820_entries += 1;
    }
    Ok(params)
}

/// Puts the zero page where the boot processor's RSI points.
pub fn write(memory: &GuestMemoryMmap<()>, params: &boot_params) -> Result<(), Error> {
    memory
        .write_obj(*params, GuestAddress(layout::ZERO_PAGE))
        .map_err(|_| Error::DoesNotFit {
            what: "the zero page",
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_initrd_stays_clear_of_where_the_kernel_unpacks_itself() {
        let header = setup_header {
            pref_address: 16 << 20,
            init_size: 50 << 20,
            initrd_addr_max: 0x7FFF_FFFF,
            ..Default::default()
        };
        assert_eq!(
            initrd_bounds(Some(&header), 9 << 20),
            (66 << 20)..0x8000_0000
        );
        assert_eq!(initrd_bounds(None, 0x12_3456), 0x12_4000..INITRD_LIMIT);
    }

    #[test]
    fn a_kernel_s_own_limit_of_the_command_line_holds() {
        let header = setup_header {
            cmdline_size: 3,
            ..Default::default()
        };
        assert!(boot_params(Some(header), 1 << 24, 0, "abc", None).is_ok());
        assert!(boot_params(Some(header), 1 << 24, 0, "abcd", None).is_err());
    }

    #[test]
    fn the_zero_page_tells_memory_tables_and_initrd() {
        let initrd = Initrd {
            address: 0x80_0000,
            size: 77,
        };
        let params = boot_params(None, 16 << 20, 0xE_0000, "", Some(initrd)).unwrap();
        assert_eq!({ params.acpi_rsdp_addr }, 0xE_0000);
        assert_eq!({ params.hdr.ramdisk_image }, 0x80_0000);
        assert_eq!({ params.hdr.ramdisk_size }, 77);
        assert_eq!(params.e820_entries, 4);
        let ram = params.e820_table[3];
        assert_eq!(
            ({ ram.addr }, { ram.size }, { ram.r#type }),
            (1 << 20, 15 << 20, 1)
        );
    }
}
