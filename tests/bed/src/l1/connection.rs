//! The runner's end of the agent's port: sends requests, and keeps what the reports say until
//! someone asks.

use std::collections::HashMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use super::{read_console, tail};
use crate::error::{Error, Result};
use crate::wire::{self, Report, Request, Status, Stream};

/// A healthy L1 answers a ping within this, however busy the guest keeps its one CPU.
const PING_DEADLINE: Duration = Duration::from_secs(20);

/// No write to the port takes longer in a healthy L1.
const WRITE_DEADLINE: Duration = Duration::from_secs(60);

/// Most bytes kept of one stream of one process; what comes after is dropped.
const STREAM_MAX: usize = 64 << 20;

/// What L1's kernel says where its processor did nothing else for a long time.
const LOCKUP: &str = "BUG: soft lockup";

/// Processes whose last words are kept.
const TRAIL_MAX: usize = 6;

/// Lines of L1's console in an error.
const CONSOLE_TAIL: usize = 100;

#[derive(Debug)]
pub(crate) struct Connection {
    writer: Mutex<UnixStream>,
    state: Mutex<State>,
    changed: Condvar,
    next_id: AtomicU32,
    console: PathBuf,
}

#[derive(Debug, Default)]
struct State {
    ready: bool,
    /// Why nothing more will come.
    dead: Option<String>,
    done: HashMap<u32, std::result::Result<i64, String>>,
    files: HashMap<u32, Vec<u8>>,
    processes: HashMap<u32, Record>,
    /// The last words of processes that were dropped.
    trail: Vec<String>,
}

/// What is known of a process.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(crate) stdout: Captured,
    pub(crate) stderr: Captured,
    pub(crate) status: Option<Status>,
}

/// What a stream has carried so far.
#[derive(Debug, Default)]
pub(crate) struct Captured {
    pub(crate) bytes: Vec<u8>,
    pub(crate) ended: bool,
}

impl Record {
    pub(crate) fn stream(&self, stream: Stream) -> &Captured {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }

    pub(crate) fn stream_mut(&mut self, stream: Stream) -> &mut Captured {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// The process and both its streams are at their end.
    pub(crate) fn finished(&self) -> Option<Status> {
        self.status
            .filter(|_| self.stdout.ended && self.stderr.ended)
    }
}

impl Connection {
    /// Starts to listen to the agent.
    pub(crate) fn start(socket: UnixStream, console: PathBuf) -> std::io::Result<Arc<Self>> {
        let reader = socket.try_clone()?;
        socket.set_write_timeout(Some(WRITE_DEADLINE))?;
        let connection = Arc::new(Self {
            writer: Mutex::new(socket),
            state: Mutex::default(),
            changed: Condvar::new(),
            next_id: AtomicU32::new(1),
            console,
        });
        let listener = Arc::clone(&connection);
        thread::spawn(move || listener.listen(reader));
        Ok(connection)
    }

    fn listen(&self, mut reader: UnixStream) {
        loop {
            match wire::receive(&mut reader) {
                Ok((report, data)) => self.take(report, data),
                Err(error) => {
                    self.lock()
                        .dead
                        .get_or_insert(format!("its port ended ({error})"));
                    self.changed.notify_all();
                    return;
                }
            }
        }
    }

    fn take(&self, report: Report, data: Vec<u8>) {
        let mut state = self.lock();
        match report {
            Report::Ready => state.ready = true,
            Report::Done { id, result } => {
                state.done.insert(id, result);
            }
            Report::FileData { id } => state.files.entry(id).or_default().extend(data),
            Report::Output { id, stream } => {
                let captured = state.processes.entry(id).or_default().stream_mut(stream);
                let room = STREAM_MAX.saturating_sub(captured.bytes.len());
                captured
                    .bytes
                    .extend_from_slice(&data[..data.len().min(room)]);
            }
            Report::End { id, stream } => {
                state
                    .processes
                    .entry(id)
                    .or_default()
                    .stream_mut(stream)
                    .ended = true;
            }
            Report::Exited { id, status } => {
                state.processes.entry(id).or_default().status = Some(status);
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    pub(crate) fn new_id(&self) -> u32 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn send(&self, request: &Request, data: &[u8]) -> Result<()> {
        for piece in 0..data.len().div_ceil(wire::CHUNK).max(1) {
            let begin = piece * wire::CHUNK;
            let end = data.len().min(begin + wire::CHUNK);
            let mut writer = self
                .writer
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            if let Err(error) = wire::send(&mut *writer, request, &data[begin..end]) {
                // Half a frame may be out: the connection is of no use any more.
                let _ = writer.shutdown(Shutdown::Both);
                return Err(self.died(&format!("it takes no more requests ({error})")));
            }
        }
        Ok(())
    }

    pub(crate) fn wait_ready(&self, limit: Duration) -> Result<()> {
        match self.wait(limit, |state| state.ready.then_some(())) {
            Ok(Some(())) => Ok(()),
            Ok(None) => Err(self.died(&format!("it was not up within {limit:?}"))),
            Err(error) => Err(error),
        }
    }

    /// Waits for the end of request `id`, called `what`.
    pub(crate) fn wait_done(&self, id: u32, what: &str, limit: Duration) -> Result<i64> {
        match self.wait(limit, |state| state.done.remove(&id))? {
            Some(result) => result.map_err(Error::InL1),
            None => Err(self.late(what, limit, String::new())),
        }
    }

    /// The data that has come for the file request `id`.
    pub(crate) fn take_file(&self, id: u32) -> Vec<u8> {
        self.lock().files.remove(&id).unwrap_or_default()
    }

    /// Waits until `check` finds in the record of process `id` what it looks for; `None` when the
    /// deadline passed.
    pub(crate) fn wait_process<T>(
        &self,
        id: u32,
        limit: Duration,
        mut check: impl FnMut(&mut Record) -> Option<T>,
    ) -> Result<Option<T>> {
        self.wait(limit, |state| check(state.processes.entry(id).or_default()))
    }

    /// Looks at the record of process `id`.
    pub(crate) fn look<T>(&self, id: u32, look: impl FnOnce(&Record) -> T) -> T {
        look(self.lock().processes.entry(id).or_default())
    }

    /// Keeps the last words of a process.
    pub(crate) fn leave_trail(&self, words: String) {
        let mut state = self.lock();
        state.trail.push(words);
        let excess = state.trail.len().saturating_sub(TRAIL_MAX);
        state.trail.drain(..excess);
    }

    /// Takes the last words kept so far.
    pub(crate) fn take_trail(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().trail)
    }

    /// Forgets process `id`.
    pub(crate) fn forget(&self, id: u32) {
        self.lock().processes.remove(&id);
    }

    pub(crate) fn ping(&self) -> Result<()> {
        let id = self.new_id();
        self.send(&Request::Ping { id }, &[])?;
        match self.wait(PING_DEADLINE, |state| state.done.remove(&id))? {
            Some(_) => Ok(()),
            None => Err(self.died(&format!("it did not answer within {PING_DEADLINE:?}"))),
        }
    }

    /// Fails where L1's kernel has found that its processor did nothing else for a long time.
    ///
    /// That was seen: the timer's interrupts of an L1 stop while its guest runs, for minutes, and with
    /// them all that L1 does but the guest's processor that happens to run. No program in L1 can do that
    /// to a kernel.
    pub(crate) fn expect_no_lockup(&self) -> Result<()> {
        match self.console().lines().find(|line| line.contains(LOCKUP)) {
            Some(line) => Err(self.died(&format!("its processor stood still ({})", line.trim()))),
            None => Ok(()),
        }
    }

    /// The error for something that did not happen in time: the bed's fault if L1 does not answer.
    pub(crate) fn late(&self, what: &str, after: Duration, seen: String) -> Error {
        match self.ping() {
            Ok(()) => Error::Deadline {
                what: what.to_owned(),
                after,
                seen,
            },
            Err(died) => died,
        }
    }

    pub(crate) fn console(&self) -> String {
        read_console(&self.console)
    }

    fn wait<T>(
        &self,
        limit: Duration,
        mut check: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<Option<T>> {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            if let Some(found) = check(&mut state) {
                return Ok(Some(found));
            }
            if let Some(reason) = state.dead.clone() {
                drop(state);
                return Err(self.died(&reason));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .0;
        }
    }

    fn died(&self, reason: &str) -> Error {
        Error::BedDied {
            reason: reason.to_owned(),
            console: tail(&self.console(), CONSOLE_TAIL),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
