//! The guest kernel on `host-vsp`: how a story starts it, listens to it, and sees it end.

use std::fmt::Display;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use anyhow::{Context, ensure};
use bed::l1::{Output, Process};
use bed::wire::Stream;
use e2e::Story;

/// For whatever comes next. All of it takes less than two seconds in an L1 that has a core of its
/// own; a machine with other work to do gets this much.
pub(crate) const NEXT: Duration = Duration::from_secs(120);

/// A machine to be started. Its serial port is standard error; standard output and input are for
/// the console.
pub(crate) struct Guest<'a> {
    story: &'a Story,
    scenarios: &'a str,
    command_line: String,
    arguments: Vec<String>,
    cpus: u32,
    log: &'static str,
    redirections: String,
}

impl<'a> Guest<'a> {
    /// One processor, and a kernel that is to run `scenarios`, separated by commas.
    pub(crate) fn new(story: &'a Story, scenarios: &'a str) -> Self {
        Self {
            story,
            scenarios,
            command_line: format!("scenario={scenarios}"),
            arguments: Vec::new(),
            cpus: 1,
            log: "warn",
            redirections: String::new(),
        }
    }

    /// Adds `key=value` to the kernel's command line.
    pub(crate) fn option(mut self, key: &str, value: impl Display) -> Self {
        self.command_line.push_str(&format!(" {key}={value}"));
        self
    }

    /// Adds arguments of `host-vsp run`.
    pub(crate) fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(args.into_iter().map(Into::into));
        self
    }

    /// Adds the disk in the file `path` of L1.
    pub(crate) fn disk(self, path: &str) -> Self {
        self.args(["--disk".to_owned(), format!("path={path}")])
    }

    /// Sets the number of processors, here and there: the scenario `boot` expects as many.
    pub(crate) fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self.option("cpus", cpus)
    }

    /// Has the host tell more: to standard error, between the guest's lines.
    pub(crate) fn verbose(mut self) -> Self {
        self.log = "info";
        self
    }

    /// Starts it with its streams elsewhere, in the words of a shell.
    pub(crate) fn redirected(mut self, redirections: &str) -> Self {
        redirections.clone_into(&mut self.redirections);
        self
    }

    /// Starts it.
    pub(crate) fn start(self) -> anyhow::Result<Vm> {
        let process = self
            .story
            .l1()
            .shell(&format!("exec \"$@\" {}", self.redirections))
            .args(["host-vsp", &self.story.host_vsp_program()?])
            .args(["run", "--kernel", &self.story.guest_kernel()?])
            .args(["--memory", "128M", "--cpus", &self.cpus.to_string()])
            .args(["--serial", "stderr", "--cmdline", &self.command_line])
            .args(self.arguments)
            .dir(self.story.dir())
            .env("HOST_VSP_LOG", self.log)
            .spawn()?;
        let scenarios = self.scenarios.split(',').map(str::to_owned).collect();
        Ok(Vm { process, scenarios })
    }

    /// Starts it and waits until it has passed and ended; returns what it said.
    pub(crate) fn run(self) -> anyhow::Result<String> {
        Ok(self.start()?.pass()?.stderr_text())
    }
}

/// A machine that runs.
pub(crate) struct Vm {
    process: Process,
    scenarios: Vec<String>,
}

impl Vm {
    /// Waits until the guest, or the host, says a line with `text`.
    pub(crate) fn says(&mut self, text: &str) -> anyhow::Result<String> {
        self.process
            .expect_line_on(Stream::Stderr, text, NEXT)
            .with_context(|| format!("waiting for {text:?}"))
    }

    /// Waits until the console, on standard output, says a line with `text`.
    pub(crate) fn console_says(&mut self, text: &str) -> anyhow::Result<String> {
        self.process
            .expect_line_on(Stream::Stdout, text, NEXT)
            .with_context(|| format!("waiting for {text:?} on the console"))
    }

    /// Waits until the guest has passed all that it was asked for and has powered off.
    pub(crate) fn pass(self) -> anyhow::Result<Output> {
        let scenarios = self.scenarios.clone();
        let output = self.end()?;
        let log = output.stderr_text();
        let mut passed = log.lines().filter_map(|line| {
            let line = line.strip_prefix("SCENARIO ")?;
            line.strip_suffix(": PASS")
        });
        for scenario in &scenarios {
            ensure!(
                passed.next() == Some(scenario),
                "scenario {scenario} did not pass: {output}"
            );
        }
        ensure!(
            log.contains("GUEST-KERNEL: PASS") && output.status.success(),
            "the guest did not end well: {output}"
        );
        Ok(output)
    }

    /// Waits for its end, whatever that is.
    pub(crate) fn end(self) -> anyhow::Result<Output> {
        Ok(self.process.finish(NEXT)?)
    }
}

impl Deref for Vm {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Vm {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}
