//! `cargo xtask bed`: one command in a guest with somebody's own kernel, for those who work on
//! Linux's drivers.
//!
//! The guest's initial RAM disk is the user's with an archive of ours behind it
//! ([`bed::guest_command`]). Its console is COM1; what the command prints, and how it ends, comes
//! over COM2 ([`follow`]), so that nothing of it depends on the drivers that are looked at.

mod disk;
mod follow;
mod options;

use std::fs;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use bed::guest_command::GuestCommand;
use bed::l1::{L1, Process};
use bed::wire::Status;

use crate::place::{self, Place};
use follow::End;
pub(crate) use options::Options;

/// The guest ended before its command.
const DIED: u8 = 123;
/// As `timeout` has it.
const TIMEOUT: u8 = 124;
/// As `docker run` has it.
pub(crate) const FAILED: u8 = 125;

/// From the end of the command to that of the machine: its kernel's log on the console.
const POWER_OFF: Duration = Duration::from_secs(120);

/// For small commands in the place.
const HOUSEKEEPING: Duration = Duration::from_secs(60);

/// Memory of the bed's L1 beside that of the guest, in MiB, and the least that it has.
const L1_MEMORY: u64 = 1024;
const L1_LEAST: u64 = 3072;

/// Lines of the console that are shown.
const SHOWN: usize = 400;

/// Runs the command; its exit code is ours.
pub(crate) fn run(options: &Options) -> ExitCode {
    match tell(options) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

fn tell(options: &Options) -> anyhow::Result<u8> {
    options.check()?;
    let theirs = match &options.initrd {
        Some(path) => fs::read(path).with_context(|| path.display().to_string())?,
        None => Vec::new(),
    };
    let command = GuestCommand {
        line: options.command.join(" "),
        modules: options.modules.clone(),
        root: options.root.clone(),
    };
    let initramfs = command.initramfs(theirs)?;
    let dir = tempfile::Builder::new().prefix("vmbus-bed-").tempdir()?;

    let name = |index: usize| format!("disk{index}");
    let mut setup = L1::setup().memory(L1_LEAST.max(options.memory + L1_MEMORY));
    for (index, disk) in options.disks.iter().enumerate() {
        setup = setup.drive(disk.drive(&name(index))?);
    }
    let Place { l1, here, reason } = place::open(options.place, setup)?;
    eprintln!("bed: {reason}");
    let there = format!("{}/there", dir.path().display());
    let [program, kernel, initrd] =
        ["host-vsp", "kernel", "initrd"].map(|name| format!("{there}/{name}"));
    l1.put(bed::cargo::host_vsp()?, &program)?;
    l1.put(&options.kernel, &kernel)?;
    l1.put_bytes(&initramfs, &initrd)?;

    let mut vm = l1
        .command(&program)
        .args(["run", "--serial", "stderr", "--com2", "stdio"])
        .args(["--on-reset", "exit"])
        .args(["--kernel", &kernel, "--initrd", &initrd])
        .args(["--cmdline", &options.kernel_command_line()])
        .args(["--memory", &format!("{}M", options.memory)])
        .args(["--cpus", &options.cpus.to_string()]);
    for (index, disk) in options.disks.iter().enumerate() {
        let path = if here {
            let file = disk.file_here(&name(index), dir.path())?;
            file.display().to_string()
        } else {
            l1.drive(&name(index))?
        };
        vm = vm.args(["--disk", &disk.option(&path)]);
    }
    let mut vm = vm.spawn()?;
    let end = follow::follow(&mut vm, Duration::from_secs(options.timeout))?;
    let (code, what) = verdict(end, &mut vm, options.timeout);
    if options.disks.iter().any(disk::Disk::is_kept) {
        // What the guest wrote may still be in the L1's memory.
        let synced = l1.command("sync").run(HOUSEKEEPING)?;
        ensure!(synced.status.success(), "the disks to be kept: {synced}");
    }
    let console = vm.stderr();
    if let Some(path) = &options.console {
        fs::write(path, &console).with_context(|| path.display().to_string())?;
    }
    if code != 0 {
        show(&console);
    }
    if let Some(what) = what {
        eprintln!("bed: {what}");
    }
    Ok(code)
}

/// The exit code, and what there is to say about it.
fn verdict(end: End, vm: &mut Process, seconds: u64) -> (u8, Option<String>) {
    let what = |begun| match begun {
        true => "the command had ended",
        false => "the command could begin",
    };
    match end {
        End::Command(status) => {
            let late = vm.wait(POWER_OFF).is_err();
            let late = late.then(|| "the guest did not power off after the command".to_owned());
            (code_of(status), late)
        }
        End::Timeout { begun } => (
            TIMEOUT,
            Some(format!("{seconds} s were over before {}", what(begun))),
        ),
        End::Machine { status, begun } => match status {
            Status::Code(0) => (
                DIED,
                Some(format!("the guest powered off before {}", what(begun))),
            ),
            // As `host-vsp run --help` has it: reset, and triple fault.
            Status::Code(3 | 4) => (DIED, Some(format!("the guest died before {}", what(begun)))),
            other => (
                FAILED,
                Some(format!("the machine could not be run: {other}")),
            ),
        },
    }
}

/// As a shell has it.
fn code_of(status: Status) -> u8 {
    match status {
        Status::Code(code) => u8::try_from(code).unwrap_or(u8::MAX),
        Status::Signal(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
    }
}

/// Shows the end of the console, without what a terminal would obey.
fn show(console: &[u8]) {
    let text = String::from_utf8_lossy(console);
    let lines: Vec<&str> = text.lines().collect();
    let mut shown = String::from("--- the guest's console ---\n");
    for line in &lines[lines.len().saturating_sub(SHOWN)..] {
        shown.extend(line.chars().filter(|c| *c == '\t' || !c.is_control()));
        shown.push('\n');
    }
    shown.push_str("--- end of the console ---\n");
    // Whoever has closed it does not want it.
    let _ = std::io::stderr().lock().write_all(shown.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_a_shell() {
        assert_eq!(code_of(Status::Code(7)), 7);
        assert_eq!(code_of(Status::Signal(9)), 137);
    }
}
