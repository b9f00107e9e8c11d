//! qemu-storage-daemon as a child process: it knows the format, we know the guest.
//!
//! The daemon gets the image as its standard input, open and locked by us, so that nobody can put
//! another file in its place, and the lock lasts as long as the daemon does, also where we are
//! killed. It listens in a directory that only our user can enter, and the directory is gone as
//! soon as we are connected.
//!
//! It ends with us. In an orderly end it is asked to, after we have flushed; where we die, the
//! kernel asks it. It is in a process group of its own, so that a Ctrl-C at a terminal is ours
//! alone.
#![expect(
    unsafe_code,
    reason = "between fork and exec the child asks for a signal at our end; there is no other way"
)]

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, getppid, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal,
};

/// How long it may take to listen.
const START: Duration = Duration::from_secs(60);

/// How long it may take to end when it is asked to: it writes what it holds back.
const END: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};

/// Between looks whether it listens.
const LOOK: Duration = Duration::from_millis(2);

/// Most bytes of a line of its that are repeated.
const MAX_LINE: u64 = 4096;

/// The export's name.
pub(super) const EXPORT: &str = "disk";

/// Why there is no daemon.
#[derive(Debug)]
pub(super) enum StartError {
    /// The program is not there.
    Missing,
    /// It does not want to; why.
    Refused(String),
}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> Self {
        Self::Refused(error.to_string())
    }
}

/// A daemon that runs, until this is dropped.
#[derive(Debug)]
pub(super) struct Daemon {
    process: OwnedFd,
    /// It is the child's parent as far as the kernel's signal at its end goes, so it lives as long
    /// as the child.
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    /// Starts `program` to serve `image`, of QEMU's format `driver`, and connects to it.
    pub(super) fn start(
        program: &OsStr,
        image: File,
        driver: &str,
        read_only: bool,
    ) -> Result<(Self, UnixStream), StartError> {
        let dir = tempfile::Builder::new().prefix("host-vsp-").tempdir()?;
        let socket = dir.path().join("nbd");
        let command = command(program, image, driver, read_only, &socket)?;
        let (started, start) = channel();
        let thread = std::thread::Builder::new()
            .name("storage-daemon".into())
            .spawn(move || run(command, &started))?;
        let ended = || StartError::Refused("it ended without a word".into());
        let process = match start.recv() {
            Ok(Event::Started(process)) => process,
            Ok(Event::Ended(why)) => return Err(StartError::Refused(why)),
            Ok(Event::NotStarted(error)) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StartError::Missing);
            }
            Ok(Event::NotStarted(error)) => return Err(error.into()),
            Err(_) => return Err(ended()),
        };
        let daemon = Self {
            process,
            thread: Some(thread),
        };
        let stream = connect(&socket, &start)?;
        Ok((daemon, stream))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails only where it has ended.
        let _ = pidfd_send_signal(&self.process, Signal::TERM);
        let mut end = [PollFd::new(&self.process, PollFlags::IN)];
        if !matches!(poll(&mut end, Some(&END)), Ok(1..)) {
            tracing::error!("qemu-storage-daemon does not end and is killed");
            let _ = pidfd_send_signal(&self.process, Signal::KILL);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the thread of a daemon tells.
enum Event {
    /// It runs.
    Started(OwnedFd),
    /// It could not be started.
    NotStarted(io::Error),
    /// It has ended; what it said last.
    Ended(String),
}

fn command(
    program: &OsStr,
    image: File,
    driver: &str,
    read_only: bool,
    socket: &Path,
) -> Result<Command, StartError> {
    let file = serde_json::json!({
        "driver": "file",
        "node-name": "file",
        "filename": "/proc/self/fd/0",
        "read-only": read_only,
        "discard": "unmap",
    });
    let disk = serde_json::json!({
        "driver": driver,
        "node-name": EXPORT,
        "file": "file",
        "read-only": read_only,
        "discard": "unmap",
    });
    let writable = if read_only { "off" } else { "on" };
    let socket = socket
        .to_str()
        .filter(|path| !path.contains(','))
        .ok_or_else(|| {
            StartError::Refused("the name of the directory for temporary files is too odd".into())
        })?;
    let mut command = Command::new(program);
    command
        .args(["--blockdev", &file.to_string()])
        .args(["--blockdev", &disk.to_string()])
        .args([
            "--nbd-server",
            &format!("addr.type=unix,addr.path={socket}"),
        ])
        .args([
            "--export",
            &format!("type=nbd,id={EXPORT},node-name={EXPORT},name={EXPORT},writable={writable}"),
        ])
        .stdin(Stdio::from(image))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0);
    let parent = getpid();
    let before_exec = move || {
        set_parent_process_death_signal(Some(Signal::TERM))?;
        // We may have died before that.
        if getppid() != Some(parent) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        Ok(())
    };
    // SAFETY: the closure makes two system calls, and neither allocates nor locks anything.
    unsafe { command.pre_exec(before_exec) };
    Ok(command)
}

/// The life of a daemon, on a thread of its own.
fn run(mut command: Command, events: &Sender<Event>) {
    let child = command.spawn();
    // Our copy of the image goes, so that the lock is the daemon's alone.
    drop(command);
    let mut child = match child.and_then(|child| Ok((process_of(&child)?, child))) {
        Ok((process, child)) => {
            let _ = events.send(Event::Started(process));
            child
        }
        Err(error) => {
            let _ = events.send(Event::NotStarted(error));
            return;
        }
    };
    let mut last = String::from("it ended without a word");
    if let Some(stderr) = child.stderr.take() {
        let mut stderr = BufReader::new(stderr);
        let mut line = Vec::new();
        while let Ok(1..) = (&mut stderr).take(MAX_LINE).read_until(b'\n', &mut line) {
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end();
            tracing::info!("qemu-storage-daemon: {}", text.escape_debug());
            last = words(text);
            line.clear();
        }
    }
    let _ = child.wait();
    let _ = events.send(Event::Ended(last));
}

fn process_of(child: &Child) -> io::Result<OwnedFd> {
    Ok(pidfd_open(Pid::from_child(child), PidfdFlags::empty())?)
}

/// A line of the daemon without the name of the program and the option that it is about.
fn words(line: &str) -> String {
    let mut rest = line;
    for prefix in [
        "qemu-storage-daemon:",
        "--blockdev",
        "--export",
        "--nbd-server",
    ] {
        if let Some((_, after)) = rest.split_once(prefix) {
            rest = after;
        }
    }
    // After an option comes its value, in braces, and then the image under a name of ours.
    let rest = rest.rsplit_once("}: ").map_or(rest, |(_, after)| after);
    let rest = rest.rsplit_once("fd/0': ").map_or(rest, |(_, after)| after);
    format!("qemu-storage-daemon says: {}", rest.trim().escape_debug())
}

fn connect(socket: &Path, events: &Receiver<Event>) -> Result<UnixStream, StartError> {
    let begin = Instant::now();
    loop {
        if let Ok(stream) = UnixStream::connect(socket) {
            return Ok(stream);
        }
        match events.try_recv() {
            Ok(Event::Ended(why)) => return Err(StartError::Refused(why)),
            Ok(_) | Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => {
                return Err(StartError::Refused("it ended without a word".into()));
            }
        }
        if begin.elapsed() > START {
            let seconds = START.as_secs();
            return Err(StartError::Refused(format!(
                "it is not ready after {seconds} s"
            )));
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_daemon_says_is_told_without_its_options() {
        let line = "qemu-storage-daemon: --blockdev {\"driver\":\"vpc\",\"file\":\"file\"}: \
                    invalid VPC image";
        assert_eq!(words(line), "qemu-storage-daemon says: invalid VPC image");
        let line = "qemu-storage-daemon: --blockdev {}: Could not open '/proc/self/fd/0': Invalid";
        assert_eq!(words(line), "qemu-storage-daemon says: Invalid");
        assert_eq!(words("no \x1b"), "qemu-storage-daemon says: no \\u{1b}");
    }
}
