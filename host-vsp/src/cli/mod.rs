//! The command line.

pub mod disk;
pub mod net;
mod values;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use host_vsp::api::model::PayloadConfig;
use host_vsp::files::Use;

use crate::ctl::Ctl;
pub use disk::Disk;
pub use net::Net;
use values::{Boot, OnReset, count, port};
pub use values::{Console, Serial, Size};

/// The console's option, as messages name it.
pub const CONSOLE: &str = "--console";
/// COM1's option, as messages name it.
pub const SERIAL: &str = "--serial";
/// COM2's option, as messages name it.
pub const COM2: &str = "--com2";

/// Hyper-V synthetic devices for guests on KVM.
#[derive(Debug, Parser)]
#[command(name = "host-vsp", version, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a virtual machine in the foreground.
    Run(Box<Run>),
    /// Say whether this machine can host, and what to do where it cannot.
    Check,
    /// Say and change what a running machine does, by its --api-socket.
    Ctl(Ctl),
}

const EXIT_CODES: &str = "\
Exit status:
  0        the guest powered off, be it that SIGTERM asked it to
  1        the machine could not be made or could not go on; one sentence says why
  2        the command line is wrong
  3        the guest was reset, with --on-reset exit
  4        the guest took a triple fault, with --on-reset exit
  128+N    signal N stopped the machine in an orderly way (143 for SIGTERM, 130 for SIGINT)
  2*B+1    the guest wrote byte B to --exit-port

Signals:
  SIGTERM   ask the guest to shut down, if it has a driver for that; stop it if it has none, does
            not want to, or takes longer than --shutdown-timeout
  SIGINT    stop the guest, close its devices, flush its disks; as a SIGTERM after the first does
  SIGUSR1   print all counters to stderr, one line of JSON
Any signal but SIGUSR1 to a machine that is being stopped ends the process at once.

A terminal on stdin is the guest's while it runs; Ctrl-] stops the machine.
HOST_VSP_STORAGE_DAEMON names the qemu-storage-daemon that serves VHD and VHDX images.
HOST_VSP_LOG sets what is logged to stderr (error, warn, info, debug, trace; default warn).";

/// Options of `run`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct Run {
    /// Kernel: a Linux bzImage, or an ELF file that is entered by PVH or the Linux 64-bit protocol
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,

    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,

    /// Kernel command line
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        allow_hyphen_values = true
    )]
    pub cmdline: String,

    /// Memory, with a unit of K, M, G or T
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "512M",
        allow_hyphen_values = true
    )]
    pub memory: Size,

    /// Virtual processors
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        allow_hyphen_values = true,
        value_parser = count
    )]
    pub cpus: u32,

    /// A disk: an image or a block device; may be given several times. Keys: type=disk|dvd,
    /// format=raw|qcow2|vhd|vhdx, readonly=on, backing_files=on, id=NAME, controller=scsiN|vmdN, lun=N,
    /// block-size=4096, serial=TEXT (a comma in a value is written twice). Without a format the name
    /// of the image says it, and all but .qcow2, .vhd and .vhdx is raw. With type=dvd it is a DVD
    /// drive, and the image its medium
    #[arg(long = "disk", value_name = disk::USAGE)]
    pub disks: Vec<Disk>,

    /// A network adapter, and where its cable leads: user needs nothing but the program passt; may
    /// be given several times
    #[arg(long = "net", value_name = net::FIELDS)]
    pub nets: Vec<Net>,

    /// The VMBus console: stdio, pty or file=PATH [default: none]
    #[arg(long, value_name = "WHERE")]
    pub console: Option<Console>,

    /// The 16550 at COM1: stdio, stderr, null or file=PATH [default: stdio, or stderr where
    /// another has stdio]
    #[arg(long, value_name = "WHERE")]
    pub serial: Option<Serial>,

    /// The 16550 at COM2, likewise
    #[arg(long, value_name = "WHERE", default_value = "null")]
    pub com2: Serial,

    /// Offer no integration services: heartbeat, shutdown, time, key-value pairs, backup
    #[arg(long)]
    pub no_ic: bool,

    /// Offer no keyboard
    #[arg(long)]
    pub no_keyboard: bool,

    /// How long a guest that SIGTERM asks to shut down may take; 0 stops it without asking
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub shutdown_timeout: u64,

    /// Which entry of the kernel to take
    #[arg(long, value_enum, default_value_t = Boot::Auto)]
    pub boot: Boot,

    /// What a reset of the machine does, also one by triple fault
    #[arg(long, value_enum, default_value_t = OnReset::Restart)]
    pub on_reset: OnReset,

    /// Print all counters to stderr at the end
    #[arg(long)]
    pub counters: bool,

    /// Take commands at a Unix socket, from `host-vsp ctl` or as REST calls with JSON bodies
    #[arg(long, value_name = "PATH")]
    pub api_socket: Option<PathBuf>,

    /// Give the guest a port to bracket a window of time: it writes 1 to begin and 2 to end one,
    /// and the counters of the window go to stderr, one line of JSON
    #[arg(
        long,
        value_name = "PORT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "0x510",
        value_parser = port
    )]
    pub steady_port: Option<u16>,

    /// Give the guest a port where writing byte B ends the machine with status 2*B+1
    #[arg(
        long,
        value_name = "PORT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "0xf4",
        value_parser = port
    )]
    pub exit_port: Option<u16>,
}

impl Run {
    /// Where COM1 goes.
    pub fn serial(&self) -> Serial {
        match (&self.serial, &self.console) {
            (Some(serial), _) => serial.clone(),
            (None, Some(Console::Stdio)) => Serial::Stderr,
            (None, _) if self.com2 == Serial::Stdio => Serial::Stderr,
            (None, _) => Serial::Stdio,
        }
    }

    /// What the machine boots, as the API tells it.
    pub fn payload(&self) -> PayloadConfig {
        PayloadConfig {
            kernel: self.kernel.clone(),
            initramfs: self.initrd.clone(),
            cmdline: self.cmdline.clone(),
        }
    }

    /// The files that the options name.
    pub fn files(&self) -> Vec<Use<'_>> {
        let file = |option, path, writes| Use {
            option,
            path,
            writes,
        };
        let mut files = vec![file("--kernel", &*self.kernel, false)];
        files.extend(
            self.initrd
                .iter()
                .map(|path| file("--initrd", &**path, false)),
        );
        files.extend(
            self.disks
                .iter()
                .filter_map(|Disk(disk)| Some((disk.path.as_deref()?, !disk.readonly)))
                .map(|(path, writes)| file("--disk", path, writes)),
        );
        if let Some(Serial::File(path)) = &self.serial {
            files.push(file(SERIAL, path, true));
        }
        if let Serial::File(path) = &self.com2 {
            files.push(file(COM2, path, true));
        }
        if let Some(Console::File(path)) = &self.console {
            files.push(file(CONSOLE, path, true));
        }
        files
    }

    /// What is wrong with the options as a whole.
    pub fn check(&self) -> Result<(), String> {
        let stdio = [
            self.console == Some(Console::Stdio),
            self.serial() == Serial::Stdio,
            self.com2 == Serial::Stdio,
        ];
        if stdio.into_iter().filter(|has_it| *has_it).count() > 1 {
            return Err("only one of --console, --serial and --com2 can have stdio".into());
        }
        if self.steady_port.is_some() && self.steady_port == self.exit_port {
            return Err("--steady-port and --exit-port need different ports".into());
        }
        Ok(())
    }
}

/// Parses the process's command line; the error is one sentence, or a help text to print.
pub fn parse() -> Result<Cli, (String, bool)> {
    parse_from(std::env::args_os())
}

fn parse_from<T>(arguments: impl IntoIterator<Item = T>) -> Result<Cli, (String, bool)>
where
    T: Into<OsString>,
{
    let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    let help = match arguments.get(1) {
        Some(word) if word == "ctl" => "ctl --help",
        _ => "run --help",
    };
    let cli = Cli::try_parse_from(&arguments).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => (error.to_string(), true),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => (
            "say what to do, `run`, `check` or `ctl`; see host-vsp --help".to_owned(),
            false,
        ),
        _ => (sentence(&error.to_string(), help), false),
    })?;
    if let Command::Run(run) = &cli.command {
        run.check().map_err(|error| (error, false))?;
    }
    Ok(cli)
}

/// The first paragraph of clap's message on one line, and where to find more.
fn sentence(message: &str, help: &str) -> String {
    let first: Vec<&str> = message
        .lines()
        .take_while(|line| !line.trim().is_empty())
        .map(str::trim)
        .collect();
    let first = first.join(" ");
    let first = first.strip_prefix("error: ").unwrap_or(&first);
    format!("{first}; see host-vsp {help}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, (String, bool)> {
        parse_from(line.split(' '))
    }

    fn run(line: &str) -> Run {
        match parse(&format!("host-vsp run --kernel k {line}"))
            .unwrap()
            .command
        {
            Command::Run(run) => *run,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn serial_and_console_share_no_stream() {
        assert_eq!(run("--memory 1G").serial(), Serial::Stdio);
        assert_eq!(run("--console stdio").serial(), Serial::Stderr);
        assert_eq!(run("--console pty").serial(), Serial::Stdio);
        assert_eq!(run("--com2 stdio").serial(), Serial::Stderr);
        for two in [
            "--console stdio --serial stdio",
            "--console stdio --com2 stdio",
            "--serial stdio --com2 stdio",
        ] {
            let (error, _) = parse(&format!("host-vsp run --kernel k {two}")).unwrap_err();
            assert!(error.contains("only one"), "{two}: {error}");
        }
    }

    #[test]
    fn ports_have_defaults_of_their_own() {
        assert_eq!(run("--steady-port").steady_port, Some(0x510));
        assert_eq!(run("--exit-port=0x501").exit_port, Some(0x501));
        assert_eq!(run("--counters").steady_port, None);
    }

    #[test]
    fn what_is_wrong_is_said_in_one_sentence() {
        for line in [
            "host-vsp run --kernel k --frobnicate",
            "host-vsp run",
            "host-vsp run --kernel k --cpus x",
            "host-vsp run --kernel k --cpus -1",
            "host-vsp run --kernel k --memory 12",
            "host-vsp ctl",
            "host-vsp ctl --api-socket s",
            "host-vsp ctl --api-socket s dance",
            "host-vsp ctl --api-socket s set-link net0 sideways",
            "host-vsp run --kernel k --net user,mtu=67",
            "host-vsp run --kernel k --net user,mac=x",
            "host-vsp ctl --api-socket s add-disk readonly=on",
            "host-vsp ctl --api-socket s resize-disk disk0 7",
            "host-vsp dance",
            "host-vsp",
        ] {
            let (error, help) = parse(line).unwrap_err();
            assert!(
                !help && !error.contains('\n') && error.len() < 300,
                "{line}: {error}"
            );
        }
        assert!(parse("host-vsp --help").unwrap_err().1);
    }
}
