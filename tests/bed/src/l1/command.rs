//! A command to run in L1, and what came of it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::connection::Connection;
use super::process::Process;
use super::tail;
use crate::error::Result;
use crate::wire::{Request, Status};

/// Starting a program takes less than this in a healthy L1.
const SPAWN_DEADLINE: Duration = Duration::from_secs(30);

/// Most characters of a command line in a message.
const SHOWN: usize = 60;

/// A command being put together.
#[derive(Debug, Clone)]
pub struct Command {
    connection: Arc<Connection>,
    argv: Vec<String>,
    env: Vec<(String, String)>,
    dir: String,
}

impl Command {
    pub(crate) fn new(connection: Arc<Connection>, program: &str) -> Self {
        Self {
            connection,
            argv: vec![program.to_owned()],
            env: Vec::new(),
            dir: "/tmp".into(),
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.argv.push(arg.into());
        self
    }

    /// Adds arguments.
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.argv.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the working directory (default `/tmp`).
    pub fn dir(mut self, dir: &str) -> Self {
        dir.clone_into(&mut self.dir);
        self
    }

    /// Starts it.
    pub fn spawn(self) -> Result<Process> {
        let id = self.connection.new_id();
        let shown = short(&self.argv);
        let request = Request::Spawn {
            id,
            argv: self.argv,
            env: self.env,
            dir: self.dir,
        };
        self.connection.send(&request, &[])?;
        let pid = self
            .connection
            .wait_done(id, &format!("starting `{shown}`"), SPAWN_DEADLINE)?;
        Ok(Process::new(self.connection, id, pid, shown))
    }

    /// Runs it to its end with an empty standard input.
    pub fn run(self, limit: Duration) -> Result<Output> {
        self.run_with(b"", limit)
    }

    /// Runs it to its end, feeding it `input`.
    pub fn run_with(self, input: &[u8], limit: Duration) -> Result<Output> {
        let process = self.spawn()?;
        process.write(input)?;
        process.close_stdin()?;
        process.finish(limit)
    }
}

/// The command line for messages: the program without its directory, and not all of a long rest.
fn short(argv: &[String]) -> String {
    let line = argv.join(" ");
    let program = argv.first().map_or("", String::as_str);
    let name_at = program.rfind('/').map_or(0, |slash| slash + 1);
    let mut shown: String = line[name_at..].chars().take(SHOWN).collect();
    if shown.len() < line.len() - name_at {
        shown.push_str(" …");
    }
    shown
}

/// How a process ended and what it printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub status: Status,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Standard output as text.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

impl fmt::Display for Output {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{}", self.status)?;
        for (name, bytes) in [
            ("standard output", &self.stdout),
            ("standard error", &self.stderr),
        ] {
            if !bytes.is_empty() {
                let text = String::from_utf8_lossy(bytes);
                writeln!(formatter, "--- end of {name} ---\n{}", tail(&text, 40))?;
            }
        }
        Ok(())
    }
}

impl Status {
    /// It ended with exit code 0.
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }

    /// The exit code, unless a signal killed it.
    pub fn code(self) -> Option<i32> {
        match self {
            Self::Code(code) => Some(code),
            Self::Signal(_) => None,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(formatter, "exit code {code}"),
            Self::Signal(signal) => write!(formatter, "killed by signal {signal}"),
        }
    }
}
