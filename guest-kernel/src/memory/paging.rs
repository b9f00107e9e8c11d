//! The final page tables: an identity map with permissions.
//!
//! The first 4 GiB are mapped in 2 MiB pages, readable and writable, never executable; what the
//! memory map does not call RAM is uncached, for device registers. Two places are mapped in
//! 4 KiB pages: the first 2 MiB (page 0 faults) and the kernel's image (code is read-only, only
//! code is executable, and a page below each stack faults).
#![expect(
    unsafe_code,
    reason = "page tables, control registers and the linker's symbols"
)]

use super::map::MemoryMap;
use super::{PAGE, TRAMPOLINE};
use crate::cpu::stack;
use core::ops::Range;
use spin::Mutex;
use x86_64::PhysAddr;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr3, Cr3Flags};
use x86_64::registers::model_specific::{Efer, EferFlags};
use x86_64::structures::paging::PhysFrame;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const UNCACHED: u64 = 1 << 3 | 1 << 4; // PWT and PCD: entry 3 of the PAT, uncacheable
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

const LARGE_PAGE: u64 = 2 << 20;
/// 2 MiB pieces the image may touch.
const IMAGE_TABLES: usize = 4;

unsafe extern "C" {
    static __image_start: u8;
    static __rodata_start: u8;
    static __data_start: u8;
    static __image_end: u8;
}

#[repr(C, align(4096))]
struct Table([u64; 512]);

struct Tables {
    level4: Table,
    level3: Table,
    /// One per GiB.
    level2: [Table; 4],
    /// The first 2 MiB.
    low: Table,
    image: [Table; IMAGE_TABLES],
}

const EMPTY: Table = Table([0; 512]);

static TABLES: Mutex<Tables> = Mutex::new(Tables {
    level4: EMPTY,
    level3: EMPTY,
    level2: [EMPTY; 4],
    low: EMPTY,
    image: [EMPTY; IMAGE_TABLES],
});

/// The kernel's image: code, data, stacks.
pub(crate) fn image() -> Range<u64> {
    address_of(&raw const __image_start)..address_of(&raw const __image_end)
}

fn address_of<T>(item: *const T) -> u64 {
    item as u64
}

/// Builds the tables and switches this CPU to them.
pub(super) fn init(map: &MemoryMap) -> Result<(), &'static str> {
    let mut tables = TABLES.lock();
    tables.build(map)?;
    enable_protection();
    let root = root(&tables);
    // SAFETY: the tables map everything in use at the address it has now, live in a static, and
    // never change again, except for the trampoline's page.
    unsafe { Cr3::write(root, Cr3Flags::empty()) };
    Ok(())
}

/// The value of CR3 for every CPU.
pub(crate) fn cr3() -> u64 {
    root(&TABLES.lock()).start_address().as_u64()
}

/// Lets this CPU obey the no-execute bit, and the read-only bit in kernel mode.
pub(crate) fn enable_protection() {
    // SAFETY: both only take away what the kernel has no use for: every table entry has its
    // no-execute bit set on purpose, and no read-only page is ever written.
    unsafe { Efer::update(|flags| flags.insert(EferFlags::NO_EXECUTE_ENABLE)) };
    // SAFETY: as above.
    unsafe { Cr0::update(|flags| flags.insert(Cr0Flags::WRITE_PROTECT)) };
}

fn root(tables: &Tables) -> PhysFrame {
    PhysFrame::containing_address(PhysAddr::new(address_of(&tables.level4)))
}

impl Tables {
    fn build(&mut self, map: &MemoryMap) -> Result<(), &'static str> {
        self.level4.0[0] = address_of(&self.level3) | PRESENT | WRITABLE;
        for gib in 0..self.level2.len() {
            self.level3.0[gib] = address_of(&self.level2[gib]) | PRESENT | WRITABLE;
            for index in 0..512 {
                let start = ((gib as u64) << 30) + index as u64 * LARGE_PAGE;
                let cached = if map.is_ram(&(start..start + LARGE_PAGE)) {
                    0
                } else {
                    UNCACHED
                };
                self.level2[gib].0[index] =
                    start | PRESENT | WRITABLE | NO_EXECUTE | LARGE | cached;
            }
        }
        self.map_low_memory();
        self.map_image()
    }

    fn map_low_memory(&mut self) {
        for (index, entry) in self.low.0.iter_mut().enumerate() {
            let page = index as u64 * PAGE;
            *entry = match page {
                0 => 0,
                TRAMPOLINE => page | PRESENT | WRITABLE,
                _ => page | PRESENT | WRITABLE | NO_EXECUTE,
            };
        }
        self.level2[0].0[0] = address_of(&self.low) | PRESENT | WRITABLE;
    }

    fn map_image(&mut self) -> Result<(), &'static str> {
        let image = image();
        let code = image.start..address_of(&raw const __rodata_start);
        let rodata = code.end..address_of(&raw const __data_start);
        let first = image.start / LARGE_PAGE;
        let pieces = (image.end.div_ceil(LARGE_PAGE) - first) as usize;
        if pieces > IMAGE_TABLES {
            return Err("the image is larger than its page tables: raise IMAGE_TABLES");
        }
        for piece in 0..pieces {
            let base = (first + piece as u64) * LARGE_PAGE;
            for (index, entry) in self.image[piece].0.iter_mut().enumerate() {
                let page = base + index as u64 * PAGE;
                *entry = if code.contains(&page) {
                    page | PRESENT
                } else if rodata.contains(&page) {
                    page | PRESENT | NO_EXECUTE
                } else if stack::is_guard(page) {
                    0
                } else {
                    page | PRESENT | WRITABLE | NO_EXECUTE
                };
            }
            // The image is linked below 1 GiB, so all of it hangs under the first table.
            self.level2[0].0[first as usize + piece] =
                address_of(&self.image[piece]) | PRESENT | WRITABLE;
        }
        Ok(())
    }
}
