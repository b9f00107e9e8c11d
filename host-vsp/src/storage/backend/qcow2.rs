//! A disk in a qcow2 image, through the crate imago.
//!
//! An image may stand on another one, its backing file, which holds what was never written. An
//! image names that file itself, so whoever made the image could name any file of the host: it is
//! opened only where the user allows it, only read, and only where the image says which format it
//! has.
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
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use imago::file::File;
use imago::format::PreallocateMode;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{FormatAccess, StorageOpenOptions};
use vm_memory::VolatileSlice;

use super::image::{Format, ImageFile, OpenError};
use super::{Backend, bounce};
use crate::storage::BLOCK_SIZE;

/// What an image begins with: "QFI" and 0xfb.
const MAGIC: u32 = u32::from_be_bytes(*b"QFI\xfb");

/// Bit of an image's incompatible features: its structures may contradict each other.
const CORRUPT: u64 = 2;

/// Most images that stand on each other. More may be a ring.
const MAX_DEPTH: usize = 16;

/// A disk in a qcow2 image.
#[derive(Debug)]
pub struct Qcow2File {
    /// Written to the lock only for what moves clusters while others use them.
    image: RwLock<FormatAccess<File>>,
    size: AtomicU64,
    read_only: bool,
    /// Zero clusters came with version 3.
    can_unmap: bool,
}

impl Qcow2File {
    /// Opens the image at `path` and locks it; with `backing_files` also those it stands on, which
    /// are only read.
    ///
    /// # Errors
    /// Why not; the files are untouched.
    pub fn open(
        path: impl AsRef<Path>,
        read_only: bool,
        backing_files: bool,
    ) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let ImageFile { file, .. } = ImageFile::open(path, read_only)?;
        let version = version(&file, path)?;
        let depth = if backing_files { MAX_DEPTH } else { 0 };
        let image = open(file, path, read_only, depth)?;
        let size = image.size();
        if size < BLOCK_SIZE {
            return Err(unusable(path, "it has less than one 512-byte sector"));
        }
        Ok(Self {
            image: RwLock::new(image),
            size: AtomicU64::new(whole_blocks(size)),
            read_only,
            can_unmap: !read_only && version >= 3,
        })
    }

    fn image(&self) -> RwLockReadGuard<'_, FormatAccess<File>> {
        self.image.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn image_alone(&self) -> RwLockWriteGuard<'_, FormatAccess<File>> {
        self.image.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn whole_blocks(size: u64) -> u64 {
    size.saturating_sub(size % BLOCK_SIZE)
}

fn unusable(path: &Path, reason: impl ToString) -> OpenError {
    OpenError::Unusable {
        path: path.into(),
        format: Format::Qcow2,
        reason: reason.to_string(),
    }
}

/// The version in an image's header, where it has one and says that it is sound.
fn version(file: &std::fs::File, path: &Path) -> Result<u32, OpenError> {
    let mut header = [0; 80];
    let other = || OpenError::OtherFormat {
        path: path.into(),
        format: Format::Qcow2,
    };
    file.read_exact_at(&mut header, 0).map_err(|_| other())?;
    let number = |at: usize| -> Option<u32> {
        let bytes = header.get(at..)?.first_chunk()?;
        Some(u32::from_be_bytes(*bytes))
    };
    if number(0) != Some(MAGIC) {
        return Err(other());
    }
    let version = number(4).unwrap_or_default();
    let features = header.last_chunk().map_or(0, |&bytes| u64::from_be_bytes(bytes));
    if version >= 3 && features & CORRUPT != 0 {
        return Err(unusable(
            path,
            "it is marked as corrupt; repair it with `qemu-img check -r all`",
        ));
    }
    Ok(version)
}

/// Opens an image, and up to `depth` images below it.
fn open(
    file: std::fs::File,
    path: &Path,
    read_only: bool,
    depth: usize,
) -> Result<FormatAccess<File>, OpenError> {
    let failed = |error: io::Error| unusable(path, error);
    let mut image = Qcow2::<File>::open_image(storage(file, path, read_only)?, !read_only)
        .map_err(failed)?;
    if image.requires_external_data_file() {
        return Err(unusable(
            path,
            "it keeps its data in another file; put both into one with `qemu-img convert`",
        ));
    }
    image.set_data_file(None);
    let Some(backing) = image.implicit_backing_file() else {
        image.set_backing(None);
        return Ok(FormatAccess::new(image));
    };
    let backing = beside(path, backing);
    let Some(depth) = depth.checked_sub(1) else {
        return Err(OpenError::Backing {
            path: path.into(),
            backing,
        });
    };
    let format = image.implicit_backing_format().map(String::as_str);
    let below = match format {
        Some("raw" | "file") => {
            let ImageFile { file, .. } = ImageFile::open(&backing, true)?;
            let raw = Raw::open_image(storage(file, &backing, true)?, false);
            FormatAccess::new(raw.map_err(failed)?)
        }
        Some("qcow2") => {
            let ImageFile { file, .. } = ImageFile::open(&backing, true)?;
            version(&file, &backing)?;
            open(file, &backing, true, depth)?
        }
        Some(other) => {
            let backing = backing.display();
            return Err(unusable(
                path,
                format!("its backing file {backing} is {other}, neither raw nor qcow2"),
            ));
        }
        None => {
            return Err(OpenError::BackingFormat {
                path: path.into(),
                backing,
            });
        }
    };
    image.set_backing(Some(below));
    Ok(FormatAccess::new(image))
}

/// What the image at `path` means by `name`.
fn beside(path: &Path, name: &str) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).join(name)
}

fn storage(file: std::fs::File, path: &Path, read_only: bool) -> Result<File, OpenError> {
    let options = StorageOpenOptions::new().write(!read_only).filename(path);
    File::from_open_file(file, options).map_err(|error| OpenError::Io {
        path: path.into(),
        error,
    })
}

impl Backend for Qcow2File {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        let image = self.image_alone();
        super::check_size(size, self.size(), self.read_only)?;
        image.resize_grow(size, PreallocateMode::Zero)?;
        image.flush()?;
        self.size.store(size, Ordering::Release);
        Ok(())
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn can_unmap(&self) -> bool {
        self.can_unmap
    }

    fn read(&self, offset: u64, to: &[VolatileSlice<'_>]) -> io::Result<()> {
        let mut bytes = vec![0; bounce::length(to)];
        self.image().read(bytes.as_mut_slice(), offset)?;
        bounce::scatter(&bytes, to)
    }

    fn write(&self, offset: u64, from: &[VolatileSlice<'_>], durable: bool) -> io::Result<()> {
        let bytes = bounce::gather(from)?;
        self.image().write(bytes.as_slice(), offset)?;
        if durable { self.flush() } else { Ok(()) }
    }

    fn flush(&self) -> io::Result<()> {
        let image = self.image();
        image.flush()?;
        image.sync()
    }

    fn unmap(&self, offset: u64, length: u64) -> io::Result<()> {
        self.image_alone().discard_to_zero(offset, length)
    }
}
