//! Scenarios: what the kernel can be asked to do by `scenario=name[,name2…]`.
//!
//! Each prints one line, `SCENARIO name: PASS` or `SCENARIO name: FAIL reason`; the run passes if
//! all of them do. `scenario=list` lists them. Without a name, the kernel runs `boot`.

mod boot;
mod console;
mod endings;
mod pattern;
mod storage;
mod vmbus;

use crate::devices::{Console, Disk};
use crate::options::Options;
use crate::power::Verdict;
use crate::{println, virtio};
use alloc::boxed::Box;
use alloc::string::String;

/// Why a scenario failed: a sentence.
type Outcome = Result<(), String>;

/// One scenario.
struct Scenario {
    name: &'static str,
    /// A line for the list, with the options it knows.
    about: &'static str,
    run: fn(&mut Machine<'_>) -> Outcome,
}

/// What scenarios have at hand. Devices are opened when they are first asked for.
struct Machine<'a> {
    options: &'a Options<'a>,
    disk: Option<Box<dyn Disk>>,
    console: Option<Box<dyn Console>>,
}

impl Machine<'_> {
    fn disk(&mut self) -> Result<&mut dyn Disk, String> {
        let disk = match self.disk.take() {
            Some(disk) => disk,
            None => virtio::disk()?,
        };
        Ok(&mut **self.disk.insert(disk))
    }

    /// Lets go of the devices, so that they are opened anew.
    fn close_devices(&mut self) {
        self.disk = None;
        self.console = None;
    }

    fn console(&mut self) -> Result<&mut dyn Console, String> {
        let console = match self.console.take() {
            Some(console) => console,
            None => virtio::console()?,
        };
        Ok(&mut **self.console.insert(console))
    }
}

/// Every scenario, in the order of the list.
fn all() -> impl Iterator<Item = &'static Scenario> {
    [
        boot::SCENARIOS,
        storage::SCENARIOS,
        console::SCENARIOS,
        vmbus::SCENARIOS,
        endings::SCENARIOS,
    ]
    .into_iter()
    .flatten()
}

/// Runs the scenarios that the options name.
pub(crate) fn run(options: &Options<'_>) -> Verdict {
    let names = options.text("scenario").unwrap_or("boot");
    let mut machine = Machine {
        options,
        disk: None,
        console: None,
    };
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
    verdict
}
