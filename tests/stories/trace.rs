//! What L1's kernel sees: a trace of its own for one story, from tracefs.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use bed::l1::{L1, Process};
use e2e::Story;

use crate::guest::NEXT;

/// Where tracefs keeps traces beside the common one.
const INSTANCES: &str = "/sys/kernel/tracing/instances";

/// Room for each processor's events, in KiB.
const BUFFER: u32 = 16_384;

/// A trace that is being taken.
pub(crate) struct Trace<'a> {
    l1: &'a L1,
    dir: String,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// The thread it happened in.
    pub(crate) thread: i64,
    /// What, as the kernel words it: `name: fields` for a tracepoint, `sys_name(arguments)` and
    /// `sys_name -> result` for a system call.
    pub(crate) what: String,
}

impl<'a> Trace<'a> {
    /// Begins to trace `events`, each a path below `events` and a filter or nothing.
    pub(crate) fn begin(story: &'a Story, events: &[(&str, &str)]) -> anyhow::Result<Self> {
        let name = story.dir().rsplit('/').next().unwrap_or_default();
        let trace = Self {
            l1: story.l1(),
            dir: format!("{INSTANCES}/{name}"),
        };
        trace.shell(&format!("mkdir {}", trace.dir))?;
        trace.shell(&format!("echo {BUFFER} > buffer_size_kb"))?;
        for (event, filter) in events {
            if !filter.is_empty() {
                trace.shell(&format!("echo '{filter}' > events/{event}/filter"))?;
            }
            trace.shell(&format!("echo 1 > events/{event}/enable"))?;
        }
        Ok(trace)
    }

    /// What has happened so far; all of it, or it is an error.
    pub(crate) fn events(&self) -> anyhow::Result<Vec<Event>> {
        let stats = self.shell("cat per_cpu/cpu*/stats")?;
        for lost in ["overrun", "dropped events"] {
            let line = format!("{lost}: 0\n");
            ensure!(stats.contains(&line), "events were lost: {stats}");
        }
        self.shell("cat trace")?
            .lines()
            .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
            .map(|line| parse(line).with_context(|| format!("a line of the trace: {line:?}")))
            .collect()
    }

    /// Ends it.
    pub(crate) fn end(self) -> anyhow::Result<()> {
        let dir = &self.dir;
        self.shell("echo 0 > tracing_on")?;
        let output = self.l1.command("rmdir").arg(dir).run(NEXT)?;
        ensure!(output.status.success(), "rmdir {dir}: {output}");
        Ok(())
    }

    fn shell(&self, line: &str) -> anyhow::Result<String> {
        let command = self.l1.shell(line);
        let command = if line.starts_with("mkdir") {
            command
        } else {
            command.dir(&self.dir)
        };
        let output = command.run(NEXT)?;
        ensure!(output.status.success(), "{line}: {output}");
        Ok(output.stdout_text())
    }
}

/// Takes `thread-123  [000] .....  1.234567: what` apart. The thread's name may hold anything.
fn parse(line: &str) -> Option<Event> {
    let (thread, rest) = line.split_once(" [")?;
    let thread = thread.trim_end().rsplit_once('-')?.1.parse().ok()?;
    let (_, what) = rest.split_once(": ")?;
    Some(Event {
        thread,
        what: what.trim().to_owned(),
    })
}

/// The threads of a process that runs, and their names.
pub(crate) fn threads(l1: &L1, process: &Process) -> anyhow::Result<BTreeMap<i64, String>> {
    let line = format!(
        "cd /proc/{}/task && for i in *; do echo $i $(cat $i/comm); done",
        process.pid()
    );
    let output = l1.shell(&line).run(NEXT)?;
    ensure!(output.status.success(), "threads: {output}");
    output
        .stdout_text()
        .lines()
        .map(|line| {
            let (id, name) = line.split_once(' ').context("a thread")?;
            Ok((id.parse()?, name.to_owned()))
        })
        .collect()
}

/// The descriptor by which a process that runs has `path` open.
pub(crate) fn descriptor(l1: &L1, process: &Process, path: &str) -> anyhow::Result<u64> {
    let line = format!(
        "cd /proc/{}/fd && for i in *; do [ \"$(readlink $i)\" = '{path}' ] && echo $i; done; true",
        process.pid()
    );
    let output = l1.shell(&line).run(NEXT)?;
    let found = output.stdout_text();
    found
        .trim()
        .parse()
        .with_context(|| format!("descriptor of {path}: {output}"))
}
