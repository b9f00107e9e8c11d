//! QEMU's tools for disk images, with all that they need to run anywhere: to be carried into an
//! L1, which has no libraries of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::apt::output_of;
use super::debian::{self, Wanted};
use super::qemu::{libraries, loader};
use crate::error::{AtPath, Result};

/// The programs.
const PROGRAMS: [&str; 2] = ["qemu-img", "qemu-storage-daemon"];

/// The tools, unpacked.
#[derive(Debug)]
pub struct QemuTools {
    bundle: PathBuf,
}

impl QemuTools {
    /// The cached tools, fetched if missing.
    pub fn get() -> Result<Self> {
        let bundle = debian::bundle("qemu-utils-1", Wanted::Closure(&["qemu-utils"]))?;
        Ok(Self { bundle })
    }

    /// The programs' names.
    pub fn programs(&self) -> [&'static str; 2] {
        PROGRAMS
    }

    /// The script that runs `program` where [`files`](Self::files) are in `dir`.
    pub fn script(&self, program: &str, dir: &str) -> String {
        format!(
            "#!/bin/sh\nexec {dir}/ld-linux-x86-64.so.2 --library-path {dir} {dir}/{program} \"$@\"\n"
        )
    }

    /// The programs, their libraries and the loader; all go into one directory.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files = vec![loader(&self.bundle)];
        for program in PROGRAMS {
            let program = self.bundle.join("usr/bin").join(program);
            let listed = output_of(
                Command::new(loader(&self.bundle))
                    .arg("--library-path")
                    .arg(libraries(&self.bundle))
                    .arg("--list")
                    .arg(&program),
            )?;
            // Lines such as `libz.so.1 => /path/libz.so.1 (0x0123)`.
            let found = listed.lines().filter_map(|line| {
                let (_, rest) = line.split_once(" => ")?;
                let path = Path::new(rest.split(" (").next()?);
                path.starts_with(&self.bundle).then(|| path.to_owned())
            });
            files.extend(found);
            files.push(program);
        }
        files.sort();
        files.dedup();
        for file in &files {
            fs::metadata(file).at(file)?;
        }
        Ok(files)
    }
}
