//! How targets without the whole standard library are built for, above all `x86_64-unknown-none`:
//! with the installed target, else from the sources of the standard library that equal the compiler,
//! kept in the cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::apt::output_of;
use super::debian::{self, Wanted};
use crate::error::{Error, Result};

/// The bare-metal target.
pub const TARGET: &str = "x86_64-unknown-none";

/// UEFI firmware's target.
pub const TARGET_UEFI: &str = "x86_64-unknown-uefi";

/// The 32-bit target: any will do that has no more than `core` and `alloc` to offer here.
pub const TARGET_32: &str = "i686-unknown-linux-gnu";

/// The way to build for a target here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    target: &'static str,
    /// Where `core` and `alloc` are built from, unless the target is installed in the toolchain.
    library: Option<PathBuf>,
}

impl Route {
    /// Adds to a `cargo build` what this route needs.
    pub fn apply(&self, command: &mut Command) {
        command.args(["--target", self.target]);
        if let Some(library) = &self.library {
            command
                .arg("-Zbuild-std=core,alloc,compiler_builtins")
                .arg("-Zbuild-std-features=compiler-builtins-mem")
                .env("__CARGO_TESTS_ONLY_SRC_ROOT", library)
                .env("RUSTC_BOOTSTRAP", "1");
        }
    }
}

/// Finds the way to build for [`TARGET`], fetching the sources when they are needed and missing.
pub fn bare_metal_route() -> Result<Route> {
    route(TARGET)
}

/// The same for `target`.
pub fn route(target: &'static str) -> Result<Route> {
    let rustc = || Command::new("rustc");
    let libdir = output_of(rustc().args(["--print", "target-libdir", "--target", target]))?;
    if has_core(Path::new(libdir.trim())) {
        let library = None;
        return Ok(Route { target, library });
    }
    let version = output_of(rustc().arg("--version"))?;
    let version = version.split(' ').nth(1).unwrap_or("").to_owned();
    let bundle = debian::bundle(
        &format!("rust-src-{version}"),
        Wanted::Version("rust-src", &format!("{version}+")),
    )
    .map_err(|error| {
        Error::Setup(format!(
            "no way to build for {target}: run `rustup target add {target}` (or, where \
                     Debian has a rust-src {version}, set VMBUS_MIRROR): {error}"
        ))
    })?;
    let library = bundle.join(format!("usr/src/rustc-{version}/library"));
    if !library.is_dir() {
        return Err(Error::Setup(format!(
            "{} has no sources of the standard library: delete that directory",
            bundle.display()
        )));
    }
    let library = Some(library);
    Ok(Route { target, library })
}

fn has_core(libdir: &Path) -> bool {
    libdir.read_dir().is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
    })
}
