//! Local files that an L1 has as disks, on virtio.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Most bytes of a name: virtio-blk carries no more of a serial number.
const NAME_MAX: usize = 20;

/// What becomes of what L1 writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writes {
    /// L1 can't write.
    Refused,
    /// They end with L1; the file is only read.
    Forgotten,
    /// They are in the file.
    Kept,
}

/// A local file, raw, that an L1 has as a disk. L1 knows it by its name, whatever the order of the
/// disks: see [`super::L1::drive`].
#[derive(Debug, Clone)]
pub struct Drive {
    name: String,
    file: PathBuf,
    writes: Writes,
}

impl Drive {
    /// A disk that L1 can only read. Any number of L1s may have the same file.
    pub fn read_only(name: &str, file: impl AsRef<Path>) -> Self {
        Self::new(name, file.as_ref(), Writes::Refused)
    }

    /// A disk that L1 can write to; the file stays as it is. Any number of L1s may have the same.
    pub fn scratch(name: &str, file: impl AsRef<Path>) -> Self {
        Self::new(name, file.as_ref(), Writes::Forgotten)
    }

    /// A disk whose file is written. Whatever L1 was told to be complete is in the file, even if
    /// QEMU is killed then: it has gone at least to the page cache of this machine.
    pub fn written(name: &str, file: impl AsRef<Path>) -> Self {
        Self::new(name, file.as_ref(), Writes::Kept)
    }

    fn new(name: &str, file: &Path, writes: Writes) -> Self {
        Self {
            name: name.to_owned(),
            file: file.to_owned(),
            writes,
        }
    }

    /// Arguments of QEMU.
    pub(super) fn arguments(&self) -> Result<[String; 4]> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if self.name.is_empty() || self.name.len() > NAME_MAX || !self.name.chars().all(plain) {
            return Err(Error::Setup(format!(
                "a disk of L1 can't be called {:?}: up to {NAME_MAX} letters, digits and hyphens",
                self.name
            )));
        }
        let name = &self.name;
        // In QEMU's options a comma ends the value, unless it is doubled.
        let file = self.file.display().to_string().replace(',', ",,");
        let writes = match self.writes {
            Writes::Refused => "readonly=on",
            Writes::Forgotten => "snapshot=on",
            Writes::Kept => "cache=writeback,discard=unmap",
        };
        Ok([
            "-drive".into(),
            format!("if=none,id=drive-{name},format=raw,file={file},{writes}"),
            "-device".into(),
            format!("virtio-blk-pci,drive=drive-{name},serial={name}"),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_stays_in_the_name_of_the_file() {
        let arguments = Drive::written("data", "/tmp/a,b").arguments().unwrap();
        assert!(arguments[1].contains("file=/tmp/a,,b,cache"));
    }

    #[test]
    fn a_name_that_could_not_be_found_again_is_refused() {
        for name in ["", "a,b", "more-than-twenty-bytes"] {
            let error = Drive::read_only(name, "/f").arguments().unwrap_err();
            assert!(error.to_string().contains("can't be called"), "{name}");
        }
    }
}
