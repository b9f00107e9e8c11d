//! `boot_params`, the "zero page" of the Linux boot protocol, as far as the kernel reads it (Linux's
//! `Documentation/arch/x86/zero-page.rst`).

use uefi::boot::MemoryType;
use uefi::mem::memory_map::MemoryMap;

/// Bytes of a page of the memory map.
const PAGE: u64 = 4096;

/// E820 entries that fit.
const MAX_ENTRIES: usize = 128;

/// E820 types.
const RAM: u32 = 1;
const RESERVED: u32 = 2;
const ACPI: u32 = 3;
const ACPI_STORAGE: u32 = 4;

/// One E820 entry.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Entry {
    address: u64,
    bytes: u64,
    kind: u32,
}

/// What the kernel is told, and the command line behind it.
#[repr(C, packed)]
pub(crate) struct BootParams {
    unused1: [u8; 0x070],
    acpi_rsdp: u64,
    unused2: [u8; 0x0C8 - 0x078],
    /// Upper half of the command line's address: 0.
    command_line_high: u32,
    unused3: [u8; 0x1E8 - 0x0CC],
    entry_count: u8,
    unused4: [u8; 0x228 - 0x1E9],
    command_line_low: u32,
    unused5: [u8; 0x2D0 - 0x22C],
    entries: [Entry; MAX_ENTRIES],
    unused6: [u8; 0x1000 - 0x2D0 - MAX_ENTRIES * 20],
    command_line: [u8; 2048],
}

const _: () = assert!(size_of::<BootParams>() == 4096 + 2048);

impl BootParams {
    /// Says where the ACPI tables are, and where the command line is, which is empty.
    pub(crate) fn begin(&mut self, acpi_rsdp: u64) {
        self.acpi_rsdp = acpi_rsdp;
        // Allocated below 4 GiB.
        self.command_line_low = (&raw const self.command_line).addr() as u32;
    }

    /// Sets the command line; what does not fit is cut off.
    pub(crate) fn set_command_line(&mut self, text: impl Iterator<Item = char>) {
        // The last byte stays 0.
        let [places @ .., _] = &mut self.command_line;
        for (place, c) in places.iter_mut().zip(text) {
            *place = if c.is_ascii() { c as u8 } else { b'?' };
        }
    }

    /// Tells of memory. Pieces that lie together and are of one kind become one entry.
    pub(crate) fn set_memory_map(&mut self, map: &impl MemoryMap) {
        let mut entries = self.entries;
        let mut count = 0_usize;
        for piece in map.entries() {
            let entry = Entry {
                address: piece.phys_start,
                bytes: piece.page_count * PAGE,
                kind: match piece.ty {
                    MemoryType::CONVENTIONAL
                    | MemoryType::LOADER_CODE
                    | MemoryType::LOADER_DATA
                    | MemoryType::BOOT_SERVICES_CODE
                    | MemoryType::BOOT_SERVICES_DATA => RAM,
                    MemoryType::ACPI_RECLAIM => ACPI,
                    MemoryType::ACPI_NON_VOLATILE => ACPI_STORAGE,
                    _ => RESERVED,
                },
            };
            let last = count.checked_sub(1).map(|last| &mut entries[last]);
            if let Some(last) = last
                && last.kind == entry.kind
                && last.address + last.bytes == entry.address
            {
                last.bytes += entry.bytes;
            } else if count < MAX_ENTRIES {
                entries[count] = entry;
                count += 1;
            }
        }
        self.entries = entries;
        self.entry_count = count as u8;
    }
}
