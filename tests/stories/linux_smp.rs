//! Stock Linux with one and with four processors; channels that move between them under load.

use std::time::Duration;

use anyhow::{Context, ensure};
use bed::provision::kernel::Series;
use e2e::{Entry, Story};

use crate::stock::{Linux, Stock, expect_in_guest, expect_on_host, make_disk, write_and_verify};

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("one_processor_reboots", one_processor_reboots),
    Entry::new(
        "four_processors_move_channels",
        four_processors_move_channels,
    ),
];

/// Moves of all channels take this long, with I/O between them.
const MOVES: Duration = Duration::from_secs(300);

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
    expect_on_host(story, &disk, &sum)
}

fn four_processors_move_channels(story: &mut Story) -> anyhow::Result<()> {
    let disk = make_disk(story)?;
    let mut linux = Stock::new(story, Series::Linux6_12)
        .cpus(4)
        .disk(&disk)
        .program("bin/load", include_str!("scripts/load.sh"))
        .program("bin/move", include_str!("scripts/move.sh"))
        .boot()?;
    let sum = write_and_verify(&mut linux)?;

    // Moved while requests are on their way, the next move as soon as the last is acknowledged.
    linux.sh("for place in 16 20; do load $place & done")?;
    let rounds = story.count(25, 2000);
    let before = turns(&mut linux)?;
    linux.sh_within(
        &format!("n=0; while [ $n -lt {rounds} ]; do for cpu in 0 1 2 3; do move $cpu || break 2; done; n=$((n+1)); done; [ $n = {rounds} ]"),
        MOVES * u32::try_from(rounds / 25)?,
    )?;
    let after = turns(&mut linux)?;
    for place in 0..2 {
        ensure!(
            after[place] > before[place],
            "load {place} made no turn of its I/O during {rounds} rounds of moves"
        );
    }
    // Every load still runs: none has lost an interrupt for good, none has read what it did not write.
    linux.sh("sleep 1")?;
    let later = turns(&mut linux)?;
    ensure!(
        later[0] > after[0] && later[1] > after[1],
        "after the moves the loads stand at {later:?}"
    );
    linux.sh("touch /tmp/stop; wait")?;

    // Each processor gets the interrupts of the channels that are its own.
    for cpu in 0..4 {
        linux.sh(&format!("move {cpu}"))?;
        let before = callbacks(&mut linux)?;
        linux.sh("dd if=/dev/sda of=/dev/null bs=4k count=64 iflag=direct 2>/dev/null")?;
        let after = callbacks(&mut linux)?;
        ensure!(
            after[cpu] >= before[cpu] + 64,
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
    expect_on_host(story, &disk, &sum)
}

/// Turns of the two loads.
fn turns(linux: &mut Linux) -> anyhow::Result<Vec<u64>> {
    let text = linux.sh("n=0; until [ -e /tmp/turns.16 ] && [ -e /tmp/turns.20 ]; do sleep 0.1; n=$((n+1)); [ $n -lt 100 ] || break; done; cat /tmp/turns.16 /tmp/turns.20")?;
    numbers(&text)
}

/// Interrupts by the hypervisor so far, by processor.
fn callbacks(linux: &mut Linux) -> anyhow::Result<Vec<u64>> {
    let text = linux.sh("sed -n 's/^ *HYP: *\\([0-9 ]*\\).*/\\1/p' /proc/interrupts")?;
    numbers(&text)
}

fn numbers(text: &str) -> anyhow::Result<Vec<u64>> {
    text.split_whitespace()
        .map(|number| number.parse().with_context(|| format!("numbers: {text:?}")))
        .collect()
}
