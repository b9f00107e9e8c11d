//! What drivers need of this kernel, virtio's and Hyper-V's: the page to copy from.
//!
//! One type serves both crates. Virtio's trait is about memory; [`VmbusKernel`] adds what VMBus
//! needs beyond that, and [`VirtioHal`] makes of the two the `Hal` of `guest-vsc`.
//!
//! Four decisions of this kernel's make it short. Memory is identity mapped, so a physical address
//! is a virtual one. Host and devices see all of the guest's memory, so sharing a buffer only
//! means telling its address. CPUs are numbered from 0. And a CPU that waits may sleep, because
//! the local APIC's timer wakes it in any case.
#![expect(unsafe_code, reason = "the traits are unsafe")]

use crate::cpu;
use crate::memory::{IDENTITY_END, frames};
use core::ptr::NonNull;
use core::time::Duration;
use guest_vsc::virtio::{VirtioHal, VmbusKernel};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

/// The longest sleep while waiting for the host. Its interrupt comes much sooner; should it get
/// lost, the driver looks again after this, and `cpu::apic::timer_interrupts` tells on it.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);

/// This kernel, for virtio's drivers.
pub(crate) struct Kernel;

/// This kernel, for the Hyper-V drivers.
pub(crate) type KernelHal = VirtioHal<Kernel>;

// SAFETY: frames::take returns zeroed, page-aligned, contiguous memory that nobody else uses, and
// every address below 4 GiB is mapped at itself.
unsafe impl Hal for Kernel {
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

// SAFETY: the code is mapped at its physical address like everything else, and cpu::index differs
// between CPUs.
unsafe impl VmbusKernel for Kernel {
    fn code_to_phys(page: NonNull<u8>) -> PhysAddr {
        page.addr().get() as PhysAddr
    }

    fn current_cpu() -> usize {
        cpu::index()
    }

    fn wait_for_interrupt() {
        cpu::doze(LONGEST_SLEEP);
    }
}
