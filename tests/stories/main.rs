//! The stories by topic; `cargo test -p e2e -- FILTER` tells some of them.

mod bed_itself;
mod boot;
mod check;
mod contact;
mod disk;
mod guest;

use std::process::ExitCode;

fn main() -> ExitCode {
    e2e::run(&[
        ("bed", bed_itself::STORIES),
        ("check", check::STORIES),
        ("boot", boot::STORIES),
        ("contact", contact::STORIES),
    ])
}
