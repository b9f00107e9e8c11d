//! QEMU 10.0 as a bundle: the program, its libraries, its own dynamic loader and the firmware.
//!
//! Debian 12's own QEMU 7.2 corrupts the L1; so the one of Debian 13 is used wherever we are,
//! through its own loader and libraries, which leaves the machine's untouched.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::debian::{self, Wanted};
use crate::error::{Error, Result};

/// The program in a bundle.
const PROGRAM: &str = "usr/bin/qemu-system-x86_64";

/// Where a QEMU is.
#[derive(Debug, Clone)]
pub struct Qemu {
    program: PathBuf,
    /// The bundle it belongs to; none for the user's own QEMU.
    bundle: Option<PathBuf>,
}

impl Qemu {
    /// The QEMU to use: `VMBUS_QEMU`, else the cached bundle, fetched if missing.
    pub fn get() -> Result<Self> {
        if let Some(program) = env::var_os("VMBUS_QEMU").filter(|value| !value.is_empty()) {
            let program = PathBuf::from(program);
            if !program.is_file() {
                return Err(Error::Setup(format!(
                    "VMBUS_QEMU names {}, which is not a file: set it to a qemu-system-x86_64",
                    program.display()
                )));
            }
            return Ok(Self {
                program,
                bundle: None,
            });
        }
        let bundle = cached()?;
        Ok(Self {
            program: bundle.join(PROGRAM),
            bundle: Some(bundle),
        })
    }

    /// A command that starts this QEMU, with its firmware path and without audio (which would
    /// load the machine's own modules into a foreign QEMU).
    pub fn command(&self) -> Command {
        let Some(bundle) = &self.bundle else {
            let mut command = Command::new(&self.program);
            command.args(["-audio", "none"]);
            return command;
        };
        let mut command = Command::new(loader(bundle));
        command
            .arg("--library-path")
            .arg(libraries(bundle))
            .arg(&self.program);
        for firmware in ["usr/share/seabios", "usr/share/qemu"] {
            command.arg("-L").arg(bundle.join(firmware));
        }
        command.args(["-audio", "none"]);
        command
    }

    /// The bundle's directory, for those who carry QEMU into an L1; none for a user's own QEMU.
    pub fn bundle(&self) -> Option<&Path> {
        self.bundle.as_deref()
    }
}

/// The cached bundle, fetched if missing.
pub(super) fn cached() -> Result<PathBuf> {
    debian::bundle("qemu-1", Wanted::Closure(&["qemu-system-x86", "seabios"]))
}

pub(super) fn loader(bundle: &Path) -> PathBuf {
    libraries(bundle).join("ld-linux-x86-64.so.2")
}

pub(super) fn libraries(bundle: &Path) -> PathBuf {
    bundle.join("usr/lib/x86_64-linux-gnu")
}
