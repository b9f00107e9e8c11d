//! The ways a guest can end that are not a verdict. None of them returns if it works, so the run's
//! last line is the scenario's `begin`, or the report of the exception that was asked for.

use super::machine::Machine;
use super::{Outcome, Scenario};
use crate::clock::Deadline;
use crate::cpu::smp;
use crate::{cpu, hyperv, power, println};
use core::time::Duration;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "reset",
        about: "resets the machine",
        run: |_| {
            power::reset();
            Err("the machine did not reset".into())
        },
    },
    Scenario {
        name: "reset-in-traffic",
        about: "resets the machine while its last CPU posts messages without end",
        run: reset_in_traffic,
    },
    Scenario {
        name: "power-off",
        about: "powers the machine off by ACPI",
        run: |_| {
            power::power_off();
            Err("the machine did not power off".into())
        },
    },
    Scenario {
        name: "triple-fault",
        about: "ends in a triple fault",
        run: |_| power::triple_fault(),
    },
    Scenario {
        name: "panic",
        about: "panics, which is printed and ends in FAIL",
        run: |_| panic!("as the command line asked"),
    },
    Scenario {
        name: "stack-overflow",
        about: "overflows the stack, which is printed as a double fault and ends in FAIL",
        run: |_| {
            Err(alloc::format!(
                "{} calls did not overflow the stack",
                overflow(1)
            ))
        },
    },
    Scenario {
        name: "wait",
        about: "sleeps until the host ends it, or wait.seconds=300",
        run: wait,
    },
];

fn reset_in_traffic(machine: &mut Machine<'_>) -> Outcome {
    /// Long enough for the other CPU to be in the middle of it.
    const TRAFFIC: Duration = Duration::from_millis(20);
    machine.connected_bus()?;
    let last = smp::online() - 1;
    if last == 0 {
        return Err("it takes two CPUs".into());
    }
    // It never comes back.
    smp::run_on(last, traffic, Deadline::after(TRAFFIC));
    power::reset();
    Err("the machine did not reset".into())
}

/// Contact and good-byes.
fn traffic() {
    let options = guest_vsc::bus::Options::default();
    loop {
        let connected = hyperv::connected_bus(&options);
        let parted = hyperv::disconnect();
        if let Err(error) = connected.map(drop).and(parted) {
            println!("traffic: {error}");
        }
    }
}

fn wait(machine: &mut Machine<'_>) -> Outcome {
    let limit = machine.options.seconds("wait.seconds", 300)?;
    println!("WAITING");
    cpu::wait_until(Deadline::after(limit), || false);
    Ok(())
}

/// Calls itself far more often than the stack allows.
#[expect(unconditional_recursion, reason = "that is the purpose")]
fn overflow(depth: u64) -> u64 {
    let frame = core::hint::black_box([depth; 64]);
    overflow(depth + 1) + frame[0]
}
