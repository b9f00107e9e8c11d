//! Page frames for DMA: physically contiguous, zeroed, identity mapped.
#![expect(unsafe_code, reason = "fresh frames are zeroed through a raw pointer")]

use super::PAGE;
use core::ops::Range;
use core::ptr::NonNull;
use spin::Mutex;

/// Blocks of up to 2^19 pages, 2 GiB.
static FRAMES: Mutex<buddy_system_allocator::FrameAllocator<20>> =
    Mutex::new(buddy_system_allocator::FrameAllocator::new());

/// Gives free RAM to the allocator.
pub(super) fn add(memory: Range<u64>) {
    let (start, end) = (memory.start / PAGE, memory.end / PAGE);
    FRAMES.lock().add_frame(start as usize, end as usize);
}

/// Takes `pages` contiguous zeroed pages. `None`: too few are left.
///
/// The memory is the caller's alone until it comes back by [`release`]. Not for interrupt handlers.
pub(crate) fn take(pages: usize) -> Option<(u64, NonNull<u8>)> {
    let frame = FRAMES.lock().alloc(pages)?;
    let address = frame as u64 * PAGE;
    let pointer = NonNull::new(address as *mut u8)?;
    // SAFETY: the frames are free RAM inside the identity map (memory::init), and ours as of now.
    unsafe { pointer.write_bytes(0, pages * PAGE as usize) };
    Some((address, pointer))
}

/// Gives pages back.
///
/// # Safety
///
/// `address` and `pages` belong to one earlier [`take`], and nobody uses the memory any more,
/// devices included.
pub(crate) unsafe fn release(address: u64, pages: usize) {
    FRAMES.lock().dealloc((address / PAGE) as usize, pages);
}
