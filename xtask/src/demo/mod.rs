//! `cargo xtask demo`: one disk's work over VMBus, told on one screen.

mod image;
mod place;

use anyhow::Context;
use clap::Args;

use place::Where;

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

/// Runs the demo.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let dir = tempfile::Builder::new()
        .prefix("vmbus-demo-")
        .tempdir_in("/tmp")?;
    let there = dir
        .path()
        .to_str()
        .context("a temporary directory with an odd name")?;
    let (_place, _programs) = place::open(options.place, there)?;
    let task = image::Task::random();
    let mut expected = image::create();
    image::apply(&mut expected, &task);
    image::verify(dir.path(), &expected)?;
    Ok(())
}
