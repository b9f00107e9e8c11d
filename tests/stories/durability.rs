//! What a guest was told to be on its disk is there: after the end of the host by SIGKILL, after
//! the end of the whole machine around it, and where the host's own disk is full.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context, ensure};
use bed::l1::{Drive, L1, Signal};
use bed::numbered::BLOCK;
use bed::provision::kernel::Series;
use e2e::{Entry, Feature, Story};
use rand::RngExt;

use crate::stock::{COMMAND, DISK, Linux, Stock, make_disk};

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("killed_host", killed_host),
    Entry::new("killed_machine", killed_machine),
    Entry::new("full_host_disk", full_host_disk),
];

const SERIES: Series = Series::Linux6_12;

/// Blocks that are written to, of the disk's first.
const BLOCKS: u64 = 2048;

/// Blocks that are synced before the end comes, while the next are written.
const BEFORE: u64 = 150;

/// For all that are written before, on a busy machine.
const WRITING: Duration = Duration::from_secs(240);

/// Sizes of the file system that is too small and then large enough, in MiB.
const SMALL: u32 = 1;
const LARGE: u32 = 16;

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

/// The guest hears of it, lives on with its other disk, and goes on when there is room again.
fn full_host_disk(story: &mut Story) -> anyhow::Result<()> {
    let seed: u64 = rand::rng().random();
    let (small, other) = (story.file("small"), make_disk(story)?);
    let in_l1 = |line: &str| -> anyhow::Result<()> {
        let output = story.l1().shell(line).run(COMMAND)?;
        ensure!(output.status.success(), "{line}: {output}");
        Ok(())
    };
    in_l1(&format!(
        "mkdir {small} && mount -t tmpfs -o size={SMALL}m tmpfs {small} && \
         truncate -s {} {small}/disk",
        BLOCKS * BLOCK as u64
    ))?;
    let disk = format!("{small}/disk");
    let mut linux = boot(story, &[&disk, &other])?;
    // Which is which, the guest decides.
    let find = |linux: &mut Linux, bytes: u64| {
        linux.sh(&format!(
            "n=0; until disk=$(grep -lx {} /sys/block/sd*/size); do sleep 0.1; n=$((n+1)); \
             [ $n -lt 100 ] || break; done; disk=${{disk%/size}}; echo /dev/${{disk##*/}}",
            bytes / 512
        ))
    };
    let small_disk = find(&mut linux, BLOCKS * BLOCK as u64)?;
    let other_disk = find(&mut linux, DISK)?;
    let failed = linux.sh_within(
        &format!(
            "! probe write {small_disk} {seed} {BLOCKS} 1 2000 >/tmp/said; tail -n 1 /tmp/said"
        ),
        WRITING,
    )?;
    // The kernel may have said something on the console before.
    let last_line = failed.lines().last().unwrap_or_default();
    let number = last_line.strip_prefix("failed ").and_then(|rest| {
        let (number, why) = rest.split_once(": ")?;
        // As the disk says it, an allocation failed; other paths make an I/O error of it.
        why.contains("No space left")
            .then_some(number.parse::<u64>().ok()?)
    });
    let number = number.with_context(|| format!("the write ended with {failed:?}"))?;
    let log = linux.log()?;
    ensure!(
        log.contains("critical space allocation error"),
        "the guest's log does not say why:\n{log}"
    );
    // Nothing that was synced is lost, and the other disk does not suffer.
    linux.sh(&format!(
        "probe verify {small_disk} {seed} {BLOCKS} {}",
        number - 1
    ))?;
    linux.sh(&format!(
        "probe write {other_disk} {seed} {BLOCKS} 1 20 >/dev/null"
    ))?;
    linux.sh(&format!("probe verify {other_disk} {seed} {BLOCKS} 20"))?;

    in_l1(&format!("mount -o remount,size={LARGE}m {small}"))?;
    let again = format!("probe write {small_disk} {seed} {BLOCKS} {number} 50 >/dev/null");
    linux.sh_within(&again, WRITING)?;
    let last = number + 49;
    linux.sh("echo 3 >/proc/sys/vm/drop_caches")?;
    linux.sh(&format!("probe verify {small_disk} {seed} {BLOCKS} {last}"))?;
    let output = linux.power_off()?;
    ensure!(
        output.stderr_text().contains("a disk's transfer failed"),
        "the host does not say what failed: {output}"
    );
    finds(story, &disk, seed, last)?;
    in_l1(&format!("umount {small}"))?;
    story.proves(SERIES, Feature::FullHostDisk);
    Ok(())
}
