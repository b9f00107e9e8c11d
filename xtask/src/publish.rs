//! `cargo xtask publish-check`: whether the crates could be published as they are.
//!
//! What takes a minute is a tier of the tests ([`documentation`]); this command has the rest: each
//! crate is packaged and built from its package, and its interface is compared with an earlier one.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use bed::cargo;
use clap::Args;

use crate::step;

/// The crates that are meant to be published, each after those it needs.
const CRATES: [&str; 3] = ["vmbus-proto", "guest-vsc", "host-vsp"];

/// The release of cargo-semver-checks that is built into the cache where there is none on the path.
const SEMVER_CHECKS: &str = "0.51.0";

/// Options of `cargo xtask publish-check`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The revision whose interfaces must still be there [default: the last tag]
    #[arg(long, value_name = "REVISION")]
    baseline_rev: Option<String>,
}

/// Checks all crates.
pub(crate) fn check(options: &Options) -> anyhow::Result<()> {
    documentation()?;
    let mut command = in_workspace(cargo::cargo());
    // What is about to be committed may be checked before it is.
    command.args(["publish", "--workspace", "--dry-run", "--allow-dirty"]);
    let lines = step::run("publish --dry-run", command)?;
    for name in CRATES {
        let packaged = format!("Uploading {name} ");
        ensure!(
            lines.iter().any(|line| line.contains(&packaged)),
            "cargo does not publish {name}"
        );
        println!("{name}: packaged, and built from its package");
    }
    compare(&match &options.baseline_rev {
        Some(revision) => revision.clone(),
        None => last_tag()?,
    })
}

/// Compares the libraries' interfaces with those at `revision`.
fn compare(revision: &str) -> anyhow::Result<()> {
    let mut command = in_workspace(Command::new(semver_checks()?));
    command.args(["semver-checks", "--baseline-rev", revision]);
    for name in CRATES {
        command.args(["--package", name]);
    }
    step::run(&format!("semver-checks against {revision}"), command)?;
    println!("nothing of the interfaces at {revision} is missing or changed");
    Ok(())
}

/// The documentation of the crate that has features as docs.rs builds it: with all of them, and with
/// the nightly toolchain, which says what needs which. Of the others it is the workspace's.
pub(crate) fn documentation() -> anyhow::Result<()> {
    let mut command = in_workspace(cargo::cargo());
    command
        .args(["doc", "--no-deps", "--all-features"])
        .args(["--package", "guest-vsc", "--target-dir"])
        .arg(cargo::target_dir().join("docs-rs"))
        .env("RUSTDOCFLAGS", "-D warnings --cfg docsrs")
        .env("RUSTC_BOOTSTRAP", "1");
    step::run("doc guest-vsc as docs.rs", command)?;
    Ok(())
}

fn in_workspace(mut command: Command) -> Command {
    command.current_dir(cargo::workspace());
    command
}

/// The last tag before HEAD: compared with itself, HEAD would always pass.
fn last_tag() -> anyhow::Result<String> {
    let mut git = in_workspace(Command::new("git"));
    let output = git
        .args(["describe", "--tags", "--abbrev=0"])
        .output()
        .context("git")?;
    let tag = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    ensure!(
        output.status.success() && !tag.is_empty(),
        "there is no tag to compare with: name a revision with --baseline-rev"
    );
    Ok(tag)
}

/// `cargo-semver-checks` of the path, else the one in the cache, built there once.
fn semver_checks() -> anyhow::Result<PathBuf> {
    step::tool("cargo-semver-checks", SEMVER_CHECKS)
}
