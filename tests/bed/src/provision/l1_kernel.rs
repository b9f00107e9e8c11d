//! L1's kernel and its userland: Debian's cloud kernel 6.12 and a static busybox.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::debian::{self, Wanted};
use crate::error::{AtPath, Error, Result};

/// An unpacked Debian kernel package.
#[derive(Debug, Clone)]
pub struct L1Kernel {
    image: PathBuf,
    modules: PathBuf,
}

impl L1Kernel {
    /// The kernel to use: `VMBUS_L1_KERNEL`, else the cached one, fetched if missing. It is
    /// also at hand as a stock Linux guest.
    pub fn get() -> Result<Self> {
        if let Some(dir) = env::var_os("VMBUS_L1_KERNEL").filter(|value| !value.is_empty()) {
            return Self::unpacked(Path::new(&dir));
        }
        Self::unpacked(&debian::bundle(
            "l1-kernel-1",
            Wanted::DependsOf("linux-image-cloud-amd64"),
        )?)
    }

    /// The kernel in the directory of an unpacked `linux-image` package.
    pub fn unpacked(dir: &Path) -> Result<Self> {
        let boot = dir.join("boot");
        for entry in fs::read_dir(&boot).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(version) = name.to_str().and_then(|name| name.strip_prefix("vmlinuz-")) else {
                continue;
            };
            for modules in ["usr/lib/modules", "lib/modules"] {
                let modules = dir.join(modules).join(version).join("kernel");
                if modules.is_dir() {
                    return Ok(Self {
                        image: entry.path(),
                        modules,
                    });
                }
            }
        }
        Err(Error::Setup(format!(
            "{} is not an unpacked linux-image package: it has no boot/vmlinuz-VERSION with \
             lib/modules/VERSION",
            dir.display()
        )))
    }

    /// The bzImage.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// The contents of module `name` (file name without extension, at `path` below the kernel's
    /// module directory), decompressed.
    pub fn module(&self, path: &str) -> Result<Vec<u8>> {
        let plain = self.modules.join(format!("{path}.ko"));
        if plain.is_file() {
            return fs::read(&plain).at(&plain);
        }
        let compressed = self.modules.join(format!("{path}.ko.xz"));
        // busybox brings the decompressor; it runs here as well as in L1.
        let output = Command::new(busybox()?)
            .args(["xz", "-dc"])
            .arg(&compressed)
            .output();
        let output = output.at(&compressed)?;
        if !output.status.success() || output.stdout.is_empty() {
            return Err(Error::Setup(format!(
                "the kernel module {} can't be read: {}",
                compressed.display(),
                String::from_utf8_lossy(&output.stderr).trim()
            )));
        }
        Ok(output.stdout)
    }
}

/// A static busybox: `VMBUS_BUSYBOX`, else the cached one, fetched if missing.
pub fn busybox() -> Result<PathBuf> {
    if let Some(path) = env::var_os("VMBUS_BUSYBOX").filter(|value| !value.is_empty()) {
        return Ok(path.into());
    }
    let bundle = debian::bundle("busybox-1", Wanted::Exactly(&["busybox-static"]))?;
    for path in ["usr/bin/busybox", "bin/busybox"] {
        let path = bundle.join(path);
        if path.is_file() {
            return Ok(path);
        }
    }
    Err(Error::Setup(format!(
        "no busybox in {}: delete that directory",
        bundle.display()
    )))
}
