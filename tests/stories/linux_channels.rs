//! Storage that changes under Debian's 6.12: disks and controllers come and go, and each processor
//! has a channel of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use bed::provision::kernel::Series;
use e2e::{Entry, Feature, Story};
use serde_json::Value;

use crate::ctl::Ctl;
use crate::linux_disks::{name, on_host, same_content};
use crate::stock::{Linux, Stock};

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("disks_come_and_go", disks_come_and_go),
    Entry::new("a_channel_for_each_processor", a_channel_for_each_processor),
];

const SERIES: Series = Series::Linux6_12;

/// The disk that is always there.
const STEADY: &str = "truncate -s 64M steady.img";

/// What Linux says when it has removed a disk that is there no more: it flushes it, and is told
/// that there is no such unit.
const LAST_FLUSH: &[&str] = &["cmd 0x35 status: scsi 0x2 srb 0xa0", "callbacks suppressed"];

/// One reload of the driver on a busy machine.
const RELOAD: Duration = Duration::from_secs(20);

/// One turn of a load.
const TURN: Duration = Duration::from_secs(30);

fn stock<'a>(story: &'a Story, ctl: &Ctl<'_>) -> anyhow::Result<Stock<'a>> {
    on_host(story, STEADY)?;
    let steady = format!("path={}/steady.img,serial=STEADY", story.dir());
    Ok(Stock::new(story, SERIES)
        .program("bin/disk", include_str!("scripts/disk.sh"))
        .program("bin/load", include_str!("scripts/load.sh"))
        .program("bin/turns", include_str!("scripts/turns.sh"))
        .program("bin/move", include_str!("scripts/move.sh"))
        .program("bin/move-on", include_str!("scripts/move_on.sh"))
        .program("bin/reload", include_str!("scripts/reload.sh"))
        .args(["--api-socket", ctl.socket(), "--disk", &steady]))
}

/// A disk, and then a whole controller, comes and goes again and again while another disk works.
fn disks_come_and_go(story: &mut Story) -> anyhow::Result<()> {
    let ctl = Ctl::new(story);
    let mut linux = stock(story, &ctl)?.boot()?;
    linux.wait_disk()?;
    linux.sh("load 16 & turns 1 16")?;
    for round in 0..story.count(5, 500) {
        comes_and_goes(
            story,
            &mut linux,
            &ctl,
            &format!("HOT {round}"),
            "scsi0",
            "hot",
        )?;
    }
    story.proves(SERIES, Feature::HotplugDisk);
    for round in 0..story.count(2, 50) {
        // The same controller, as soon as it is gone.
        comes_and_goes(
            story,
            &mut linux,
            &ctl,
            &format!("FAR {round}"),
            "scsi1",
            "scsi1",
        )?;
        let busses = linux.sh("ls /sys/bus/vmbus/drivers/hv_storvsc | grep -c -- -")?;
        ensure!(busses == "1", "{busses} controllers are left");
    }
    story.proves(SERIES, Feature::HotplugController);
    linux.sh_within("turns 2 16", 2 * TURN)?;
    linux.sh("touch /tmp/stop; wait")?;
    linux.expect_clean_log_but(LAST_FLUSH)?;
    linux.power_off()?;
    Ok(())
}

/// Adds a disk with fresh content to `controller`, and takes `removed` away.
fn comes_and_goes(
    story: &Story,
    linux: &mut Linux,
    ctl: &Ctl<'_>,
    serial: &str,
    controller: &str,
    removed: &str,
) -> anyhow::Result<()> {
    on_host(story, "head -c 1m /dev/urandom >hot.img")?;
    let path = story.file("hot.img");
    let disk = format!("path={path},id=hot,controller={controller},serial={serial}");
    ctl.call(&["add-disk", &disk])?;
    let name = name(linux, serial)?;
    same_content(story, linux, &name, "hot.img")?;
    ctl.call(&["remove-device", removed])?;
    linux.sh(&format!("disk '{serial}' gone"))?;
    // Its node goes a moment after what is below `/sys`.
    linux.wait(&format!("! -e /dev/{name}"))?;
    Ok(())
}

fn a_channel_for_each_processor(story: &mut Story) -> anyhow::Result<()> {
    const CPUS: usize = 4;
    let ctl = Ctl::new(story);
    let mut linux = stock(story, &ctl)?.cpus(CPUS as u32).boot()?;
    linux.wait_disk()?;
    let channels = "/sys/bus/vmbus/drivers/hv_storvsc/*-*/channels";
    let relids: Vec<u32> = linux
        .sh(&format!("ls {channels}"))?
        .split_whitespace()
        .map(|relid| relid.parse().context("a relid"))
        .collect::<anyhow::Result<_>>()?;
    ensure!(relids.len() == CPUS, "channels {relids:?}");
    let mut cpus = numbers(&mut linux, &format!("cat {channels}/*/cpu"))?;
    cpus.sort_unstable();
    ensure!(cpus == [0, 1, 2, 3], "channels on processors {cpus:?}");

    // Requests of each processor, as both ends count them.
    let inside = format!("cat {channels}/*/events");
    let (before, host_before) = (numbers(&mut linux, &inside)?, by_channel(&ctl, "wakeups")?);
    linux.sh("for cpu in 0 1 2 3; do taskset -c $cpu \
         dd if=/dev/sda of=/dev/null bs=4k count=128 iflag=direct 2>/dev/null; done")?;
    let (after, host_after) = (numbers(&mut linux, &inside)?, by_channel(&ctl, "wakeups")?);
    ensure!(
        before
            .iter()
            .zip(&after)
            .all(|(before, after)| *after >= before + 32),
        "signals by channel: {before:?}, then {after:?}"
    );
    for relid in &relids {
        let (before, after) = (host_before.get(relid), host_after.get(relid));
        ensure!(
            after.copied() >= before.map(|count| count + 32),
            "channel {relid} woke up {before:?} times, then {after:?}"
        );
    }

    // Moved under load.
    linux.sh("for place in 16 20 24; do load $place & done; turns 1 16 20 24")?;
    linux.sh("move-on 0 1 2 3 & echo moving")?;
    let turns = story.count(2, 50);
    linux.sh_within(
        &format!("turns {turns} 16 20 24"),
        TURN * u32::try_from(turns)?,
    )?;
    linux.sh("touch /tmp/still; until [ -e /tmp/rounds ]; do sleep 0.1; done")?;
    linux.sh("touch /tmp/stop; wait")?;
    let rounds: u64 = linux.sh("cat /tmp/rounds")?.parse()?;
    ensure!(rounds > 1, "the channels moved only {rounds} times");

    // The driver goes and comes; nothing of it is left behind.
    let before = left(story, &linux, &ctl)?;
    let reloads = story.count(10, 100);
    linux.sh_within(
        &format!("reload {reloads} STEADY"),
        RELOAD * u32::try_from(reloads)?,
    )?;
    let after = left(story, &linux, &ctl)?;
    ensure!(
        before == after,
        "left behind: {before} before, {after} after"
    );
    let again = linux.sh(&format!("ls {channels} | wc -l"))?;
    ensure!(again == CPUS.to_string(), "{again} channels after it");
    story.proves(SERIES, Feature::SubChannels);
    linux.expect_clean_log()?;
    linux.power_off()?;
    Ok(())
}

/// The numbers that a command prints.
pub(crate) fn numbers(linux: &mut Linux, command: &str) -> anyhow::Result<Vec<u64>> {
    let text = linux.sh(command)?;
    text.split_whitespace()
        .map(|number| number.parse().with_context(|| format!("numbers: {text:?}")))
        .collect()
}

/// The host's counter `what` of each channel.
pub(crate) fn by_channel(ctl: &Ctl<'_>, what: &str) -> anyhow::Result<BTreeMap<u32, u64>> {
    let counters = ctl.json(&["counters"])?;
    let devices = counters["devices"].as_object().context("no devices")?;
    let counts = devices.iter().filter_map(|(name, count)| {
        let (relid, found) = name.strip_prefix("channel")?.split_once('.')?;
        (found == what).then_some((relid.parse().ok()?, count.as_u64()?))
    });
    Ok(counts.collect())
}

/// What the host holds for the guest: channels, GPADLs and threads.
fn left(story: &Story, linux: &Linux, ctl: &Ctl<'_>) -> anyhow::Result<String> {
    let channels: Vec<u32> = by_channel(ctl, "wakeups")?.into_keys().collect();
    let counters: Value = ctl.json(&["counters"])?;
    let gpadls = counters["devices"]["vmbus.gpadls"].as_u64();
    let gpadls = gpadls.context("no count of GPADLs")?;
    let tasks = format!("ls /proc/{}/task | wc -l", linux.process().pid());
    let threads = on_host(story, &tasks)?;
    Ok(format!(
        "channels {channels:?}, {gpadls} GPADLs, {threads} threads"
    ))
}
