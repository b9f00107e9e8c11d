//! `--disk`: the user's images, and what becomes of what the guest writes.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use bed::l1::Drive;

/// Bytes of the blocks that a disk is a whole number of.
const BLOCK: u64 = 512;

/// How files begin that are images, but not raw ones.
const OTHER_FORMATS: [(&[u8], &str); 3] = [
    (b"QFI\xfb", "qcow2"),
    (b"vhdxfile", "VHDX"),
    (b"conectix", "VHD"),
];

/// What becomes of what the guest writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writes {
    /// It is forgotten.
    Forgotten,
    /// It goes to the file.
    Kept,
    /// The guest cannot write.
    Refused,
}

/// A disk as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disk {
    path: PathBuf,
    writes: Writes,
}

impl FromStr for Disk {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, writes) = match text.rsplit_once(',') {
            Some((path, "keep")) => (path, Writes::Kept),
            Some((path, "readonly")) => (path, Writes::Refused),
            _ => (text, Writes::Forgotten),
        };
        if path.is_empty() {
            return Err("the file is missing: FILE, FILE,keep or FILE,readonly".into());
        }
        let path = path.into();
        Ok(Self { path, writes })
    }
}

impl Disk {
    /// Whether the guest writes to the file.
    pub(super) fn is_kept(&self) -> bool {
        self.writes == Writes::Kept
    }

    /// Looks at the file before anything is made.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let path = self.path.display();
        let metadata = match fs::metadata(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => bail!(
                "there is no disk image {path}: create one, e.g. with `truncate -s 1G {path}`"
            ),
            metadata => metadata.with_context(|| format!("the disk image {path}"))?,
        };
        ensure!(
            metadata.is_file(),
            "{path} is not a regular file: give --disk an image"
        );
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .write(self.is_kept())
            .open(&self.path)
            .with_context(|| format!("the disk image {path}"))?;
        let mut head = Vec::new();
        (&mut file).take(8).read_to_end(&mut head)?;
        if let Some((_, format)) = OTHER_FORMATS.iter().find(|(it, _)| head.starts_with(it)) {
            bail!("{path} is a {format} image: make it raw with `qemu-img convert -O raw`");
        }
        ensure!(
            metadata.len() > 0 && metadata.len().is_multiple_of(BLOCK),
            "the disk image {path} has {} bytes, not a whole number of blocks: make it larger with \
             `truncate`",
            metadata.len()
        );
        Ok(())
    }

    /// What the bed gives its L1 for it, under `name`.
    pub(super) fn drive(&self, name: &str) -> anyhow::Result<Drive> {
        let path = fs::canonicalize(&self.path)?;
        Ok(match self.writes {
            Writes::Forgotten => Drive::scratch(name, path),
            Writes::Kept => Drive::written(name, path),
            Writes::Refused => Drive::read_only(name, path),
        })
    }

    /// The file for a machine that runs here: the user's own, or a copy in `dir`.
    pub(super) fn file_here(&self, name: &str, dir: &Path) -> anyhow::Result<PathBuf> {
        if self.writes != Writes::Forgotten {
            return Ok(fs::canonicalize(&self.path)?);
        }
        let copy = dir.join(name);
        // `cp` keeps holes, and shares blocks where the file system can.
        let copied = Command::new("cp")
            .args(["--reflink=auto", "--sparse=always", "--"])
            .args([&self.path, &copy])
            .status()
            .context("cp")?;
        ensure!(
            copied.success(),
            "{} cannot be copied to {}: set TMPDIR to a directory with more room",
            self.path.display(),
            dir.display()
        );
        // That the user must not write to the image says nothing about the guest.
        fs::set_permissions(&copy, Permissions::from_mode(0o600))?;
        Ok(copy)
    }

    /// The value of `host-vsp --disk` for the disk at `path`.
    pub(super) fn option(&self, path: &str) -> String {
        let readonly = match self.writes {
            Writes::Refused => ",readonly=on",
            _ => "",
        };
        format!("path={}{readonly}", path.replace(',', ",,"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(text: &str) -> Disk {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_written_is_forgotten_unless_it_is_to_be_kept() {
        assert_eq!(disk("a,b.img").writes, Writes::Forgotten);
        assert_eq!(disk("a.img,keep").writes, Writes::Kept);
        assert_eq!(disk("a,b,readonly").path, Path::new("a,b"));
        assert_eq!(disk("a,readonly").option("/d,1"), "path=/d,,1,readonly=on");
        assert!(",keep".parse::<Disk>().is_err());
    }

    #[test]
    fn a_copy_is_written_and_not_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        fs::write(&image, [7; 512]).unwrap();
        let path = image.display();
        let copy = disk(&format!("{path}")).file_here("0", dir.path()).unwrap();
        assert_eq!(fs::read(&copy).unwrap(), [7; 512]);
        assert_ne!(copy, image);
        let kept = disk(&format!("{path},keep"));
        let same = kept.file_here("1", dir.path()).unwrap();
        assert_eq!(same, fs::canonicalize(&image).unwrap());
    }

    #[test]
    fn a_wrong_image_is_refused_in_one_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        fs::write(path("odd"), [0; 700]).unwrap();
        fs::write(path("empty"), []).unwrap();
        fs::write(path("qcow2"), b"QFI\xfb0000").unwrap();
        for name in ["none", "odd", "empty", "qcow2", "."] {
            let error = format!("{:#}", disk(&path(name)).check().unwrap_err());
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
