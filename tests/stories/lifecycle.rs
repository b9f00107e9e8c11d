//! A guest that starts anew by itself: into a kernel of its own choice, and out of a panic.

use std::time::Duration;

use anyhow::ensure;
use bed::guest_root_initramfs;
use bed::provision::kernel::{Kernel, Series};
use e2e::{Entry, Feature, Story};

use crate::debian::verified_io;
use crate::stock::{BOOT_ID, Stock};

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("kexec_into_the_same_kernel", kexec_into_the_same_kernel),
    Entry::new("a_panic_reboots", a_panic_reboots),
];

/// For what Debian reads from its disk before it goes on.
const PREPARED: Duration = Duration::from_secs(120);

/// The old kernel takes leave of the bus, and the new one finds it as a fresh machine's; the
/// machine itself does not restart.
fn kexec_into_the_same_kernel(story: &mut Story) -> anyhow::Result<()> {
    let series = Series::Linux6_12;
    let kernel = Kernel::get(series)?;
    let root = story.debian_root()?;
    // Both files one after the other on a disk.
    let image = std::fs::read(kernel.image())?;
    let initramfs = guest_root_initramfs::build(&kernel, &[])?;
    let mut files = [image.as_slice(), &initramfs].concat();
    files.resize(files.len().next_multiple_of(512), 0);
    let disk = story.file("files.img");
    story.l1().put_bytes(&files, &disk)?;

    let mut linux = Stock::new(story, series).debian(&root).disk(&disk).boot()?;
    let boot = linux.sh(BOOT_ID)?;
    linux.sh("echo before >/root/file")?;
    let (kernel, initrd) = (image.len(), initramfs.len());
    linux.sh_within(
        &format!(
            "head -c {kernel} /dev/sdb >/root/kernel && \
             tail -c +{} /dev/sdb | head -c {initrd} >/root/initramfs && \
             kexec --load /root/kernel --initrd=/root/initramfs --reuse-cmdline",
            kernel + 1
        ),
        PREPARED,
    )?;
    linux.type_line("systemctl kexec")?;
    linux.wait_ready()?;
    ensure!(linux.sh(BOOT_ID)? != boot, "the same kernel goes on");
    ensure!(
        linux.sh("cat /root/file")? == "before",
        "a file has changed"
    );
    verified_io(&mut linux)?;
    linux.expect_clean_log()?;
    linux.power_off()?;
    story.check_debian_root(&root)?;
    story.proves(series, Feature::Kexec);
    Ok(())
}

/// What was synced before the panic is there after the restart.
fn a_panic_reboots(story: &mut Story) -> anyhow::Result<()> {
    let series = Series::Linux6_12;
    let root = story.debian_root()?;
    let mut linux = Stock::new(story, series)
        .debian(&root)
        .append("panic=1")
        .boot()?;
    let boot = linux.sh(BOOT_ID)?;
    let sum = linux.sh("head -c 1M /dev/urandom >/root/data && sync && sha256sum /root/data")?;
    linux.type_line("echo c >/proc/sysrq-trigger")?;
    linux.wait_ready()?;
    ensure!(linux.sh(BOOT_ID)? != boot, "the machine did not restart");
    let again = linux.sh("sha256sum /root/data")?;
    ensure!(sum == again, "before the panic {sum}, after {again}");
    linux.expect_clean_log()?;
    linux.power_off()?;
    story.check_debian_root(&root)?;
    story.proves(series, Feature::PanicReboots);
    Ok(())
}
