//! The heap behind `alloc`.
#![expect(unsafe_code, reason = "a global allocator hands out raw memory")]

use core::alloc::{GlobalAlloc, Layout};
use core::ops::Range;
use core::ptr::{NonNull, null_mut};
use spin::Mutex;
use x86_64::instructions::interrupts::without_interrupts;

/// A buddy allocator behind a lock that interrupt handlers may take, too.
struct KernelHeap(Mutex<buddy_system_allocator::Heap<32>>);

#[global_allocator]
static HEAP: KernelHeap = KernelHeap(Mutex::new(buddy_system_allocator::Heap::empty()));

/// Gives `memory`, RAM that nobody uses, to the heap. Call once, before the first allocation.
pub(super) fn init(memory: &Range<u64>) {
    let (start, end) = (memory.start as usize, memory.end as usize);
    // SAFETY: memory::init takes the range out of free RAM and gives it to nobody else.
    unsafe { HEAP.0.lock().add_to_heap(start, end) };
}

// SAFETY: the buddy allocator returns blocks of the layout asked for that do not overlap; the lock
// serialises CPUs, and with interrupts off an interrupt handler never finds it taken by its own CPU.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        without_interrupts(|| self.0.lock().alloc(layout)).map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if let Some(pointer) = NonNull::new(pointer) {
            // SAFETY: the caller passes on a block of this allocator and its layout.
            without_interrupts(|| unsafe { self.0.lock().dealloc(pointer, layout) });
        }
    }
}
