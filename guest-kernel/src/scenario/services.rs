//! What the host says besides disks and consoles: keys, the time, a wish to see us end; and what it
//! hears of us: that we live, and that we crashed.

use super::machine::Machine;
use super::{Outcome, Scenario};
use crate::clock::Deadline;
use crate::hal::KernelHal;
use crate::{cpu, hyperv, println};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Write as _;
use core::time::Duration;
use guest_vsc::Error;
use guest_vsc::balloon::{self, Balloon};
use guest_vsc::channel::OpenOptions;
use guest_vsc::crash::CrashReporter;
use guest_vsc::ic::{self, Health, Heartbeat, Shutdown, TimeSync};
use guest_vsc::keyboard::{self, Keyboard};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "keyboard",
        about: "prints scan codes until Enter is released (host.seconds=30)",
        run: keys,
    },
    Scenario {
        name: "host-time",
        about: "waits for the host's time and prints it (host.seconds=30)",
        run: time,
    },
    Scenario {
        name: "host-shutdown",
        about: "says that it is healthy until the host asks it to end (host.seconds=30)",
        run: shutdown,
    },
    Scenario {
        name: "balloon",
        about: "agrees with dynamic memory and reports pages (balloon.available=, balloon.committed=)",
        run: balloon,
    },
    Scenario {
        name: "crash-report",
        about: "reports a crash to the host and goes on",
        run: crash,
    },
];

/// What a released Enter sends.
const ENTER_RELEASED: u8 = 0x9C;

fn text(error: Error) -> String {
    error.to_string()
}

/// Asks `poll` after each interrupt until it has something.
fn wait<T>(
    machine: &Machine<'_>,
    what: &str,
    mut poll: impl FnMut() -> Result<Option<T>, Error>,
) -> Result<T, String> {
    let limit = machine.options.seconds("host.seconds", 30)?;
    let mut outcome = Ok(None);
    let ready = || {
        outcome = poll();
        !matches!(outcome, Ok(None))
    };
    cpu::wait_until(Deadline::after(limit), ready);
    outcome
        .map_err(text)?
        .ok_or_else(|| format!("{what} did not come within {limit:?}"))
}

fn keys(machine: &mut Machine<'_>) -> Outcome {
    let bus = machine.connected_bus()?;
    let offer = hyperv::offer(bus, keyboard::CLASS, 0, "keyboard")?;
    let keyboard = Keyboard::open(bus, &offer, &OpenOptions::default()).map_err(text)?;
    println!("KEYBOARD READY");
    let mut typed = Vec::new();
    while typed.last() != Some(&ENTER_RELEASED) {
        let event = wait(machine, "a key", || keyboard.try_read())?;
        typed.extend(event.scan_code());
    }
    let mut words = String::new();
    for code in &typed {
        // A string takes what is written to it.
        let _ = write!(words, " {code:02x}");
    }
    println!("typed:{words}");
    Ok(())
}

fn time(machine: &mut Machine<'_>) -> Outcome {
    let bus = machine.connected_bus()?;
    let offer = hyperv::offer(bus, ic::timesync::CLASS, 0, "time synchronization")?;
    let sync = TimeSync::open(bus, &offer, &ic::open_options()).map_err(text)?;
    let heard = wait(machine, "the time", || sync.poll())?;
    if !heard.set {
        return Err("the first message after a start does not ask to set the clock".into());
    }
    println!(
        "the host's time is {} s since 1970, the reference clock {}",
        heard.at(bus.clock().now()).as_secs(),
        if bus.clock().is_by_tsc() {
            "reads the TSC"
        } else {
            "costs an exit"
        }
    );
    Ok(())
}

fn shutdown(machine: &mut Machine<'_>) -> Outcome {
    let bus = machine.connected_bus()?;
    let offer = hyperv::offer(bus, ic::heartbeat::CLASS, 0, "heartbeat")?;
    let heartbeat = Heartbeat::open(bus, &offer, &ic::open_options()).map_err(text)?;
    heartbeat.set_health(Health::Healthy);
    let offer = hyperv::offer(bus, ic::shutdown::CLASS, 0, "shutdown")?;
    let shutdown = Shutdown::open(bus, &offer, &ic::open_options()).map_err(text)?;
    println!("LISTENING");
    let request = wait(machine, "a request to end", || {
        heartbeat.poll()?;
        shutdown.poll()
    })?;
    println!(
        "the host asks for {:?}, {} beats answered",
        request.kind,
        heartbeat.beats()
    );
    request.accept().map_err(text)
}

fn balloon(machine: &mut Machine<'_>) -> Outcome {
    let available = machine.options.number("balloon.available", 1000)?;
    let committed = machine.options.number("balloon.committed", 2000)?;
    let bus = machine.connected_bus()?;
    let offer = hyperv::offer(bus, balloon::CLASS, 0, "dynamic memory")?;
    let balloon = Balloon::open(bus, &offer, &OpenOptions::default()).map_err(text)?;
    let (major, minor) = balloon.version();
    println!(
        "dynamic memory {major}.{minor}, channel {}, reports are {}",
        offer.relid(),
        if balloon.reports_wanted() {
            "wanted"
        } else {
            "not wanted"
        }
    );
    balloon.report(available, committed).map_err(text)?;
    let limit = machine.options.seconds("host.seconds", 30)?;
    let deadline = Deadline::after(limit);
    while !balloon.channel().all_taken().map_err(text)? {
        if deadline.passed() {
            return Err(format!("the host did not take the report within {limit:?}"));
        }
        // Nobody interrupts for that.
        cpu::wait_until(Deadline::after(Duration::from_millis(10)), || false);
    }
    println!("the host has taken the report");
    balloon.poll().map_err(text)
}

fn crash(_machine: &mut Machine<'_>) -> Outcome {
    let reporter = CrashReporter::<KernelHal>::new().map_err(text)?;
    let message = format_args!("guest-kernel: a crash, as the command line asked");
    if !reporter.report([0xC0FFEE, 0, 0], message) {
        return Err("the report did not go out".into());
    }
    Ok(())
}
