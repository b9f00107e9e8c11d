//! The console's backend: one stream of bytes in, one out, each with a thread of its own.
//!
//! Threads, because stdin may be a terminal, a pipe, a file or nothing, and only blocking reads
//! work on all of them; and because making a shared terminal non-blocking would break the shell
//! that we were started from.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::files::OutputFile;

/// Most bytes waiting in each direction.
const LIMIT: usize = 64 * 1024;

/// How long the end of a console waits for a reader that takes nothing of its last output.
const LINGER: Duration = Duration::from_secs(1);

/// Most bytes written at a time, so that a slow reader is seen to take some.
const PIECE: usize = 4096;

/// One stream in, one stream out.
pub struct Streams {
    shared: Arc<Shared>,
}

struct Shared {
    queues: Mutex<Queues>,
    changed: Condvar,
    event: EventFd,
}

#[derive(Default)]
struct Queues {
    input: VecDeque<u8>,
    output: VecDeque<u8>,
    /// The writer has taken bytes that are not written yet.
    writing: bool,
    /// Pieces written.
    written: u64,
    /// Output stopped: nobody reads it any more.
    broken: bool,
    /// Somebody wants to know when there is room for output.
    want_room: bool,
    ended: bool,
}

impl Queues {
    /// Whether no output waits to be written, or it never will be.
    fn is_written(&self) -> bool {
        self.broken || (self.output.is_empty() && !self.writing)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, guard: MutexGuard<'a, Queues>) -> MutexGuard<'a, Queues> {
        self.changed
            .wait(guard)
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn notify(&self) {
        // An eventfd that is full is readable, which is all we want of it.
        let _ = self.event.write(1);
    }
}

impl Streams {
    /// A console that reads from `input` and writes to `output`.
    ///
    /// # Errors
    /// The system gives no thread or file descriptor.
    pub fn new(
        input: Option<Box<dyn Read + Send>>,
        output: Box<dyn Write + Send>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            queues: Mutex::default(),
            changed: Condvar::new(),
            event: EventFd::new(EFD_NONBLOCK)?,
        });
        if let Some(input) = input {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("console-in".into())
                .spawn(move || read_input(&shared, input))?;
        }
        let streams = Self {
            shared: Arc::clone(&shared),
        };
        std::thread::Builder::new()
            .name("console-out".into())
            .spawn(move || write_output(&shared, output))?;
        Ok(streams)
    }

    /// The process's own stdin and stdout.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn stdio() -> io::Result<Self> {
        Self::new(Some(Box::new(io::stdin())), Box::new(io::stdout()))
    }

    /// A new pseudo-terminal, and the path at which others open it.
    ///
    /// # Errors
    /// The system gives no pseudo-terminal; else as [`new`](Self::new).
    pub fn pty() -> io::Result<(Self, PathBuf)> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let path = PathBuf::from(name.to_string_lossy().into_owned());
        // While nobody has the other end open, reads of ours would fail: keep one open. Raw mode
        // holds for all that open it.
        let other = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::NOCTTY.bits() as i32)
            .open(&path)?;
        let mut mode = rustix::termios::tcgetattr(&other)?;
        mode.make_raw();
        rustix::termios::tcsetattr(&other, rustix::termios::OptionalActions::Now, &mode)?;
        let master = File::from(master);
        let input = PtyInput {
            master: master.try_clone()?,
            _other: other,
        };
        Ok((Self::new(Some(Box::new(input)), Box::new(master))?, path))
    }

    /// A file for output; a FIFO or a device serves both ways.
    ///
    /// # Errors
    /// The file cannot be emptied; else as [`new`](Self::new).
    pub fn file(file: OutputFile) -> io::Result<Self> {
        let (input, output) = file.begin()?;
        let input = input.map(|input| Box::new(input) as Box<dyn Read + Send>);
        Self::new(input, Box::new(output))
    }

    /// Takes input that has come, at most `limit` bytes.
    pub(super) fn read(&self, limit: usize) -> Vec<u8> {
        let mut queues = self.shared.lock();
        let length = limit.min(queues.input.len());
        let taken = queues.input.drain(..length).collect();
        if length != 0 {
            self.shared.changed.notify_all();
        }
        taken
    }

    /// Takes bytes for output off the front of `bytes`; whether all of them. If not, the event
    /// fires when there is room.
    pub(super) fn write(&self, bytes: &mut VecDeque<u8>) -> bool {
        self.write_up_to(LIMIT, bytes)
    }

    /// Takes the last bytes of a conversation, for which there is twice the room: nobody comes
    /// back with those that are left.
    pub(super) fn write_last(&self, bytes: &mut VecDeque<u8>) {
        self.write_up_to(2 * LIMIT, bytes);
    }

    fn write_up_to(&self, limit: usize, bytes: &mut VecDeque<u8>) -> bool {
        let mut queues = self.shared.lock();
        if queues.broken {
            bytes.clear();
            return true;
        }
        let room = limit.saturating_sub(queues.output.len());
        let length = room.min(bytes.len());
        queues.output.extend(bytes.drain(..length));
        queues.want_room = !bytes.is_empty();
        if length != 0 {
            self.shared.changed.notify_all();
        }
        bytes.is_empty()
    }

    /// Readable when input or room for output has come since [`clear_event`](Self::clear_event).
    pub(super) fn event(&self) -> RawFd {
        self.shared.event.as_raw_fd()
    }

    /// Makes the event unreadable; look at both directions after it.
    pub(super) fn clear_event(&self) {
        // Not blocking; an event that was not set is no error.
        let _ = self.shared.event.read();
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        let mut queues = self.shared.lock();
        // The last lines of a guest that powers off still matter, as long as somebody takes them.
        loop {
            let before = queues.written;
            let (after, waited) = self
                .shared
                .changed
                .wait_timeout_while(queues, LINGER, |queues| {
                    !queues.is_written() && queues.written == before
                })
                .unwrap_or_else(PoisonError::into_inner);
            queues = after;
            if waited.timed_out() || queues.is_written() {
                break;
            }
        }
        queues.ended = true;
        self.shared.changed.notify_all();
    }
}

fn read_input(shared: &Shared, mut from: Box<dyn Read + Send>) {
    let mut buffer = [0; 4096];
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        let mut queues = shared.lock();
        while queues.input.len() >= LIMIT && !queues.ended {
            queues = shared.wait(queues);
        }
        if queues.ended {
            return;
        }
        queues
            .input
            .extend(buffer.get(..length).unwrap_or_default());
        drop(queues);
        shared.notify();
    }
}

fn write_output(shared: &Shared, mut to: Box<dyn Write + Send>) {
    loop {
        let mut queues = shared.lock();
        while queues.output.is_empty() && !queues.ended {
            queues = shared.wait(queues);
        }
        if queues.output.is_empty() {
            return;
        }
        let bytes: Vec<u8> = queues.output.drain(..).collect();
        queues.writing = true;
        let want_room = std::mem::take(&mut queues.want_room);
        drop(queues);
        if want_room {
            shared.notify();
        }
        let outcome = bytes.chunks(PIECE).try_for_each(|piece| {
            to.write_all(piece)?;
            to.flush()?;
            let mut queues = shared.lock();
            queues.written = queues.written.wrapping_add(1);
            drop(queues);
            shared.changed.notify_all();
            Ok::<_, io::Error>(())
        });
        let mut queues = shared.lock();
        queues.writing = false;
        if let Err(error) = outcome {
            tracing::warn!(%error, "console output goes nowhere from now on");
            queues.broken = true;
        }
        shared.changed.notify_all();
        if queues.broken {
            drop(queues);
            return shared.notify();
        }
    }
}

/// The input of a pseudo-terminal, with its other end held open.
struct PtyInput {
    master: File,
    _other: File,
}

impl Read for PtyInput {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.master.read(to)
    }
}
