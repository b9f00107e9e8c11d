//! The one door to the repository: `cargo xtask demo`, `cargo xtask test`, `cargo xtask soak`.
//!
//! * `demo` boots the guest kernel on `host-vsp` and tells the story ([`demo`]).
//! * `test` runs every tier and stops at the first that fails ([`mod@test`]).
//! * `soak` tells the stories with long counts ([`test::soak`]).
//! * `bench` measures in the bed ([`test::bench`]).
//! * `bed` runs a command in a guest with somebody's own kernel ([`bed_command`]).
//! * `module` builds our modules for a Linux kernel ([`module`]).
//! * `publish-check` says whether the crates could be published ([`publish`]).
//! * `table` writes what the stories have proven of guests into their table ([`table`]).
//! * `provision` only fetches and builds what the bed needs.

mod bed_command;
mod demo;
mod module;
mod place;
mod publish;
mod step;
mod table;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "The one door: demo, test, soak, bed")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Boot a guest on host-vsp, do one disk's work over VMBus, and show that it is true
    Demo(demo::Options),
    /// Run every tier: format, lints, documentation, licences, tests, stories in the bed
    Test(test::Options),
    /// Tell the stories with long counts
    Soak {
        /// Only stories whose name contains this
        filter: Option<String>,
    },
    /// Measure in the bed, next to QEMU; nothing passes or fails by a number
    Bench {
        /// What to measure
        what: Bench,
    },
    /// Run a command in a guest with your own kernel, for work on Linux's Hyper-V drivers
    Bed(Box<bed_command::Options>),
    /// Build the modules for Linux guests, for Debian's kernel or your own
    Module(module::Options),
    /// Package the crates as for publishing, and compare their interfaces with an earlier revision's
    PublishCheck(publish::Options),
    /// Write into docs/guests.md what the stories of the last run have proven
    Table,
    /// Fetch what the bed needs, so that nothing later waits for the network
    Provision,
}

/// What there is to be measured.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Bench {
    /// The network adapter against virtio-net, at the same tap
    Network,
    /// The module `vmbus_disk` against the kernel's hv_storvsc, on the same disk
    ModuleDisk,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let result = match cli.command {
        Task::Bed(options) => return bed_command::run(&options),
        Task::Demo(options) => demo::run(&options),
        Task::Test(options) => test::run(&options),
        Task::Soak { filter } => test::soak(filter.as_deref()),
        Task::Module(options) => module::run(&options),
        Task::PublishCheck(options) => publish::check(&options),
        Task::Bench { what } => test::bench(match what {
            Bench::Network => "network",
            Bench::ModuleDisk => "module_disk",
        }),
        Task::Table => table::write(),
        Task::Provision => bed::provision::everything().map_err(Into::into),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Says what is wrong with the command line, or the help that was asked for. The exit code of `bed`
/// is that of a command in a guest, which one of ours must not be taken for.
fn refuse(error: &clap::Error) -> ExitCode {
    let is_bed = std::env::args_os().nth(1).is_some_and(|it| it == "bed");
    if !is_bed || !error.use_stderr() {
        error.exit();
    }
    let text = error.to_string();
    let first = text.lines().take_while(|line| !line.trim().is_empty());
    let sentence = first.map(str::trim).collect::<Vec<_>>().join(" ");
    eprintln!("{sentence}; see cargo xtask bed --help");
    ExitCode::from(bed_command::FAILED)
}
