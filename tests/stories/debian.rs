//! Debian with systemd on `host-vsp`, its root file system on a disk of ours: up to a login, under
//! load, into a kernel of its own choice and round again, down, and what is left of it.

use std::time::Duration;

use anyhow::ensure;
use bed::guest_root_initramfs;
use bed::provision::kernel::{Kernel, Series};
use e2e::{Entry, Feature, Story};

use crate::stock::{BOOT_ID, Linux, Stock};

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("kernel_6_1", |story| boots(story, Series::Linux6_1)),
    Entry::new("kernel_6_12_starts_anew", starts_anew),
    Entry::new("kernel_7", |story| boots(story, Series::Linux7)),
];

/// `fio` with verify: 10 to 30 s in an L1 that has a core of its own.
const FIO: Duration = Duration::from_secs(240);

/// What a kernel says of who has loaded it, where that was kexec (0xd0).
const KEXEC: &str = "208";

/// For what Debian reads from a disk before it can start another kernel.
const PREPARED: Duration = Duration::from_secs(120);

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

/// The old kernel takes leave of the bus, and a new one finds it as on a fresh machine: by `kexec`,
/// where the machine itself does not restart, and by a restart of the machine.
fn starts_anew(story: &mut Story) -> anyhow::Result<()> {
    let series = Series::Linux6_12;
    let root = story.debian_root()?;
    // Kernel and initramfs for kexec, one after the other on a disk.
    let kernel = Kernel::get(series)?;
    let image = std::fs::read(kernel.image())?;
    let initramfs = guest_root_initramfs::build(&kernel, &[])?;
    let mut files = [image.as_slice(), &initramfs].concat();
    files.resize(files.len().next_multiple_of(512), 0);
    let disk = story.file("files.img");
    story.l1().put_bytes(&files, &disk)?;

    let mut linux = Stock::new(story, series).debian(&root).disk(&disk).boot()?;
    works(story, &mut linux, series)?;
    let written = linux.sh("sha256sum /root/data")?;
    let (kernel, initrd) = (image.len(), initramfs.len());
    linux.sh_within(
        &format!(
            "cd /run && disk=/dev/$(basename $(dirname $(grep -lx {} /sys/block/sd*/size))) && \
             head -c {kernel} $disk >kernel && tail -c +{} $disk | head -c {initrd} >initramfs && \
             kexec --load kernel --initrd=initramfs --reuse-cmdline && rm kernel initramfs",
            files.len() / 512,
            kernel + 1
        ),
        PREPARED,
    )?;
    for (command, feature) in [
        ("systemctl kexec", Feature::Kexec),
        ("systemctl reboot", Feature::Reboot),
    ] {
        let boot = linux.sh(BOOT_ID)?;
        linux.type_line(command)?;
        linux.wait_ready()?;
        ensure!(linux.sh(BOOT_ID)? != boot, "the same kernel goes on");
        let loader = linux.sh("cat /proc/sys/kernel/bootloader_type")?;
        ensure!(
            (loader == KEXEC) == (feature == Feature::Kexec),
            "`{command}`: the kernel was loaded by {loader}"
        );
        let read = linux.sh("echo 3 >/proc/sys/vm/drop_caches && sha256sum /root/data")?;
        ensure!(read == written, "{read} after `{command}`, not {written}");
        linux.expect_clean_log()?;
        story.proves(series, feature);
    }
    ends(story, linux, series, &root)
}
