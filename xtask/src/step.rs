//! A step of a tier: a command whose output goes to a log and is shown only when it fails.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write, pipe};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, bail, ensure};
use bed::cache::Cache;
use bed::{cargo, progress};

/// Lines of the log that a failure shows.
const SHOWN: usize = 80;

/// What a step's command came to.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: ExitStatus,
    pub(crate) lines: Vec<String>,
}

/// Runs `command` as step `name`; an error with the end of its output when it fails.
pub(crate) fn run(name: &str, command: Command) -> anyhow::Result<Vec<String>> {
    let Ran { status, lines } = try_run(name, command)?;
    if !status.success() {
        let shown = lines[lines.len().saturating_sub(SHOWN)..].join("\n");
        bail!(
            "{name} failed ({status}); the whole output is in {}\n{shown}",
            log_path(name)
        );
    }
    Ok(lines)
}

/// Runs `command` as step `name`, whatever comes of it.
pub(crate) fn try_run(name: &str, mut command: Command) -> anyhow::Result<Ran> {
    let step = progress::Step::begin(name, 0);
    let log = log_path(name);
    let mut log = File::create(&log).with_context(|| log.clone())?;
    let (reader, writer) = pipe()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("{command:?}"))?;
    // The command holds the pipe's other end; the lines end when the last process is gone.
    drop(command);
    let mut lines = Vec::new();
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        writeln!(log, "{line}")?;
        step.say(&line);
        lines.push(line);
    }
    let status = child.wait()?;
    step.done(if status.success() { "ok" } else { "FAILED" });
    Ok(Ran { status, lines })
}

/// Runs `command` as step `name` with its output shown as it comes.
pub(crate) fn show(name: &str, mut command: Command) -> anyhow::Result<()> {
    let step = progress::Step::begin(name, 0);
    step.say("");
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("{command:?}"))?;
    step.done(if status.success() { "ok" } else { "FAILED" });
    if !status.success() {
        bail!("{name} failed ({status})");
    }
    Ok(())
}

/// The program `name`, a crate's of that name: of the path, else `version` of it in the cache, built
/// there once.
pub(crate) fn tool(name: &str, version: &str) -> anyhow::Result<PathBuf> {
    let on_path = Command::new(name).arg("--version").output();
    if on_path.is_ok_and(|output| output.status.success()) {
        return Ok(name.into());
    }
    let root = Cache::open()?.tool(&format!("{name}-{version}"));
    let program = root.join("bin").join(name);
    if !program.is_file() {
        let mut command = cargo::cargo();
        command
            .args(["install", "--locked", "--version", version, name, "--root"])
            .arg(&root)
            .env_remove("CARGO_TARGET_DIR")
            // It would be built for longer than it ever runs.
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
        let title = format!("building {name} into the cache (once, some minutes)");
        run(&title, command)?;
    }
    ensure!(
        program.is_file(),
        "{} is missing after its installation",
        program.display()
    );
    Ok(program)
}

fn log_path(name: &str) -> String {
    let dir = cargo::target_dir().join("xtask-logs");
    // Without the directory, opening the log says what is wrong.
    let _ = fs::create_dir_all(&dir);
    let file: String = name
        .chars()
        .map(|it| if it.is_ascii_alphanumeric() { it } else { '-' })
        .collect();
    dir.join(format!("{file}.log")).display().to_string()
}
