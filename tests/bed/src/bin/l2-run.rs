//! Runs one command in a guest and reports over a serial port what it prints and how it ends, in
//! the frames of `bed::wire`: `l2-run DEVICE PROGRAM ARGUMENT...`.
//!
//! Its own exit code is 0 where the command's was.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bed::wire::{self, Report, Status, Stream};
use rustix::termios::{OptionalActions, tcdrain, tcgetattr, tcsetattr};

/// The only process.
const ID: u32 = 0;

/// Most bytes of one report: what a serial port carries in a moment.
const PIECE: usize = 1024;

/// How long the output of an ended command is waited for: something that it has left running in the
/// background may hold it open for ever.
const LINGER: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [device, program, arguments @ ..] = &arguments[..] else {
        eprintln!("l2-run: DEVICE PROGRAM ARGUMENT...");
        return ExitCode::from(2);
    };
    match run(device, program, arguments) {
        Ok(Status::Code(0)) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("l2-run: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(device: &str, program: &str, arguments: &[String]) -> io::Result<Status> {
    let port = OpenOptions::new().read(true).write(true).open(device)?;
    let mut settings = tcgetattr(&port)?;
    settings.make_raw();
    tcsetattr(&port, OptionalActions::Now, &settings)?;
    let port = Arc::new(Mutex::new(port));
    send(&port, &Report::Ready, &[])?;

    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (ended, ends) = channel();
    if let Some(stdout) = child.stdout.take() {
        carry(&port, Stream::Stdout, stdout, ended.clone());
    }
    if let Some(stderr) = child.stderr.take() {
        carry(&port, Stream::Stderr, stderr, ended);
    }
    let status = end_of(child.wait()?);
    let deadline = Instant::now() + LINGER;
    for _ in [Stream::Stdout, Stream::Stderr] {
        // What comes after that is not missed.
        let _ = ends.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
    send(&port, &Report::Exited { id: ID, status }, &[])?;
    // Nobody may write any more.
    let port = port.lock().unwrap_or_else(|it| it.into_inner());
    tcdrain(&*port)?;
    Ok(status)
}

fn end_of(status: ExitStatus) -> Status {
    match (status.code(), status.signal()) {
        (Some(code), _) => Status::Code(code),
        (None, signal) => Status::Signal(signal.unwrap_or_default()),
    }
}

/// Carries a stream to its end, and says then that it has ended.
fn carry(
    port: &Arc<Mutex<File>>,
    stream: Stream,
    mut from: impl Read + Send + 'static,
    ended: Sender<()>,
) {
    let port = Arc::clone(port);
    thread::spawn(move || {
        let mut buffer = [0; PIECE];
        loop {
            let count = match from.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) => break,
                Ok(count) => count,
            };
            if let Err(error) = send(&port, &Report::Output { id: ID, stream }, &buffer[..count]) {
                eprintln!("l2-run: {error}");
                break;
            }
        }
        // Nobody listens any more if the command ended long ago.
        let _ = ended.send(());
    });
}

fn send(port: &Mutex<File>, report: &Report, data: &[u8]) -> io::Result<()> {
    let mut port = port.lock().unwrap_or_else(|it| it.into_inner());
    wire::send(&mut *port, report, data)
}
