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

/// The packages for bare metal. Each is a workspace of its own in the folder of its name.
pub const BARE_METAL: [&str; 2] = [GUEST_KERNEL, EXAMPLE_KERNELS];

const GUEST_KERNEL: &str = "guest-kernel";
const EXAMPLE_KERNELS: &str = "example-kernels";

/// The folder of these packages in the target directory: of one, so that what they share, the standard
/// library before all, is built once.
const BARE_METAL_DIR: &str = "bare-metal";

/// The manifest of the package that makes `guest-kernel` a UEFI file.
pub const UEFI_MANIFEST: &str = "guest-kernel/uefi/Cargo.toml";

/// The folder of the UEFI file in the target directory.
const UEFI: &str = "guest-kernel-uefi";

/// Builds `guest-kernel` for bare metal and returns the path of its ELF file.
pub fn guest_kernel() -> Result<PathBuf> {
    bare_metal_binary(GUEST_KERNEL, GUEST_KERNEL)
}

/// Builds the example kernels for bare metal and returns the path of the ELF file of `name`.
pub fn example_kernel(name: &str) -> Result<PathBuf> {
    bare_metal_binary(EXAMPLE_KERNELS, name)
}

/// Builds the file that boots `guest-kernel` from UEFI, and `guest-kernel` in it; returns its path.
pub fn guest_kernel_uefi() -> Result<PathBuf> {
    let mut command = uefi_cargo("build")?;
    command.arg("--release");
    run("building guest-kernel for UEFI", &mut command)?;
    Ok(target_dir()
        .join(UEFI)
        .join(rust_src::TARGET_UEFI)
        .join("release")
        .join("guest-kernel-uefi.efi"))
}

/// A `cargo SUBCOMMAND` for the UEFI file's package and target. Builds `guest-kernel` first, which is
/// a part of it.
pub fn uefi_cargo(subcommand: &str) -> Result<Command> {
    let mut command = cargo();
    command
        .arg(subcommand)
        .current_dir(workspace().join("guest-kernel/uefi"))
        .env("GUEST_KERNEL", guest_kernel()?);
    rust_src::route(rust_src::TARGET_UEFI)?.apply(&mut command);
    command.arg("--target-dir").arg(target_dir().join(UEFI));
    Ok(command)
}

fn bare_metal_binary(package: &str, name: &str) -> Result<PathBuf> {
    let mut command = bare_metal_cargo(package, "build")?;
    command.arg("--release");
    run(&format!("building {package}"), &mut command)?;
    Ok(target_dir()
        .join(BARE_METAL_DIR)
        .join(rust_src::TARGET)
        .join("release")
        .join(name))
}

/// A `cargo SUBCOMMAND` for a package of [`BARE_METAL`] and its target, by the route that works here.
pub fn bare_metal_cargo(package: &str, subcommand: &str) -> Result<Command> {
    let mut command = cargo();
    command
        .arg(subcommand)
        .current_dir(workspace().join(package));
    rust_src::bare_metal_route()?.apply(&mut command);
    command
        .arg("--target-dir")
        .arg(target_dir().join(BARE_METAL_DIR));
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
