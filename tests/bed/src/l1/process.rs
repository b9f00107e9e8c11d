//! A running process in L1: its streams, signals and end.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;

use super::command::Output;
use super::connection::Connection;
use super::snapshot::snapshot;
use super::tail;
use crate::error::{Error, Result};
use crate::wire::{Request, Status, Stream};

/// A process in L1. Dropping it kills it and its children; the end of its output stays in
/// [`L1::take_trail`](super::L1::take_trail).
#[derive(Debug)]
pub struct Process {
    connection: Arc<Connection>,
    id: u32,
    pid: i64,
    shown: String,
    /// How far [`Process::expect`] has read standard output and standard error.
    read: [usize; 2],
}

impl Process {
    pub(crate) fn new(connection: Arc<Connection>, id: u32, pid: i64, shown: String) -> Self {
        Self {
            connection,
            id,
            pid,
            shown,
            read: [0; 2],
        }
    }

    /// Process id in L1.
    pub fn pid(&self) -> i64 {
        self.pid
    }

    /// Writes to its standard input.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.connection.send(&Request::Stdin { id: self.id }, bytes)
    }

    /// Closes its standard input.
    pub fn close_stdin(&self) -> Result<()> {
        self.connection
            .send(&Request::StdinEnd { id: self.id }, &[])
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let signal = signal.as_raw();
        self.connection.send(
            &Request::Signal {
                id: self.id,
                signal,
                group: false,
            },
            &[],
        )
    }

    /// Waits until standard output contains `text` after what was expected before, and returns
    /// the line with it (up to now, if the line is not complete). See [`Process::expect_on`].
    pub fn expect(&mut self, text: &str, limit: Duration) -> Result<String> {
        self.expect_on(Stream::Stdout, text, limit)
    }

    /// Waits until `stream` contains `text` after what was expected on it before, and returns the
    /// line with it. The next expectation starts after that line, or after `text` if the line was
    /// not complete yet. Fails as soon as the stream ends without it.
    pub fn expect_on(&mut self, stream: Stream, text: &str, limit: Duration) -> Result<String> {
        self.expect_found(stream, text, limit, false)
    }

    /// Like [`expect_on`](Self::expect_on), but waits until the line is complete.
    pub fn expect_line_on(
        &mut self,
        stream: Stream,
        text: &str,
        limit: Duration,
    ) -> Result<String> {
        self.expect_found(stream, text, limit, true)
    }

    fn expect_found(
        &mut self,
        stream: Stream,
        text: &str,
        limit: Duration,
        whole: bool,
    ) -> Result<String> {
        let from = self.read[stream as usize];
        let found = self.connection.wait_process(self.id, limit, |record| {
            let captured = record.stream(stream);
            match find(&captured.bytes, from, text) {
                Some(found) if found.complete || !whole || captured.ended => Some(Some(found)),
                _ => captured.ended.then_some(None),
            }
        })?;
        let what = || format!("{text:?} from `{}`", self.shown);
        match found {
            Some(Some(found)) => {
                self.read[stream as usize] = found.next;
                Ok(found.line)
            }
            Some(None) => Err(Error::Ended {
                what: what(),
                status: self.connection.look(self.id, |record| match record.status {
                    Some(status) => status.to_string(),
                    None => "its output is closed".into(),
                }),
                seen: self.seen(),
            }),
            None => Err(self.late(&what(), limit)),
        }
    }

    /// Takes what has come on `stream` and was not taken yet, waiting up to `limit` for some. None:
    /// the stream has ended. Nobody else sees what was taken, so there is no limit to all of it.
    pub fn take(&mut self, stream: Stream, limit: Duration) -> Result<Option<Vec<u8>>> {
        self.read[stream as usize] = 0;
        let taken = self.connection.wait_process(self.id, limit, |record| {
            let captured = record.stream_mut(stream);
            match captured.bytes.is_empty() {
                true => captured.ended.then_some(None),
                false => Some(Some(std::mem::take(&mut captured.bytes))),
            }
        })?;
        match taken {
            Some(taken) => Ok(taken),
            // Nothing came: a dead L1 says so, whoever else is silent does not.
            None => self.connection.ping().map(|()| Some(Vec::new())),
        }
    }

    /// What it has printed on standard output so far.
    pub fn stdout(&self) -> Vec<u8> {
        self.connection
            .look(self.id, |record| record.stdout.bytes.clone())
    }

    /// What it has printed on standard error so far.
    pub fn stderr(&self) -> Vec<u8> {
        self.connection
            .look(self.id, |record| record.stderr.bytes.clone())
    }

    /// How it has ended, if it has.
    pub fn status(&self) -> Option<Status> {
        self.connection.look(self.id, |record| record.status)
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Result<Status> {
        let ended = self
            .connection
            .wait_process(self.id, limit, |record| record.finished())?;
        ended.ok_or_else(|| self.late(&format!("the end of `{}`", self.shown), limit))
    }

    /// Waits for its end; all that it has printed comes with its status.
    pub fn finish(mut self, limit: Duration) -> Result<Output> {
        let status = self.wait(limit)?;
        Ok(self.connection.look(self.id, |record| Output {
            status,
            stdout: record.stdout.bytes.clone(),
            stderr: record.stderr.bytes.clone(),
        }))
    }

    /// The error for something that it did not do in time.
    fn late(&self, what: &str, limit: Duration) -> Error {
        let seen = self.seen();
        match self.connection.late(what, limit, seen) {
            Error::Deadline { what, after, seen } => Error::Deadline {
                what,
                after,
                seen: seen + &snapshot(&self.connection),
            },
            died => died,
        }
    }

    /// The end of both streams, for messages.
    pub fn seen(&self) -> String {
        self.connection.look(self.id, |record| {
            [
                (Stream::Stdout, "standard output"),
                (Stream::Stderr, "standard error"),
            ]
            .into_iter()
            .map(|(stream, name)| {
                let text = String::from_utf8_lossy(&record.stream(stream).bytes).into_owned();
                format!(
                    "--- end of {name} of `{}` ---\n{}\n",
                    self.shown,
                    tail(&text, 30)
                )
            })
            .collect()
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.connection.leave_trail(self.seen());
        let signal = Signal::KILL.as_raw();
        // If the L1 is gone, so is the process.
        let _ = self.connection.send(
            &Request::Signal {
                id: self.id,
                signal,
                group: true,
            },
            &[],
        );
        self.connection.forget(self.id);
    }
}

/// A line that was expected.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    line: String,
    /// Where to go on: after the line, or after the text where the line is not complete yet.
    next: usize,
    complete: bool,
}

/// Finds `text` at or after `from`.
fn find(bytes: &[u8], from: usize, text: &str) -> Option<Found> {
    let rest = bytes.get(from..)?;
    let at = from
        + rest
            .windows(text.len().max(1))
            .position(|it| it == text.as_bytes())?;
    let begin = bytes[..at]
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |end| end + 1);
    let after = at + text.len();
    let line_end = bytes[after..]
        .iter()
        .position(|byte| *byte == b'\n')
        .map(|end| after + end);
    let end = line_end.unwrap_or(bytes.len());
    let line = String::from_utf8_lossy(&bytes[begin.max(from)..end]);
    Some(Found {
        line: line.trim_end_matches('\r').to_owned(),
        next: line_end.map_or(after, |end| end + 1),
        complete: line_end.is_some(),
    })
}

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn lines_are_found_one_after_the_other() {
        let text = b"one\r\nvmbus 5.3 ok\r\nvmbus again";
        let found = find(text, 0, "vmbus").unwrap();
        assert_eq!(found.line, "vmbus 5.3 ok");
        assert_eq!((found.next, found.complete), (19, true));
        let found = find(text, found.next, "vmbus").unwrap();
        assert_eq!(found.line, "vmbus again");
        assert_eq!((found.next, found.complete), (24, false));
        assert_eq!(find(text, found.next, "vmbus"), None);
    }
}
