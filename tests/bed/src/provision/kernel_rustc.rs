//! The Rust compiler that builds Debian's Rust-enabled kernels, and so its modules.
//!
//! A module has to be compiled by the very compiler of its kernel. Which one that is does not
//! change within a Debian release.

use std::path::PathBuf;
use std::process::Command;

use super::debian::{self, Wanted};
use super::rust_src::TARGET;
use crate::error::{AtPath, Result};

/// The compiler's version.
pub const VERSION: &str = "1.85.1";

/// The compiler, unpacked, with the sources of its standard library.
#[derive(Debug, Clone)]
pub struct KernelRustc {
    wrapper: PathBuf,
    library: PathBuf,
}

impl KernelRustc {
    /// The cached compiler, fetched if missing.
    pub fn get() -> Result<Self> {
        let bundle = debian::bundle(
            &format!("rustc-{VERSION}"),
            Wanted::Closure(&["rustc", "rust-src"]),
        )?;
        // Cargo wants one program: a script that starts the bundle's through its own loader.
        let wrapper = bundle.join("kernel-rustc");
        if !wrapper.is_file() {
            let usr = bundle.join("usr");
            let libraries = usr.join("lib/x86_64-linux-gnu");
            let script = format!(
                "#!/bin/sh\nexec '{loader}' --library-path '{libraries}' '{rustc}' --sysroot '{usr}' \"$@\"\n",
                loader = libraries.join("ld-linux-x86-64.so.2").display(),
                libraries = libraries.display(),
                rustc = usr.join("bin/rustc").display(),
                usr = usr.display(),
            );
            std::fs::write(&wrapper, script).at(&wrapper)?;
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(&wrapper, mode).at(&wrapper)?;
        }
        let library = bundle.join(format!("usr/src/rustc-{VERSION}/library"));
        Ok(Self { wrapper, library })
    }

    /// Makes `command`, a `cargo build`, compile for the bare metal with this compiler and the
    /// code generation that a kernel module gets: no SSE, no red zone, no unwinding.
    pub fn apply(&self, command: &mut Command) {
        command
            .args(["--target", TARGET])
            .arg("-Zbuild-std=core,compiler_builtins")
            .env("RUSTC", &self.wrapper)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("__CARGO_TESTS_ONLY_SRC_ROOT", &self.library)
            .env(
                "RUSTFLAGS",
                "-Cpanic=abort -Cno-redzone=y -Ccode-model=kernel -Crelocation-model=static \
                 -Cforce-unwind-tables=n -Csymbol-mangling-version=v0",
            );
    }
}
