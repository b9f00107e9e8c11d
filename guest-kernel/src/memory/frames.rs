//! Page frames for DMA: physically contiguous, zeroed, identity mapped.
#![expect(unsafe_code, reason = "fresh frames are zeroed through a raw pointer")]

use super::PAGE;
use buddy_system_allocator::FrameAllocator;
use core::ops::Range;
use core::ptr::NonNull;
use spin::Mutex;
use x86_64::instructions::interrupts::without_interrupts;

/// Blocks of up to 2^19 pages, 2 GiB.
type Frames = FrameAllocator<20>;

static FRAMES: Mutex<Frames> = Mutex::new(Frames::new());

/// Takes the lock with interrupts off, so that an interrupt handler never finds its own CPU
/// holding it.
fn with<R>(action: impl FnOnce(&mut Frames) -> R) -> R {
    without_interrupts(|| action(&mut FRAMES.lock()))
}

/// Gives free RAM to the allocator.
pub(super) fn add(memory: Range<u64>) {
    let (start, end) = (memory.start / PAGE, memory.end / PAGE);
    with(|frames| frames.add_frame(start as usize, end as usize));
}

/// Takes `pages` contiguous zeroed pages. `None`: too few are left.
///
/// The memory is the caller's alone until it comes back by [`release`].
pub(crate) fn take(pages: usize) -> Option<(u64, NonNull<u8>)> {
    let frame = with(|frames| frames.alloc(pages))?;
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
    with(|frames| frames.dealloc((address / PAGE) as usize, pages));
}
