//! The stories by topic; `cargo test -p e2e -- FILTER` tells some of them.

mod bed_command;
mod bed_itself;
mod bench_module_disk;
mod bench_network;
mod boot;
mod check;
mod console;
mod contact;
mod control;
mod ctl;
mod debian;
mod disk;
mod disk_refusals;
mod durability;
mod dvd;
mod either_bus;
mod endings;
mod example_kernels;
mod flush;
mod foreign_host;
mod formats;
mod guest;
mod guest_network;
mod guest_services;
mod held;
mod iso;
mod kexec;
mod linux;
mod linux_backup;
mod linux_channels;
mod linux_disks;
mod linux_module;
mod linux_module_console;
mod linux_module_disk;
mod linux_module_lies;
mod linux_network;
mod linux_pairs;
mod linux_services;
mod linux_smp;
mod linux_versions;
mod net;
mod refusals_of_users;
mod steady;
mod stock;
mod storage;
mod trace;
mod uefi;

use std::process::ExitCode;

use e2e::Topic;

const TOPICS: &[Topic] = &[
    ("bed", bed_itself::STORIES),
    ("bed_command", bed_command::STORIES),
    // The longest first, or the last one is waited for alone.
    ("debian", debian::STORIES),
    ("linux_module_disk", linux_module_disk::STORIES),
    ("linux_module", linux_module::STORIES),
    ("check", check::STORIES),
    ("boot", boot::STORIES),
    ("contact", contact::STORIES),
    ("storage", storage::STORIES),
    ("disk_refusals", disk_refusals::STORIES),
    ("flush", flush::STORIES),
    ("steady", steady::STORIES),
    ("console", console::STORIES),
    ("refusals_of_users", refusals_of_users::STORIES),
    ("guest_services", guest_services::STORIES),
    ("guest_network", guest_network::STORIES),
    ("either_bus", either_bus::STORIES),
    ("example_kernels", example_kernels::STORIES),
    ("uefi", uefi::STORIES),
    ("foreign_host", foreign_host::STORIES),
    ("endings", endings::STORIES),
    ("durability", durability::STORIES),
    ("linux", linux::STORIES),
    ("linux_versions", linux_versions::STORIES),
    ("linux_smp", linux_smp::STORIES),
    ("kexec", kexec::STORIES),
    ("linux_disks", linux_disks::STORIES),
    ("linux_channels", linux_channels::STORIES),
    ("linux_network", linux_network::STORIES),
    ("linux_pairs", linux_pairs::STORIES),
    ("linux_module_console", linux_module_console::STORIES),
    ("linux_module_lies", linux_module_lies::STORIES),
    ("linux_services", linux_services::STORIES),
    ("linux_backup", linux_backup::STORIES),
    ("formats", formats::STORIES),
    ("dvd", dvd::STORIES),
    ("control", control::STORIES),
];

/// Measurements, which are no stories: they are made when they are asked for.
const MEASUREMENTS: &[Topic] = &[
    ("bench", bench_network::STORIES),
    ("bench", bench_module_disk::STORIES),
];

fn main() -> ExitCode {
    if std::env::var_os("VMBUS_BENCH").is_some() {
        return e2e::measure(MEASUREMENTS);
    }
    e2e::run(TOPICS)
}
