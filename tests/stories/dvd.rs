//! A DVD drive as a stock guest uses it: mounted, ejected from either side, another medium.

use anyhow::{Context, ensure};
use bed::provision::kernel::Series;
use e2e::{Entry, Feature, Story};

use crate::ctl::Ctl;
use crate::iso;
use crate::stock::{COMMAND, Linux, Stock};

pub(crate) const STORIES: &[Entry] = &[Entry::new("a_dvd_is_read_ejected_and_changed", dvd)];

/// Bytes of a medium's file: not a multiple of a block.
const LENGTH: usize = (2 << 20) + 777;

/// Makes an image with random content in L1; its path, and the content's SHA-256.
fn medium(story: &Story, name: &str) -> anyhow::Result<(String, String)> {
    let content: Vec<u8> = (0..LENGTH).map(|_| rand::random()).collect();
    let path = story.file(name);
    story.l1().put_bytes(&iso::image(&content), &path)?;
    let told = story
        .l1()
        .command("sha256sum")
        .run_with(&content, COMMAND)?;
    let told = told.stdout_text();
    let (sum, _) = told.split_once(' ').context("no checksum")?;
    Ok((path, sum.to_owned()))
}

/// Mounts what is in the drive and reads all of its file.
fn mount_and_read(linux: &mut Linux, sum: &str) -> anyhow::Result<()> {
    linux.sh("mount -t iso9660 -o ro /dev/sr0 /mnt")?;
    let read = linux.sh(&format!("sha256sum </mnt/{}", iso::NAME))?;
    ensure!(read.starts_with(sum), "the medium has {sum}, read {read}");
    Ok(())
}

/// The path of what is in the drive, as the host says.
fn told(ctl: &Ctl<'_>) -> anyhow::Result<Option<String>> {
    let info = ctl.json(&["info"])?;
    let disks = info["config"]["disks"].as_array().context("no disks")?;
    let drive = disks.iter().find(|disk| disk["id"] == "dvd0");
    let drive = drive.context("no drive")?;
    ensure!(
        drive["type"] == "dvd" && drive["readonly"] == true,
        "{drive}"
    );
    Ok(drive["path"].as_str().map(str::to_owned))
}

/// The guest finds no medium, where it found one before.
fn expect_empty(linux: &mut Linux) -> anyhow::Result<()> {
    let said = linux.sh("! dd if=/dev/sr0 of=/dev/null bs=2048 count=1 2>&1")?;
    ensure!(said.contains("No medium found"), "reading says {said:?}");
    Ok(())
}

fn dvd(story: &mut Story) -> anyhow::Result<()> {
    let (first, first_sum) = medium(story, "first.iso")?;
    let (second, second_sum) = medium(story, "second.iso")?;
    let ctl = Ctl::new(story);
    let mut linux = Stock::new(story, Series::Linux6_12)
        .module("sr_mod")
        .module("isofs")
        .args(["--disk", &format!("path={first},type=dvd")])
        .args(["--api-socket", ctl.socket()])
        .boot()?;
    linux.sh("n=0; until [ -b /dev/sr0 ]; do sleep 0.1; n=$((n+1)); [ $n -lt 100 ] || break; done; [ -b /dev/sr0 ]")?;
    let kind = linux.sh("cat /sys/block/sr0/removable /sys/block/sr0/queue/hw_sector_size")?;
    ensure!(kind == "1\n2048", "the guest's drive: {kind:?}");
    // Before it is mounted: Linux lets go of the lock where such an opening fails.
    linux.sh("! dd if=/dev/zero of=/dev/sr0 bs=2048 count=1 2>/dev/null")?;
    mount_and_read(&mut linux, &first_sum)?;

    // A file system that is mounted stays.
    let refused = ctl.output(&["eject-medium", "dvd0"])?;
    ensure!(
        !refused.status.success() && refused.stderr_text().contains("locked the medium in"),
        "ejecting a mounted medium: {refused}"
    );
    ensure!(told(&ctl)?.as_ref() == Some(&first));

    // The guest ejects by itself when nobody uses the medium any more.
    linux.sh("echo 1 >/proc/sys/dev/cdrom/autoeject")?;
    linux.sh("umount /mnt")?;
    linux.sh("echo 0 >/proc/sys/dev/cdrom/autoeject")?;
    let left = told(&ctl)?;
    ensure!(left.is_none(), "after the guest has ejected: {left:?}");
    expect_empty(&mut linux)?;

    // Another medium comes into the empty drive, and a third in place of it.
    ctl.call(&["insert-medium", "dvd0", &second])?;
    mount_and_read(&mut linux, &second_sum)?;
    linux.sh("umount /mnt")?;
    ctl.call(&["insert-medium", "dvd0", &first])?;
    ensure!(told(&ctl)?.as_ref() == Some(&first));
    mount_and_read(&mut linux, &first_sum)?;
    linux.sh("umount /mnt")?;
    ctl.call(&["eject-medium", "dvd0"])?;
    expect_empty(&mut linux)?;

    linux.expect_clean_log()?;
    linux.power_off()?;
    story.proves(Series::Linux6_12, Feature::Dvd);
    Ok(())
}
