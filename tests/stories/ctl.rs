//! `host-vsp ctl`: the API of a machine, as a story calls it.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bed::l1::{Output, Process};
use e2e::Story;
use serde_json::Value;

use crate::stock::COMMAND;

/// The API of the machine under test.
pub(crate) struct Ctl<'a> {
    story: &'a Story,
    socket: String,
}

impl<'a> Ctl<'a> {
    /// The API of the story's only machine.
    pub(crate) fn new(story: &'a Story) -> Self {
        let socket = story.file("api");
        Self { story, socket }
    }

    /// The path for `--api-socket`.
    pub(crate) fn socket(&self) -> &str {
        &self.socket
    }

    /// Calls, whatever comes of it.
    pub(crate) fn output(&self, words: &[&str]) -> anyhow::Result<Output> {
        let program = self.story.host_vsp_program()?;
        let options = ["ctl", "--json", "--api-socket", &self.socket];
        let words = options.into_iter().chain(words.iter().copied());
        Ok(self.story.l1().command(&program).args(words).run(COMMAND)?)
    }

    /// Begins a call that takes long; dropped, it is killed.
    pub(crate) fn begin(&self, words: &[&str]) -> anyhow::Result<Process> {
        let program = self.story.host_vsp_program()?;
        let options = ["ctl", "--json", "--api-socket", &self.socket];
        let words = options.into_iter().chain(words.iter().copied());
        Ok(self.story.l1().command(&program).args(words).spawn()?)
    }

    /// Calls, which must fail; returns what it complained of.
    pub(crate) fn refused(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = self.output(words)?;
        ensure!(
            output.status.code() == Some(1),
            "ctl {}: {output}",
            words.join(" ")
        );
        Ok(output.stderr_text())
    }

    /// Calls, which must succeed; returns what it printed.
    pub(crate) fn call(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = self.output(words)?;
        ensure!(output.status.success(), "ctl {}: {output}", words.join(" "));
        Ok(output.stdout_text())
    }

    /// Calls, which must succeed; returns the answer.
    pub(crate) fn json(&self, words: &[&str]) -> anyhow::Result<Value> {
        let text = self.call(words)?;
        serde_json::from_str(&text).with_context(|| format!("ctl {}: {text:?}", words.join(" ")))
    }

    /// Waits until the guest's drivers are as `condition` says.
    pub(crate) fn wait_guest(
        &self,
        what: &str,
        condition: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            let guest = self.json(&["guest"])?;
            if condition(&guest) {
                return Ok(());
            }
            ensure!(begin.elapsed() < COMMAND, "{what} does not come: {guest}");
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits until the guest's heart beats, and it can be asked to shut down and typed on.
    pub(crate) fn wait_drivers(&self) -> anyhow::Result<()> {
        self.wait_guest("the guest's drivers", |guest| {
            guest["heartbeat"] == "Alive" && guest["shutdown"] == true && guest["keyboard"] == true
        })
    }
}
