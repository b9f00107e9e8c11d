//! The one door to the repository: `cargo xtask demo`, `cargo xtask test`, `cargo xtask soak`.
//!
//! * `demo` boots the guest kernel on `host-vsp` and tells the story ([`demo`]).
//! * `test` runs every tier and stops at the first that fails ([`mod@test`]).
//! * `soak` tells the stories with long counts ([`test::soak`]).
//! * `table` writes what the stories have proven of guests into their table ([`table`]).
//! * `provision` only fetches and builds what the bed needs.

mod demo;
mod step;
mod table;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "The one door: demo, test, soak")]
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
    /// Write into docs/guests.md what the stories of the last run have proven
    Table,
    /// Fetch what the bed needs, so that nothing later waits for the network
    Provision,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Task::Demo(options) => demo::run(&options),
        Task::Test(options) => test::run(&options),
        Task::Soak { filter } => test::soak(filter.as_deref()),
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
