//! The stories by topic; `cargo test -p e2e -- FILTER` tells some of them.

mod bed_itself;
mod boot;
mod check;
mod console;
mod contact;
mod disk;
mod disk_refusals;
mod endings;
mod flush;
mod guest;
mod linux;
mod linux_services;
mod linux_smp;
mod linux_versions;
mod refusals_of_users;
mod steady;
mod stock;
mod storage;
mod trace;

use std::process::ExitCode;

fn main() -> ExitCode {
    e2e::run(&[
        ("bed", bed_itself::STORIES),
        ("check", check::STORIES),
        ("linux", linux::STORIES),
        ("linux_services", linux_services::STORIES),
        ("linux_smp", linux_smp::STORIES),
        ("linux_versions", linux_versions::STORIES),
        ("boot", boot::STORIES),
        ("contact", contact::STORIES),
        ("storage", storage::STORIES),
        ("disk_refusals", disk_refusals::STORIES),
        ("flush", flush::STORIES),
        ("steady", steady::STORIES),
        ("console", console::STORIES),
        ("refusals_of_users", refusals_of_users::STORIES),
        ("endings", endings::STORIES),
    ])
}
