//! Format, lints and documentation, of the workspace and of what is beside it.

use std::process::Command;

use bed::cargo;
use bed::provision::rust_src;

use crate::{publish, step};

/// A cargo subcommand in the workspace.
pub(super) fn workspace(args: &[&str]) -> Command {
    let mut command = cargo::cargo();
    command.current_dir(cargo::workspace()).args(args);
    command
}

/// `cargo fmt --check`.
pub(super) fn format() -> anyhow::Result<()> {
    step::run("fmt workspace", workspace(&["fmt", "--all", "--check"]))?;
    for package in cargo::BARE_METAL {
        format_one(&format!("{package}/Cargo.toml"))?;
    }
    format_one(cargo::UEFI_MANIFEST)?;
    let mut modules = Command::new("rustfmt");
    modules
        .current_dir(cargo::workspace().join("linux-module"))
        .arg("--check")
        .args(MODULES);
    step::run("fmt linux-module", modules)?;
    Ok(())
}

/// The crates of `linux-module`, which no cargo knows.
const MODULES: [&str; 3] = ["vmbus/lib.rs", "console/main.rs", "disk/main.rs"];

fn format_one(manifest: &str) -> anyhow::Result<()> {
    let check = ["fmt", "--check", "--manifest-path", manifest];
    step::run(&format!("fmt {manifest}"), workspace(&check))?;
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
    for package in cargo::BARE_METAL {
        let mut kernel = cargo::bare_metal_cargo(package, "clippy")?;
        kernel.args(["--", "-D", "warnings"]);
        step::run(&format!("clippy {package}"), kernel)?;
    }
    let mut uefi = cargo::uefi_cargo("clippy")?;
    uefi.args(["--", "-D", "warnings"]);
    step::run("clippy guest-kernel/uefi", uefi)?;
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
    for package in cargo::BARE_METAL {
        let mut kernel = cargo::bare_metal_cargo(package, "doc")?;
        kernel
            .args(["--no-deps", "--document-private-items"])
            .env("RUSTDOCFLAGS", "-D warnings");
        step::run(&format!("doc {package}"), kernel)?;
    }
    publish::documentation()
}
