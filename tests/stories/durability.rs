//! What a guest was told to be on its disk is there: after the end of the host by SIGKILL, and
//! after the end of the whole machine around it.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context, ensure};
use bed::l1::{Drive, L1, Signal};
use bed::numbered::BLOCK;
use bed::provision::kernel::Series;
use e2e::{Entry, Feature, Story};
use rand::RngExt;

use crate::stock::{Linux, Stock, make_disk};

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("killed_host", killed_host),
    Entry::new("killed_machine", killed_machine),
];

const SERIES: Series = Series::Linux6_12;

/// Blocks that are written to, of the disk's first.
const BLOCKS: u64 = 2048;

/// Blocks that are synced before the end comes, while the next are written.
const BEFORE: u64 = 150;

/// For all that are written before, on a busy machine.
const WRITING: Duration = Duration::from_secs(120);

/// Boots a guest with `disk`.
fn boot(story: &Story, disks: &[&str]) -> anyhow::Result<Linux> {
    let mut stock = Stock::new(story, SERIES);
    for disk in disks {
        stock = stock.disk(disk);
    }
    let mut linux = stock.boot()?;
    linux.wait_disk()?;
    Ok(linux)
}

/// Has the guest write without end, and returns when it is in the midst of it.
fn begin_to_write(linux: &mut Linux, seed: u64) -> anyhow::Result<()> {
    linux.type_line(&format!("probe write /dev/sda {seed} {BLOCKS} 1 1000000"))?;
    linux.says_within(&format!("synced {BEFORE}"), WRITING)?;
    Ok(())
}

/// The last number that the guest has reported.
fn last_synced(said: &str) -> anyhow::Result<u64> {
    // The last line may be cut.
    let (whole, _) = said.rsplit_once('\n').context("the guest said nothing")?;
    let numbers = whole
        .lines()
        .filter_map(|line| line.trim().strip_prefix("synced ")?.parse().ok());
    let last = numbers.max().unwrap_or(0);
    ensure!(last >= BEFORE, "only {last} were synced");
    Ok(last)
}

/// A guest that is booted anew finds everything up to `last`.
fn finds(story: &Story, disk: &str, seed: u64, last: u64) -> anyhow::Result<()> {
    let mut linux = boot(story, &[disk])?;
    linux.sh(&format!("probe verify /dev/sda {seed} {BLOCKS} {last}"))?;
    linux.expect_clean_log()?;
    linux.power_off()?;
    Ok(())
}

fn killed_host(story: &mut Story) -> anyhow::Result<()> {
    let disk = make_disk(story)?;
    for _ in 0..story.count(1, 20) {
        let seed = rand::rng().random();
        let mut linux = boot(story, &[&disk])?;
        begin_to_write(&mut linux, seed)?;
        linux.signal(Signal::KILL)?;
        let output = linux.end()?;
        ensure!(!output.status.success(), "SIGKILL had no effect: {output}");
        finds(story, &disk, seed, last_synced(&output.stdout_text())?)?;
    }
    story.proves(SERIES, Feature::KilledHost);
    Ok(())
}

/// The image is a disk of the L1, so that what has not left the L1's memory is gone.
fn killed_machine(story: &mut Story) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("disk.img");
    File::create(&file)?.set_len(BLOCKS * BLOCK as u64)?;
    let place = || -> anyhow::Result<(Story, String)> {
        let l1 = L1::setup().drive(Drive::written("disk", &file)).boot()?;
        let disk = l1.drive("disk")?;
        Ok((story.elsewhere(l1)?, disk))
    };
    for _ in 0..story.count(1, 10) {
        let seed = rand::rng().random();
        let (machine, disk) = place()?;
        let mut linux = boot(&machine, &[&disk])?;
        begin_to_write(&mut linux, seed)?;
        // QEMU gets a SIGKILL, and everything in it is no more.
        drop(machine);
        let last = last_synced(&linux.said())?;
        let (machine, disk) = place()?;
        finds(&machine, &disk, seed, last)?;
    }
    story.proves(SERIES, Feature::KilledMachine);
    Ok(())
}
