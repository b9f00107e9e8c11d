//! `cargo xtask demo`: one disk's work over VMBus, told on one screen.
//!
//! A disk image is made here, brought to where the machine runs ([`crate::place`]), worked on by the
//! guest ([`story`]), brought back after `host-vsp` has closed it, and compared byte by byte with
//! what the guest was told to write ([`image`]).

mod exits;
mod image;
mod story;

use std::fs;

use anyhow::Context;
use bed::l1::L1;
use clap::Args;

use crate::place::{self, Where};

/// Options of `cargo xtask demo`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Where the machine runs
    #[arg(
        long = "where",
        value_enum,
        default_value = "auto",
        value_name = "PLACE"
    )]
    place: Where,
}

/// The programs that the demo brings.
#[derive(Debug)]
struct Programs {
    host_vsp: String,
    guest_kernel: String,
}

/// Runs the demo.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let dir = tempfile::Builder::new()
        .prefix("vmbus-demo-")
        .tempdir_in("/tmp")?;
    let path = |name: &str| -> anyhow::Result<String> {
        let path = dir.path().join(name);
        Ok(path
            .to_str()
            .context("the temporary directory has an odd name")?
            .to_owned())
    };
    let there = path("there")?;
    let place = place::open(options.place, L1::setup())?;
    println!("place:     {}", place.reason);
    let place = place.l1;
    let programs = Programs {
        host_vsp: format!("{there}/host-vsp"),
        guest_kernel: format!("{there}/guest-kernel"),
    };
    place.put(bed::cargo::host_vsp()?, &programs.host_vsp)?;
    place.put(bed::cargo::guest_kernel()?, &programs.guest_kernel)?;

    let task = image::Task::random();
    let mut expected = image::create();
    let (local, disk) = (path("disk.img")?, format!("{there}/disk.img"));
    fs::write(&local, &expected).with_context(|| local.clone())?;
    place.put(&local, &disk)?;
    image::apply(&mut expected, &task);

    story::tell(&place, &programs, &disk, &task)?;

    let sha256 = image::verify(&place.get(&disk)?, &expected)?;
    let (megabytes, blocks) = (expected.len() >> 20, task.blocks);
    println!("file:      all {megabytes} MiB are as they must be after {blocks} blocks written");
    println!("           SHA-256 {sha256}");
    Ok(())
}
