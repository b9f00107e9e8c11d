//! What is done with a backend, on the channel's own thread or one of the engine's.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

use std::io;

use vm_memory::VolatileSlice;

use super::backend::Backend;
use super::buffer::GuestBuffer;

/// Bytes that [`Io::Verify`] reads at a time.
const VERIFY_CHUNK: usize = 256 * 1024;

/// What to do with a backend. Offsets and lengths in bytes.
pub(super) enum Io {
    /// Into the buffer, all of it.
    Read { offset: u64, buffer: GuestBuffer },
    /// From the buffer, all of it.
    Write {
        offset: u64,
        buffer: GuestBuffer,
        durable: bool,
    },
    /// Read and forget.
    Verify { offset: u64, length: u64 },
    /// Make what was written durable.
    Flush,
    /// Forget these places: offset and length.
    Unmap(Vec<(u64, u64)>),
}

impl Io {
    /// Does it on this thread if that needs no waiting.
    pub(super) fn run_if_ready(&self, backend: &dyn Backend) -> Option<io::Result<()>> {
        match self {
            Self::Read { offset, buffer } => backend.read_if_ready(*offset, &buffer.slices()?),
            _ => None,
        }
    }

    pub(super) fn run(&self, backend: &dyn Backend) -> io::Result<()> {
        let gone = || io::Error::other("guest memory has gone");
        match self {
            Self::Read { offset, buffer } => {
                backend.read(*offset, &buffer.slices().ok_or_else(gone)?)
            }
            Self::Write {
                offset,
                buffer,
                durable,
            } => backend.write(*offset, &buffer.slices().ok_or_else(gone)?, *durable),
            Self::Verify { offset, length } => verify(backend, *offset, *length),
            Self::Flush => backend.flush(),
            Self::Unmap(places) => places
                .iter()
                .try_for_each(|&(offset, length)| backend.unmap(offset, length)),
        }
    }
}

fn verify(backend: &dyn Backend, offset: u64, length: u64) -> io::Result<()> {
    let mut chunk = vec![0; VERIFY_CHUNK.min(usize::try_from(length).unwrap_or(usize::MAX))];
    let end = offset.saturating_add(length);
    let mut at = offset;
    while at < end {
        let left = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX);
        let size = left.min(chunk.len());
        let part = chunk.get_mut(..size).unwrap_or_default();
        backend.read(at, &[VolatileSlice::from(part)])?;
        at = at.saturating_add(size as u64);
    }
    Ok(())
}
