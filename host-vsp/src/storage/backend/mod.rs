//! What a disk's blocks are kept in.

mod bounce;
mod daemon;
mod faulty;
mod image;
mod nbd;
mod qcow2;
mod raw;
mod served;
mod vectored;

pub use faulty::{FaultyBackend, Held, Operation};
pub use image::{Format, OpenError};
pub use qcow2::Qcow2File;
pub use raw::RawFile;
pub use served::ServedFile;

use std::io;

use vm_memory::VolatileSlice;

use super::BLOCK_SIZE;

/// Storage of one disk.
///
/// The calls wait: they are made on the storage engine's threads, several at a time. Offsets and
/// lengths are in bytes, multiples of [`BLOCK_SIZE`], and within
/// [`size`](Self::size); buffers are guest memory in any number of pieces of any length and
/// alignment, which together are as long as the transfer.
pub trait Backend: Send + Sync {
    /// Size in bytes: a multiple of [`BLOCK_SIZE`], not 0. It never shrinks.
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

/// Whether a disk of `now` bytes may be made one of `size` bytes.
///
/// # Errors
/// It may not; the text is a sentence for the user.
fn check_size(size: u64, now: u64, read_only: bool) -> io::Result<()> {
    let refuse = |reason: String| Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    if !size.is_multiple_of(BLOCK_SIZE) {
        return refuse(format!(
            "a disk's size is a multiple of {BLOCK_SIZE} bytes, which {size} is not"
        ));
    }
    if size < now {
        return refuse(format!(
            "the disk has {now} bytes and cannot be cut to {size}: what is in the rest would be lost"
        ));
    }
    if read_only && size > now {
        return refuse("the disk is read-only, so it keeps its size".into());
    }
    Ok(())
}
