//! For kernels that have an `impl virtio_drivers::Hal` already (feature `virtio-drivers`).
//!
//! Memory is the same for both crates, so a kernel writes only what virtio does not ask for, the
//! trait [`VmbusKernel`], and hands [`VirtioHal`] of its type to the drivers here:
//!
//! ```
//! # use core::ptr::NonNull;
//! # use virtio_drivers::{BufferDirection, PhysAddr};
//! use guest_vsc::bus::BusMemory;
//! use guest_vsc::virtio::{VirtioHal, VmbusKernel};
//!
//! struct KernelHal;
//! # unsafe impl virtio_drivers::Hal for KernelHal {
//! #     fn dma_alloc(_: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) { unreachable!() }
//! #     unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 { unreachable!() }
//! #     unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> { unreachable!() }
//! #     unsafe fn share(_: NonNull<[u8]>, _: BufferDirection) -> PhysAddr { unreachable!() }
//! #     unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
//! # }
//! # mod memory { pub fn phys_of(_: *mut u8) -> u64 { 0 } }
//! # mod cpu { pub fn index() -> usize { 0 } }
//!
//! // SAFETY: the code is mapped where `phys_of` says, and every CPU has its own index.
//! unsafe impl VmbusKernel for KernelHal {
//!     fn code_to_phys(page: NonNull<u8>) -> PhysAddr {
//!         memory::phys_of(page.as_ptr())
//!     }
//!     fn current_cpu() -> usize {
//!         cpu::index()
//!     }
//! }
//!
//! static MEMORY: BusMemory<VirtioHal<KernelHal>> = BusMemory::new();
//! ```
//!
//! # From one crate to the other
//!
//! | `virtio-drivers` | here |
//! |---|---|
//! | find a transport (PCI, MMIO), `VirtIOBlk::new(transport)` | [`VmBus::new`](crate::VmBus::new), [`connect`](crate::VmBus::connect), then [`Storage::open`](crate::storage::Storage::open) of an offer |
//! | `read_blocks(id, &mut buf)`, `write_blocks(id, &buf)`, `flush()` | [`read_blocks`](crate::storage::Storage::read_blocks), [`write_blocks`](crate::storage::Storage::write_blocks), [`flush`](crate::storage::Storage::flush), on `&self`; addresses count sectors of 512 bytes too |
//! | `capacity()`, `readonly()`, `SECTOR_SIZE` | the same |
//! | `unsafe read_blocks_nb(id, &mut req, &mut buf, &mut resp)`, `peek_used`, `unsafe complete_read_blocks(..)` | [`submit_read(id, buffer)`](crate::storage::Storage::submit_read), which takes the buffer, and [`poll`](crate::storage::Storage::poll), which gives it back; nothing unsafe |
//! | `ack_interrupt()` | [`VmBus::handle_interrupt`](crate::VmBus::handle_interrupt), one for all devices of the processor |
//! | `VirtIOConsole::send_bytes`, `recv(pop)`, `fmt::Write` | [`Console::write`](crate::console::Console::write), [`try_read`](crate::console::Console::try_read), `fmt::Write` |
//! | `VirtIONet::new(transport, buf_len)`, `mac_address()` | [`Network::open`](crate::network::Network::open) of an offer, `mac_address()` |
//! | `can_recv()`, `receive()` (`NotReady` where there is none), `recycle_rx_buffer(buf)` | the same on `&self`, with the feature `alloc`; `receive()` is `Ok(None)` where there is none; without a heap [`try_receive(&mut buf)`](crate::network::Network::try_receive) |
//! | `can_send()`, `new_tx_buffer(len)`, `send(buf)` | the same, but `send` does not wait until the frame is sent; without a heap [`try_send(&buf)`](crate::network::Network::try_send) |
//! | `VirtIOInput::pop_pending_event` | [`Keyboard::try_read`](crate::keyboard::Keyboard::try_read) |
//! | queues of a size in the code | [`StorageMemory<H, B, REQUESTS>`](crate::storage::StorageMemory), [`OpenOptions`](crate::channel::OpenOptions) |
//!
//! What is new: VMBus interrupts by a vector of the processor, not by a line of a device, and each
//! processor that shall be interrupted calls [`VmBus::start_cpu`](crate::VmBus::start_cpu) once.
#![expect(unsafe_code, reason = "the contract between kernel and drivers")]

use core::marker::PhantomData;
use core::ptr::NonNull;

use crate::hal::{BufferDirection, Hal, PhysAddr};

/// What VMBus asks of a kernel beyond [`virtio_drivers::Hal`]. Each method is the one of the same
/// name in [`Hal`], which says what it has to do.
///
/// # Safety
/// An implementation keeps what [`Hal`] says at the methods of these names. Its
/// [`virtio_drivers::Hal::share`] returns an address with the same offset in its page as the
/// buffer has, as identity-mapped and translating kernels do in any case.
pub unsafe trait VmbusKernel: virtio_drivers::Hal + 'static {
    /// See [`Hal::code_to_phys`].
    fn code_to_phys(page: NonNull<u8>) -> PhysAddr;

    /// See [`Hal::current_cpu`].
    fn current_cpu() -> usize;

    /// See [`Hal::pause`].
    fn pause() {
        core::hint::spin_loop();
    }

    /// See [`Hal::wait_for_interrupt`].
    fn wait_for_interrupt() {
        VirtioHal::<Self>::enable_interrupts();
        Self::pause();
    }
}

/// [`Hal`] of a kernel that has virtio's.
pub struct VirtioHal<K: ?Sized>(PhantomData<fn() -> K>);

fn direction(direction: BufferDirection) -> virtio_drivers::BufferDirection {
    match direction {
        BufferDirection::DriverToDevice => virtio_drivers::BufferDirection::DriverToDevice,
        BufferDirection::DeviceToDriver => virtio_drivers::BufferDirection::DeviceToDriver,
        BufferDirection::Both => virtio_drivers::BufferDirection::Both,
    }
}

// SAFETY: memory by the contract of virtio's trait, which is the same; the rest by that of
// `VmbusKernel`.
unsafe impl<K: VmbusKernel + ?Sized> Hal for VirtioHal<K> {
    fn dma_alloc(pages: usize, to: BufferDirection) -> Option<(PhysAddr, NonNull<u8>)> {
        // Address 0 is how that trait says "no memory".
        Some(K::dma_alloc(pages, direction(to))).filter(|(paddr, _)| *paddr != 0)
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, vaddr: NonNull<u8>, pages: usize) {
        // SAFETY: the caller's promise. What it returns nobody could act on.
        let _ = unsafe { K::dma_dealloc(paddr, vaddr, pages) };
    }

    unsafe fn share(buffer: NonNull<[u8]>, to: BufferDirection) -> PhysAddr {
        // SAFETY: the caller's promise.
        unsafe { K::share(buffer, direction(to)) }
    }

    unsafe fn unshare(paddr: PhysAddr, buffer: NonNull<[u8]>, to: BufferDirection) {
        // SAFETY: the caller's promise.
        unsafe { K::unshare(paddr, buffer, direction(to)) }
    }

    fn code_to_phys(page: NonNull<u8>) -> PhysAddr {
        K::code_to_phys(page)
    }

    fn current_cpu() -> usize {
        K::current_cpu()
    }

    fn pause() {
        K::pause();
    }

    fn wait_for_interrupt() {
        K::wait_for_interrupt();
    }
}
