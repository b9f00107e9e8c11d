//! `cargo xtask module` refuses what it cannot build for in one sentence, before it fetches anything.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

const RUSTC: &str = "rustc 1.85.1 (4eb161250 2025-03-15)";

/// A build directory with this configuration.
fn kernel(dir: &Path, config: &str) {
    let generated = dir.join("include/config");
    fs::create_dir_all(&generated).unwrap();
    fs::write(generated.join("auto.conf"), config).unwrap();
}

/// A program that says `version` of itself.
fn program(dir: &Path, name: &str, version: &str) {
    let path = dir.join(name);
    fs::write(&path, format!("#!/bin/sh\necho '{version}'\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// What the command says where `tools` are all the programs there are.
fn refused(tools: &Path, arguments: &[&str], words: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg("module")
        .args(arguments)
        .env("PATH", tools)
        .env("VMBUS_CACHE", tools.join("no-cache"))
        .env_remove("RUSTC")
        .env_remove("BINDGEN")
        .env_remove("MAKE")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{arguments:?}: {said}");
    }
}

#[test]
fn wrong_kernels_and_missing_tools_get_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let tools = dir.path().join("bin");
    fs::create_dir(&tools).unwrap();
    let place = dir.path().join("build");
    let own = ["--kernel-dir", place.to_str().unwrap()];

    refused(&tools, &own, &["build", "No such file"]);
    fs::create_dir(&place).unwrap();
    refused(&tools, &own, &["no kernel's build directory"]);
    kernel(&place, "CONFIG_64BIT=y\n");
    refused(&tools, &own, &["built without Rust", "CONFIG_RUST=y"]);
    let config = format!("CONFIG_RUST=y\nCONFIG_RUSTC_VERSION_TEXT=\"{RUSTC}\"\n");
    kernel(&place, &config);
    refused(&tools, &own, &["`rustc` can't be run", "RUSTC"]);
    program(&tools, "rustc", "rustc 1.95.0 (abc 2026-04-01)");
    refused(&tools, &own, &["`bindgen` can't be run", "BINDGEN"]);
    program(&tools, "bindgen", "bindgen 0.71.1");
    refused(&tools, &own, &["`make` can't be run", "MAKE"]);
    program(&tools, "make", "GNU Make 4.4.1");
    refused(&tools, &own, &[RUSTC, "rustc 1.95.0", "--release"]);
    program(&tools, "rustc", RUSTC);
    refused(&tools, &own, &["rust/libkernel.rmeta", "--release"]);
}

#[test]
fn releases_that_are_not_debians_get_a_sentence() {
    let tools = tempfile::tempdir().unwrap();
    for release in ["6.17.1-arch1-1", "7.3", ""] {
        refused(tools.path(), &["--release", release], &["--kernel-dir"]);
    }
}
