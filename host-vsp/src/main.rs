//! The `host-vsp` command.

mod cli;
mod com;
mod ctl;
mod signals;

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use host_vsp::api::Server;
use host_vsp::boot::Payload;
use host_vsp::console::Streams;
use host_vsp::counters::Snapshot;
use host_vsp::files::{self, OutputFile};
use host_vsp::ic;
use host_vsp::keyboard::Keyboard;
use host_vsp::machine::{self, Config, Machine, Outcome, ResetCause};
use host_vsp::manager::{Manager, OpenDisk, OpenNet};
use host_vsp::output::Output;
use host_vsp::platform::Options;
use host_vsp::terminal::GuestTerminal;
use rustix::process::{Resource, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use com::Com;
use signals::{Obedience, SIGNALLED};

const USAGE: u8 = 2;
const RESET: u8 = 3;
const TRIPLE_FAULT: u8 = 4;

fn main() -> ExitCode {
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err((help, true)) => {
            let _ = write!(io::stdout(), "{help}");
            return ExitCode::SUCCESS;
        }
        Err((error, false)) => {
            let _ = writeln!(io::stderr(), "host-vsp: {error}");
            return ExitCode::from(USAGE);
        }
    };
    // All that goes to stderr goes by this one: it never waits, and a closed pipe is no error.
    let mut stderr = match Output::new(io::stderr()) {
        Ok(stderr) => stderr,
        Err(error) => {
            let _ = writeln!(io::stderr(), "host-vsp: no thread for output: {error}");
            return ExitCode::FAILURE;
        }
    };
    log_to(&stderr);
    raise_file_limit();
    let code = match cli.command {
        cli::Command::Check => {
            let report = host_vsp::check::check();
            let _ = writeln!(io::stdout(), "{report}");
            if report.can_host() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        cli::Command::Ctl(ctl) => match ctl.run() {
            Ok(code) => code,
            Err(error) => {
                let _ = writeln!(stderr, "host-vsp: {error:#}");
                ExitCode::FAILURE
            }
        },
        cli::Command::Run(options) => run(&options, &stderr).unwrap_or_else(|error| {
            let _ = writeln!(stderr, "host-vsp: {error:#}");
            ExitCode::FAILURE
        }),
    };
    stderr.drain();
    code
}

/// Takes all the file descriptors that the system allows: a processor needs four.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

fn log_to(stderr: &Output) {
    let stderr = stderr.clone();
    let filter = tracing_subscriber::EnvFilter::try_from_env("HOST_VSP_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || stderr.clone())
        .with_ansi(io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .init();
}

/// Makes and runs the machine. Everything is checked before the first thing is changed.
fn run(options: &cli::Run, stderr: &Output) -> anyhow::Result<ExitCode> {
    // From here on a signal waits for the machine that it is to stop.
    let signals = Signals::new([SIGTERM, SIGINT, SIGUSR1]).context("signals cannot be caught")?;
    files::check_uses(&options.files())?;
    let payload = Payload::open(
        &options.kernel,
        options.boot.into(),
        options.initrd.as_deref(),
        &options.cmdline,
    )?;
    let window_report = stderr.clone();
    let config = Config {
        memory: options.memory.0,
        cpus: options.cpus,
        on_reset: options.on_reset.into(),
        platform: Options {
            steady_port: options.steady_port,
            window_report: Some(Arc::new(move |window: &Snapshot| {
                let _ = writeln!(window_report.clone(), "{}", window.json("window"));
            })),
            exit_port: options.exit_port,
        },
    };
    config.check()?;
    let disks = options
        .disks
        .iter()
        .map(|cli::Disk(disk)| OpenDisk::open(disk.clone()))
        .collect::<Result<Vec<_>, _>>()?;
    let nets = options
        .nets
        .iter()
        .map(|cli::Net(net)| OpenNet::open(net.clone()))
        .collect::<Result<Vec<_>, _>>()?;
    let socket = options
        .api_socket
        .as_deref()
        .map(Server::bind)
        .transpose()?;
    let kvm = machine::open_kvm()?;
    let machine = Arc::new(Machine::new(&kvm, config, payload)?);
    let com1 = Com::open(cli::SERIAL, options.serial())?;
    let com2 = Com::open(cli::COM2, options.com2.clone())?;
    let console = match &options.console {
        None => None,
        Some(cli::Console::File(path)) => {
            Some(Streams::file(OutputFile::open(cli::CONSOLE, path)?))
        }
        Some(cli::Console::Stdio) => Some(Streams::stdio()),
        Some(cli::Console::Pty) => Some(Streams::pty().map(|(streams, path)| {
            let path = path.display();
            let _ = writeln!(stderr.clone(), "host-vsp: the console is at {path}");
            streams
        })),
    };
    let console = console.transpose().context("no console")?;

    let stopped_by = Arc::new(AtomicI32::new(0));
    let (mut vsps, services) = if options.no_ic {
        (Vec::new(), None)
    } else {
        let (vsps, services) = ic::Services::new(machine.clock()).context("no timers")?;
        (vsps, Some(services))
    };
    let keyboard = if options.no_keyboard {
        None
    } else {
        let (vsp, keyboard) = Keyboard::new().context("no keyboard")?;
        vsps.push(vsp);
        Some(keyboard)
    };
    let shutdown = services.as_ref().map(|services| services.shutdown.clone());
    let manager = Manager::new(Arc::clone(&machine), options.payload(), services, keyboard);
    let obedience = Obedience {
        handle: machine.handle(),
        shutdown,
        patience: Duration::from_secs(options.shutdown_timeout),
        stopped_by: Arc::clone(&stopped_by),
        stderr: stderr.clone(),
    };
    obedience.begin(signals).context("no thread for signals")?;
    for disk in disks {
        manager.attach(disk)?;
    }
    for net in nets {
        manager.plug(net)?;
    }
    if let Some(console) = console {
        manager.connect(console)?;
    }
    for vsp in vsps {
        machine.bus().offer(vsp)?;
    }
    let uses_stdin =
        options.console == Some(cli::Console::Stdio) || com1.uses_stdin() || com2.uses_stdin();
    let outputs = [
        com1.connect(machine.serial(), stderr)?,
        com2.connect(machine.com2(), stderr)?,
    ];
    let terminal = if uses_stdin {
        GuestTerminal::take().context("the terminal cannot be set up")?
    } else {
        None
    };
    // Where nobody calls it, the manager goes now: whoever holds the machine keeps it.
    let api = socket
        .map(|socket| Server::start(socket, Arc::new(manager)))
        .transpose()
        .context("no thread for the API")?;
    let outcome = machine.run();
    drop(api);
    let counters = machine.counters().snapshot();
    // Devices end here: what they hold back is written.
    drop(machine);
    for output in outputs.into_iter().flatten() {
        output.drain();
    }
    drop(terminal);
    let mut stderr = stderr.clone();
    if options.counters {
        let _ = write!(stderr, "{counters}");
    }
    let outcome = outcome?;
    if let Outcome::Reset(cause) = outcome {
        let _ = writeln!(stderr, "host-vsp: {cause}");
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
