//! What `virtio-drivers` needs of the kernel. Memory is identity mapped and the devices see all
//! of it, so sharing a buffer only means telling its address.
#![expect(unsafe_code, reason = "Hal is an unsafe trait")]

use crate::memory::{IDENTITY_END, frames};
use core::ptr::NonNull;
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

pub(super) struct KernelHal;

// SAFETY: frames::take returns zeroed, page-aligned, contiguous memory that nobody else uses, and
// every address below 4 GiB is mapped at itself.
unsafe impl Hal for KernelHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // Address 0 is how this interface says "no memory".
        frames::take(pages).unwrap_or((0, NonNull::dangling()))
    }

    unsafe fn dma_dealloc(address: PhysAddr, _pointer: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: the caller passes what dma_alloc returned, and is done with it.
        unsafe { frames::release(address, pages) };
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, size: usize) -> NonNull<u8> {
        assert!(
            address + size as u64 <= IDENTITY_END,
            "the device's registers at {address:#x} lie above 4 GiB; give the machine less memory"
        );
        NonNull::new(address as *mut u8).expect("no device has its registers at address 0")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().addr().get() as PhysAddr
    }

    unsafe fn unshare(_address: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {}
}
