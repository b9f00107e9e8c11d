//! OVMF: UEFI firmware for QEMU's machines.

use std::path::PathBuf;

use super::debian::{self, Wanted};
use crate::error::Result;

/// The firmware's files.
#[derive(Debug, Clone)]
pub struct Ovmf {
    /// Its code, which is only read.
    pub code: PathBuf,
    /// Its variables as they are at first; a machine writes to a copy.
    pub variables: PathBuf,
}

impl Ovmf {
    /// Debian's build without Secure Boot's keys, fetched if missing.
    pub fn get() -> Result<Self> {
        let files = debian::bundle("ovmf-1", Wanted::Exactly(&["ovmf"]))?.join("usr/share/OVMF");
        Ok(Self {
            code: files.join("OVMF_CODE_4M.fd"),
            variables: files.join("OVMF_VARS_4M.fd"),
        })
    }
}
