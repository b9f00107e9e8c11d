//! The cache: everything that was fetched, outside the checkout, shared by all checkouts.
//!
//! A bundle is a directory that appears whole or not at all: it is filled under a temporary name
//! and renamed. The lock makes two processes that need the same bundle at once do the work once.

use std::env;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use crate::error::{AtPath, Error, Result};

/// How the directory of a bundle that is not complete begins.
const FILLING: &str = ".filling-";

/// The cache directory.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// Held while the cache is being filled; released on drop.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Cache {
    /// Opens the cache, creating it when needed. See the crate documentation for the place.
    pub fn open() -> Result<Self> {
        let set = |name| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let root = set("VMBUS_CACHE")
            .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("vmbus")))
            .or_else(|| set("HOME").map(|dir| dir.join(".cache/vmbus")))
            .ok_or_else(|| {
                Error::Setup("no place for the cache: set VMBUS_CACHE to a directory".into())
            })?;
        if !root.is_absolute() {
            return Err(Error::Setup(format!(
                "the cache directory {} is relative: set VMBUS_CACHE to an absolute path",
                root.display()
            )));
        }
        fs::create_dir_all(&root).at(&root)?;
        Ok(Self { root })
    }

    /// The cache directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where bundle `name` is, or will be.
    pub(crate) fn bundle(&self, name: &str) -> PathBuf {
        self.root.join("bundles").join(name)
    }

    /// Where a tool that is built from source lives, or will live.
    pub fn tool(&self, name: &str) -> PathBuf {
        self.root.join("tools").join(name)
    }

    /// Takes the lock, waiting for another process that is filling the cache.
    pub(crate) fn lock(&self) -> Result<Lock> {
        let path = self.root.join("lock");
        let file = File::create(&path).at(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                eprintln!(
                    "waiting for another process that is filling {}",
                    self.root.display()
                );
                file.lock().at(&path)?;
            }
            Err(TryLockError::Error(error)) => return Err(error).at(&path),
        }
        Ok(Lock { _file: file })
    }

    /// Fills bundle `name` with `fill` unless it is there already, and returns its directory.
    ///
    /// `fill` gets a fresh directory; when it fails, nothing of it stays.
    pub(crate) fn bundle_or(
        &self,
        name: &str,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let bundle = self.bundle(name);
        if bundle.is_dir() {
            return Ok(bundle);
        }
        let _lock = self.lock()?;
        if bundle.is_dir() {
            return Ok(bundle);
        }
        let bundles = self.root.join("bundles");
        fs::create_dir_all(&bundles).at(&bundles)?;
        remove_leftovers(&bundles)?;
        let temporary = tempfile::Builder::new()
            .prefix(FILLING)
            .tempdir_in(&bundles)
            .at(&bundles)?;
        fill(temporary.path())?;
        fs::rename(temporary.path(), &bundle).at(&bundle)?;
        // The directory has moved away; nothing is left to delete.
        let _ = temporary.keep();
        Ok(bundle)
    }
}

/// Removes what a process that was killed left half filled. The caller holds the lock, so nobody
/// is filling.
fn remove_leftovers(bundles: &Path) -> Result<()> {
    for entry in fs::read_dir(bundles).at(bundles)? {
        let entry = entry.at(bundles)?;
        if entry.file_name().to_string_lossy().starts_with(FILLING) {
            fs::remove_dir_all(entry.path()).at(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(dir: &Path) -> Cache {
        Cache {
            root: dir.to_owned(),
        }
    }

    #[test]
    fn a_bundle_is_filled_once() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        let first = cache
            .bundle_or("b", |at| fs::write(at.join("f"), "1").at(at))
            .unwrap();
        let second = cache.bundle_or("b", |_| panic!("filled twice")).unwrap();
        assert_eq!(first, second);
        assert_eq!(fs::read_to_string(first.join("f")).unwrap(), "1");
    }

    #[test]
    fn a_failed_fill_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        let failed = cache.bundle_or("b", |at| {
            fs::write(at.join("half"), "1").at(at)?;
            Err(Error::Setup("mirror gone".into()))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_dir(dir.path().join("bundles")).unwrap().count(), 0);
        cache.bundle_or("b", |_| Ok(())).unwrap();
    }

    #[test]
    fn what_a_killed_process_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join("bundles/.filling-x/file");
        fs::create_dir_all(&left).unwrap();
        cache(dir.path()).bundle_or("b", |_| Ok(())).unwrap();
        assert!(!left.exists());
    }

    #[test]
    fn two_fillers_at_once_do_the_work_once() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        let fills = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    cache.bundle_or("b", |_| {
                        fills.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        std::thread::sleep(std::time::Duration::from_millis(50));
                        Ok(())
                    })
                });
            }
        });
        assert_eq!(fills.into_inner(), 1);
    }
}
