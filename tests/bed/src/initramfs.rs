//! L1's initramfs: busybox, KVM's modules, the agent and an init script.

use std::fs;

use crate::cargo;
use crate::cpio::{Archive, DIRECTORY, LINK, PROGRAM};
use crate::error::{AtPath, Result};
use crate::provision::busybox;
use crate::provision::kernel::Kernel;

/// Modules to load, with what they need.
const MODULES: [&str; 2] = ["kvm_amd", "virtio_blk"];

/// What L1 runs first. When the agent ends, so does L1.
const INIT: &str = include_str!("l1/init.sh");

/// Builds the archive.
pub(crate) fn build(kernel: &Kernel) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for dir in ["bin", "dev", "proc", "sys", "tmp", "lib", "root", "etc"] {
        archive.add(dir, DIRECTORY, &[]);
    }
    let busybox = busybox()?;
    archive.add("bin/busybox", PROGRAM, &fs::read(&busybox).at(&busybox)?);
    archive.add("bin/sh", LINK, b"busybox");
    for (index, module) in kernel.modules(&MODULES)?.iter().enumerate() {
        // The number keeps the order for the init script.
        archive.add(&format!("lib/{index}.ko"), PROGRAM, &module.bytes);
    }
    let agent = cargo::l1_agent()?;
    archive.add("bin/l1-agent", PROGRAM, &fs::read(&agent).at(&agent)?);
    archive.add("init", PROGRAM, INIT.as_bytes());
    Ok(archive.finish())
}
