//! `cargo xtask test`: every tier, cheapest first; the first failure ends the run.

mod deny;
mod kernels;
mod lints;
mod natively;

use std::process::Command;
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use e2e::Record;

use crate::{module, step, table};

/// Options of `cargo xtask test`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Run only these tiers (in their usual order)
    #[arg(long, value_name = "TIER", num_args = 1.., value_parser = TIERS.map(|tier| tier.name))]
    only: Vec<String>,
}

/// A tier of tests.
struct Tier {
    name: &'static str,
    about: &'static str,
    run: fn() -> anyhow::Result<()>,
}

/// All tiers in the order they run.
const TIERS: [Tier; 8] = [
    Tier {
        name: "fmt",
        about: "the format of every file",
        run: lints::format,
    },
    Tier {
        name: "lints",
        about: "clippy, warnings denied",
        run: lints::clippy,
    },
    Tier {
        name: "doc",
        about: "documentation, broken links denied",
        run: lints::documentation,
    },
    Tier {
        name: "deny",
        about: "licences, bans, sources, advisories",
        run: deny::run,
    },
    Tier {
        name: "module",
        about: "the modules for Linux guests, and vmbus-proto in them",
        run: module::for_tests,
    },
    Tier {
        name: "kernels",
        about: "the example kernels, and what the drivers weigh in one",
        run: kernels::run,
    },
    Tier {
        name: "native",
        about: "unit, property and in-process tests",
        run: natively::run,
    },
    Tier {
        name: "stories",
        about: "end to end, in the bed",
        run: stories,
    },
];

/// Runs the tiers.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let begun = Instant::now();
    let asked =
        |tier: &&Tier| options.only.is_empty() || options.only.iter().any(|name| name == tier.name);
    let tiers: Vec<&Tier> = TIERS.iter().filter(asked).collect();
    for (index, tier) in tiers.iter().enumerate() {
        println!(
            "[{}/{}] {}: {}",
            index + 1,
            tiers.len(),
            tier.name,
            tier.about
        );
        (tier.run)().with_context(|| format!("tier `{}` did not pass", tier.name))?;
    }
    println!(
        "passed: {} tiers in {:.0} s",
        tiers.len(),
        begun.elapsed().as_secs_f32()
    );
    Ok(())
}

/// Properties, pauses and stories with long counts.
pub(crate) fn soak(filter: Option<&str>) -> anyhow::Result<()> {
    natively::soak(filter)?;
    let mut command = tell_stories();
    command.env("VMBUS_SOAK", "1").args(filter);
    step::show("soak", command)
}

/// Measurements in the bed.
pub(crate) fn bench(what: &str) -> anyhow::Result<()> {
    bed::provision::everything()?;
    let mut command = tell_stories();
    command
        .env("VMBUS_BENCH", "1")
        .args([&format!("bench::{what}"), "--exact", "--nocapture"]);
    step::show("bench", command)
}

fn stories() -> anyhow::Result<()> {
    // Fetched here, with progress, rather than in the middle of the first story.
    bed::provision::everything()?;
    Record::remove()?;
    step::show("stories", tell_stories())?;
    table::check()
}

fn tell_stories() -> Command {
    let mut command = bed::cargo::cargo();
    command.current_dir(bed::cargo::workspace()).args([
        "test",
        "--package",
        "e2e",
        "--test",
        "stories",
        "--",
    ]);
    command
}
