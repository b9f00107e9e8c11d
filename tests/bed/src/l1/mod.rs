//! The L1: a Linux with a complete KVM, in QEMU's software emulation, kept up for many stories.
//!
//! [`L1::boot`] starts QEMU with our initramfs; the agent in it answers over a virtio port, whose
//! other end is a socket pair. L1's own console goes to a file. When the L1 panics (an oops is
//! made a panic), QEMU ends, the socket reads as ended, and everyone who waits gets
//! [`Error::BedDied`].

mod command;
mod connection;
mod drive;
mod process;
mod snapshot;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

pub use command::{Command, Output};
pub use drive::Drive;
pub use process::Process;
pub use rustix::process::Signal;

use crate::cargo;
use crate::error::{AtPath, Error, Result};
use crate::initramfs;
use crate::provision::Qemu;
use crate::provision::kernel::{Kernel, Series};
use crate::wire::{CHUNK, PORT, Request};
use connection::Connection;

/// Memory of L1 unless it is set, in MiB.
const MEMORY: u64 = 3072;

/// An L1 is up in 4 s on an idle machine; ten times that on a busy one.
const BOOT_DEADLINE: Duration = Duration::from_secs(60);

/// For file transfers and questions to the agent.
const TRANSFER_DEADLINE: Duration = Duration::from_secs(120);

/// One virtual CPU: with two, about one boot in twenty of a guest stalls or corrupts the L1.
/// `oops=panic panic=-1` together with `-no-reboot` ends QEMU when L1 is no longer sound.
/// What guards against a processor's flaws is of no use where it is emulated, and takes a quarter of
/// the time. Its timer is not tried at boot: on a busy machine that goes wrong.
const KERNEL_ARGUMENTS: &str =
    "console=ttyS0 quiet oops=panic panic=-1 mitigations=off no_timer_check";

/// For the bed's own small commands in L1.
const HOUSEKEEPING: Duration = Duration::from_secs(30);

/// Prints the device of the virtio disk with the serial number `$0`.
const FIND_DRIVE: &str = r#"for disk in /sys/block/vd*; do
    [ "$(cat "$disk/serial")" = "$0" ] && echo "/dev/${disk##*/}"
done"#;

/// An L1 to be booted.
#[derive(Debug)]
pub struct Setup {
    drives: Vec<Drive>,
    memory: u64,
}

impl Setup {
    /// Adds a disk.
    pub fn drive(mut self, drive: Drive) -> Self {
        self.drives.push(drive);
        self
    }

    /// Sets its memory, in MiB.
    pub fn memory(mut self, mebibytes: u64) -> Self {
        self.memory = mebibytes;
        self
    }

    /// Boots it, providing and building what it needs, and waits until it answers.
    pub fn boot(self) -> Result<L1> {
        L1::boot_with(&self)
    }
}

/// A running L1. Dropping it ends it.
#[derive(Debug)]
pub struct L1 {
    connection: Arc<Connection>,
    /// QEMU, or the agent where there is none in between.
    child: Child,
    /// Holds the console log and the initramfs.
    _dir: tempfile::TempDir,
}

impl L1 {
    /// Boots an L1, providing and building what it needs, and waits until it answers.
    pub fn boot() -> Result<Self> {
        Self::setup().boot()
    }

    /// An L1 with disks: see [`Drive`].
    pub fn setup() -> Setup {
        Setup {
            drives: Vec::new(),
            memory: MEMORY,
        }
    }

    fn boot_with(setup: &Setup) -> Result<Self> {
        let qemu = Qemu::get()?;
        let kernel = Kernel::get(Series::Linux6_12)?;
        let archive = initramfs::build(&kernel)?;
        let dir = tempfile::Builder::new()
            .prefix("vmbus-l1-")
            .tempdir()
            .at("/tmp")?;
        let initramfs = dir.path().join("initramfs");
        fs::write(&initramfs, archive).at(&initramfs)?;
        let console = dir.path().join("console.log");
        File::create(&console).at(&console)?;
        let errors = dir.path().join("qemu.log");

        let (ours, theirs) = UnixStream::pair().at("socket pair")?;
        let mut command = qemu.command();
        command
            .args([
                "-machine",
                "q35",
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "EPYC",
                "-smp",
                "1",
            ])
            .args([
                "-m",
                &format!("{}M", setup.memory),
                "-nodefaults",
                "-display",
                "none",
                "-vga",
                "none",
                "-no-reboot",
            ])
            .arg("-kernel")
            .arg(kernel.image())
            .arg("-initrd")
            .arg(&initramfs)
            .args(["-append", KERNEL_ARGUMENTS])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            // QEMU takes its standard input for the socket of the agent's port.
            .args([
                "-chardev",
                "socket,id=agent,fd=0",
                "-device",
                "virtio-serial-pci",
            ])
            .args([
                "-device",
                &format!("virtserialport,chardev=agent,name={PORT}"),
            ]);
        for drive in &setup.drives {
            command.args(drive.arguments()?);
        }
        command
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(File::create(&errors).at(&errors)?);
        let child = command.spawn().map_err(|error| Error::Command {
            command: format!("{command:?}"),
            why: error.to_string(),
        })?;
        // QEMU has the socket now; ours must be the only copy, or its end is never seen.
        drop(command);
        let connection = Connection::start(ours, console).at("socket pair")?;
        let l1 = Self {
            connection,
            child,
            _dir: dir,
        };
        if let Err(error) = l1.connection.wait_ready(BOOT_DEADLINE) {
            let said = fs::read_to_string(&errors).unwrap_or_default();
            let said: String = said
                .lines()
                .filter(|line| !line.contains("warning:"))
                .collect::<Vec<_>>()
                .join("; ");
            return Err(match error {
                Error::BedDied { reason, console } => Error::BedDied {
                    reason: format!("{reason} {said}"),
                    console,
                },
                other => other,
            });
        }
        Ok(l1)
    }

    /// This machine itself behind the same interface: the agent runs here as a child process. For
    /// those who want to do one thing either here or in the bed.
    pub fn on_this_machine() -> Result<Self> {
        let agent = cargo::l1_agent()?;
        let dir = tempfile::Builder::new()
            .prefix("vmbus-here-")
            .tempdir()
            .at("/tmp")?;
        let log = dir.path().join("agent.log");
        let (ours, theirs) = UnixStream::pair().at("socket pair")?;
        let child = std::process::Command::new(&agent)
            .arg("--stdin")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(File::create(&log).at(&log)?)
            .spawn()
            .at(&agent)?;
        let connection = Connection::start(ours, log).at("socket pair")?;
        let here = Self {
            connection,
            child,
            _dir: dir,
        };
        here.connection.wait_ready(BOOT_DEADLINE)?;
        Ok(here)
    }

    /// Whether the L1 answers, and its processor has never stood still; an [`Error::BedDied`] when not.
    pub fn check(&self) -> Result<()> {
        self.connection.ping()?;
        self.connection.expect_no_lockup()
    }

    /// Copies a local file to `remote`, keeping its permissions; runs of zeros stay holes.
    pub fn put(&self, local: impl AsRef<Path>, remote: &str) -> Result<()> {
        let local = local.as_ref();
        let mut file = File::open(local).at(local)?;
        let mode = file.metadata().at(local)?.permissions().mode() & 0o7777;
        self.put_from(&mut file, mode, remote)
            .map_err(|error| match error {
                Error::File { why, .. } => Error::File {
                    path: local.to_owned(),
                    why,
                },
                other => other,
            })
    }

    /// Writes `bytes` to the file `remote`.
    pub fn put_bytes(&self, mut bytes: &[u8], remote: &str) -> Result<()> {
        self.put_from(&mut bytes, 0o644, remote)
    }

    fn put_from(&self, from: &mut impl Read, mode: u32, remote: &str) -> Result<()> {
        let id = self.connection.new_id();
        self.connection.send(
            &Request::Put {
                id,
                path: remote.to_owned(),
                mode,
            },
            &[],
        )?;
        let mut buffer = vec![0; CHUNK];
        let mut offset = 0;
        loop {
            let count = match from.read(&mut buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).at(remote),
            };
            if count == 0 {
                break;
            }
            let data = &buffer[..count];
            if data.iter().any(|byte| *byte != 0) {
                self.connection
                    .send(&Request::PutData { id, offset }, data)?;
            }
            offset += count as u64;
        }
        self.connection
            .send(&Request::PutEnd { id, len: offset }, &[])?;
        self.connection
            .wait_done(id, &format!("putting {remote}"), TRANSFER_DEADLINE)
            .map(drop)
    }

    /// The contents of a file in L1, pseudo files (sysfs, debugfs) included.
    pub fn get(&self, remote: &str) -> Result<Vec<u8>> {
        let id = self.connection.new_id();
        self.connection.send(
            &Request::Get {
                id,
                path: remote.to_owned(),
            },
            &[],
        )?;
        self.connection
            .wait_done(id, &format!("getting {remote}"), TRANSFER_DEADLINE)?;
        Ok(self.connection.take_file(id))
    }

    /// Like [`L1::get`], as text without the white space around it.
    pub fn get_text(&self, remote: &str) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.get(remote)?)
            .trim()
            .to_owned())
    }

    /// The device in L1 of the disk called `name`, such as `/dev/vda`.
    pub fn drive(&self, name: &str) -> Result<String> {
        let output = self.shell(FIND_DRIVE).arg(name).run(HOUSEKEEPING)?;
        let device = output.stdout_text().trim().to_owned();
        if device.is_empty() {
            return Err(Error::InL1(format!("no disk is called {name:?}")));
        }
        Ok(device)
    }

    /// `KVM_CHECK_EXTENSION` on L1's KVM: 0 means the capability is missing.
    pub fn kvm_extension(&self, capability: u64) -> Result<i64> {
        let id = self.connection.new_id();
        self.connection
            .send(&Request::CheckExtension { id, capability }, &[])?;
        self.connection
            .wait_done(id, "asking L1's KVM", TRANSFER_DEADLINE)
    }

    /// A command to run in L1; `program` is a path there, or a name that busybox knows.
    pub fn command(&self, program: &str) -> Command {
        Command::new(Arc::clone(&self.connection), program)
    }

    /// A shell line to run in L1.
    pub fn shell(&self, line: &str) -> Command {
        self.command("sh").arg("-c").arg(line)
    }

    /// The ends of the output of the last few processes that were dropped, oldest first.
    pub fn take_trail(&self) -> Vec<String> {
        self.connection.take_trail()
    }

    /// What L1's own console has printed so far.
    pub fn console(&self) -> String {
        self.connection.console()
    }

    /// Process id of the QEMU that runs this L1.
    pub fn qemu_pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for L1 {
    fn drop(&mut self) {
        // Either may fail because it has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Most characters of a line in a message.
const LINE: usize = 2000;

/// The last `count` lines of `text`, which may be anything, without what a terminal would obey.
pub(crate) fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let shown = lines[lines.len().saturating_sub(count)..]
        .iter()
        .map(|line| {
            let printed = |c: char| if c.is_control() { '.' } else { c };
            line.chars().take(LINE).map(printed).collect::<String>()
        });
    shown.collect::<Vec<_>>().join("\n")
}

/// The path of a console log, read leniently.
pub(crate) fn read_console(path: &PathBuf) -> String {
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}
