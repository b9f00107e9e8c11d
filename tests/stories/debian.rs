//! Debian with systemd on `host-vsp`, its root file system on a disk of ours: up to a login, under
//! load, round again, down, and what is left of it.

use std::time::Duration;

use anyhow::ensure;
use bed::provision::kernel::{Kernel, Series};
use e2e::{Entry, Feature, Story};

use crate::stock::{BOOT_ID, Linux, Stock};

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("kernel_6_1", |story| boots(story, Series::Linux6_1)),
    Entry::new("kernel_6_12_restarts", restarts),
    Entry::new("kernel_7", |story| boots(story, Series::Linux7)),
];

/// `fio` with verify: 10 to 30 s in an L1 that has a core of its own.
const FIO: Duration = Duration::from_secs(600);

fn boots(story: &mut Story, series: Series) -> anyhow::Result<()> {
    let root = story.debian_root()?;
    let mut linux = Stock::new(story, series).debian(&root).boot()?;
    works(story, &mut linux, series)?;
    ends(story, linux, series, &root)
}

/// The kernel that was asked for is up with all its services, on our disk, which bears load.
fn works(story: &Story, linux: &mut Linux, series: Series) -> anyhow::Result<()> {
    let version = linux.sh("uname -r")?;
    let wanted = Kernel::get(series)?.version();
    ensure!(version == wanted, "{version} runs, not {wanted}");
    let source = linux.sh("findmnt -no SOURCE,FSTYPE / && readlink /sys/block/sda")?;
    ensure!(
        source.contains("/dev/sda1 ext4") && source.contains("/VMBUS:"),
        "the root file system is on {source}"
    );
    linux.sh("systemctl is-system-running --wait || { systemctl --failed; false; }")?;
    story.proves(series, Feature::DebianRoot);

    let report = linux.sh_within(
        "fio --name=verified --filename=/root/data --size=60M --rw=randrw --bs=4k --iodepth=16 \
         --numjobs=1 --direct=1 --ioengine=libaio --verify=crc32c --verify_fatal=1 --fallocate=none",
        FIO,
    )?;
    ensure!(report.contains("err= 0"), "fio: {report}");
    linux.expect_clean_log()?;
    story.proves(series, Feature::Fio);
    Ok(())
}

/// It powers off, and what it leaves behind is whole.
fn ends(story: &Story, linux: Linux, series: Series, root: &str) -> anyhow::Result<()> {
    linux.power_off()?;
    story.check_debian_root(root)?;
    story.proves(series, Feature::FsckClean);
    Ok(())
}

/// A restart of the machine, asked from inside, loses nothing.
fn restarts(story: &mut Story) -> anyhow::Result<()> {
    let series = Series::Linux6_12;
    let root = story.debian_root()?;
    let mut linux = Stock::new(story, series).debian(&root).boot()?;
    works(story, &mut linux, series)?;
    let written = linux.sh("sha256sum /root/data")?;
    let boot = linux.sh(BOOT_ID)?;
    linux.type_line("systemctl reboot")?;
    linux.wait_ready()?;
    ensure!(linux.sh(BOOT_ID)? != boot, "the same kernel goes on");
    let read = linux.sh("sha256sum /root/data")?;
    ensure!(read == written, "{read} after the restart, not {written}");
    linux.expect_clean_log()?;
    story.proves(series, Feature::Reboot);
    ends(story, linux, series, &root)
}
