//! The `host-vsp` command.

mod cli;

use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use host_vsp::boot::Payload;
use host_vsp::console::{Console, Streams};
use host_vsp::counters::Snapshot;
use host_vsp::machine::{self, Config, Handle, Machine, Outcome, ResetCause};
use host_vsp::platform::Options;
use host_vsp::serial::Serial;
use host_vsp::storage::{Controller, RawFile};
use host_vsp::terminal::GuestTerminal;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use vmbus_proto::guid::Guid;

const USAGE: u8 = 2;
const RESET: u8 = 3;
const TRIPLE_FAULT: u8 = 4;
const SIGNALLED: u8 = 128;

/// Instance of the storage controller; its disks' names are made from it.
const CONTROLLER: Guid = Guid::new(0x2a4c_9d11, 0x6f0b, 0x4c57, 0x8e21, 0x0000_0000_0001);

/// How long input for COM1 waits for the guest to take some, before it looks again.
const SERIAL_PATIENCE: Duration = Duration::from_millis(5);

fn main() -> ExitCode {
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err((help, true)) => {
            let _ = write!(io::stdout(), "{help}");
            return ExitCode::SUCCESS;
        }
        Err((error, false)) => {
            eprintln!("host-vsp: {error}");
            return ExitCode::from(USAGE);
        }
    };
    log_to_stderr();
    match cli.command {
        cli::Command::Check => {
            let report = host_vsp::check::check();
            let _ = writeln!(io::stdout(), "{report}");
            if report.can_host() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        cli::Command::Run(options) => match run(&options) {
            Ok(code) => code,
            Err(error) => {
                eprintln!("host-vsp: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("HOST_VSP_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .init();
}

/// Makes and runs the machine. Everything is checked before the first thing is changed.
fn run(options: &cli::Run) -> anyhow::Result<ExitCode> {
    let payload = Payload::open(
        &options.kernel,
        options.boot.into(),
        options.initrd.as_deref(),
        &options.cmdline,
    )?;
    let config = Config {
        memory: options.memory.0,
        cpus: options.cpus,
        on_reset: options.on_reset.into(),
        platform: Options {
            steady_port: options.steady_port,
            window_report: Some(Arc::new(|window: &Snapshot| {
                eprintln!("{}", window.json("window"))
            })),
            exit_port: options.exit_port,
        },
    };
    config.check()?;
    let disks = options
        .disks
        .iter()
        .map(|disk| RawFile::open(&disk.path, disk.readonly))
        .collect::<Result<Vec<_>, _>>()?;
    let kvm = machine::open_kvm()?;
    let machine = Machine::new(&kvm, config, payload)?;

    let stopped_by = Arc::new(AtomicI32::new(0));
    obey_signals(machine.handle(), Arc::clone(&stopped_by)).context("signals cannot be caught")?;
    if !disks.is_empty() {
        machine.bus().offer(Box::new(controller(disks)?))?;
    }
    if let Some(console) = &options.console {
        let streams = match console {
            cli::Console::Stdio => Streams::stdio(),
            cli::Console::Pty => Streams::pty().map(|(streams, path)| {
                eprintln!("host-vsp: the console is at {}", path.display());
                streams
            }),
            cli::Console::File(path) => Streams::file(path),
        };
        let streams = streams.with_context(|| format!("the console {console} cannot be had"))?;
        machine.bus().offer(Box::new(Console::new(streams)))?;
    }
    let serial = options.serial();
    connect_serial(&serial, machine.serial())?;
    let uses_stdin = serial == cli::Serial::Stdio || options.console == Some(cli::Console::Stdio);
    let terminal = if uses_stdin {
        GuestTerminal::take().context("the terminal cannot be set up")?
    } else {
        None
    };
    let outcome = machine.run();
    let counters = machine.counters().snapshot();
    // Devices end here: what they hold back is written.
    drop(machine);
    drop(terminal);
    if options.counters {
        eprint!("{counters}");
    }
    let outcome = outcome?;
    if let Outcome::Reset(cause) = outcome {
        eprintln!("host-vsp: {cause}");
    }
    Ok(ExitCode::from(match outcome {
        Outcome::PowerOff => 0,
        Outcome::Reset(ResetCause::TripleFault { .. }) => TRIPLE_FAULT,
        Outcome::Reset(_) => RESET,
        Outcome::Exit(byte) => byte.wrapping_mul(2).wrapping_add(1),
        Outcome::Stopped => {
            let signal = stopped_by.load(Ordering::SeqCst);
            SIGNALLED.saturating_add(u8::try_from(signal).unwrap_or_default())
        }
    }))
}

/// The controller with all disks, in the order of the command line.
fn controller(disks: Vec<RawFile>) -> anyhow::Result<Controller> {
    let mut controller = Controller::new(CONTROLLER).context("no storage controller")?;
    for (lun, disk) in (0..=u8::MAX).zip(disks) {
        controller.attach(lun, disk)?;
    }
    Ok(controller)
}

/// Catches the signals that stop the machine or ask for its counters.
fn obey_signals(handle: Handle, stopped_by: Arc<AtomicI32>) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGUSR1])?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in &mut signals {
                if signal == SIGUSR1 {
                    eprintln!("{}", handle.counters().snapshot().json("now"));
                } else if stopped_by.swap(signal, Ordering::SeqCst) == 0 {
                    handle.stop();
                } else {
                    // The second one: whatever hangs, this ends.
                    std::process::exit(i32::from(SIGNALLED) + signal);
                }
            }
        })?;
    Ok(())
}

/// Connects COM1.
fn connect_serial(to: &cli::Serial, serial: &Arc<Serial>) -> anyhow::Result<()> {
    match to {
        cli::Serial::Null => {}
        cli::Serial::Stderr => serial.set_output(Box::new(io::stderr())),
        cli::Serial::File(path) => {
            let file = File::create(path)
                .with_context(|| format!("the serial log {} cannot be made", path.display()))?;
            serial.set_output(Box::new(file));
        }
        cli::Serial::Stdio => {
            serial.set_output(Box::new(io::stdout()));
            let serial = Arc::clone(serial);
            std::thread::Builder::new()
                .name("serial-in".into())
                .spawn(move || read_serial(&serial))
                .context("no thread for COM1")?;
        }
    }
    Ok(())
}

/// Carries stdin to COM1 until it ends.
fn read_serial(serial: &Serial) {
    let mut buffer = [0; 256];
    let mut stdin = io::stdin().lock();
    while let Ok(length @ 1..) = stdin.read(&mut buffer) {
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            let taken = serial.input(rest);
            rest = &rest[taken..];
            if taken == 0 {
                std::thread::sleep(SERIAL_PATIENCE);
            }
        }
    }
}
