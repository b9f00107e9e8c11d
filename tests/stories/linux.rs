//! Debian's kernels, not changed in anything, on `host-vsp`: the judges of the host side.

use anyhow::ensure;
use bed::provision::kernel::{Kernel, Series};
use e2e::{Entry, Feature, Story};

use crate::stock::{Linux, Stock, expect_on_host, make_disk, write_and_verify};

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("debian_12_kernel", |story| {
        boots(story, Series::Linux6_1, "5.3")
    }),
    Entry::new("debian_13_kernel", |story| {
        boots(story, Series::Linux6_12, "5.3")
    }),
    Entry::new("backports_kernel", |story| {
        boots(story, Series::Linux7, "5.3")
    }),
];

/// Clock reads, and how many returns to the host they may cost: those of the timer and of the
/// line that asks, nothing that grows with the reads.
const READS: u64 = 1_000_000;
const FEW: u64 = READS / 100;

fn boots(story: &mut Story, series: Series, vmbus: &str) -> anyhow::Result<()> {
    let disk = make_disk(story)?;
    // All of it as Debian has chosen, unlike the other stories' guests.
    let mut linux = Stock::new(story, series)
        .append("mitigations=auto")
        .disk(&disk)
        .boot()?;

    let version = linux.sh("uname -r")?;
    let wanted = Kernel::get(series)?.version();
    ensure!(version == wanted, "{version} runs, not {wanted}");
    let cpus = linux.sh("grep -c ^processor /proc/cpuinfo")?;
    ensure!(cpus == "2", "{cpus} processors");

    let log = linux.log()?;
    for part in [
        "Hypervisor detected: Microsoft Hyper-V".to_owned(),
        format!("Vmbus version:{vmbus}"),
    ] {
        ensure!(
            log.contains(&part),
            "no {part:?} in the guest's log:\n{log}"
        );
    }

    let sum = write_and_verify(&mut linux)?;
    clock_without_exits(&mut linux)?;
    linux.expect_clean_log()?;
    linux.power_off()?;
    expect_on_host(story, &disk, &sum)?;
    for feature in [
        Feature::Boots,
        Feature::CleanLog,
        Feature::Vmbus5_3,
        Feature::ClockWithoutExits,
        Feature::TwoCpus,
        Feature::PowerOff,
        Feature::Disk,
    ] {
        story.proves(series, feature);
    }
    Ok(())
}

/// Whatever the clock source is called: a read of the clock does not leave the guest.
fn clock_without_exits(linux: &mut Linux) -> anyhow::Result<()> {
    let source =
        linux.sh("cat /sys/devices/system/clocksource/clocksource0/current_clocksource")?;
    let before = linux.counters()?;
    let reads = linux.sh(&format!("probe clock {READS}"))?;
    let after = linux.counters()?;
    for (name, pointer) in [
        ("returns from KVM_RUN", "/returns_total"),
        ("exits", "/kvm/exits"),
    ] {
        let value = |counters: &serde_json::Value| counters.pointer(pointer)?.as_u64();
        let (Some(before), Some(after)) = (value(&before), value(&after)) else {
            anyhow::bail!("the host's counters have no {pointer}: {after}");
        };
        ensure!(
            after - before < FEW,
            "{} {name} for {reads}, clock source {source}",
            after - before
        );
    }
    Ok(())
}
