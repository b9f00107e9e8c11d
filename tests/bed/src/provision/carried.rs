//! Programs of Debian with all that they need to run anywhere: to be carried into an L1, or into a
//! guest, which have no libraries of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::apt::output_of;
use super::debian::{self, Wanted};
use super::qemu::{self, libraries, loader};
use crate::error::{AtPath, Result};

/// Programs, unpacked.
#[derive(Debug)]
pub struct Carried {
    bundle: PathBuf,
    programs: &'static [&'static str],
    /// Other files that they need, by their place in the bundle.
    others: &'static [&'static str],
}

impl Carried {
    /// QEMU itself, to be a host inside L1, with the firmware that starts a kernel by PVH.
    pub fn qemu() -> Result<Self> {
        Ok(Self {
            bundle: qemu::cached()?,
            programs: &["qemu-system-x86_64"],
            others: &[
                "usr/share/seabios/bios-256k.bin",
                "usr/share/qemu/kvmvapic.bin",
                "usr/share/qemu/linuxboot_dma.bin",
                "usr/share/qemu/pvh.bin",
            ],
        })
    }

    /// QEMU's tools for disk images, fetched if missing.
    pub fn qemu_tools() -> Result<Self> {
        Ok(Self {
            bundle: debian::bundle("qemu-utils-1", Wanted::Closure(&["qemu-utils"]))?,
            programs: &["qemu-img", "qemu-storage-daemon"],
            others: &[],
        })
    }

    /// What people measure and look at nets with, fetched if missing.
    pub fn net_tools() -> Result<Self> {
        let packages = &["iperf3", "ethtool", "tcpdump"];
        Ok(Self {
            bundle: debian::bundle("net-tools-1", Wanted::Closure(packages))?,
            programs: packages,
            others: &[],
        })
    }

    /// `ip`, which can do more than busybox's, fetched if missing.
    pub fn iproute() -> Result<Self> {
        Ok(Self {
            bundle: debian::bundle("iproute2-1", Wanted::Closure(&["iproute2"]))?,
            programs: &["ip"],
            others: &[],
        })
    }

    /// `kexec`, fetched if missing.
    pub fn kexec() -> Result<Self> {
        Ok(Self {
            bundle: debian::bundle("kexec-tools-1", Wanted::Closure(&["kexec-tools"]))?,
            programs: &["kexec"],
            others: &[],
        })
    }

    /// passt, fetched if missing.
    pub fn passt() -> Result<Self> {
        Ok(Self {
            bundle: debian::bundle("passt-1", Wanted::Closure(&["passt"]))?,
            programs: &["passt"],
            others: &[],
        })
    }

    /// The programs' names.
    pub fn programs(&self) -> &'static [&'static str] {
        self.programs
    }

    /// The script that runs `program` where [`files`](Self::files) are in `dir`.
    pub fn script(&self, program: &str, dir: &str) -> String {
        format!(
            "#!/bin/sh\nexec {dir}/ld-linux-x86-64.so.2 --library-path {dir} {dir}/{program} \"$@\"\n"
        )
    }

    /// The programs, what they need and the loader; all go into one directory.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files = vec![loader(&self.bundle)];
        for program in self.programs {
            let places = ["usr/bin", "usr/sbin"].map(|dir| self.bundle.join(dir).join(program));
            let [program, other] = places;
            let program = if program.exists() { program } else { other };
            let listed = output_of(
                Command::new(loader(&self.bundle))
                    .arg("--library-path")
                    .arg(libraries(&self.bundle))
                    .arg("--list")
                    .arg(&program),
            )?;
            // Lines such as `libz.so.1 => /path/libz.so.1 (0x0123)`.
            let found = listed.lines().filter_map(|line| {
                let (_, rest) = line.split_once(" => ")?;
                let path = Path::new(rest.split(" (").next()?);
                path.starts_with(&self.bundle).then(|| path.to_owned())
            });
            files.extend(found);
            files.push(program);
        }
        // The C library loads this one by name, where a thread is cancelled.
        files.push(libraries(&self.bundle).join("libgcc_s.so.1"));
        files.sort();
        files.dedup();
        files.extend(self.others.iter().map(|other| self.bundle.join(other)));
        for file in &files {
            fs::metadata(file).at(file)?;
        }
        Ok(files)
    }
}
