//! Stock Linux with one, four and eight processors; channels that move between them under load.

use std::time::Duration;

use anyhow::{Context, ensure};
use bed::provision::kernel::Series;
use e2e::{Entry, Feature, Story};

use crate::stock::{Linux, Stock, expect_in_guest, expect_on_host, make_disk, write_and_verify};

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("one_processor_reboots", one_processor_reboots),
    Entry::new(
        "four_processors_move_channels",
        four_processors_move_channels,
    ),
    Entry::new("eight_processors", eight_processors),
];

/// One turn of both loads while channels move, on a busy machine.
const TURN: Duration = Duration::from_secs(24);

/// Reboot from inside starts the machine again, with what was written.
fn one_processor_reboots(story: &mut Story) -> anyhow::Result<()> {
    let disk = make_disk(story)?;
    let mut linux = Stock::new(story, Series::Linux6_12)
        .cpus(1)
        .disk(&disk)
        .boot()?;
    let sum = write_and_verify(&mut linux)?;
    linux.expect_clean_log()?;
    let boot = linux.sh("cat /proc/sys/kernel/random/boot_id")?;
    linux.type_line("reboot -f")?;
    linux.wait_ready()?;
    let again = linux.sh("cat /proc/sys/kernel/random/boot_id")?;
    ensure!(boot != again, "the machine did not restart");
    expect_in_guest(&mut linux, &sum)?;
    linux.expect_clean_log()?;
    linux.power_off()?;
    expect_on_host(story, &disk, &sum)?;
    for feature in [Feature::OneCpu, Feature::Disk, Feature::Reboot] {
        story.proves(Series::Linux6_12, feature);
    }
    Ok(())
}

/// As many processors as the bed's one core bears, each with work of its own on the disk.
fn eight_processors(story: &mut Story) -> anyhow::Result<()> {
    const CPUS: u64 = 8;
    let series = Series::Linux6_12;
    let disk = make_disk(story)?;
    let mut linux = Stock::new(story, series)
        .cpus(8)
        .disk(&disk)
        .program("bin/load", include_str!("scripts/load.sh"))
        .program("bin/turns", include_str!("scripts/turns.sh"))
        .boot()?;
    let cpus = linux.sh("grep -c ^processor /proc/cpuinfo")?;
    ensure!(cpus == CPUS.to_string(), "{cpus} processors");
    let sum = write_and_verify(&mut linux)?;
    linux.sh(
        "for cpu in 0 1 2 3 4 5 6 7; do taskset -c $cpu load $((16 + cpu)) & done; echo begun",
    )?;
    linux.sh_within("turns 2 16 17 18 19 20 21 22 23", TURN * 4)?;
    linux.sh_within("touch /tmp/stop; wait", TURN)?;
    let callbacks = callbacks(&mut linux)?;
    ensure!(
        callbacks.len() == CPUS as usize,
        "interrupts by processor: {callbacks:?}"
    );
    expect_in_guest(&mut linux, &sum)?;
    linux.expect_clean_log()?;
    linux.power_off()?;
    story.proves(series, Feature::EightCpus);
    expect_on_host(story, &disk, &sum)
}

fn four_processors_move_channels(story: &mut Story) -> anyhow::Result<()> {
    let disk = make_disk(story)?;
    let mut linux = Stock::new(story, Series::Linux6_12)
        .cpus(4)
        .disk(&disk)
        .program("bin/load", include_str!("scripts/load.sh"))
        .program("bin/move", include_str!("scripts/move.sh"))
        .program("bin/move-on", include_str!("scripts/move_on.sh"))
        .program("bin/turns", include_str!("scripts/turns.sh"))
        .boot()?;
    let sum = write_and_verify(&mut linux)?;

    // Moved while requests are on their way, the next move as soon as the last is acknowledged.
    // Each load goes on meanwhile and afterwards: none has lost an interrupt, none has read what
    // it did not write.
    linux.sh("for place in 16 20; do load $place & done; turns 1 16 20")?;
    linux.sh("move-on 0 1 2 3 & echo moving")?;
    let turns = story.count(5, 500);
    linux.sh_within(
        &format!("turns {turns} 16 20"),
        TURN * u32::try_from(turns)?,
    )?;
    linux.sh("touch /tmp/still; until [ -e /tmp/rounds ]; do sleep 0.1; done")?;
    linux.sh("turns 2 16 20")?;
    linux.sh("touch /tmp/stop; wait")?;
    let rounds: u64 = linux.sh("cat /tmp/rounds")?.parse()?;
    // A round takes each channel to four processors.
    let moves = 4 * rounds;
    ensure!(
        moves > turns,
        "each channel moved only {moves} times in {turns} turns of I/O"
    );

    // Each processor gets the interrupts of the channels that are its own. One may serve two
    // requests, if the guest looks again before it leaves.
    for cpu in 0..4 {
        linux.sh(&format!("move {cpu}"))?;
        let before = callbacks(&mut linux)?;
        linux.sh("dd if=/dev/sda of=/dev/null bs=4k count=64 iflag=direct 2>/dev/null")?;
        let after = callbacks(&mut linux)?;
        ensure!(
            after[cpu] >= before[cpu] + 32,
            "64 requests on processor {cpu} took its interrupts from {before:?} to {after:?}"
        );
    }

    // A processor without channels may go, and has them again when it is back.
    linux.sh("move 0 && echo 0 >/sys/devices/system/cpu/cpu3/online")?;
    expect_in_guest(&mut linux, &sum)?;
    linux.sh("echo 1 >/sys/devices/system/cpu/cpu3/online && move 3")?;
    linux.sh("echo 3 >/proc/sys/vm/drop_caches")?;
    expect_in_guest(&mut linux, &sum)?;
    linux.expect_clean_log()?;
    linux.power_off()?;
    expect_on_host(story, &disk, &sum)?;
    for feature in [
        Feature::FourCpus,
        Feature::ChannelsMove,
        Feature::CpuHotplug,
    ] {
        story.proves(Series::Linux6_12, feature);
    }
    Ok(())
}

/// Interrupts by the hypervisor so far, by processor.
fn callbacks(linux: &mut Linux) -> anyhow::Result<Vec<u64>> {
    let text = linux.sh("sed -n 's/^ *HYP: *\\([0-9 ]*\\).*/\\1/p' /proc/interrupts")?;
    text.split_whitespace()
        .map(|number| number.parse().with_context(|| format!("numbers: {text:?}")))
        .collect()
}
