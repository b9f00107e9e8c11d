//! passt of Debian 13: a program with its own loader and library, to be carried into an L1.

use std::path::PathBuf;

use super::debian::{self, Wanted};
use crate::error::Result;

/// The files of a passt, each with the name that it has beside the others.
#[derive(Debug, Clone)]
pub struct Passt {
    /// Local path, and name.
    pub files: [(PathBuf, &'static str); 3],
}

impl Passt {
    /// The cached one, fetched if missing.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn get() -> Result<Self> {
        let bundle = debian::bundle("passt-1", Wanted::Closure(&["passt"]))?;
        let libraries = bundle.join("usr/lib/x86_64-linux-gnu");
        Ok(Self {
            files: [
                (bundle.join("usr/bin/passt"), "passt"),
                (libraries.join("libc.so.6"), "libc.so.6"),
                (libraries.join("ld-linux-x86-64.so.2"), "ld.so"),
            ],
        })
    }
}
