//! A Debian root file system: systemd as init, a getty on the serial port, and the tools that
//! stories use; ext4 in the only partition of a GPT disk image.
//!
//! Packages are resolved, fetched and checked as all others. What needs root, to unpack them with
//! their owners and to run their scripts, is done in an L1, so that it works for everyone and
//! touches nothing here. No kernel is in it: guests bring one, and its modules, with their
//! initramfs.

mod repack;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::apt::{Apt, Package};
use super::debian::{Release, download, hexadecimal};
use super::kernel::{Kernel, Series};
use super::{Qemu, busybox};
use crate::cache::Cache;
use crate::error::{AtPath, Error, Result};
use crate::l1::{Drive, L1};
use crate::progress::Step;

/// Label of the partition and of its file system, as in `root=LABEL=debian-root`.
pub const LABEL: &str = "debian-root";

/// Where the partition begins, in bytes.
pub const OFFSET: u64 = 1 << 20;

/// Bytes of the image; most of them are holes.
const SIZE: u64 = 1 << 30;

/// Debian's essential packages, and what their scripts need.
const BASE: [&str; 27] = [
    "base-files",
    "base-passwd",
    "bash",
    "bsdutils",
    "coreutils",
    "dash",
    "debconf",
    "debianutils",
    "diffutils",
    "dpkg",
    "findutils",
    "grep",
    "gzip",
    "hostname",
    "init-system-helpers",
    "libc-bin",
    "login",
    "mawk",
    "mount",
    "ncurses-base",
    "ncurses-bin",
    "passwd",
    "perl-base",
    "sed",
    "sysvinit-utils",
    "tar",
    "util-linux",
];

/// What makes it a system, and what stories use in it.
const MORE: [&str; 13] = [
    "e2fsprogs",
    "ethtool",
    "fdisk",
    "fio",
    "hyperv-daemons",
    "iperf3",
    "iproute2",
    "kexec-tools",
    "kmod",
    "procps",
    "systemd-sysv",
    "tcpdump",
    "udev",
];

/// Makes a disk of the packages, in L1.
const SCRIPT: &str = include_str!("build.sh");

/// The script's last line.
const DONE: &str = "@@ done";

/// The script takes two minutes on an idle machine.
const DEADLINE: Duration = Duration::from_secs(15 * 60);

/// The disk image, made if missing. It is not to be written: stories copy it.
pub fn get() -> Result<PathBuf> {
    let cache = Cache::open()?;
    let name = format!("debian-root-{}", recipe());
    let image = |bundle: PathBuf| bundle.join("disk.img");
    if cache.bundle(&name).is_dir() {
        return Ok(image(cache.bundle(&name)));
    }
    // The L1 needs these, and could not fetch them while the cache is locked.
    Qemu::get()?;
    Kernel::get(Series::Linux6_12)?;
    busybox()?;
    let bundle = cache.bundle_or(&name, |dir| {
        let apt = Apt::get(&cache, Release::Trixie)?;
        let base = apt.closure(&BASE)?;
        let all = apt.closure(&[&BASE[..], &MORE[..]].concat())?;
        make(apt, &base, &all, dir).map_err(|error| match error {
            Error::Setup(_) => error,
            other => Error::Setup(format!(
                "a Debian root file system could not be made; nothing of it is kept, try again: \
                 {other}"
            )),
        })
    })?;
    Ok(image(bundle))
}

/// What the bundle's contents depend on, in a few digits.
fn recipe() -> String {
    let words = format!("{BASE:?} {MORE:?} {SIZE} {LABEL} {SCRIPT}");
    hexadecimal(&Sha256::digest(words))[..10].to_owned()
}

fn make(apt: &Apt, base: &[Package], all: &[Package], dir: &Path) -> Result<()> {
    let image = dir.join("disk.img");
    File::create_new(&image)
        .and_then(|file| file.set_len(SIZE))
        .at(&image)?;
    let l1 = L1::setup().drive(Drive::written("root", &image)).boot()?;
    let mut order = 0;
    let list = download(apt, "Debian", all, dir, |package, file| {
        order += 1;
        let part = if base.contains(package) {
            "base"
        } else {
            "more"
        };
        let deb = repack::uncompressed(file)?;
        // The number keeps apt's order, which has what others need before them.
        l1.put_bytes(
            &deb,
            &format!("/tmp/debs/{part}/{order:03}-{}.deb", package.name()),
        )
    })?;
    fs::write(dir.join("packages.txt"), list).at(dir)?;

    let step = Step::begin("making a Debian root file system in the bed", 0);
    l1.put_bytes(SCRIPT.as_bytes(), "/tmp/build.sh")?;
    let device = l1.drive("root")?;
    let mut making = l1
        .shell("exec sh /tmp/build.sh \"$@\" 2>&1 </dev/null")
        .args(["build", &device, LABEL, &(OFFSET / 512).to_string()])
        .spawn()?;
    loop {
        let line = making.expect("@@ ", DEADLINE)?;
        step.say(line.trim_start_matches("@@ "));
        if line == DONE {
            break;
        }
    }
    let log = dir.join("build.log");
    fs::write(&log, making.finish(DEADLINE)?.stdout).at(&log)?;
    step.done("");
    Ok(())
}
