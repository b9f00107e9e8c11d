//! Disks in images that are not raw: what the guest writes, QEMU's own tools find in them.

use anyhow::{Context, ensure};
use bed::provision::kernel::Series;
use e2e::{Entry, Feature, Story};
use serde_json::Value;

use crate::stock::{COMMAND, Linux, Stock};

pub(crate) const STORIES: &[Entry] = &[Entry::new("qcow2_vhd_and_vhdx_are_written", formats)];

/// Names of the images, QEMU's names of their formats, and how they are made.
const IMAGES: [(&str, &str, &str); 4] = [
    ("a.qcow2", "qcow2", ""),
    ("b.vhd", "vpc", "-o subformat=dynamic"),
    ("c.vhd", "vpc", "-o subformat=fixed"),
    ("d.vhdx", "vhdx", ""),
];

/// Where the guest writes, in blocks of 64 KiB, and how many: not from 0 on, and not to the end.
const SEEK: u64 = 21;
const COUNT: u64 = 40;

/// Where it writes what it discards later.
const DISCARDED: u64 = 256;

/// A block, and a cluster of qcow2.
const CLUSTER: u64 = 64 << 10;

fn in_l1(story: &Story, line: &str) -> anyhow::Result<String> {
    let output = story.l1().shell(line).dir(story.dir()).run(COMMAND)?;
    ensure!(output.status.success(), "{line}: {output}");
    Ok(output.stdout_text())
}

/// Clusters that hold data, in a qcow2 image without errors.
fn clusters(story: &Story, image: &str) -> anyhow::Result<u64> {
    let told = in_l1(story, &format!("qemu-img check -U --output=json {image}"))?;
    let told: Value = serde_json::from_str(&told)?;
    ensure!(
        told["check-errors"] == 0 && told["leaks"].is_null() && told["corruptions"].is_null(),
        "{told}"
    );
    told["allocated-clusters"]
        .as_u64()
        .context(told.to_string())
}

fn write(linux: &mut Linux, disk: &str, seek: u64) -> anyhow::Result<()> {
    linux.sh(&format!(
        "dd if=/tmp/data of=/dev/{disk} bs={CLUSTER} seek={seek} conv=fsync 2>/dev/null"
    ))?;
    Ok(())
}

fn formats(story: &mut Story) -> anyhow::Result<()> {
    story.provide_qemu_tools()?;
    let mut stock = Stock::new(story, Series::Linux6_12);
    for (name, format, options) in IMAGES {
        in_l1(
            story,
            &format!("qemu-img create -q -f {format} {options} {name} 32M"),
        )?;
        stock = stock.disk(&story.file(name));
    }
    let mut linux = stock.boot()?;
    linux.wait_disk()?;
    linux.sh(
        "n=0; until [ -b /dev/sdd ]; do sleep 0.1; n=$((n+1)); [ $n -lt 100 ] || break; done; \
         [ -b /dev/sdd ]",
    )?;
    linux.sh(&format!(
        "head -c {} /dev/urandom >/tmp/data",
        COUNT * CLUSTER
    ))?;
    let written = linux.sh("sha256sum </tmp/data")?;
    let (sum, _) = written.split_once(' ').context("no checksum")?;
    // Linux names them in the order in which they happen to answer.
    let mut disks = Vec::new();
    for lun in 0..IMAGES.len() {
        disks.push(linux.sh(&format!(
            "for d in /sys/block/sd?; do case $(readlink -f $d/device) in *:{lun}) basename $d;; \
             esac; done"
        ))?);
    }
    for disk in &disks {
        write(&mut linux, disk, SEEK)?;
    }
    // Only the first gives anything back, and it reads as zeros.
    for (lun, disk) in disks.iter().enumerate() {
        let most = linux.sh(&format!("cat /sys/block/{disk}/queue/discard_max_bytes"))?;
        ensure!(
            (most != "0") == (lun == 0),
            "LUN {lun} discards {most} bytes"
        );
    }
    let thin = &disks[0];
    write(&mut linux, thin, DISCARDED)?;
    let full = clusters(story, IMAGES[0].0)?;
    let (from, length) = (DISCARDED * CLUSTER, COUNT * CLUSTER);
    linux.sh(&format!("blkdiscard -o {from} -l {length} /dev/{thin}"))?;
    linux.sh("echo 3 >/proc/sys/vm/drop_caches")?;
    for disk in &disks {
        let read = linux.sh(&format!(
            "dd if=/dev/{disk} bs={CLUSTER} skip={SEEK} count={COUNT} 2>/dev/null | sha256sum"
        ))?;
        ensure!(read.starts_with(sum), "{disk}: written {sum}, read {read}");
    }
    linux.sh(&format!(
        "dd if=/dev/{thin} bs={CLUSTER} skip={DISCARDED} count={COUNT} 2>/dev/null | \
         cmp -n {length} - /dev/zero"
    ))?;
    linux.expect_clean_log()?;
    linux.power_off()?;

    let left = in_l1(
        story,
        "pidof qemu-storage-daemon ld-linux-x86-64.so.2 || true",
    )?;
    ensure!(left.trim().is_empty(), "daemons are left: {left}");
    let freed = full.checked_sub(clusters(story, IMAGES[0].0)?);
    ensure!(freed == Some(COUNT), "clusters freed: {freed:?}");
    in_l1(story, "qemu-img check -q -f vhdx d.vhdx")?;
    let (first, format, _) = IMAGES[0];
    for (name, other, _) in &IMAGES[1..] {
        let line = format!("qemu-img compare -f {format} -F {other} {first} {name}");
        let said = in_l1(story, &line)?;
        ensure!(said.contains("identical"), "{name}: {said}");
    }
    in_l1(
        story,
        &format!("qemu-img convert -f {format} -O raw {first} raw"),
    )?;
    let line = format!("dd if=raw bs={CLUSTER} skip={SEEK} count={COUNT} 2>/dev/null | sha256sum");
    let read = in_l1(story, &line)?;
    ensure!(read.starts_with(sum), "written {sum}, the image has {read}");
    for feature in [Feature::Qcow2, Feature::Vhd, Feature::Vhdx] {
        story.proves(Series::Linux6_12, feature);
    }
    Ok(())
}
