//! A stock Linux that starts another kernel by itself.

use std::fs;

use anyhow::ensure;
use bed::guest_initramfs;
use bed::provision::Carried;
use bed::provision::kernel::{Kernel, Series};
use e2e::{Entry, Feature, Story};

use crate::stock::{
    BOOT_ID, MODULES, Stock, carried, expect_in_guest, expect_on_host, make_disk, write_and_verify,
};

pub(crate) const STORIES: &[Entry] = &[Entry::new("into_the_same_kernel", into_the_same_kernel)];

/// What a kernel says of who has loaded it, where that was kexec (0xd0).
const KEXEC: &str = "208";

/// The old kernel takes leave of the bus, and the new one finds it as on a fresh machine; the
/// machine itself does not restart.
fn into_the_same_kernel(story: &mut Story) -> anyhow::Result<()> {
    let series = Series::Linux6_12;
    let disk = make_disk(story)?;
    let kernel = Kernel::get(series)?;
    let image = fs::read(kernel.image())?;
    let probe = story.l2_probe()?;
    let next = guest_initramfs::build(&kernel, &MODULES, &[("bin/probe", &probe)])?;

    let programs = carried(&Carried::kexec()?)?;
    let mut stock = Stock::new(story, series)
        .disk(&disk)
        .file("root/kernel", &image)
        .file("root/initramfs", &next);
    for (path, bytes) in &programs {
        stock = stock.file(path, bytes);
    }
    let mut linux = stock.boot()?;
    let sum = write_and_verify(&mut linux)?;
    let boot = linux.sh(BOOT_ID)?;
    linux.sh("kexec --load /root/kernel --initrd=/root/initramfs --reuse-cmdline")?;
    linux.expect_clean_log()?;
    linux.type_line("kexec -e")?;
    linux.wait_ready()?;
    ensure!(linux.sh(BOOT_ID)? != boot, "the same kernel goes on");
    let loader = linux.sh("cat /proc/sys/kernel/bootloader_type")?;
    ensure!(loader == KEXEC, "the kernel was loaded by {loader}");
    expect_in_guest(&mut linux, &sum)?;
    linux.expect_clean_log()?;
    linux.power_off()?;
    expect_on_host(story, &disk, &sum)?;
    story.proves(series, Feature::Kexec);
    Ok(())
}
