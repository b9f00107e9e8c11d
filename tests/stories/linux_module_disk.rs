//! `vmbus_disk`, our module for Linux, in a Debian on its own kernel: loaded by the offer, under
//! load, taken and given back, and on controllers that `hv_storvsc` had before.

use std::time::Duration;

use anyhow::{Context, ensure};
use bed::provision::kernel::Series;
use e2e::{Entry, Story};

use crate::ctl::Ctl;
use crate::linux_channels::{by_channel, numbers};
use crate::linux_disks::on_host;
use crate::stock::{Linux, Stock};

pub(crate) const STORIES: &[Entry] = &[Entry::new("vmbus_disk", vmbus_disk)];

const SERIES: Series = Series::Linux7;

/// Processors, and so channels of a controller.
const CPUS: u32 = 2;

/// `fio` with verify: a minute in an L1 that has a core of its own.
const FIO: Duration = Duration::from_secs(600);

/// One round of unloading and loading.
const ROUND: Duration = Duration::from_secs(120);

/// Lines that tell what was done: a module that is not the kernel's own, and a disk that was taken
/// while it was used.
const EXPECTED: [&str; 4] = [
    "module verification failed",
    "out-of-tree",
    "I/O error",
    "offline error",
];

/// Instance of the controller `vmd0`, and of `scsi1`.
const VMD0: &str = "2a4c9d11-6f0b-4c57-8e21-000000000101";
pub(crate) const SCSI1: &str = "2a4c9d11-6f0b-4c57-8e21-000000000002";

/// Shell functions for what follows.
const FUNCTIONS: &str = "there() { n=0; until [ -b $1 ]; do sleep 0.1; n=$((n+1)); [ $n -lt 300 ] || return 1; done; }; \
    gone() { n=0; while [ -b $1 ]; do sleep 0.1; n=$((n+1)); [ $n -lt 300 ] || return 1; done; }; \
    traffic() { for i in 1 2 3; do (while dd if=$1 of=/dev/null bs=64k count=400 skip=$((i * 100)) iflag=direct; do :; done) >/dev/null 2>&1 & done; \
    (while dd if=/root/noise of=$1 bs=256k seek=100 conv=notrunc,nocreat oflag=direct; do :; done) >/dev/null 2>&1 & sleep 1; }";

/// Boots a Debian with `root` that has our modules, with further arguments of the host.
pub(crate) fn boot(story: &Story, root: &str, arguments: &[&str]) -> anyhow::Result<Linux> {
    Stock::new(story, SERIES)
        .debian(root)
        .our_modules()
        .cpus(CPUS)
        .args(arguments.iter().copied())
        .boot()
}

fn vmbus_disk(story: &mut Story) -> anyhow::Result<()> {
    let root = story.debian_root()?;
    on_host(
        story,
        "truncate -s 128M own.img; head -c 16m /dev/urandom >theirs.img",
    )?;
    let ctl = Ctl::new(story);
    let own = format!("path={}/own.img,id=own,controller=vmd0", story.dir());
    let theirs = format!("path={}/theirs.img,controller=scsi1", story.dir());
    let disks = ["--disk", own.as_str(), "--disk", theirs.as_str()];
    let mut linux = boot(
        story,
        &root,
        &[&["--api-socket", ctl.socket()], &disks[..]].concat(),
    )?;
    linux.sh(FUNCTIONS)?;
    linux.sh("head -c 8M /dev/urandom >/root/noise")?;
    loads_by_itself(&mut linux)?;
    linux.sh("rmmod vmbus_disk")?;
    let before = lent(&ctl)?;
    linux.sh("modprobe vmbus_disk && there /dev/vmd0")?;

    every_channel_works(&mut linux, &ctl)?;
    carries(story, &mut linux)?;
    instead_of_storvsc(story, &mut linux)?;
    rounds(&mut linux, story.count(10, 200))?;
    taken_and_given_back(story, &mut linux, &ctl, &own)?;

    linux.sh("rmmod vmbus_disk")?;
    let after = lent(&ctl)?;
    ensure!(before == after, "{before:?} was lent, now {after:?} is");
    linux.expect_clean_log_but(&EXPECTED)?;
    linux.power_off()?;
    story.check_debian_root(&root)
}

/// What the guest has lent to the host: GPADLs, and pages in them.
fn lent(ctl: &Ctl<'_>) -> anyhow::Result<[u64; 2]> {
    let counters = ctl.json(&["counters"])?;
    let count = |name: &str| counters["devices"][name].as_u64().context(name.to_owned());
    Ok([count("vmbus.gpadls")?, count("vmbus.gpadl_pages")?])
}

/// The host's offer loads it.
fn loads_by_itself(linux: &mut Linux) -> anyhow::Result<()> {
    linux.sh("there /dev/vmd0")?;
    let driver = linux.sh(&format!(
        "basename $(readlink /sys/bus/vmbus/devices/{VMD0}/driver)"
    ))?;
    ensure!(driver == "vmbus_disk", "{VMD0} is {driver}'s");
    let sectors = linux.sh("cat /sys/block/vmd0/size")?;
    ensure!(sectors == "262144", "{sectors} sectors");
    Ok(())
}

/// Each processor has a channel of its own, as both ends count.
fn every_channel_works(linux: &mut Linux, ctl: &Ctl<'_>) -> anyhow::Result<()> {
    let channels = format!("/sys/bus/vmbus/devices/{VMD0}/channels");
    let relids = numbers(linux, &format!("ls {channels}"))?;
    ensure!(relids.len() == CPUS as usize, "channels {relids:?}");
    let queues = linux.sh("ls /sys/block/vmd0/mq | wc -l")?;
    ensure!(queues == CPUS.to_string(), "{queues} hardware queues");
    let before = by_channel(ctl, "wakeups")?;
    linux.sh("for cpu in 0 1; do taskset -c $cpu \
         dd if=/dev/vmd0 of=/dev/null bs=4k count=128 iflag=direct 2>/dev/null; done")?;
    let after = by_channel(ctl, "wakeups")?;
    for relid in relids {
        let relid = relid as u32;
        let (before, after) = (before.get(&relid), after.get(&relid));
        ensure!(
            after.copied() >= before.map(|count| count + 32),
            "channel {relid} woke up {before:?} times, then {after:?}"
        );
    }
    Ok(())
}

/// Load that is verified, a file system, discards; and the host sees what the guest has written.
fn carries(story: &Story, linux: &mut Linux) -> anyhow::Result<()> {
    let report = linux.sh_within(
        "fio --eta=never --name=verified --filename=/dev/vmd0 --size=60M --rw=randrw --bs=4k --iodepth=32 \
         --direct=1 --ioengine=libaio --verify=crc32c --verify_fatal=1",
        FIO,
    )?;
    ensure!(report.contains("err= 0"), "fio: {report}");
    // Other lengths, which begin anywhere in a page.
    for (length, all) in [("512", "1M"), ("1536", "1M"), ("1M", "60M")] {
        let report = linux.sh_within(
            &format!(
                "fio --eta=never --name=length --filename=/dev/vmd0 --size={all} --rw=randwrite --bs={length} \
                 --iodepth=32 --direct=1 --ioengine=libaio --verify=crc32c --verify_fatal=1"
            ),
            FIO,
        )?;
        ensure!(report.contains("err= 0"), "fio: {report}");
    }

    linux.sh(
        "mkfs.ext4 -q /dev/vmd0 && mount /dev/vmd0 /mnt && cp /root/noise /mnt/noise && sync && \
         cmp /root/noise /mnt/noise && fstrim /mnt && umount /mnt && fsck.ext4 -fn /dev/vmd0",
    )?;
    let inside = linux.sh("sync; sha256sum </dev/vmd0")?;
    let outside = on_host(story, "sha256sum <own.img")?;
    ensure!(inside == outside, "{inside} inside, {outside} outside");

    linux.sh("blkdiscard -o 64M -l 32M /dev/vmd0 && cmp -n 32M -i 64M:0 /dev/vmd0 /dev/zero")?;
    linux.sh("dd if=/root/noise of=/dev/vmd0 bs=64k oflag=direct,dsync 2>/dev/null")?;
    // More than the ring holds: the largest requests, as many as there may be.
    linux.sh_within(
        "fio --eta=never --name=full --filename=/dev/vmd0 --size=120M --rw=read --bs=512k --iodepth=160 \
         --direct=1 --ioengine=libaio | grep 'err= 0'",
        FIO,
    )?;
    linux.expect_clean_log_but(&EXPECTED)
}

/// An administrator gives it a controller that is `hv_storvsc`'s by its class: this one, then all that
/// nobody has.
fn instead_of_storvsc(story: &Story, linux: &mut Linux) -> anyhow::Result<()> {
    linux.sh(&format!(
        "echo {SCSI1} >/sys/bus/vmbus/drivers/hv_storvsc/unbind && \
         echo vmbus_disk >/sys/bus/vmbus/devices/{SCSI1}/driver_override && \
         echo {SCSI1} >/sys/bus/vmbus/drivers/vmbus_disk/bind && there /dev/vmd1"
    ))?;
    let inside = linux.sh("sha256sum </dev/vmd1")?;
    let outside = on_host(story, "sha256sum <theirs.img")?;
    ensure!(inside == outside, "{inside} inside, {outside} outside");
    let class = "ba6163d9-04a1-4d29-b605-72e2ffb1dc7f";
    linux.sh(&format!(
        "echo {SCSI1} >/sys/bus/vmbus/drivers/vmbus_disk/unbind && gone /dev/vmd1 && \
         echo >/sys/bus/vmbus/devices/{SCSI1}/driver_override && \
         echo {class} >/sys/bus/vmbus/drivers/vmbus_disk/new_id && there /dev/vmd1 && \
         echo {class} >/sys/bus/vmbus/drivers/vmbus_disk/remove_id && \
         echo {SCSI1} >/sys/bus/vmbus/drivers/vmbus_disk/unbind && gone /dev/vmd1 && \
         echo {SCSI1} >/sys/bus/vmbus/drivers/hv_storvsc/bind"
    ))?;
    Ok(())
}

/// The driver goes and comes while its disk is used.
fn rounds(linux: &mut Linux, count: u64) -> anyhow::Result<()> {
    for _ in 0..count {
        linux.sh("traffic /dev/vmd0")?;
        // Who has the disk open keeps the module.
        linux.sh("! rmmod vmbus_disk 2>/dev/null")?;
        linux.sh_within(
            &format!(
                "echo {VMD0} >/sys/bus/vmbus/drivers/vmbus_disk/unbind && wait && gone /dev/vmd0 && \
                 rmmod vmbus_disk && modprobe vmbus_disk && there /dev/vmd0"
            ),
            ROUND,
        )?;
    }
    linux.expect_clean_log_but(&EXPECTED)
}

/// The host takes the controller while it is used, and offers it again.
fn taken_and_given_back(
    story: &Story,
    linux: &mut Linux,
    ctl: &Ctl<'_>,
    own: &str,
) -> anyhow::Result<()> {
    linux.sh("traffic /dev/vmd0")?;
    ctl.call(&["remove-device", "vmd0"])?;
    linux.sh_within("wait; gone /dev/vmd0", ROUND)?;
    ctl.call(&["add-disk", own])?;
    linux.sh("there /dev/vmd0")?;
    // One disk of several on a controller.
    let more = format!("path={}/theirs2.img,id=more,controller=vmd0", story.dir());
    on_host(story, "head -c 4m /dev/urandom >theirs2.img")?;
    ctl.call(&["add-disk", &more])?;
    linux.sh("there /dev/vmd1")?;
    let inside = linux.sh("sha256sum </dev/vmd1")?;
    let outside = on_host(story, "sha256sum <theirs2.img")?;
    ensure!(inside == outside, "{inside} inside, {outside} outside");
    ctl.call(&["remove-device", "more"])?;
    linux.sh("gone /dev/vmd1")?;
    linux.sh("dd if=/dev/vmd0 of=/dev/null bs=1M 2>/dev/null")?;
    linux.expect_clean_log_but(&EXPECTED)
}
