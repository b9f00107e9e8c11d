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
        let file = ImageFile::open(path, read_only)?;
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

/// The version in an image's header, where it has one that says that the image is sound.
fn version(image: &ImageFile, path: &Path) -> Result<u32, OpenError> {
    let mut header = [0; 80];
    let other = || OpenError::OtherFormat {
        path: path.into(),
        format: Format::Qcow2,
    };
    let read = image.file.read_exact_at(&mut header, 0);
    read.map_err(|_| other())?;
    let number = |at: usize| -> Option<u32> {
        let bytes = header.get(at..)?.first_chunk()?;
        Some(u32::from_be_bytes(*bytes))
    };
    let long = |at: usize| -> Option<u64> {
        let bytes = header.get(at..)?.first_chunk()?;
        Some(u64::from_be_bytes(*bytes))
    };
    if number(0) != Some(MAGIC) {
        return Err(other());
    }
    let version = number(4).unwrap_or_default();
    if version >= 3 && long(72).is_none_or(|features| features & CORRUPT != 0) {
        return Err(unusable(
            path,
            "it is marked as corrupt; repair it with `qemu-img check -r all`",
        ));
    }
    // What is beyond a file's end would read as zeros, and a disk that was cut as an empty one.
    let entries = number(36).map(u64::from).unwrap_or_default();
    let end = long(40).and_then(|at| at.checked_add(entries.saturating_mul(8)));
    let references = long(48).and_then(|at| at.checked_add(8));
    let is_inside = |end: Option<u64>| end.is_some_and(|end| end <= image.size);
    if !is_inside(end) || !is_inside(references) {
        return Err(unusable(
            path,
            "it is cut: its tables are beyond the file's end",
        ));
    }
    Ok(version)
}

/// Opens an image, and up to `depth` images below it.
fn open(
    file: ImageFile,
    path: &Path,
    read_only: bool,
    depth: usize,
) -> Result<FormatAccess<File>, OpenError> {
    let failed = |error: io::Error| unusable(path, error);
    let mut image =
        Qcow2::<File>::open_image(storage(file, path, read_only)?, !read_only).map_err(failed)?;
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
            let file = ImageFile::open(&backing, true)?;
            let raw = Raw::open_image(storage(file, &backing, true)?, false);
            FormatAccess::new(raw.map_err(failed)?)
        }
        Some("qcow2") => {
            let file = ImageFile::open(&backing, true)?;
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

fn storage(image: ImageFile, path: &Path, read_only: bool) -> Result<File, OpenError> {
    let options = StorageOpenOptions::new().write(!read_only).filename(path);
    File::from_open_file(image.file, options).map_err(|error| OpenError::Io {
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

#[cfg(test)]
mod tests {
    use super::*;
    use imago::FormatCreateBuilder as _;
    use std::fs;

    const SIZE: u64 = 8 << 20;
    const CLUSTER: usize = 64 << 10;

    /// An image, with a backing file of this name and format where there is one.
    fn create(path: &Path, backing: Option<(&str, &str)>) {
        let file = fs::File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path);
        let options = StorageOpenOptions::new().write(true).filename(path);
        let storage = File::from_open_file(file.unwrap(), options).unwrap();
        let mut builder = Qcow2::<File>::create_builder(storage).size(SIZE);
        if let Some((name, format)) = backing {
            builder = builder.backing(name.into(), format.into());
        }
        builder.create().unwrap();
    }

    fn read(disk: &impl Backend, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0xee; length];
        disk.read(offset, &[VolatileSlice::from(bytes.as_mut_slice())])
            .unwrap();
        bytes
    }

    fn write(disk: &impl Backend, offset: u64, mut bytes: Vec<u8>) {
        disk.write(offset, &[VolatileSlice::from(bytes.as_mut_slice())], false)
            .unwrap();
    }

    #[track_caller]
    fn refusal(path: &Path, backing_files: bool) -> String {
        let before = fs::read(path).unwrap();
        let text = Qcow2File::open(path, false, backing_files)
            .unwrap_err()
            .to_string();
        assert!(!text.contains('\n'), "more than one line: {text}");
        assert_eq!(fs::read(path).unwrap(), before, "the image has changed");
        text
    }

    #[test]
    fn what_is_written_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        create(&path, None);
        let disk = Qcow2File::open(&path, false, false).unwrap();
        assert_eq!((disk.size(), disk.can_unmap()), (SIZE, true));
        assert_eq!(read(&disk, SIZE - 512, 512), [0; 512]);
        let data: Vec<u8> = (0..3 * CLUSTER).map(|at| (at * 31 % 251) as u8).collect();
        write(&disk, 512, data.clone());
        write(&disk, SIZE - 512, vec![5; 512]);
        disk.flush().unwrap();
        assert!(Qcow2File::open(&path, true, false).is_err(), "one writer");
        drop(disk);
        let disk = Qcow2File::open(&path, true, false).unwrap();
        Qcow2File::open(&path, true, false).expect("many readers");
        assert_eq!(read(&disk, 512, data.len()), data);
        assert_eq!(read(&disk, SIZE - 512, 512), [5; 512]);
        assert!(disk.read_only() && !disk.can_unmap());
    }

    #[test]
    fn unmapped_clusters_read_as_zeros_and_are_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        create(&path, None);
        let disk = Qcow2File::open(&path, false, false).unwrap();
        write(&disk, 0, vec![7; 8 * CLUSTER]);
        disk.flush().unwrap();
        let full = fs::metadata(&path).unwrap().len();
        // Not on a cluster's border at either end.
        let (from, length) = (512, 4 * CLUSTER);
        disk.unmap(from, length as u64).unwrap();
        assert_eq!(read(&disk, 0, 512), [7; 512]);
        assert_eq!(read(&disk, from, length), vec![0; length]);
        assert_eq!(read(&disk, from + length as u64, 512), [7; 512]);
        disk.flush().unwrap();
        write(&disk, SIZE / 2, vec![9; 3 * CLUSTER]);
        disk.flush().unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().len(),
            full,
            "three clusters were free"
        );
        assert_eq!(read(&disk, from, length), vec![0; length]);
    }

    #[test]
    fn an_image_grows_and_does_not_shrink() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        create(&path, None);
        let disk = Qcow2File::open(&path, false, false).unwrap();
        write(&disk, SIZE - 512, vec![7; 512]);
        disk.resize(4 * SIZE).unwrap();
        assert!(disk.resize(SIZE).unwrap_err().to_string().contains("lost"));
        assert!(
            disk.resize(4 * SIZE + 1)
                .unwrap_err()
                .to_string()
                .contains("multiple")
        );
        assert_eq!(read(&disk, SIZE, 4096), [0; 4096]);
        write(&disk, 4 * SIZE - 512, vec![8; 512]);
        drop(disk);
        let disk = Qcow2File::open(&path, false, false).unwrap();
        assert_eq!(disk.size(), 4 * SIZE);
        assert_eq!(read(&disk, SIZE - 512, 512), [7; 512]);
        assert_eq!(read(&disk, 4 * SIZE - 512, 512), [8; 512]);
    }

    #[test]
    fn backing_files_are_read_where_the_user_allows_them() {
        let dir = tempfile::tempdir().unwrap();
        let (base, middle, top) = (
            dir.path().join("base"),
            dir.path().join("middle"),
            dir.path().join("top"),
        );
        fs::write(&base, vec![3; SIZE as usize]).unwrap();
        create(&middle, Some(("base", "raw")));
        create(&top, Some(("middle", "qcow2")));
        let text = refusal(&top, false);
        assert!(
            text.contains("backing_files=on") && text.contains("middle"),
            "{text}"
        );

        let disk = Qcow2File::open(&top, false, true).unwrap();
        assert_eq!(read(&disk, 4096, 512), [3; 512]);
        write(&disk, 4096, vec![4; 512]);
        assert_eq!(read(&disk, 4096, 1024), [[4; 512], [3; 512]].concat());
        disk.unmap(0, CLUSTER as u64).unwrap();
        assert_eq!(
            read(&disk, 4096, 512),
            [0; 512],
            "the backing file shows through"
        );
        disk.resize(2 * SIZE).unwrap();
        assert_eq!(read(&disk, SIZE, 512), [0; 512]);
        // What is below is locked for reading, so nobody writes to it.
        assert!(ImageFile::open(&base, false).is_err());
        Qcow2File::open(&middle, true, true).expect("another reader");
        drop(disk);
        assert_eq!(fs::read(&base).unwrap(), vec![3; SIZE as usize]);
    }

    #[test]
    fn backing_files_that_cannot_be() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        create(&path("ring"), Some(("ring", "qcow2")));
        let text = refusal(&path("ring"), true);
        assert!(text.contains("in use"), "{text}");
        let disk = Qcow2File::open(path("ring"), true, true).map(drop);
        assert!(matches!(disk, Err(OpenError::Backing { .. })), "{disk:?}");
        create(&path("gone"), Some(("nowhere", "raw")));
        assert!(refusal(&path("gone"), true).contains("nowhere"));
        create(&path("odd"), Some(("gone", "vmdk")));
        assert!(refusal(&path("odd"), true).contains("vmdk"));
        create(&path("guess"), Some(("gone", "")));
        let text = refusal(&path("guess"), true);
        assert!(
            text.contains("format") || text.contains("neither"),
            "{text}"
        );
    }

    #[test]
    fn headers_that_are_damaged_are_refused_or_harmless() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, vec![0; SIZE as usize]).unwrap();
        assert!(refusal(&path, false).contains("no header of a qcow2 image"));
        fs::remove_file(&path).unwrap();
        create(&path, None);
        let sound = fs::read(&path).unwrap();
        for length in [600, 2 * CLUSTER] {
            fs::write(&path, &sound[..length]).unwrap();
            assert!(refusal(&path, false).contains("it is cut"));
        }
        let mut corrupt = sound.clone();
        corrupt[79] |= 2;
        fs::write(&path, &corrupt).unwrap();
        assert!(refusal(&path, false).contains("qemu-img check"));
        for at in 0..112 {
            for byte in [0, 0x7f, 0xff] {
                let mut bytes = sound.clone();
                bytes[at] = byte;
                fs::write(&path, &bytes).unwrap();
                if let Ok(disk) = Qcow2File::open(&path, true, false) {
                    let mut sector = [0; 512];
                    let _ = disk.read(0, &[VolatileSlice::from(sector.as_mut_slice())]);
                }
            }
        }
    }

    #[test]
    fn a_raw_image_below_is_not_looked_into() {
        // A guest wrote this into its raw disk, which then became a backing file.
        let dir = tempfile::tempdir().unwrap();
        let (secret, base, top) = (
            dir.path().join("secret"),
            dir.path().join("base"),
            dir.path().join("top"),
        );
        fs::write(&secret, vec![0x55; SIZE as usize]).unwrap();
        create(&base, Some(("secret", "raw")));
        create(&top, Some(("base", "raw")));
        let disk = Qcow2File::open(&top, true, true).unwrap();
        assert_eq!(read(&disk, 0, 4), *b"QFI\xfb");
    }
}
