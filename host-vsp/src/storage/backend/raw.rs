//! A disk in a file, byte for byte, or on a block device.
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

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::fs::FallocateFlags;
use vm_memory::VolatileSlice;

use super::image::{ImageFile, OpenError};
use super::{Backend, check_size, vectored};
use crate::storage::BLOCK_SIZE;

/// A disk in a file: block *n* at byte 512·*n*.
///
/// A writer holds an exclusive lock on the file (flock(2)), readers a shared one. A size that is
/// not a multiple of 512 is rounded down: the bytes after the last whole block are not the
/// guest's, and stay untouched.
#[derive(Debug)]
pub struct RawFile {
    file: File,
    size: AtomicU64,
    /// Held while the size changes.
    resizing: Mutex<()>,
    read_only: bool,
    is_regular: bool,
    /// Whether holes can be punched; found out when a guest asks, since it counts as a change of
    /// the file, and a file that is only opened stays untouched.
    can_unmap: OnceLock<bool>,
    /// Whether the file system can say "not without waiting".
    nowait: AtomicBool,
}

impl RawFile {
    /// Opens the image at `path` and locks it.
    ///
    /// # Errors
    /// Why not; the file is untouched.
    pub fn open(path: impl AsRef<Path>, read_only: bool) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let ImageFile {
            file,
            size,
            is_regular,
        } = ImageFile::open(path, read_only)?;
        let rest = size % BLOCK_SIZE;
        if rest != 0 {
            tracing::warn!(
                image = %path.display(),
                "the size is not a multiple of 512 bytes: the last {rest} bytes are not part of \
                 the disk"
            );
        }
        Ok(Self {
            file,
            size: AtomicU64::new(size.saturating_sub(rest)),
            resizing: Mutex::new(()),
            read_only,
            is_regular,
            can_unmap: OnceLock::new(),
            nowait: AtomicBool::new(true),
        })
    }
}

/// Whether holes can be punched, tried from `end` on, where there is nothing to lose.
fn can_punch(file: &File, end: u64) -> bool {
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, mode, end, BLOCK_SIZE).is_ok()
}

impl Backend for RawFile {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        let _resizing = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
        check_size(size, self.size(), self.is_regular && self.read_only)?;
        if self.is_regular && !self.read_only {
            self.file.set_len(size)?;
        } else if (&self.file).seek(SeekFrom::End(0))? < size {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the block device is not that large: make it larger first",
            ));
        }
        self.size.store(size, Ordering::Release);
        Ok(())
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn can_unmap(&self) -> bool {
        // `size` may be short of the file's end by a part of a block.
        let end = self.size().saturating_add(BLOCK_SIZE);
        *self
            .can_unmap
            .get_or_init(|| !self.read_only && self.is_regular && can_punch(&self.file, end))
    }

    fn read(&self, offset: u64, to: &[VolatileSlice<'_>]) -> io::Result<()> {
        vectored::read(&self.file, to, offset, 0)
    }

    fn read_if_ready(&self, offset: u64, to: &[VolatileSlice<'_>]) -> Option<io::Result<()>> {
        if !self.nowait.load(Ordering::Relaxed) {
            return None;
        }
        match vectored::read(&self.file, to, offset, libc::RWF_NOWAIT) {
            Ok(()) => Some(Ok(())),
            Err(error) => {
                if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) {
                    self.nowait.store(false, Ordering::Relaxed);
                }
                // Whatever it was, the waiting read says what is true.
                None
            }
        }
    }

    fn write(&self, offset: u64, from: &[VolatileSlice<'_>], durable: bool) -> io::Result<()> {
        if !durable {
            return vectored::write(&self.file, from, offset, 0);
        }
        match vectored::write(&self.file, from, offset, libc::RWF_DSYNC) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                vectored::write(&self.file, from, offset, 0)?;
                self.flush()
            }
            outcome => outcome,
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn unmap(&self, offset: u64, length: u64) -> io::Result<()> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.file, mode, offset, length)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, [7; 1535]).unwrap();
        let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1 << 30);
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(long_ago).unwrap();
        let disk = RawFile::open(&path, false).unwrap();
        assert_eq!(disk.size(), 1024);
        assert_eq!(file.metadata().unwrap().modified().unwrap(), long_ago);
        disk.can_unmap();
        assert_eq!(std::fs::read(&path).unwrap(), [7; 1535]);
    }

    #[test]
    fn unmapped_blocks_read_as_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, [7; 16384]).unwrap();
        let disk = RawFile::open(&path, false).unwrap();
        assert!(
            disk.can_unmap(),
            "the file system of the temporary directory has no holes"
        );
        disk.unmap(512, 8192).unwrap();
        let now = std::fs::read(&path).unwrap();
        assert_eq!(now.len(), 16384);
        assert!(now[512..512 + 8192].iter().all(|&byte| byte == 0));
        assert!(
            now[..512]
                .iter()
                .chain(&now[512 + 8192..])
                .all(|&byte| byte == 7)
        );
        assert!(!RawFile::open(&path, true).is_ok_and(|disk| disk.can_unmap()));
    }
}
