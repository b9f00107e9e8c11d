//! Debian with systemd on `host-vsp`, its root file system on a disk of ours: up to a login, under
//! load, down again, and what is left of it.

use std::time::Duration;

use anyhow::ensure;
use bed::provision::kernel::{Kernel, Series};
use e2e::{Entry, Feature, Story};

use crate::stock::{BOOT_ID, Linux, Stock};

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("kernel_6_1", |story| boots(story, Series::Linux6_1)),
    Entry::new("kernel_6_12", |story| boots(story, Series::Linux6_12)),
    Entry::new("kernel_7", |story| boots(story, Series::Linux7)),
];

/// `fio` with verify: 10 to 30 s in an L1 that has a core of its own.
const FIO: Duration = Duration::from_secs(240);

fn boots(story: &mut Story, series: Series) -> anyhow::Result<()> {
    let root = story.debian_root()?;
    let mut linux = Stock::new(story, series).debian(&root).boot()?;

    let version = linux.sh("uname -r")?;
    let wanted = Kernel::get(series)?.version();
    ensure!(version == wanted, "{version} runs, not {wanted}");
    let source = linux.sh("findmnt -no SOURCE,FSTYPE / && readlink /sys/block/sda")?;
    ensure!(
        source.contains("/dev/sda1 ext4") && source.contains("/VMBUS:"),
        "the root file system is on {source}"
    );
    linux.sh("systemctl is-system-running --wait || { systemctl --failed; false; }")?;

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

    for feature in [Feature::DebianRoot, Feature::Fio, Feature::FsckClean] {
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
