//! The boot processor's registers at a kernel's first instruction.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use super::{Entry, Error};
use crate::layout;

/// Selector of the code segment: Linux's `__BOOT_CS`.
const CODE: u16 = 0x10;
/// Selector of the data segments: Linux's `__BOOT_DS`.
const DATA: u16 = 0x18;
/// Selector of the task state segment; its limit and type matter, its content never.
const TASK: u16 = 0x20;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Page present and writable.
const TABLE: u64 = 0b11;
/// A 2 MiB page, present and writable.
const LARGE_PAGE: u64 = 0b1000_0011;

/// RFLAGS with nothing but the bit that is always set.
const FLAGS: u64 = 2;

/// Makes the descriptor and page tables for `entry` in `memory`, and puts the processor that has
/// `sregs` after its reset into the state the kernel expects.
pub fn enter(
    memory: &GuestMemoryMmap<()>,
    entry: Entry,
    sregs: &mut kvm_sregs,
) -> Result<kvm_regs, Error> {
    let long = matches!(entry, Entry::Linux64 { .. });
    let code = segment(CODE, CODE_TYPE, long);
    let data = segment(DATA, DATA_TYPE, false);
    let task = kvm_segment {
        limit: 0x67,
        type_: BUSY_TASK_TYPE,
        present: 1,
        selector: TASK,
        ..Default::default()
    };
    let table = [
        0,
        0,
        descriptor(&code),
        descriptor(&data),
        descriptor(&task),
        0,
    ];
    write(memory, layout::GDT, &table)?;

    sregs.cs = code;
    for register in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *register = data;
    }
    sregs.tr = task;
    sregs.gdt = kvm_dtable {
        base: layout::GDT,
        limit: (size_of_val(&table) - 1) as u16,
        ..Default::default()
    };
    sregs.idt = kvm_dtable::default();
    let mut regs = kvm_regs {
        rflags: FLAGS,
        ..Default::default()
    };
    match entry {
        Entry::Linux64 { address } => {
            write_page_tables(memory)?;
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.cr3 = layout::PAGE_TABLES;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
            regs.rip = address;
            regs.rsi = layout::ZERO_PAGE;
            regs.rsp = layout::BOOT_STACK;
        }
        Entry::Pvh { address } => {
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
            sregs.efer = 0;
            regs.rip = address.into();
            regs.rbx = layout::PVH_START_INFO;
        }
    }
    Ok(regs)
}

/// Code: execute, read, accessed.
const CODE_TYPE: u8 = 0xB;
/// Data: read, write, accessed.
const DATA_TYPE: u8 = 0x3;
/// A 32- or 64-bit task state segment in use.
const BUSY_TASK_TYPE: u8 = 0xB;

/// A flat segment; `long` makes it one of 64-bit code.
fn segment(selector: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xFFFF_FFFF,
        selector,
        type_,
        present: 1,
        db: (!long).into(),
        s: 1,
        l: long.into(),
        g: 1,
        ..Default::default()
    }
}

/// The entry of the descriptor table that holds `segment` (Intel SDM 3A 3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let bit = |value: u8, at: u32| u64::from(value) << at;
    (limit & 0xFFFF)
        | (segment.base & 0xFF_FFFF) << 16
        | bit(segment.type_, 40)
        | bit(segment.s, 44)
        | bit(segment.dpl, 45)
        | bit(segment.present, 47)
        | ((limit >> 16) & 0xF) << 48
        | bit(segment.l, 53)
        | bit(segment.db, 54)
        | bit(segment.g, 55)
        | ((segment.base >> 24) & 0xFF) << 56
}

/// Maps the first 4 GiB onto themselves, by 2 MiB pages.
fn write_page_tables(memory: &GuestMemoryMmap<()>) -> Result<(), Error> {
    const PAGE: u64 = 4096;
    const DIRECTORIES: u64 = 4;
    let pointers = layout::PAGE_TABLES + PAGE;
    let directories = pointers + PAGE;
    write(memory, layout::PAGE_TABLES, &[pointers | TABLE])?;
    let table: Vec<u64> = (0..DIRECTORIES)
        .map(|i| (directories + i * PAGE) | TABLE)
        .collect();
    write(memory, pointers, &table)?;
    let pages: Vec<u64> = (0..DIRECTORIES * 512)
        .map(|i| (i << 21) | LARGE_PAGE)
        .collect();
    write(memory, directories, &pages)
}

fn write(memory: &GuestMemoryMmap<()>, at: u64, words: &[u64]) -> Result<(), Error> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    memory
        .write_slice(&bytes, GuestAddress(at))
        .map_err(|_| Error::DoesNotFit {
            what: "the boot page tables",
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemoryMmap<()> {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
    }

    #[test]
    fn linux_is_entered_in_long_mode_with_itself_mapped() {
        let memory = memory();
        let mut sregs = kvm_sregs::default();
        let regs = enter(&memory, Entry::Linux64 { address: 0x10_0200 }, &mut sregs).unwrap();
        assert_eq!((regs.rip, regs.rsi), (0x10_0200, layout::ZERO_PAGE));
        assert_eq!((sregs.cs.l, sregs.cs.db), (1, 0));
        let word = |at| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        assert_eq!(word(layout::GDT + 0x10), 0x00AF_9B00_0000_FFFF);
        assert_eq!(word(layout::GDT + 0x18), 0x00CF_9300_0000_FFFF);
        // Walk the tables for an address in the last 2 MiB.
        let address: u64 = 0xFFF1_2345;
        let pointers = word(sregs.cr3) & !0xFFF;
        let directory = word(pointers + (address >> 30) * 8) & !0xFFF;
        let page = word(directory + ((address >> 21) & 511) * 8);
        assert_eq!(page, (address & !0x1F_FFFF) | LARGE_PAGE);
    }

    #[test]
    fn pvh_is_entered_flat_without_paging() {
        let mut sregs = kvm_sregs::default();
        let regs = enter(&memory(), Entry::Pvh { address: 0x10_1000 }, &mut sregs).unwrap();
        assert_eq!((regs.rip, regs.rbx), (0x10_1000, layout::PVH_START_INFO));
        assert_eq!(sregs.cr0 & CR0_PG, 0);
        assert_eq!((sregs.cs.l, sregs.cs.db, sregs.cs.limit), (0, 1, !0));
    }
}
