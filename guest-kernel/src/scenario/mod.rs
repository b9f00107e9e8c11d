//! Scenarios: what the kernel can be asked to do by `scenario=name[,name2…]`.
//!
//! Each prints one line, `SCENARIO name: PASS` or `SCENARIO name: FAIL reason`; the run passes if
//! all of them do. `scenario=list` lists them. Without a name, the kernel runs `boot`.
//!
//! A scenario is a function over a [`Machine`]. Those that work on any disk or console take
//! [`Machine::disk`], [`Machine::network`] or [`Machine::console`], whoever drives it; those about VMBus itself take
//! what they need from [`crate::hyperv`].

mod boot;
mod console;
mod endings;
mod machine;
mod net;
mod pattern;
mod processors;
mod queue;
mod refusals;
mod services;
mod storage;
mod vmbus;

use crate::options::Options;
use crate::power::Verdict;
use crate::println;
use alloc::string::String;
use machine::Machine;

/// Why a scenario failed: a sentence.
type Outcome = Result<(), String>;

/// One scenario.
struct Scenario {
    name: &'static str,
    /// A line for the list, with the options it knows.
    about: &'static str,
    run: fn(&mut Machine<'_>) -> Outcome,
}

/// Every scenario, in the order of the list.
fn all() -> impl Iterator<Item = &'static Scenario> {
    [
        boot::SCENARIOS,
        vmbus::SCENARIOS,
        storage::SCENARIOS,
        refusals::SCENARIOS,
        queue::SCENARIOS,
        processors::SCENARIOS,
        net::SCENARIOS,
        console::SCENARIOS,
        services::SCENARIOS,
        endings::SCENARIOS,
    ]
    .into_iter()
    .flatten()
}

/// Runs the scenarios that the options name, then closes all devices and leaves the bus.
pub(crate) fn run(options: &Options<'_>) -> Verdict {
    let names = options.text("scenario").unwrap_or("boot");
    let mut machine = Machine::new(options);
    let mut verdict = Verdict::Pass;
    for name in names.split(',') {
        if name == "list" {
            all().for_each(|scenario| println!("{:16} {}", scenario.name, scenario.about));
            continue;
        }
        let outcome = match all().find(|scenario| scenario.name == name) {
            Some(scenario) => {
                println!("SCENARIO {name}: begin");
                (scenario.run)(&mut machine)
            }
            None => Err("there is no such scenario; scenario=list lists them".into()),
        };
        match outcome {
            Ok(()) => println!("SCENARIO {name}: PASS"),
            Err(reason) => {
                println!("SCENARIO {name}: FAIL {reason}");
                verdict = Verdict::Fail;
            }
        }
    }
    if let Err(reason) = machine.leave() {
        println!("the devices could not be closed: {reason}");
        verdict = Verdict::Fail;
    }
    verdict
}
