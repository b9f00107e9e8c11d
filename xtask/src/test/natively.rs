//! Tests that need no virtual machine.

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
    step::show("native soak", command)
}
