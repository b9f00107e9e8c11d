//! `cargo deny check`: licences, bans and sources gate; advisories where their database can be
//! reached.

use std::path::PathBuf;
use std::process::Command;

use anyhow::bail;
use bed::cargo;

use crate::step::{self, Ran};

/// The release that is built into the cache where there is no `cargo deny` on the path.
const VERSION: &str = "0.20.2";

/// The manifests whose dependencies are checked.
const MANIFESTS: [&str; 4] = [
    "Cargo.toml",
    "guest-kernel/Cargo.toml",
    cargo::UEFI_MANIFEST,
    "example-kernels/Cargo.toml",
];

/// Checks all workspaces.
pub(super) fn run() -> anyhow::Result<()> {
    let program = program()?;
    for manifest in MANIFESTS {
        let name = format!("deny {manifest}");
        step::run(
            &name,
            check(&program, manifest, &["licenses", "bans", "sources"]),
        )?;
    }
    for manifest in MANIFESTS {
        let name = format!("deny advisories {manifest}");
        let Ran { status, lines } =
            step::try_run(&name, check(&program, manifest, &["advisories"]))?;
        if status.success() {
            continue;
        }
        if lines
            .iter()
            .any(|line| line.contains("failed to fetch advisory database"))
        {
            println!("advisories: not checked (their database can't be reached)");
            return Ok(());
        }
        bail!("{name}: {status}\n{}", lines.join("\n"));
    }
    Ok(())
}

fn check(program: &PathBuf, manifest: &str, what: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir(cargo::workspace())
        .args(["--manifest-path", manifest, "--config"])
        .arg(cargo::workspace().join("deny.toml"))
        .arg("check")
        .args(what);
    command
}

/// `cargo-deny` of the path, else the one in the cache, built there once.
fn program() -> anyhow::Result<PathBuf> {
    step::tool("cargo-deny", VERSION)
}
