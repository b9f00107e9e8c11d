//! What a disk's blocks are kept in.

mod faulty;
mod raw;
mod vectored;

pub use faulty::{FaultyBackend, Held, Operation};
pub use raw::{OpenError, RawFile};

use std::io;

use vm_memory::VolatileSlice;

/// Storage of one disk.
///
/// The calls wait: they are made on the storage engine's threads, several at a time. Offsets and
/// lengths are in bytes, multiples of [`BLOCK_SIZE`](super::BLOCK_SIZE), and within
/// [`size`](Self::size); buffers are guest memory in any number of pieces of any length and
/// alignment, which together are as long as the transfer.
pub trait Backend: Send + Sync {
    /// Size in bytes: a multiple of [`BLOCK_SIZE`](super::BLOCK_SIZE), not 0. It never shrinks.
    fn size(&self) -> u64;

    /// Makes the disk larger, to `size` bytes; what is new reads as zeros. Called while others read
    /// and write.
    ///
    /// # Errors
    /// It cannot have that size; the text is a sentence for the user.
    fn resize(&self, size: u64) -> io::Result<()> {
        let _ = size;
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this kind of disk keeps its size",
        ))
    }

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// Whether [`unmap`](Self::unmap) works, and unmapped blocks then read as zeros.
    fn can_unmap(&self) -> bool;

    /// Fills `to` with what is at `offset`.
    ///
    /// # Errors
    /// The guest sees MEDIUM ERROR.
    fn read(&self, offset: u64, to: &[VolatileSlice<'_>]) -> io::Result<()>;

    /// As [`read`](Self::read), but only if it need not wait for a device: called on the
    /// channel's own thread, where it saves two thread switches. `None` when it would wait; `to`
    /// may hold anything then.
    fn read_if_ready(&self, offset: u64, to: &[VolatileSlice<'_>]) -> Option<io::Result<()>> {
        let _ = (offset, to);
        None
    }

    /// Puts `from` at `offset`. With `durable` it survives a power failure when this returns.
    ///
    /// # Errors
    /// The guest sees MEDIUM ERROR, or that there is no space.
    fn write(&self, offset: u64, from: &[VolatileSlice<'_>], durable: bool) -> io::Result<()>;

    /// Makes all writes that have returned survive a power failure.
    ///
    /// # Errors
    /// The guest sees MEDIUM ERROR.
    fn flush(&self) -> io::Result<()>;

    /// Forgets `length` bytes at `offset`; they read as zeros. Only called where
    /// [`can_unmap`](Self::can_unmap).
    ///
    /// # Errors
    /// The guest sees MEDIUM ERROR.
    fn unmap(&self, offset: u64, length: u64) -> io::Result<()>;
}
