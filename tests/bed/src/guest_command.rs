//! The initramfs of a guest that is there for one command: whatever the user has, and after it
//! an archive of ours.
//!
//! The kernel unpacks archives one after the other, so ours only adds the directory `/bed` to the
//! user's: a busybox, the program [`l2-run`], modules, the command, and `/bed/init`, which the
//! kernel's command line makes the first program ([`INIT`]). It loads the modules, runs the
//! command with the user's tools where there are some, and powers off. What the command prints and
//! how it ends goes to COM2 in the frames of [`crate::wire`].
//!
//! [`l2-run`]: crate::cargo::l2_run

use std::fs;
use std::path::PathBuf;

use crate::cargo;
use crate::cpio::{Archive, DIRECTORY, PROGRAM};
use crate::error::{AtPath, Result};
use crate::provision::busybox;
use crate::provision::kernel;

/// What the kernel is to run first.
pub const INIT: &str = "/bed/init";

/// The script there.
const SCRIPT: &str = include_str!("guest_command.sh");

/// A command for a guest.
#[derive(Debug, Clone, Default)]
pub struct GuestCommand {
    /// A line for the shell.
    pub line: String,
    /// Module files (`.ko`, `.ko.xz`), loaded in this order.
    pub modules: Vec<PathBuf>,
    /// The device whose file system is the command's root, such as `/dev/sda1`.
    pub root: Option<String>,
}

impl GuestCommand {
    /// Builds the initramfs, which begins with `theirs`.
    pub fn initramfs(&self, theirs: Vec<u8>) -> Result<Vec<u8>> {
        let mut archive = Archive::after(theirs);
        for dir in ["bed", "bed/modules"] {
            archive.add(dir, DIRECTORY, &[]);
        }
        let mut list = String::new();
        for (index, path) in self.modules.iter().enumerate() {
            let module = kernel::Module::read(path)?;
            // The number keeps two files of one name apart.
            let file = format!("{index}.ko");
            archive.add(&format!("bed/modules/{file}"), PROGRAM, &module.bytes);
            list.push_str(&format!("{file} {}\n", module.name));
        }
        let busybox = busybox()?;
        let run = cargo::l2_run()?;
        archive.add("bed/busybox", PROGRAM, &fs::read(&busybox).at(&busybox)?);
        archive.add("bed/run", PROGRAM, &fs::read(&run).at(&run)?);
        archive.add("bed/modules/list", PROGRAM, list.as_bytes());
        archive.add("bed/command", PROGRAM, self.line.as_bytes());
        let root = self.root.as_deref().unwrap_or_default();
        archive.add("bed/device", PROGRAM, root.as_bytes());
        archive.add("bed/init", PROGRAM, SCRIPT.as_bytes());
        Ok(archive.finish())
    }
}
