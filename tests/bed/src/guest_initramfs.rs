//! The initramfs of a stock Linux guest: busybox, the kernel's own modules, and a shell.
//!
//! The modules are loaded in order, then `/init` becomes a shell that takes one command per line
//! from the console and answers each with a line of its own, so that a story can talk to it:
//!
//! ```text
//! <  uname -s
//!  > Linux
//!  > @@ done 0
//! ```
//!
//! When the console ends, the machine powers off.

use std::fs;

use crate::cpio::{Archive, DIRECTORY, LINK, PROGRAM};
use crate::error::{AtPath, Result};
use crate::provision::busybox;
use crate::provision::kernel::Kernel;

/// Printed once, when the shell is there.
pub const READY: &str = "@@ ready";

/// Begins the line after the output of a command; the exit status follows.
pub const DONE: &str = "@@ done ";

/// What the guest runs first.
const INIT: &str = include_str!("guest_init.sh");

/// Builds the archive for `kernel` with `modules` and what they need, loaded in that order.
/// `files` are further programs, by path.
pub fn build(kernel: &Kernel, modules: &[&str], files: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for dir in [
        "bin", "dev", "proc", "sys", "tmp", "modules", "mnt", "root", "etc",
    ] {
        archive.add(dir, DIRECTORY, &[]);
    }
    let busybox = busybox()?;
    archive.add("bin/busybox", PROGRAM, &fs::read(&busybox).at(&busybox)?);
    archive.add("bin/sh", LINK, b"busybox");
    let mut list = String::new();
    for module in kernel.modules(modules)? {
        archive.add(
            &format!("modules/{}.ko", module.name),
            PROGRAM,
            &module.bytes,
        );
        list.push_str(&module.name);
        list.push('\n');
    }
    archive.add("modules/list", PROGRAM, list.as_bytes());
    for (path, bytes) in files {
        archive.add(path, PROGRAM, bytes);
    }
    archive.add("init", PROGRAM, INIT.as_bytes());
    Ok(archive.finish())
}
