//! `cargo xtask bed` refuses what it cannot run in one sentence, before it makes anything.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Nothing was run.
const FAILED: i32 = 125;

fn refused(dir: &Path, arguments: &str, words: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg("bed")
        .args(arguments.split(' '))
        .current_dir(dir)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(FAILED), "{arguments}: {said}");
    assert!(output.stdout.is_empty(), "{arguments}");
    assert_eq!(said.lines().count(), 1, "{arguments}: {said}");
    assert!(said.contains(words), "{arguments}: {said}");
}

#[test]
fn wrong_input_gets_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut kernel = vec![0; 0x300];
    kernel[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    fs::write(dir.join("bzImage"), kernel).unwrap();
    fs::write(dir.join("vmlinux"), b"\x7fELF").unwrap();
    fs::write(dir.join("odd"), [0; 700]).unwrap();
    fs::write(dir.join("notes.txt"), b"text").unwrap();
    for (arguments, words) in [
        ("-- true", "--kernel <FILE>"),
        ("--kernel bzImage", "<COMMAND>"),
        ("--kernel none -- true", "there is no file none"),
        ("--kernel vmlinux -- true", "not a bzImage"),
        ("--kernel . -- true", "not a file"),
        ("--kernel bzImage --max-version 3.0 -- true", "5.3"),
        (
            "--kernel bzImage --initrd none -- true",
            "there is no file none",
        ),
        ("--kernel bzImage --disk none -- true", "truncate"),
        (
            "--kernel bzImage --disk odd,keep -- true",
            "whole number of blocks",
        ),
        (
            "--kernel bzImage --module none.ko -- true",
            "there is no file none.ko",
        ),
        (
            "--kernel bzImage --module notes.txt -- true",
            "not a kernel module",
        ),
        ("--kernel bzImage --memory lots -- true", "512M"),
        ("--kernel bzImage --cpus 0 -- true", "needs a processor"),
        ("--kernel bzImage --timeout 0 -- true", "--timeout"),
        ("--kernel bzImage --frobnicate -- true", "--help"),
    ] {
        refused(dir, arguments, words);
    }
}
