//! Debian's kernels, not changed in anything, on `host-vsp`: the judges of the host side.

use std::time::Duration;

use anyhow::ensure;
use bed::provision::kernel::{Kernel, Series};
use e2e::{Entry, Feature, Story};

use crate::stock::{BOOT_ID, Linux, Stock};

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("debian_12_kernel", |story| boots(story, Series::Linux6_1)),
    Entry::new("debian_13_kernel", |story| boots(story, Series::Linux6_12)),
    Entry::new("backports_kernel", |story| boots(story, Series::Linux7)),
];

/// `fio` with verify: 10 to 30 s in an L1 that has a core of its own.
const FIO: Duration = Duration::from_secs(240);

/// Clock reads, and how many returns to the host they may cost: those of the timer and of the
/// line that asks, nothing that grows with the reads.
const READS: u64 = 1_000_000;
const FEW: u64 = READS / 100;

fn boots(story: &mut Story, series: Series) -> anyhow::Result<()> {
    let root = story.debian_root()?;
    let mut linux = Stock::new(story, series).debian(&root).boot()?;

    let version = linux.sh("uname -r")?;
    let wanted = Kernel::get(series)?.version();
    ensure!(version == wanted, "{version} runs, not {wanted}");
    let log = linux.log()?;
    for part in [
        "Hypervisor detected: Microsoft Hyper-V",
        "Vmbus version:5.3",
    ] {
        ensure!(log.contains(part), "no {part:?} in the guest's log:\n{log}");
    }
    let source = linux.sh("findmnt -no SOURCE,FSTYPE / && readlink /sys/block/sda")?;
    ensure!(
        source.contains("/dev/sda1 ext4") && source.contains("/VMBUS:"),
        "the root file system is on {source}"
    );
    linux.sh("systemctl is-system-running --wait || { systemctl --failed; false; }")?;

    clock_without_exits(&mut linux)?;
    verified_io(&mut linux)?;
    linux.expect_clean_log()?;
    if series == Series::Linux6_12 {
        let boot = linux.sh(BOOT_ID)?;
        linux.type_line("systemctl reboot")?;
        linux.wait_ready()?;
        ensure!(linux.sh(BOOT_ID)? != boot, "the machine did not restart");
        linux.expect_clean_log()?;
        story.proves(series, Feature::Reboot);
    }
    linux.power_off()?;
    story.check_debian_root(&root)?;

    for feature in [
        Feature::Boots,
        Feature::Vmbus5_3,
        Feature::TwoCpus,
        Feature::DebianRoot,
        Feature::ClockWithoutExits,
        Feature::Fio,
        Feature::CleanLog,
        Feature::PowerOff,
        Feature::FsckClean,
    ] {
        story.proves(series, feature);
    }
    Ok(())
}

/// Random reads and writes on a file system, all verified.
pub(crate) fn verified_io(linux: &mut Linux) -> anyhow::Result<()> {
    let report = linux.sh_within(
        "fio --name=verified --filename=/root/data --size=60M --rw=randrw --bs=4k --iodepth=16 \
         --numjobs=1 --direct=1 --ioengine=libaio --verify=crc32c --verify_fatal=1 --fallocate=none",
        FIO,
    )?;
    ensure!(report.contains("err= 0"), "fio: {report}");
    Ok(())
}

/// Whatever the clock source is called: a read of the clock does not leave the guest.
fn clock_without_exits(linux: &mut Linux) -> anyhow::Result<()> {
    let source =
        linux.sh("cat /sys/devices/system/clocksource/clocksource0/current_clocksource")?;
    let before = linux.counters()?;
    let reads = linux.sh(&format!("/run/bed/probe clock {READS}"))?;
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
