//! Files that a machine is made of: which of them are the same, and opening those for output
//! without hurting what others have open.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// Why a file cannot be used as asked. The text is a sentence for the user.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One file in two places, one of which writes to it.
    #[error(
        "{path:?} is given twice, as {first} and as {second}: give each a file of its own",
        path = path.display()
    )]
    Twice {
        /// The file.
        path: PathBuf,
        /// The option that named it first.
        first: &'static str,
        /// The option that named it again.
        second: &'static str,
    },
    /// It is a directory.
    #[error("{path:?} is a directory: give {what} the path of a file", path = path.display())]
    Directory {
        /// The option that wants the file.
        what: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// The directory it should be in does not exist.
    #[error(
        "there is no directory for {path:?}: create it first, or give {what} another path",
        path = path.display()
    )]
    NoDirectory {
        /// The option that wants the file.
        what: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// Another process, or this one, holds it as a disk or for its own output.
    #[error("{path:?} is in use by another process: give {what} another path", path = path.display())]
    InUse {
        /// The option that wants the file.
        what: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// Anything else.
    #[error("{path:?} cannot be opened for output: {error}; give {what} another path", path = path.display())]
    Io {
        /// The option that wants the file.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
}

/// One use of a file.
#[derive(Clone, Debug)]
pub struct Use<'a> {
    /// The option that names it.
    pub option: &'static str,
    /// The file.
    pub path: &'a Path,
    /// Whether it is written to.
    pub writes: bool,
}

/// What makes two paths the same file: device and inode, with a name in that directory where the
/// file does not exist yet.
type Identity = (u64, u64, OsString);

/// Makes sure that no file has two uses of which one writes.
///
/// # Errors
/// The first file that has.
pub fn check_uses(uses: &[Use<'_>]) -> Result<(), Error> {
    let mut seen: Vec<(Identity, &Use<'_>)> = Vec::new();
    for this in uses {
        // What cannot be found is for those who open it to say.
        let Some(identity) = identity(this.path) else {
            continue;
        };
        if let Some((_, other)) = seen
            .iter()
            .find(|(seen, other)| *seen == identity && (other.writes || this.writes))
        {
            return Err(Error::Twice {
                path: this.path.to_owned(),
                first: other.option,
                second: this.option,
            });
        }
        seen.push((identity, this));
    }
    Ok(())
}

/// `None` for what is no file to be kept: devices and pipes may have many writers.
fn identity(path: &Path) -> Option<Identity> {
    match fs::metadata(path) {
        Ok(found) if found.is_file() || found.file_type().is_block_device() => {
            Some((found.dev(), found.ino(), OsString::new()))
        }
        Ok(_) => None,
        Err(_) => {
            let directory = match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
            let found = fs::metadata(directory).ok()?;
            Some((found.dev(), found.ino(), path.file_name()?.to_owned()))
        }
    }
}

/// A file for output that is open and not emptied yet.
#[derive(Debug)]
pub struct OutputFile {
    file: File,
    both_ways: bool,
}

impl OutputFile {
    /// Opens the file at `path` for the option `what`, makes it where it does not exist, and locks
    /// it (flock(2)), as disks are. A FIFO or a device serves both ways.
    ///
    /// # Errors
    /// Why not; the file is as it was.
    pub fn open(what: &'static str, path: &Path) -> Result<Self, Error> {
        let describe = |error: io::Error| {
            let path = path.to_owned();
            match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                    Error::NoDirectory { what, path }
                }
                io::ErrorKind::IsADirectory => Error::Directory { what, path },
                _ => Error::Io { what, path, error },
            }
        };
        let both_ways = fs::metadata(path)
            .is_ok_and(|found| found.file_type().is_fifo() || found.file_type().is_char_device());
        if both_ways {
            // Both ways also because a FIFO opened for writing alone waits for its reader.
            let file = OpenOptions::new().read(true).write(true).open(path);
            let file = file.map_err(describe)?;
            return Ok(Self { file, both_ways });
        }
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(describe)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let path = path.to_owned();
                return Err(Error::InUse { what, path });
            }
            // Not every file system has locks; without them there is nothing to keep.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(describe(error)),
        }
        Ok(Self { file, both_ways })
    }

    /// Empties a regular file and gives the descriptor to write to, and where it serves both ways
    /// one to read from.
    ///
    /// # Errors
    /// The file cannot be emptied, or the system gives no second descriptor.
    pub fn begin(self) -> io::Result<(Option<File>, File)> {
        if self.both_ways {
            return Ok((Some(self.file.try_clone()?), self.file));
        }
        self.file.set_len(0)?;
        Ok((None, self.file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_in_one_place_only() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk");
        fs::write(&disk, [0; 512]).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&disk, &link).unwrap();
        let new = dir.path().join("new");
        let dotted = dir.path().join(".").join("new");
        fn using<'a>(option: &'static str, path: &'a Path, writes: bool) -> Use<'a> {
            Use {
                option,
                path,
                writes,
            }
        }
        let check = |first, writes, second| {
            check_uses(&[
                using("--disk", first, writes),
                using("--console", second, true),
            ])
        };
        for (first, second) in [(&disk, &disk), (&disk, &link), (&new, &dotted)] {
            let error = check(first, false, second).unwrap_err().to_string();
            assert!(
                error.contains("as --disk and as --console"),
                "{first:?} {error}"
            );
        }
        check(&disk, true, &new).unwrap();
        let null = Path::new("/dev/null");
        check_uses(&[
            using("--serial", null, true),
            using("--console", null, true),
        ])
        .unwrap();
        check_uses(&[using("--disk", &disk, false), using("--disk", &link, false)]).unwrap();
    }

    #[test]
    fn output_empties_a_file_only_when_it_begins_and_never_another_s() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "old").unwrap();
        let output = OutputFile::open("--serial", &path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        let error = OutputFile::open("--console", &path).unwrap_err();
        assert!(matches!(error, Error::InUse { .. }), "{error}");
        let (from, _to) = output.begin().unwrap();
        assert!(from.is_none());
        assert_eq!(fs::read(&path).unwrap(), b"");

        let error = OutputFile::open("--serial", dir.path()).unwrap_err();
        assert!(matches!(error, Error::Directory { .. }), "{error}");
        let error = OutputFile::open("--serial", &path.join("below")).unwrap_err();
        assert!(matches!(error, Error::NoDirectory { .. }), "{error}");
        let error = OutputFile::open("--serial", &dir.path().join("no/log")).unwrap_err();
        assert!(matches!(error, Error::NoDirectory { .. }), "{error}");
    }
}
