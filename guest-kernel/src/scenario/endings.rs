//! The ways a guest can end that are not a verdict. None of them returns if it works, so the run's
//! last line is the scenario's `begin`, or the report of the exception that was asked for.

use super::machine::Machine;
use super::{Outcome, Scenario};
use crate::clock::Deadline;
use crate::{cpu, power, println};

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
