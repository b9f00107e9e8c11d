//! The storage VSP: SCSI disks and DVD drives on a storvsp controller.
//!
//! One block read, in the words of ARCHITECTURE: the channel's worker calls the [`Controller`],
//! which takes the packet from the [`Channel`](crate::vmbus::channel::Channel), checks the SRB and
//! makes a [`GuestBuffer`] of the packet's ranges; the target finds the disk and turns the CDB
//! into a transfer; a thread of the engine lets the [`Backend`] move data straight between file
//! and guest pages; the completion wakes the worker, which answers with the same transaction id.
//!
//! Nothing the guest writes can make this panic, wait or grow without bound: requests in flight,
//! the pages of each, and answers that the ring has no room for are limited, and packets beyond
//! the limits stay in the ring.

pub mod backend;
mod block;
mod buffer;
mod conversation;
mod engine;
mod handle;
mod identity;
mod incoming;
mod io;
mod medium;
mod port;
mod scsi;
#[cfg(test)]
mod tests;
mod vsp;

pub use backend::{Backend, Format, OpenError, Qcow2File, RawFile, ServedFile};
pub use block::BlockSize;
pub use buffer::{BufferError, GuestBuffer};
pub use handle::{AttachError, ChangeError, ControllerHandle};
pub use medium::Medium;
pub use port::MAX_IN_FLIGHT;
pub use vsp::{Controller, ControllerClass, Disk, MAX_LUNS, MAX_SUB_CHANNELS};

/// Bytes of the unit in which backends count, and of the smaller [`BlockSize`].
pub const BLOCK_SIZE: u64 = 512;

/// Most data of one request in bytes: a multiple of the guest's page size, as Linux counts its
/// pages.
pub const MAX_TRANSFER_BYTES: u32 = 512 * 1024;
