//! `vmbus-proto` as a part of a Linux kernel module: unchanged, by the kernel's own compiler, for
//! the kernel's target.

use bed::cargo;
use bed::provision::kernel_rustc::{KernelRustc, VERSION};

use crate::step;

/// Compiles the crate so.
pub(super) fn run() -> anyhow::Result<()> {
    let mut command = super::lints::workspace(&["build", "--release", "--package", "vmbus-proto"]);
    command
        .arg("--target-dir")
        .arg(cargo::target_dir().join("module"));
    KernelRustc::get()?.apply(&mut command);
    step::run(&format!("vmbus-proto by rustc {VERSION}"), command)?;
    Ok(())
}
