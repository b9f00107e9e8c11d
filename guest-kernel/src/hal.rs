//! What the Hyper-V drivers of `guest-vsc` need of this kernel: the page to copy from.
//!
//! Four decisions of this kernel's make it short. Memory is identity mapped, so a physical address
//! is a virtual one. The host sees all of the guest's memory, so sharing a buffer only means
//! telling its address. CPUs are numbered from 0. And a CPU that waits may sleep, because the
//! local APIC's timer wakes it in any case.
#![expect(unsafe_code, reason = "Hal is an unsafe trait")]

use crate::cpu;
use crate::memory::frames;
use core::ptr::NonNull;
use core::time::Duration;
use guest_vsc::hal::{BufferDirection, Hal, PhysAddr};

/// The longest sleep while waiting for the host. Its interrupt comes much sooner; should it get
/// lost, the driver looks again after this, and `cpu::apic::timer_interrupts` tells on it.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);

/// This kernel, for the Hyper-V drivers.
pub(crate) struct KernelHal;

// SAFETY: frames::take returns zeroed, page-aligned, contiguous memory that nobody else uses, at an
// address where it is mapped, too; so is all other memory and code, by the identity map; and
// cpu::index differs between CPUs.
unsafe impl Hal for KernelHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> Option<(PhysAddr, NonNull<u8>)> {
        frames::take(pages)
    }

    unsafe fn dma_dealloc(address: PhysAddr, _pointer: NonNull<u8>, pages: usize) {
        // SAFETY: the caller passes what dma_alloc returned, and is done with it.
        unsafe { frames::release(address, pages) };
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        buffer.addr().get() as PhysAddr
    }

    unsafe fn unshare(_address: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {}

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
