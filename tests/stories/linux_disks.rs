//! Disks of every kind, as Debian's 6.12 finds and uses them.

use anyhow::{Context, ensure};
use bed::provision::kernel::Series;
use e2e::{Entry, Feature, Story};
use serde_json::Value;

use crate::ctl::Ctl;
use crate::stock::{COMMAND, Linux, Stock};
use crate::trace::{Trace, descriptor, threads};

pub(crate) const STORIES: &[Entry] = &[Entry::new("kinds_of_disks", kinds_of_disks)];

const SERIES: Series = Series::Linux6_12;

/// Makes the images: two with data, one to be written, one to be emptied, one to grow.
const IMAGES: &str = "head -c 8m /dev/urandom >only-read.img; head -c 8m /dev/urandom >far.img; \
                      truncate -s 32M native.img; head -c 32m /dev/urandom >full.img; \
                      truncate -s 16M grows.img";

/// The disks: what comes after `path=`.
const DISKS: [&str; 5] = [
    "full.img,serial=FULL",
    "only-read.img,readonly=on,lun=5,serial=ONLY READ",
    "native.img,block-size=4096,lun=9,serial=NATIVE",
    "far.img,controller=scsi1,lun=7,serial=FAR",
    "grows.img,controller=scsi1,id=grows",
];

/// Runs a line of shell in the story's directory in L1; what it printed.
pub(crate) fn on_host(story: &Story, line: &str) -> anyhow::Result<String> {
    let output = story.l1().shell(line).dir(story.dir()).run(COMMAND)?;
    ensure!(output.status.success(), "{line}: {output}");
    Ok(output.stdout_text().trim().to_owned())
}

/// The name in the guest of the disk with this serial number; waits for it.
pub(crate) fn name(linux: &mut Linux, serial: &str) -> anyhow::Result<String> {
    linux.sh(&format!("disk '{serial}'"))
}

/// Fails unless guest and host see the same content.
pub(crate) fn same_content(
    story: &Story,
    linux: &mut Linux,
    name: &str,
    image: &str,
) -> anyhow::Result<()> {
    let inside = linux.sh(&format!("sha256sum </dev/{name}"))?;
    let outside = on_host(story, &format!("sha256sum <{image}"))?;
    ensure!(
        inside == outside,
        "{name} reads as {inside}, {image} is {outside}"
    );
    Ok(())
}

fn kinds_of_disks(story: &mut Story) -> anyhow::Result<()> {
    on_host(story, IMAGES)?;
    let ctl = Ctl::new(story);
    let disks = DISKS.iter().flat_map(|disk| {
        let disk = format!("path={}/{disk}", story.dir());
        ["--disk".to_owned(), disk]
    });
    let mut linux = Stock::new(story, SERIES)
        .program("bin/disk", include_str!("scripts/disk.sh"))
        .args(["--api-socket", ctl.socket()])
        .args(disks)
        .boot()?;
    let before = identifiers(&mut linux, &ctl)?;
    places(story, &mut linux)?;
    only_read(story, &mut linux)?;
    native(story, &mut linux)?;
    durable(story, &mut linux)?;
    discards(story, &mut linux)?;
    grows(story, &mut linux, &ctl)?;
    linux.expect_clean_log()?;

    linux.type_line("reboot -f")?;
    linux.wait_ready()?;
    let after = identifiers(&mut linux, &ctl)?;
    ensure!(
        before == after,
        "the disks were {before}, now they are {after}"
    );
    story.proves(SERIES, Feature::Identifiers);
    linux.expect_clean_log()?;
    linux.power_off()?;
    Ok(())
}

/// What the guest takes disks for the same by, a line for each.
fn identifiers(linux: &mut Linux, ctl: &Ctl<'_>) -> anyhow::Result<String> {
    let info = ctl.json(&["info"])?;
    let disks = info["config"]["disks"].as_array().context("no disks")?;
    ensure!(disks.len() == DISKS.len(), "{info}");
    let mut all = String::new();
    for disk in disks {
        let serial = disk["serial"].as_str().context("no serial number")?;
        let name = name(linux, serial)?;
        let of = linux.sh(&format!(
            "cd /sys/block/{name}/device; cat wwid; tail -c +5 vpd_pg83 | xxd -p -c 99"
        ))?;
        ensure!(of.starts_with("naa.3"), "{serial} is called {of}");
        all.push_str(&format!("{serial}: {of}\n"));
    }
    Ok(all)
}

/// Each disk is where it was put, on two controllers.
fn places(story: &Story, linux: &mut Linux) -> anyhow::Result<()> {
    let mut hosts = Vec::new();
    for (serial, lun) in [("FULL", 0), ("ONLY READ", 5), ("NATIVE", 9), ("FAR", 7)] {
        let name = name(linux, serial)?;
        let place = linux.sh(&format!("basename $(readlink -f /sys/block/{name}/device)"))?;
        let (host, rest) = place.split_once(':').context(place.clone())?;
        ensure!(rest == format!("0:0:{lun}"), "{serial} is at {place}");
        hosts.push(host.to_owned());
    }
    ensure!(
        hosts[..3].iter().all(|host| *host == hosts[0]) && hosts[3] != hosts[0],
        "controllers {hosts:?}"
    );
    for (serial, image) in [("FULL", "full.img"), ("FAR", "far.img")] {
        let name = name(linux, serial)?;
        same_content(story, linux, &name, image)?;
    }
    story.proves(SERIES, Feature::ManyDisks);
    Ok(())
}

fn only_read(story: &Story, linux: &mut Linux) -> anyhow::Result<()> {
    let name = name(linux, "ONLY READ")?;
    let outside = on_host(story, "sha256sum <only-read.img")?;
    let flag = linux.sh(&format!("cat /sys/block/{name}/ro"))?;
    ensure!(flag == "1", "{name} is not read-only: {flag}");
    linux.sh(&format!(
        "! dd if=/dev/zero of=/dev/{name} bs=4k count=1 conv=fsync 2>/dev/null"
    ))?;
    same_content(story, linux, &name, "only-read.img")?;
    let after = on_host(story, "sha256sum <only-read.img")?;
    ensure!(after == outside, "the image was written to");
    story.proves(SERIES, Feature::ReadOnlyDisk);
    Ok(())
}

fn native(story: &Story, linux: &mut Linux) -> anyhow::Result<()> {
    let name = name(linux, "NATIVE")?;
    for (what, expected) in [
        ("queue/logical_block_size", "4096"),
        ("queue/physical_block_size", "4096"),
        ("queue/discard_granularity", "4096"),
        ("size", "65536"),
    ] {
        let is = linux.sh(&format!("cat /sys/block/{name}/{what}"))?;
        ensure!(is == expected, "{what} is {is}, not {expected}");
    }
    linux.sh(&format!(
        "head -c 4m /dev/urandom >/tmp/data && \
         dd if=/tmp/data of=/dev/{name} bs=4k seek=1000 oflag=direct 2>/dev/null && \
         dd if=/dev/{name} of=/tmp/back bs=4k skip=1000 count=1024 iflag=direct 2>/dev/null && \
         cmp /tmp/data /tmp/back && rm /tmp/data /tmp/back"
    ))?;
    same_content(story, linux, &name, "native.img")?;
    story.proves(SERIES, Feature::Blocks4096);
    Ok(())
}

/// What L1's kernel saw of writes to an image.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    plain: usize,
    durable: usize,
    syncs: usize,
}

/// A durable write of the guest is one of the host, by FUA; a plain one is not, and a flush is an
/// `fdatasync`.
fn durable(story: &Story, linux: &mut Linux) -> anyhow::Result<()> {
    let name = name(linux, "FULL")?;
    for (what, expected) in [("fua", "1"), ("write_cache", "write back")] {
        let is = linux.sh(&format!("cat /sys/block/{name}/queue/{what}"))?;
        ensure!(is == expected, "{what} is {is}, not {expected}");
    }
    let fd = descriptor(story.l1(), linux.process(), &story.file("full.img"))?;
    let trace = Trace::begin(
        story,
        &[
            ("syscalls/sys_enter_pwritev2", ""),
            ("syscalls/sys_enter_fdatasync", ""),
        ],
    )?;
    let threads = threads(story.l1(), linux.process())?;
    let mut before = Seen::default();
    for (command, expected) in [
        (
            format!("probe write-durably /dev/{name}"),
            // Linux flushes a block device after a write by FUA all the same.
            Seen {
                durable: 1,
                syncs: 1,
                ..Seen::default()
            },
        ),
        (
            format!("dd if=/dev/zero of=/dev/{name} bs=4k count=1 oflag=direct 2>/dev/null"),
            Seen {
                plain: 1,
                ..Seen::default()
            },
        ),
        (
            format!("dd if=/dev/zero of=/dev/{name} bs=4k count=0 conv=fsync 2>/dev/null"),
            Seen {
                syncs: 1,
                ..Seen::default()
            },
        ),
    ] {
        linux.sh(&command)?;
        let mut now = Seen::default();
        let events = trace.events()?;
        for event in &events {
            if !threads.contains_key(&event.thread) {
                continue;
            }
            let on_image = |name: &str| {
                let arguments = event.what.strip_prefix(name)?.strip_prefix("(fd: ")?;
                (arguments.split([',', ')']).next() == Some(&format!("{fd:x}"))).then_some(())
            };
            // RWF_DSYNC
            let durable = event.what.ends_with("flags: 2)");
            match (on_image("sys_pwritev2"), on_image("sys_fdatasync")) {
                (Some(()), _) if durable => now.durable += 1,
                (Some(()), _) => now.plain += 1,
                (_, Some(())) => now.syncs += 1,
                _ => {}
            }
        }
        let new = Seen {
            plain: now.plain - before.plain,
            durable: now.durable - before.durable,
            syncs: now.syncs - before.syncs,
        };
        ensure!(new == expected, "`{command}` was {new:?}: {events:?}");
        before = now;
    }
    trace.end()?;
    story.proves(SERIES, Feature::FlushAndFua);
    Ok(())
}

/// What the guest has no use for any more takes no room on the host.
fn discards(story: &Story, linux: &mut Linux) -> anyhow::Result<()> {
    const MEGABYTE: u64 = 1024;
    let used = || -> anyhow::Result<u64> {
        let kilobytes = on_host(story, "du -k full.img | cut -f1")?;
        Ok(kilobytes.parse()?)
    };
    let name = name(linux, "FULL")?;
    let full = used()?;
    ensure!(full >= 32 * MEGABYTE, "the image takes {full} KiB");
    linux.sh(&format!("blkdiscard /dev/{name}"))?;
    let empty = used()?;
    ensure!(empty < MEGABYTE, "after blkdiscard it takes {empty} KiB");
    linux.sh(&format!(
        "mke2fs -b 4096 /dev/{name} >/dev/null && mount -t ext4 /dev/{name} /mnt && \
         head -c 16m /dev/urandom >/mnt/file && sync"
    ))?;
    let written = used()?;
    ensure!(
        written >= 16 * MEGABYTE,
        "with a file it takes {written} KiB"
    );
    linux.sh("rm /mnt/file && sync && fstrim /mnt")?;
    let trimmed = used()?;
    ensure!(
        trimmed < 2 * MEGABYTE,
        "after fstrim it takes {trimmed} KiB"
    );
    linux.sh("umount /mnt")?;
    same_content(story, linux, &name, "full.img")?;
    story.proves(SERIES, Feature::Discard);
    Ok(())
}

/// A disk that is made larger is larger in the guest when that looks again, as on Hyper-V.
fn grows(story: &Story, linux: &mut Linux, ctl: &Ctl<'_>) -> anyhow::Result<()> {
    const SIZE: u64 = 24 << 20;
    let info = ctl.json(&["info"])?;
    let disks = info["config"]["disks"].as_array().context("no disks")?;
    let grows = disks.iter().find(|disk| disk["id"] == "grows");
    let serial = grows.and_then(|disk| disk["serial"].as_str());
    let name = name(linux, serial.context("no such disk")?)?;
    ctl.call(&["resize-disk", "grows", "24M"])?;
    let file = on_host(story, "stat -c %s grows.img")?;
    ensure!(file == SIZE.to_string(), "the image has {file} bytes");
    linux.sh(&format!("echo 1 >/sys/block/{name}/device/rescan"))?;
    let sectors = linux.sh(&format!("cat /sys/block/{name}/size"))?;
    ensure!(
        sectors == (SIZE / 512).to_string(),
        "the guest sees {sectors} sectors"
    );
    // To the new end.
    linux.sh(&format!(
        "dd if=/dev/urandom of=/dev/{name} bs=4k seek=6143 count=1 conv=fsync 2>/dev/null"
    ))?;
    same_content(story, linux, &name, "grows.img")?;
    let size = |info: &Value| info["config"]["disks"][3]["size"].as_u64();
    let info = ctl.json(&["info"])?;
    ensure!(size(&info) == Some(SIZE), "vm.info says {info}");
    story.proves(SERIES, Feature::Resize);
    Ok(())
}
