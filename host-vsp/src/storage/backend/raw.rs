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

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::fs::FallocateFlags;
use vm_memory::VolatileSlice;

use super::{Backend, vectored};
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

/// Why a disk image was not opened. The text is a sentence for the user.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It does not exist.
    #[error(
        "there is no disk image at {0}: create it first, for example with `truncate -s 1G {0}`"
    )]
    Missing(PathBuf),
    /// It is a directory.
    #[error("{0} is a directory, not a disk image: name a file or a block device")]
    Directory(PathBuf),
    /// It is something else without blocks.
    #[error("{0} is neither a file nor a block device, so it cannot be a disk")]
    NotADisk(PathBuf),
    /// It may not be read, or not be written.
    #[error("no permission to {wish} the disk image {path}: {advice}")]
    Permission {
        /// The image.
        path: PathBuf,
        /// Read or write.
        wish: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// Less than a block.
    #[error(
        "the disk image {path} has {size} bytes, less than one 512-byte sector: make it larger, \
         for example with `truncate -s 1G {path}`"
    )]
    TooSmall {
        /// The image.
        path: PathBuf,
        /// Its bytes.
        size: u64,
    },
    /// Someone else has it.
    #[error(
        "the disk image {0} is in use by another process: stop that one first, or open the image \
         with readonly=on in both"
    )]
    InUse(PathBuf),
    /// Anything else.
    #[error("the disk image {path} cannot be opened: {error}")]
    Io {
        /// The image.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
}

impl RawFile {
    /// Opens the image at `path` and locks it.
    ///
    /// # Errors
    /// Why not; the file is untouched.
    pub fn open(path: impl AsRef<Path>, read_only: bool) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let io = |error| OpenError::Io {
            path: path.into(),
            error,
        };
        // Look before opening: a FIFO would make `open` wait for its other end.
        let kind = std::fs::metadata(path)
            .map_err(|error| Self::describe(path, read_only, error))?
            .file_type();
        if kind.is_dir() {
            return Err(OpenError::Directory(path.into()));
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Err(OpenError::NotADisk(path.into()));
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(path)
            .map_err(|error| Self::describe(path, read_only, error))?;
        let lock = if read_only {
            file.try_lock_shared()
        } else {
            file.try_lock()
        };
        match lock {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(path.into())),
            // Not every file system has locks; without them there is nothing to keep.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        // A block device has no length but an end.
        let size = file.seek(SeekFrom::End(0)).map_err(io)?;
        if size < BLOCK_SIZE {
            return Err(OpenError::TooSmall {
                path: path.into(),
                size,
            });
        }
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
            is_regular: kind.is_file(),
            can_unmap: OnceLock::new(),
            nowait: AtomicBool::new(true),
        })
    }

    fn describe(path: &Path, read_only: bool, error: io::Error) -> OpenError {
        let path: PathBuf = path.into();
        match error.kind() {
            io::ErrorKind::NotFound => OpenError::Missing(path),
            io::ErrorKind::NotADirectory => OpenError::Missing(path),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem if !read_only => {
                OpenError::Permission {
                    path,
                    wish: "write",
                    advice: "change its permissions, or add readonly=on",
                }
            }
            io::ErrorKind::PermissionDenied => OpenError::Permission {
                path,
                wish: "read",
                advice: "change its permissions, or run as its owner",
            },
            _ => OpenError::Io { path, error },
        }
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
        let refuse = |reason: String| Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        let _resizing = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.size();
        if !size.is_multiple_of(BLOCK_SIZE) {
            return refuse(format!(
                "a disk's size is a multiple of {BLOCK_SIZE} bytes, which {size} is not"
            ));
        }
        if size < now {
            return refuse(format!(
                "the disk has {now} bytes and cannot be cut to {size}: what is in the rest would \
                 be lost"
            ));
        }
        if self.is_regular && self.read_only && size > now {
            return refuse("the disk is read-only, so it keeps its size".into());
        }
        if self.is_regular && !self.read_only {
            self.file.set_len(size)?;
        } else if (&self.file).seek(SeekFrom::End(0))? < size {
            return refuse("the block device is not that large: make it larger first".into());
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
    use std::os::unix::fs::PermissionsExt as _;

    fn message(path: &Path, read_only: bool) -> String {
        let text = RawFile::open(path, read_only).unwrap_err().to_string();
        assert!(!text.contains('\n'), "more than one line: {text}");
        text
    }

    #[test]
    fn what_cannot_be_opened_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        assert!(message(&missing, false).contains("no disk image"));
        assert!(!missing.exists(), "opening must not create");
        assert!(message(&missing.join("below"), false).contains("no disk image"));
        assert!(message(dir.path(), false).contains("is a directory"));
        assert!(message(Path::new("/dev/null"), false).contains("neither a file"));

        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        assert!(message(&fifo, false).contains("neither a file"));

        let small = dir.path().join("small");
        std::fs::write(&small, [7; 511]).unwrap();
        assert!(message(&small, false).contains("511 bytes"));
        assert_eq!(std::fs::read(&small).unwrap(), [7; 511]);
    }

    #[test]
    fn no_permission() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, [1; 512]).unwrap();
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let text = RawFile::describe(&path, false, denied()).to_string();
        assert!(
            text.contains("write") && text.contains("readonly=on"),
            "{text}"
        );
        let text = RawFile::describe(&path, true, denied()).to_string();
        assert!(
            text.contains("read") && !text.contains("readonly"),
            "{text}"
        );
        // Root may do anything, so only others can see the real thing.
        if !rustix::process::geteuid().is_root() {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
            assert!(message(&path, false).contains("no permission to write"));
            RawFile::open(&path, true).unwrap();
        }
    }

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
    fn one_writer_or_many_readers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, [0; 4096]).unwrap();
        let writer = RawFile::open(&path, false).unwrap();
        assert!(message(&path, false).contains("in use"));
        assert!(message(&path, true).contains("in use"));
        drop(writer);
        let reader = RawFile::open(&path, true).unwrap();
        let second = RawFile::open(&path, true).unwrap();
        assert!(message(&path, false).contains("in use"));
        drop((reader, second));
        RawFile::open(&path, false).unwrap();
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
