//! Drop-in drivers for Hyper-V's synthetic devices, for kernels, unikernels and firmware.
//!
//! `no_std`; the heap is optional. A kernel implements [`Hal`], six short functions in the manner
//! of the `virtio-drivers` crate, and gets a bus, disks, network adapters and a console:
//!
//! ```no_run
//! use core::fmt::Write;
//! use guest_vsc::bus::{BusMemory, Options, VmBus};
//! use guest_vsc::console::{self, Console};
//! use guest_vsc::storage::{self, Storage, StorageMemory, StorageOptions};
//! use guest_vsc::{Hal, channel::OpenOptions};
//!
//! // In a kernel these two are statics over its own type: `static MEMORY: BusMemory<MyHal, ..>`.
//! fn story<H: Hal>(
//!     memory: &'static BusMemory<H, 4, 16>,
//!     requests: &'static StorageMemory<H>,
//! ) -> Result<(), Box<dyn core::error::Error>> {
//!     // Finds Hyper-V and enables this processor's SynIC with interrupts on vector 0xF3, whose
//!     // handler calls `bus.handle_interrupt()` and then ends the interrupt at the APIC.
//!     let bus = VmBus::new(memory, 0xF3)?;
//!     let version = bus.connect(&Options::default())?;
//!
//!     let offer = bus.find(console::CLASS).ok_or("no console")?;
//!     let mut console = Console::open(&bus, &offer, &OpenOptions::default())?;
//!     writeln!(console, "VMBus {version}")?;
//!
//!     let offer = bus.find(storage::CLASS).ok_or("no disk")?;
//!     let disk = Storage::open(&bus, &offer, requests, &StorageOptions::default())?;
//!     let mut sector = [0; 512];
//!     disk.read_blocks(0, &mut sector)?;
//!     disk.write_blocks(1, &sector)?;
//!     disk.flush()?;
//!
//!     // Owned buffers, many at a time.
//!     let buffer: &'static mut [u8] = Box::leak(Box::new([0; 4096]));
//!     let token = disk.submit_read(8, buffer).map_err(|(error, _buffer)| error)?;
//!     let done = disk.wait()?;
//!     assert_eq!(done.token, token);
//!     done.result?;
//!
//!     drop((disk, console));
//!     bus.unload()?;
//!     Ok(())
//! }
//! ```
//!
//! What each function of [`Hal`] has to do, and what else a kernel sets up, is told step by step in
//! `docs/bring-it-to-your-kernel.md` of the repository.
//!
//! # Map
//! - [`hal`]: what a kernel has to provide. [`hypervisor`]: finding Hyper-V, and hypercalls.
//! - [`bus`]: version, offers, messages and interrupts. [`channel`]: rings and doorbells.
//! - [`storage`], [`network`], [`console`], [`keyboard`], [`ic`], [`balloon`]: the
//!   devices.
//! - [`clock`], [`crash`]: the hypervisor's own clock, and telling it of a crash.
//!
//! # Features
//! None is on by default, and none needs `std`.
//! - `alloc`: `Box<[u8]>` and `Vec<u8>` as buffers of requests in flight; frames in buffers of their
//!   own, as `VirtIONet` has them.
//! - `async`: requests and frames as futures.
//! - `virtio-drivers`: the kernel's `impl virtio_drivers::Hal` serves these drivers too.
//! - `smoltcp`: [`network`] adapters as devices of that TCP/IP stack.
//!
//! # Rules
//! All methods take `&self` and work from any processor. Those whose documentation says *never
//! waits* may be called in interrupt context: their locks are held with interrupts off. The others
//! wait for the host, up to a deadline.
//!
//! Nothing the host writes is believed: it is copied, checked, and only the copy is used. What
//! cannot be is an error or, where nobody waits for it, is counted in [`bus::Stats`]. Memory
//! that the host did not give back is leaked rather than used again.
#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(
    not(test),
    warn(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

#[cfg(feature = "alloc")]
extern crate alloc;

mod arch;
pub mod balloon;
mod buffer;
pub mod bus;
pub mod channel;
mod channels;
pub mod clock;
pub mod console;
pub mod crash;
pub mod error;
mod gpadl;
pub mod hal;
pub mod hypervisor;
pub mod ic;
pub mod keyboard;
pub mod network;
mod shared;
pub mod storage;
mod sub_channels;
mod sync;
mod synic;
mod token;
#[cfg(feature = "virtio-drivers")]
pub mod virtio;

/// Bytes of a page.
const PAGE: u64 = vmbus_proto::PAGE_SIZE as u64;

pub use bus::VmBus;
pub use error::Error;
pub use hal::Hal;
