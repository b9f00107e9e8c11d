//! Image files, whatever is in them: their formats, and how they are found, opened and locked.
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

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::storage::BLOCK_SIZE;

/// How an image keeps a disk's blocks.
///
/// Who opens an image says its format: it is never guessed from the content, which a guest may
/// have written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Byte for byte.
    Raw,
    /// QEMU's copy on write format, versions 2 and 3.
    Qcow2,
    /// Microsoft's Virtual Hard Disk, fixed or dynamic.
    Vhd,
    /// Its successor, Hyper-V's own.
    Vhdx,
}

impl Format {
    /// The format of this name, as options and the API spell it.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "raw" => Self::Raw,
            "qcow2" => Self::Qcow2,
            "vhd" => Self::Vhd,
            "vhdx" => Self::Vhdx,
            _ => return None,
        })
    }

    /// The format that the ending of a file's name promises; raw where it promises none. The name
    /// is the host's, so a guest has no say in it.
    pub fn of_name(path: &Path) -> Self {
        let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
        ending.to_str().and_then(Self::named).unwrap_or(Self::Raw)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vhd => "VHD",
            Self::Vhdx => "VHDX",
        })
    }
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
    /// Less than a block of a DVD.
    #[error("the image {path} has {size} bytes, less than one 2048-byte sector of a DVD")]
    NoSector {
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
    /// It has another format, or none.
    #[error(
        "{path} has no header of a {format} image: say what it is with format=raw, qcow2, vhd or \
         vhdx"
    )]
    OtherFormat {
        /// The image.
        path: PathBuf,
        /// What it was to be.
        format: Format,
    },
    /// It has the format, and cannot be used.
    #[error("the {format} image {path} cannot be used: {reason}")]
    Unusable {
        /// The image.
        path: PathBuf,
        /// What it is.
        format: Format,
        /// Why.
        reason: String,
    },
    /// It stands on another image, which nobody has allowed.
    #[error(
        "the image {path} stands on another file, {backing}: add backing_files=on if you trust \
         the image to name it"
    )]
    Backing {
        /// The image.
        path: PathBuf,
        /// What it names.
        backing: PathBuf,
    },
    /// It stands on another image, whose format would have to be guessed.
    #[error(
        "the image {path} does not say which format its backing file {backing} has: write it down \
         with `qemu-img rebase -u -F raw -b {backing} {path}`, or -F qcow2"
    )]
    BackingFormat {
        /// The image.
        path: PathBuf,
        /// What it names.
        backing: PathBuf,
    },
    /// The program that serves the format is not there.
    #[error(
        "the {format} image {path} needs the program qemu-storage-daemon, which is not installed: \
         install QEMU's tools (Debian: qemu-utils), or convert the image with `qemu-img convert`"
    )]
    NoDaemon {
        /// The image.
        path: PathBuf,
        /// What it is.
        format: Format,
    },
    /// Anything else.
    #[error("the disk image {path} cannot be opened: {error}")]
    Io {
        /// The image.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
}

/// A file or block device that is open and locked: exclusively for a writer, shared for readers.
#[derive(Debug)]
pub(super) struct ImageFile {
    pub(super) file: File,
    /// In bytes, at least those of a block.
    pub(super) size: u64,
    /// A file, not a device.
    pub(super) is_regular: bool,
}

impl ImageFile {
    /// Opens what is at `path` and locks it (flock(2)).
    ///
    /// # Errors
    /// Why not; the file is untouched.
    pub(super) fn open(path: &Path, read_only: bool) -> Result<Self, OpenError> {
        let io = |error| OpenError::Io {
            path: path.into(),
            error,
        };
        // Look before opening: a FIFO would make `open` wait for its other end.
        let kind = std::fs::metadata(path)
            .map_err(|error| describe(path, read_only, error))?
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
            .map_err(|error| describe(path, read_only, error))?;
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
        Ok(Self {
            file,
            size,
            is_regular: kind.is_file(),
        })
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn message(path: &Path, read_only: bool) -> String {
        let text = ImageFile::open(path, read_only).unwrap_err().to_string();
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
        let text = describe(&path, false, denied()).to_string();
        assert!(
            text.contains("write") && text.contains("readonly=on"),
            "{text}"
        );
        let text = describe(&path, true, denied()).to_string();
        assert!(
            text.contains("read") && !text.contains("readonly"),
            "{text}"
        );
        // Root may do anything, so only others can see the real thing.
        if !rustix::process::geteuid().is_root() {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
            assert!(message(&path, false).contains("no permission to write"));
            ImageFile::open(&path, true).unwrap();
        }
    }

    #[test]
    fn one_writer_or_many_readers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, [0; 4096]).unwrap();
        let writer = ImageFile::open(&path, false).unwrap();
        assert!(message(&path, false).contains("in use"));
        assert!(message(&path, true).contains("in use"));
        drop(writer);
        let reader = ImageFile::open(&path, true).unwrap();
        let second = ImageFile::open(&path, true).unwrap();
        assert!(message(&path, false).contains("in use"));
        drop((reader, second));
        ImageFile::open(&path, false).unwrap();
    }

    #[test]
    fn the_name_alone_tells_a_format() {
        for (name, format) in [
            ("a.qcow2", Format::Qcow2),
            ("a.VHD", Format::Vhd),
            ("a.b.vhdx", Format::Vhdx),
            ("a.img", Format::Raw),
            ("qcow2", Format::Raw),
            ("a.vhd.raw", Format::Raw),
        ] {
            assert_eq!(Format::of_name(Path::new(name)), format, "{name}");
        }
    }
}
