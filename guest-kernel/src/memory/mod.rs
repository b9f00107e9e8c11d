//! Memory: identity mapped, so a physical address below 4 GiB *is* the virtual address.
//!
//! | physical address | what is there |
//! |---|---|
//! | page 0 | never mapped: a null pointer faults |
//! | [`TRAMPOLINE`] | the 16-bit start code of the other CPUs, only while they start |
//! | rest of the first MiB | firmware, ACPI tables, what the loader wrote; never allocated |
//! | 2 MiB | the kernel's image with its stacks |
//! | the largest piece of RAM above that | first the heap, then page frames for DMA |
//! | other RAM below 4 GiB | page frames for DMA |
//!
//! RAM above 4 GiB is left alone: the kernel's jobs fit below.

pub(crate) mod frames;
pub(crate) mod heap;
pub(crate) mod map;
pub(crate) mod paging;
pub(crate) mod phys;

use core::ops::Range;
use map::MemoryMap;

/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;
/// The end of what is mapped.
pub(crate) const IDENTITY_END: u64 = 4 << 30;
/// Where the start code of the other CPUs is copied. A start-up IPI names a page of the first MiB.
pub(crate) const TRAMPOLINE: u64 = 0x8000;

/// The heap's size, unless that is more than a quarter of the RAM it is taken from.
const HEAP_BYTES: u64 = 16 << 20;

/// Switches to the final page tables and starts both allocators. Call once, on the first CPU.
pub(crate) fn init(map: &MemoryMap) -> Result<(), &'static str> {
    paging::init(map)?;
    let free_from = paging::image().end;
    let largest = map
        .free_ram(free_from)
        .max_by_key(|range| range.end - range.start)
        .ok_or("the memory map has no RAM above the kernel")?;
    let heap_bytes = HEAP_BYTES.min((largest.end - largest.start) / 4) & !(PAGE - 1);
    if heap_bytes < 1 << 20 {
        return Err("too little RAM: the kernel wants 16 MiB");
    }
    let heap = largest.start..largest.start + heap_bytes;
    heap::init(&heap);
    for range in map.free_ram(free_from) {
        let start = if range.start == heap.start {
            heap.end
        } else {
            range.start
        };
        frames::add(Range {
            start,
            end: range.end,
        });
    }
    Ok(())
}
