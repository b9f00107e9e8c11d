//! L1's kernel and its userland: Debian's cloud kernel 6.12 and a static busybox.

use std::env;
use std::path::{Path, PathBuf};

use super::debian::{self, Wanted};
use super::kernel::Kernel;
use crate::error::{Error, Result};

/// L1's kernel: `VMBUS_L1_KERNEL`, else the cached one, fetched if missing.
pub(crate) fn get() -> Result<Kernel> {
    if let Some(dir) = env::var_os("VMBUS_L1_KERNEL").filter(|value| !value.is_empty()) {
        return Kernel::unpacked(Path::new(&dir));
    }
    Kernel::unpacked(&debian::bundle(
        "l1-kernel-1",
        Wanted::Kernel("linux-image-cloud-amd64"),
    )?)
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
