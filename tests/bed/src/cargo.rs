//! Builds the programs that run in the bed, with the cargo that runs us.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use crate::error::{Error, Result};
use crate::progress::Step;
use crate::provision::rust_src;

/// The target of static Linux programs. Named explicitly, so that build scripts and procedural
/// macros are built without the flags of the program.
const LINUX: &str = "x86_64-unknown-linux-gnu";

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.ancestors().nth(2).unwrap_or(crate_dir).to_owned()
}

/// Cargo's target directory of the workspace.
pub fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => workspace().join(dir),
        None => workspace().join("target"),
    }
}

/// Builds the `host-vsp` program as a static release binary and returns its path.
pub fn host_vsp() -> Result<PathBuf> {
    static_binary("host-vsp", "host-vsp")
}

/// Builds the agent that the bed runs in L1, once per process, and returns its path.
pub fn l1_agent() -> Result<PathBuf> {
    static BUILT: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut built = BUILT
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(path) = &*built {
        return Ok(path.clone());
    }
    let path = static_binary("bed", "l1-agent")?;
    Ok(built.insert(path).clone())
}

/// Builds the program that runs one command in a guest and returns its path.
pub fn l2_run() -> Result<PathBuf> {
    static_binary("bed", "l2-run")
}

/// Builds the program `bin` of workspace package `package` as a static release binary, which
/// runs in an L1 that has no libraries, and returns its path.
pub fn static_binary(package: &str, bin: &str) -> Result<PathBuf> {
    let mut command = cargo();
    command
        .args([
            "build",
            "--release",
            "--package",
            package,
            "--bin",
            bin,
            "--target",
            LINUX,
        ])
        .arg("--target-dir")
        .arg(target_dir())
        .current_dir(workspace())
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    run(&format!("building {bin}"), &mut command)?;
    Ok(target_dir().join(LINUX).join("release").join(bin))
}

/// Builds `guest-kernel` for bare metal and returns the path of its ELF file.
pub fn guest_kernel() -> Result<PathBuf> {
    let target_dir = target_dir().join("guest-kernel");
    let mut command = guest_kernel_cargo("build")?;
    command
        .arg("--release")
        .arg("--target-dir")
        .arg(&target_dir);
    run("building guest-kernel", &mut command)?;
    Ok(target_dir
        .join(rust_src::TARGET)
        .join("release")
        .join("guest-kernel"))
}

/// A `cargo SUBCOMMAND` for the guest kernel's package and target, by the route that works here.
pub fn guest_kernel_cargo(subcommand: &str) -> Result<Command> {
    let mut command = cargo();
    command
        .arg(subcommand)
        .current_dir(workspace().join("guest-kernel"));
    rust_src::bare_metal_route()?.apply(&mut command);
    Ok(command)
}

/// The cargo that runs us, else the one on the path.
pub fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")))
}

/// Runs a cargo command as a long step; its messages are shown when it fails.
fn run(title: &str, command: &mut Command) -> Result<()> {
    let step = Step::begin(title, 0);
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Error::Command {
            command: title.to_owned(),
            why: error.to_string(),
        })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(60)..].join("\n");
        return Err(Error::Command {
            command: format!("{command:?}").replace('"', ""),
            why: format!("{}\n{tail}", output.status),
        });
    }
    step.done("");
    Ok(())
}
