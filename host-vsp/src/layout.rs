//! Where things are in a guest's physical address space and on its I/O ports.
//!
//! ```text
//! 0x0000_0000  RAM; boot structures in the first 640 KiB, see the constants below
//! 0x000E_0000  RAM reserved for ACPI: the RSDP first, where a BIOS would leave it
//! 0x0010_0000  RAM, up to 3 GiB
//! 0xC000_0000  VMBus MMIO window (synthetic video and PCI pass-through take ranges from it)
//! 0xFE00_0000  IOAPIC, local APIC, KVM's own pages
//! 0x1_0000_0000  the rest of RAM, then a second VMBus MMIO window
//! ```
//!
//! There is no PCI and no firmware: a kernel is entered directly.

use std::ops::Range;

/// One mebibyte.
pub const MIB: u64 = 1 << 20;
/// One gibibyte.
pub const GIB: u64 = 1 << 30;

/// Address of the descriptor table a kernel is entered with.
pub const GDT: u64 = 0x500;
/// Address of the PVH start info; the module list and memory map follow it.
pub const PVH_START_INFO: u64 = 0x6000;
/// Address of Linux's boot parameters ("zero page").
pub const ZERO_PAGE: u64 = 0x7000;
/// Initial stack pointer; the stack is never used by Linux, but costs nothing.
pub const BOOT_STACK: u64 = 0x8FF0;
/// Address of the first of six page-table pages that map the first 4 GiB onto themselves.
pub const PAGE_TABLES: u64 = 0x9000;
/// Address of the kernel's command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Bytes there are for the command line, with its terminating zero.
pub const COMMAND_LINE_MAX: usize = 0x1_0000;
/// End of conventional memory: a PC's extended BIOS data area begins here.
pub const CONVENTIONAL_END: u64 = 0x9_FC00;
/// The ACPI tables: in the range where a guest scans for the RSDP.
pub const ACPI: Range<u64> = 0xE_0000..0x10_0000;
/// Kernels are loaded from here on.
pub const HIGH_MEMORY: u64 = MIB;
/// RAM below 4 GiB ends here at the latest.
pub const LOW_RAM_LIMIT: u64 = 3 * GIB;
/// RAM beyond [`LOW_RAM_LIMIT`] begins here.
pub const HIGH_RAM: u64 = 4 * GIB;
/// The VMBus MMIO window below 4 GiB.
pub const MMIO_LOW: Range<u64> = LOW_RAM_LIMIT..0xFE00_0000;
/// Bytes of the VMBus MMIO window above RAM.
pub const MMIO_HIGH_SIZE: u64 = 4 * GIB;
/// The I/O APIC's registers.
pub const IOAPIC: u32 = 0xFEC0_0000;
/// The local APICs' registers.
pub const LOCAL_APIC: u32 = 0xFEE0_0000;
/// A page KVM needs for itself on Intel.
pub const KVM_IDENTITY_MAP: u64 = 0xFFFB_C000;
/// Three pages KVM needs for itself on Intel.
pub const KVM_TSS: u64 = 0xFFFB_D000;

/// The first of the eight ports of the 16550s at COM1 and COM2.
pub const SERIAL_PORTS: [u16; 2] = [0x3F8, 0x2F8];
/// Their interrupts.
pub const SERIAL_GSIS: [u32; 2] = [4, 3];
/// Keyboard controller: command and status.
pub const I8042_COMMAND: u16 = 0x64;
/// Keyboard controller command that pulses the CPU's reset line.
pub const I8042_RESET: u8 = 0xFE;
/// ACPI PM1a: status, then enable, 16 bits each.
pub const PM1A_EVENT: u16 = 0x600;
/// ACPI PM1a control, 16 bits.
pub const PM1A_CONTROL: u16 = 0x604;
/// ACPI's interrupt; never raised.
pub const SCI_GSI: u16 = 9;
/// PC reset control register, also ACPI's.
pub const RESET_PORT: u16 = 0xCF9;
/// Value that resets the machine through [`RESET_PORT`].
pub const RESET_VALUE: u8 = 0x06;
/// Pins of the I/O APIC; interrupts from here on are SynIC routes.
pub const IOAPIC_PINS: u32 = 24;

/// The ranges of RAM of a machine with `size` bytes of it.
pub fn ram(size: u64) -> Vec<Range<u64>> {
    let low = size.min(LOW_RAM_LIMIT);
    let mut ranges = Vec::with_capacity(2);
    ranges.push(0..low);
    if size > low {
        ranges.push(HIGH_RAM..HIGH_RAM + (size - low));
    }
    ranges
}

/// The second VMBus MMIO window, above RAM.
pub fn mmio_high(ram_size: u64) -> Range<u64> {
    let end = ram(ram_size).last().map_or(0, |range| range.end);
    let start = end.max(HIGH_RAM).next_multiple_of(GIB);
    start..start + MMIO_HIGH_SIZE
}

/// What a range of the memory map is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryKind {
    /// Free for the guest.
    Ram,
    /// Not for the guest.
    Reserved,
    /// ACPI tables.
    Acpi,
}

/// The memory map that the guest is told.
pub fn memory_map(ram_size: u64) -> Vec<(Range<u64>, MemoryKind)> {
    let mut map = vec![
        (0..CONVENTIONAL_END, MemoryKind::Ram),
        (CONVENTIONAL_END..0xA_0000, MemoryKind::Reserved),
        (ACPI, MemoryKind::Acpi),
    ];
    for range in ram(ram_size) {
        let start = range.start.max(HIGH_MEMORY);
        if start < range.end {
            map.push((start..range.end, MemoryKind::Ram));
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_split_around_the_hole() {
        assert_eq!(ram(512 * MIB), vec![0..512 * MIB]);
        assert_eq!(ram(3 * GIB), vec![0..3 * GIB]);
        assert_eq!(ram(5 * GIB), vec![0..3 * GIB, 4 * GIB..6 * GIB]);
    }

    #[test]
    fn the_memory_map_holds_all_ram_but_the_first_megabyte_and_nothing_overlaps() {
        for size in [16 * MIB, 3 * GIB, 3 * GIB + MIB, 9 * GIB] {
            let map = memory_map(size);
            assert!(map.windows(2).all(|w| w[0].0.end <= w[1].0.start));
            let high: u64 = map
                .iter()
                .filter(|(range, kind)| *kind == MemoryKind::Ram && range.start >= HIGH_MEMORY)
                .map(|(range, _)| range.end - range.start)
                .sum();
            assert_eq!(high, size - HIGH_MEMORY);
            assert!(mmio_high(size).start >= map.last().unwrap().0.end);
        }
    }
}
