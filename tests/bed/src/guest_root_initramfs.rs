//! The initramfs of a stock Linux guest that has its root file system on a disk: it loads what the
//! way to the disk needs, as Debian's own does, and hands over. See
//! [`crate::provision::debian_root`].

use std::fs;

use crate::cpio::{Archive, DIRECTORY, LINK, PROGRAM};
use crate::error::{AtPath, Result};
use crate::provision::busybox;
use crate::provision::kernel::{Kernel, Module};

/// What the way to the disk needs.
const LOADED: [&str; 4] = ["hv_vmbus", "hv_storvsc", "sd_mod", "ext4"];

/// What the root file system can load besides: it asks for it by the names of devices, of file
/// systems and of network families.
const AT_HAND: [&str; 13] = [
    "hv_utils",
    "hv_netvsc",
    "hv_balloon",
    "hyperv_keyboard",
    "evdev",
    "sr_mod",
    "sg",
    "isofs",
    "autofs4",
    "efivarfs",
    "configfs",
    "dummy",
    "loop",
];

/// What the guest runs first.
const INIT: &str = include_str!("guest_root_init.sh");

/// Builds the archive for `kernel`. `updates` are modules besides the kernel's own, which the guest
/// has where `modprobe` looks first; `files` are further programs by name, which it has in `/run/bed`.
pub fn build(kernel: &Kernel, updates: &[Module], files: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    let version = format!("lib/modules/{}", kernel.version());
    for dir in [
        "bin",
        "dev",
        "proc",
        "sys",
        "root",
        "files",
        "lib",
        "lib/modules",
    ] {
        archive.add(dir, DIRECTORY, &[]);
    }
    archive.add(&version, DIRECTORY, &[]);
    let busybox = busybox()?;
    archive.add("bin/busybox", PROGRAM, &fs::read(&busybox).at(&busybox)?);
    archive.add("bin/sh", LINK, b"busybox");
    for module in kernel.modules(&[&LOADED[..], &AT_HAND].concat())? {
        archive.add(
            &format!("{version}/{}.ko", module.name),
            PROGRAM,
            &module.bytes,
        );
    }
    archive.add(&format!("{version}/updates"), DIRECTORY, &[]);
    for Module { name, bytes } in updates {
        archive.add(&format!("{version}/updates/{name}.ko"), PROGRAM, bytes);
    }
    let load: String = kernel
        .modules(&LOADED)?
        .iter()
        .map(|module| format!("{}.ko\n", module.name))
        .collect();
    archive.add("lib/modules/load", PROGRAM, load.as_bytes());
    for (name, bytes) in kernel.lists()? {
        archive.add(&format!("{version}/{name}"), PROGRAM, &bytes);
    }
    for (name, bytes) in files {
        archive.add(&format!("files/{name}"), PROGRAM, bytes);
    }
    archive.add("init", PROGRAM, INIT.as_bytes());
    Ok(archive.finish())
}
