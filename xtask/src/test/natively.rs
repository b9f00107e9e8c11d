//! Tests that need no virtual machine.

use std::process::Command;

use bed::cargo;

use super::lints::workspace;
use crate::step;

/// Unit, property, golden-byte and in-process tests of the workspace.
pub(super) fn run() -> anyhow::Result<()> {
    let lines = step::run(
        "tests",
        workspace(&["test", "--workspace", "--exclude", "e2e"]),
    )?;
    step::run(
        "tests of the story harness",
        workspace(&["test", "--package", "e2e", "--doc"]),
    )?;
    let mut passed = 0;
    for line in lines
        .iter()
        .filter(|line| line.starts_with("test result: ok."))
    {
        passed += line
            .split(' ')
            .nth(3)
            .and_then(|count| count.parse::<u32>().ok())
            .unwrap_or(0);
    }
    anyhow::ensure!(passed > 0, "`cargo test` ran no test at all");
    println!("test result: ok. {passed} passed natively");
    Ok(())
}

/// Cases of each property in a soak.
const CASES: &str = "50000";

/// The same in release, with long counts; only those whose name contains `filter`.
pub(super) fn soak(filter: Option<&str>) -> anyhow::Result<()> {
    let mut command = workspace(&["test", "--release", "--workspace", "--exclude", "e2e"]);
    command
        .args(filter)
        .env("PROPTEST_CASES", CASES)
        .env("VMBUS_SOAK", "1");
    step::show("native soak", command)?;
    step::show("hostile hosts under AddressSanitizer", sanitized(filter))
}

/// The target whose standard library the toolchain has AddressSanitizer for.
const SANITIZED: &str = "x86_64-unknown-linux-gnu";

/// The drivers against hosts that lie, with long counts, built with AddressSanitizer: the stable
/// toolchain has it, and wants to be asked like this.
fn sanitized(filter: Option<&str>) -> Command {
    let mut command = workspace(&["test", "--release", "--package", "inproc"]);
    for test in HOSTILE {
        command.args(["--test", test]);
    }
    command
        .args(["--target", SANITIZED, "--target-dir"])
        .arg(cargo::target_dir().join("sanitized"))
        .args(filter)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", "-Zsanitizer=address")
        // What a host keeps is leaked by intention.
        .env("ASAN_OPTIONS", "detect_leaks=0")
        .env("PROPTEST_CASES", CASES)
        .env("VMBUS_SOAK", "1");
    command
}

/// The stories of hosts that lie.
const HOSTILE: [&str; 5] = [
    "hostile_device",
    "hostile_host",
    "hostile_network",
    "hostile_services",
    "hostile_storage",
];
