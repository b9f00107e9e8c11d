//! The agent in L1: does what the runner asks over the virtio port (see `bed::wire`).
//!
//! The main thread reads requests and never blocks on a process: each stream of each process has
//! a thread. When the runner goes away, the port reads as ended, the agent returns, and L1's init
//! powers off.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bed::wire::{self, CHUNK, Report, Request, Status, Stream};
use kvm_ioctls::Kvm;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

fn main() {
    if let Err(error) = serve() {
        eprintln!("l1-agent: {error}");
    }
}

fn serve() -> io::Result<()> {
    // On a machine without the port, the runner gives a socket as standard input.
    let port = if std::env::args().nth(1).as_deref() == Some("--stdin") {
        File::from(io::stdin().as_fd().try_clone_to_owned()?)
    } else {
        open_port()?
    };
    let mut requests = port.try_clone()?;
    let mut agent = Agent {
        reports: Reports {
            port: Arc::new(Mutex::new(port)),
        },
        files: HashMap::new(),
        processes: HashMap::new(),
    };
    agent.reports.send(&Report::Ready, &[]);
    loop {
        let (request, data) = wire::receive(&mut requests)?;
        agent.handle(request, data);
    }
}

/// Finds the port by its name and opens it.
fn open_port() -> io::Result<File> {
    for entry in fs::read_dir("/sys/class/virtio-ports")? {
        let entry = entry?;
        if fs::read_to_string(entry.path().join("name"))?.trim() == wire::PORT {
            let device = Path::new("/dev").join(entry.file_name());
            return OpenOptions::new().read(true).write(true).open(device);
        }
    }
    Err(io::Error::other("no virtio port of the bed"))
}

/// The way back to the runner, shared by all threads.
#[derive(Clone)]
struct Reports {
    port: Arc<Mutex<File>>,
}

impl Reports {
    /// Sends one report. A runner that has gone away is noticed by the reader of requests.
    fn send(&self, report: &Report, data: &[u8]) {
        let mut port = self
            .port
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Err(error) = wire::send(&mut *port, report, data) {
            eprintln!("l1-agent: {error}");
        }
    }

    fn done(&self, id: u32, result: Result<i64, String>) {
        self.send(&Report::Done { id, result }, &[]);
    }
}

struct Agent {
    reports: Reports,
    files: HashMap<u32, Incoming>,
    processes: HashMap<u32, Process>,
}

/// A file on its way in; the first error is kept until the end is asked for.
struct Incoming {
    path: PathBuf,
    file: io::Result<File>,
}

/// What is kept of a process for requests that name it.
struct Process {
    /// Set to `None` by the waiter, so that no signal goes to a reused pid.
    pid: Arc<Mutex<Option<Pid>>>,
    stdin: Option<Sender<Vec<u8>>>,
}

impl Agent {
    fn handle(&mut self, request: Request, data: Vec<u8>) {
        match request {
            Request::Ping { id } => {
                let reports = self.reports.clone();
                thread::spawn(move || {
                    // An L1 whose timers stand still is as good as dead.
                    thread::sleep(Duration::from_millis(1));
                    reports.done(id, Ok(0));
                });
            }
            Request::Put { id, path, mode } => {
                let path = PathBuf::from(path);
                let file = create(&path, mode);
                self.files.insert(id, Incoming { path, file });
            }
            Request::PutData { id, offset } => {
                if let Some(incoming) = self.files.get_mut(&id)
                    && let Ok(file) = &mut incoming.file
                    && let Err(error) = file
                        .seek(SeekFrom::Start(offset))
                        .and_then(|_| file.write_all(&data))
                {
                    incoming.file = Err(error);
                }
            }
            Request::PutEnd { id, len } => {
                let Some(Incoming { path, file }) = self.files.remove(&id) else {
                    return;
                };
                let result = file.and_then(|file| file.set_len(len));
                self.reports
                    .done(id, result.map(|()| 0).map_err(|error| at(&path, error)));
            }
            Request::Get { id, path } => {
                let reports = self.reports.clone();
                thread::spawn(move || {
                    let path = PathBuf::from(path);
                    let result = send_file(&reports, id, &path);
                    reports.done(id, result.map(|()| 0).map_err(|error| at(&path, error)));
                });
            }
            Request::Spawn { id, argv, env, dir } => self.spawn(id, &argv, env, &dir),
            Request::Stdin { id } => {
                if let Some(stdin) = self.processes.get(&id).and_then(|it| it.stdin.as_ref()) {
                    // The process may have closed its end; its exit tells the runner.
                    let _ = stdin.send(data);
                }
            }
            Request::StdinEnd { id } => {
                if let Some(process) = self.processes.get_mut(&id) {
                    process.stdin = None;
                }
            }
            Request::Signal { id, signal, group } => self.signal(id, signal, group),
            Request::CheckExtension { id, capability } => {
                let value = Kvm::new().map(|kvm| kvm.check_extension_raw(capability));
                let value = value
                    .map(i64::from)
                    .map_err(|error| format!("/dev/kvm: {error}"));
                self.reports.done(id, value);
            }
        }
    }

    fn spawn(&mut self, id: u32, argv: &[String], env: Vec<(String, String)>, dir: &str) {
        let Some((program, arguments)) = argv.split_first() else {
            return self.reports.done(id, Err("no program named".into()));
        };
        let child = Command::new(program)
            .args(arguments)
            .envs(env)
            .current_dir(dir)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        match child {
            Ok(child) => {
                self.reports.done(id, Ok(child.id().into()));
                let process = watch(&self.reports, id, child);
                self.processes.insert(id, process);
            }
            Err(error) => self.reports.done(id, Err(at(Path::new(program), error))),
        }
    }

    /// The runner names one id per process for the life of L1; a process that is gone and whose
    /// group is asked for may still have children there, which get the signal.
    fn signal(&mut self, id: u32, signal: i32, group: bool) {
        let (Some(process), Some(signal)) =
            (self.processes.get(&id), Signal::from_named_raw(signal))
        else {
            return;
        };
        let pid = process
            .pid
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let Some(pid) = *pid else { return };
        // No such process: it ended just now, which the runner hears about anyway.
        let _ = if group {
            kill_process_group(pid, signal)
        } else {
            kill_process(pid, signal)
        };
    }
}

/// Starts the threads that carry a process's streams and wait for its end.
fn watch(reports: &Reports, id: u32, mut child: Child) -> Process {
    if let Some(stdout) = child.stdout.take() {
        carry(reports.clone(), id, Stream::Stdout, stdout);
    }
    if let Some(stderr) = child.stderr.take() {
        carry(reports.clone(), id, Stream::Stderr, stderr);
    }
    let stdin = child.stdin.take().map(feed);
    let pid = Arc::new(Mutex::new(Pid::from_raw(child.id().cast_signed())));
    let (reports, watched) = (reports.clone(), Arc::clone(&pid));
    thread::spawn(move || {
        let status = match child.wait() {
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => Status::Code(code),
                (None, signal) => Status::Signal(signal.unwrap_or(0)),
            },
            Err(_) => Status::Signal(0),
        };
        *watched
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner()) = None;
        reports.send(&Report::Exited { id, status }, &[]);
    });
    Process { pid, stdin }
}

/// Writes what it is sent to the process's standard input; closes it when the sender is dropped.
fn feed(mut stdin: ChildStdin) -> Sender<Vec<u8>> {
    let (sender, receiver) = channel::<Vec<u8>>();
    thread::spawn(move || {
        for data in receiver {
            if stdin.write_all(&data).is_err() {
                break;
            }
        }
    });
    sender
}

fn carry(reports: Reports, id: u32, stream: Stream, mut from: impl Read + Send + 'static) {
    thread::spawn(move || {
        let mut buffer = vec![0; 32 * 1024];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => reports.send(&Report::Output { id, stream }, &buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        reports.send(&Report::End { id, stream }, &[]);
    });
}

fn create(path: &Path, mode: u32) -> io::Result<File> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    // A program that still runs can't be written to; its name can be given to a new file.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    Ok(file)
}

fn send_file(reports: &Reports, id: u32, path: &Path) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        reports.send(&Report::FileData { id }, &buffer[..count]);
    }
}

fn at(path: &Path, error: io::Error) -> String {
    format!("{}: {error}", path.display())
}
