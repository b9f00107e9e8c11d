//! What comes from the guest while its command runs: frames at COM2, by `l2-run`.

use std::io::{self, ErrorKind, Write};
use std::time::{Duration, Instant};

use anyhow::Context;
use bed::l1::Process;
use bed::wire::{self, Report, Status, Stream};

/// How long a look for output waits before the time is looked at again.
const LOOK: Duration = Duration::from_secs(5);

/// Output is shown in pieces as they come; after the command's end comes nothing more.
const MOMENT: Duration = Duration::from_secs(20);

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The command did.
    Command(Status),
    /// The machine did, before the command.
    Machine {
        /// What `host-vsp` came to.
        status: Status,
        /// The command had begun.
        begun: bool,
    },
    /// The time is up.
    Timeout {
        /// The command had begun.
        begun: bool,
    },
}

/// Follows `vm` to the end of its command, for `limit` at most, and passes on what that prints.
pub(super) fn follow(vm: &mut Process, limit: Duration) -> anyhow::Result<End> {
    let deadline = Instant::now() + limit;
    let mut frames = Frames::default();
    let mut begun = false;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(End::Timeout { begun });
        }
        let Some(bytes) = vm.take(Stream::Stdout, left.min(LOOK))? else {
            let status = vm.wait(MOMENT)?;
            return Ok(End::Machine { status, begun });
        };
        frames.push(&bytes);
        while let Some((report, data)) = frames.next()? {
            match report {
                Report::Ready => begun = true,
                Report::Output { stream, .. } => print(stream, &data),
                Report::Exited { status, .. } => return Ok(End::Command(status)),
                _ => {}
            }
        }
    }
}

/// Passes on what the command has printed. Whoever has closed our output does not want it.
fn print(stream: Stream, data: &[u8]) {
    let _ = match stream {
        Stream::Stdout => {
            let mut out = io::stdout().lock();
            out.write_all(data).and_then(|()| out.flush())
        }
        Stream::Stderr => io::stderr().lock().write_all(data),
    };
}

/// Frames being put together.
#[derive(Debug, Default)]
struct Frames {
    bytes: Vec<u8>,
}

impl Frames {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next frame, if it is whole.
    fn next(&mut self) -> anyhow::Result<Option<(Report, Vec<u8>)>> {
        let mut rest = self.bytes.as_slice();
        match wire::receive(&mut rest) {
            Ok(frame) => {
                let used = self.bytes.len() - rest.len();
                self.bytes.drain(..used);
                Ok(Some(frame))
            }
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error).context(
                "something else in the guest writes to ttyS1, which the bed needs for itself",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_in_any_pieces() {
        let mut wire = Vec::new();
        let status = Status::Code(7);
        wire::send(&mut wire, &Report::Ready, b"").unwrap();
        wire::send(&mut wire, &Report::Exited { id: 0, status }, b"").unwrap();
        let mut frames = Frames::default();
        let mut seen = Vec::new();
        for byte in wire {
            frames.push(&[byte]);
            seen.extend(frames.next().unwrap().map(|(report, _)| report));
        }
        assert!(matches!(
            seen[..],
            [
                Report::Ready,
                Report::Exited {
                    status: Status::Code(7),
                    ..
                }
            ]
        ));
    }

    #[test]
    fn other_words_at_the_port_are_told() {
        let mut frames = Frames::default();
        frames.push(b"login: ");
        assert!(frames.next().unwrap().is_none());
        frames.push(b"root\n");
        let error = frames.next().unwrap_err().to_string();
        assert!(error.contains("ttyS1"), "{error}");
    }
}
