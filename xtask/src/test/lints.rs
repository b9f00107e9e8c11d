//! Format, lints and documentation, of the workspace and of the guest kernel beside it.

use std::process::Command;

use bed::cargo;
use bed::provision::rust_src;

use crate::step;

/// A cargo subcommand in the workspace.
pub(super) fn workspace(args: &[&str]) -> Command {
    let mut command = cargo::cargo();
    command.current_dir(cargo::workspace()).args(args);
    command
}

/// `cargo fmt --check`.
pub(super) fn format() -> anyhow::Result<()> {
    step::run("fmt workspace", workspace(&["fmt", "--all", "--check"]))?;
    let kernel = [
        "fmt",
        "--check",
        "--manifest-path",
        "guest-kernel/Cargo.toml",
    ];
    step::run("fmt guest-kernel", workspace(&kernel))?;
    Ok(())
}

/// `cargo clippy` with warnings denied.
pub(super) fn clippy() -> anyhow::Result<()> {
    let args = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    step::run("clippy workspace", workspace(&args))?;
    let mut kernel = kernel("clippy")?;
    kernel.args(["--", "-D", "warnings"]);
    step::run("clippy guest-kernel", kernel)?;
    drivers()
}

/// The guest drivers as other kernels build them: with fewer features than the workspace asks for,
/// and for 32 bits.
fn drivers() -> anyhow::Result<()> {
    let clippy = ["clippy", "--package", "guest-vsc"];
    let mut bare = workspace(&clippy);
    bare.args(["--", "-D", "warnings"]);
    step::run("clippy guest-vsc without features", bare)?;
    let mut narrow = workspace(&clippy);
    narrow
        .arg("--all-features")
        .arg("--target-dir")
        .arg(cargo::target_dir().join("guest-vsc-32"));
    rust_src::route(rust_src::TARGET_32)?.apply(&mut narrow);
    narrow.args(["--", "-D", "warnings"]);
    step::run("clippy guest-vsc for 32 bits", narrow)?;
    Ok(())
}

/// `cargo doc`; the workspace's lints deny broken links.
pub(super) fn documentation() -> anyhow::Result<()> {
    let mut command = workspace(&["doc", "--workspace", "--no-deps"]);
    command.env("RUSTDOCFLAGS", "-D warnings");
    step::run("doc workspace", command)?;
    let mut kernel = kernel("doc")?;
    kernel
        .args(["--no-deps", "--document-private-items"])
        .env("RUSTDOCFLAGS", "-D warnings");
    step::run("doc guest-kernel", kernel)?;
    Ok(())
}

fn kernel(subcommand: &str) -> anyhow::Result<Command> {
    let mut command = cargo::guest_kernel_cargo(subcommand)?;
    command
        .arg("--target-dir")
        .arg(cargo::target_dir().join("guest-kernel"));
    Ok(command)
}
