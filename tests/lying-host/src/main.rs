//! A host that lies to its guest's drivers: between what an honest one sends, what none would.
//!
//! Its devices are those of `host-vsp`, each behind a [`Liar`](liar::Liar). Only packets lie. A host can
//! write to all of the guest's memory anyway, which nothing in a guest survives; so the disk moves no
//! data, and a request that a lie has ended has nothing coming that could hit what the guest has put
//! there since.

mod devices;
mod liar;
mod lies;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use host_vsp::boot::{Payload, Protocol};
use host_vsp::machine::{Config, Machine, OnReset, open_kvm};
use host_vsp::output::Output;
use host_vsp::platform;

/// The command line is `host-vsp`'s, as far as it goes.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a guest, with a console and a disk.
    Run(Options),
}

#[derive(clap::Args)]
struct Options {
    /// Memory, in MiB with an M.
    #[arg(long, value_parser = mebibytes)]
    memory: u64,
    /// Processors.
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Where COM1 leads.
    #[arg(long, value_parser = ["stdio"])]
    serial: String,
    #[arg(long)]
    kernel: PathBuf,
    #[arg(long)]
    initrd: PathBuf,
    #[arg(long)]
    cmdline: String,
    /// The lies are the same for the same number, as far as the guest does the same.
    #[arg(long)]
    seed: u64,
}

fn mebibytes(text: &str) -> Result<u64, String> {
    let digits = text.strip_suffix('M').ok_or("say it in MiB, as in 512M")?;
    let count: u64 = digits.parse().map_err(|error| format!("{error}"))?;
    Ok(count << 20)
}

fn main() -> anyhow::Result<()> {
    let Command::Run(options) = Cli::parse().command;
    let config = Config {
        memory: options.memory,
        cpus: options.cpus,
        on_reset: OnReset::End,
        platform: platform::Options::default(),
    };
    let payload = Payload::open(
        &options.kernel,
        Protocol::default(),
        Some(&options.initrd),
        &options.cmdline,
    )?;
    let machine = Machine::new(&open_kvm()?, config, payload)?;
    let output = Output::new(io::stdout())?;
    machine.serial().set_output(Box::new(output.clone()));
    let serial = Arc::clone(machine.serial());
    std::thread::spawn(move || serial.take_all(io::stdin().lock()));
    for device in devices::all(options.seed, options.cpus)? {
        machine.bus().offer(device)?;
    }
    machine.run()?;
    output.drain();
    Ok(())
}
