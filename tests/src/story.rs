//! What a story has at hand: an L1, a directory of its own there, and the programs under test.

use std::collections::BTreeSet;
use std::env;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use bed::l1::{Command, L1, Process};
use bed::provision::kernel::{Kernel, Series};
use bed::provision::{Carried, debian_root};

use crate::feature::Feature;
use crate::record::Proof;
use crate::{pool, programs};

/// Where the programs under test are put in an L1, once.
const PROGRAMS: &str = "/tmp/bin";

/// Where QEMU's tools are put, with their libraries.
const QEMU_TOOLS: &str = "/tmp/qemu-tools";

/// Where tools for nets are put, with their libraries.
const NET_TOOLS: &str = "/tmp/net-tools";

/// Where QEMU is put, with its libraries and firmware.
const QEMU: &str = "/tmp/qemu";

/// For the harness's own small commands in L1.
const HOUSEKEEPING: Duration = Duration::from_secs(30);

/// Where L1 has Debian's programs.
const DEBIAN: &str = "/debian";

/// Mounts the partition of the disk `$0` for [`Story::debian`], once.
const MOUNT_DEBIAN: &str = "[ -d /debian ] && exit
mkdir /debian && mount -t ext4 -o ro,noload ${0}1 /debian && mount --bind /tmp /debian/tmp &&
    mount --bind /dev /debian/dev && mount --bind /proc /debian/proc";

/// For reading a whole disk image.
const COPY: Duration = Duration::from_secs(120);

/// The surroundings of one story.
#[derive(Debug)]
pub struct Story {
    l1: L1,
    dir: String,
    proofs: Mutex<BTreeSet<Proof>>,
}

impl Story {
    pub(crate) fn begin(l1: L1) -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let dir = format!("/tmp/story-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let output = l1.command("mkdir").arg(&dir).run(HOUSEKEEPING)?;
        ensure!(output.status.success(), "mkdir: {output}");
        l1.take_trail();
        Ok(Self {
            l1,
            dir,
            proofs: Mutex::default(),
        })
    }

    /// Ends the story; its L1 comes back if it is as good as before, with what the story has proven.
    pub(crate) fn end(self) -> anyhow::Result<(L1, BTreeSet<Proof>)> {
        let output = self
            .l1
            .command("rm")
            .args(["-rf", &self.dir])
            .run(HOUSEKEEPING)?;
        ensure!(output.status.success(), "rm: {output}");
        let proofs = self.proofs.into_inner();
        Ok((self.l1, proofs.unwrap_or_else(PoisonError::into_inner)))
    }

    /// Says that the kernel of `series` was seen to do this, from inside and from the host. It
    /// counts if the story passes.
    pub fn proves(&self, series: Series, feature: Feature) {
        let proof = (series.name().to_owned(), feature);
        let mut proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        proofs.insert(proof);
    }

    /// The same story in another L1, which ends with what is returned: for those who need an L1 with
    /// disks, or want to see one die.
    pub fn elsewhere(&self, l1: L1) -> anyhow::Result<Self> {
        Self::begin(l1)
    }

    /// The L1 of this story.
    pub fn l1(&self) -> &L1 {
        &self.l1
    }

    /// The story's own directory in L1; processes start there.
    pub fn dir(&self) -> &str {
        &self.dir
    }

    /// The path of `name` in the story's own directory.
    pub fn file(&self, name: &str) -> String {
        format!("{}/{name}", self.dir)
    }

    /// Starts `host-vsp` with `args` in the story's directory.
    pub fn host_vsp<S: Into<String>>(
        &self,
        args: impl IntoIterator<Item = S>,
    ) -> anyhow::Result<Process> {
        let program = self.host_vsp_program()?;
        Ok(self
            .l1
            .command(&program)
            .args(args)
            .dir(&self.dir)
            .spawn()?)
    }

    /// The path of `host-vsp` in L1.
    pub fn host_vsp_program(&self) -> anyhow::Result<String> {
        self.program("host-vsp", programs::host_vsp()?)
    }

    /// The path in L1 of a host whose devices lie, with a part of `host-vsp`'s command line.
    pub fn lying_host_program(&self) -> anyhow::Result<String> {
        self.program("lying-host", programs::lying_host()?)
    }

    /// The path of the guest kernel in L1.
    pub fn guest_kernel(&self) -> anyhow::Result<String> {
        self.program("guest-kernel", programs::guest_kernel()?)
    }

    /// The path of the example kernel `name` in L1.
    pub fn example_kernel(&self, name: &str) -> anyhow::Result<String> {
        self.program(name, &bed::cargo::example_kernel(name)?)
    }

    /// The path of a stock Debian kernel (bzImage) in L1, of the series at hand soonest.
    pub fn stock_kernel(&self) -> anyhow::Result<String> {
        self.kernel_of(Series::Linux6_12)
    }

    /// The path of Debian's kernel of `series` (bzImage) in L1.
    pub fn kernel_of(&self, series: Series) -> anyhow::Result<String> {
        self.program(series.name(), Kernel::get(series)?.image())
    }

    /// The path of the same probe in L1.
    pub fn probe(&self) -> anyhow::Result<String> {
        self.program("l2-probe", programs::l2_probe()?)
    }

    /// The probe for stock Linux guests, as bytes for their initramfs.
    pub fn l2_probe(&self) -> anyhow::Result<Vec<u8>> {
        let path = programs::l2_probe()?;
        std::fs::read(path).with_context(|| path.display().to_string())
    }

    /// Has `qemu-img` and `qemu-storage-daemon` in this L1, where all programs find them.
    pub fn provide_qemu_tools(&self) -> anyhow::Result<()> {
        self.provide(&Carried::qemu_tools()?, QEMU_TOOLS)
    }

    /// Has QEMU in this L1, where all programs find it; the directory of its firmware.
    pub fn provide_qemu(&self) -> anyhow::Result<&'static str> {
        self.provide(&Carried::qemu()?, QEMU).map(|()| QEMU)
    }

    /// Has `iperf3`, `ethtool` and `tcpdump` in this L1, where all programs find them.
    pub fn provide_net_tools(&self) -> anyhow::Result<()> {
        self.provide(&Carried::net_tools()?, NET_TOOLS)
    }

    /// Has programs in this L1's `dir`, and a script for each where all programs find them, unless
    /// busybox has one of that name.
    pub fn provide(&self, tools: &Carried, dir: &str) -> anyhow::Result<()> {
        let line = format!("test -d {dir}");
        if self.l1.shell(&line).run(HOUSEKEEPING)?.status.success() {
            return Ok(());
        }
        let making = format!("{dir}.making");
        self.l1
            .shell(&format!("mkdir -p {making}"))
            .run(HOUSEKEEPING)?;
        for file in tools.files()? {
            let name = file.file_name().context("a file without a name")?;
            let name = name.to_string_lossy();
            self.l1.put(&file, &format!("{making}/{name}"))?;
        }
        for program in tools.programs() {
            let (script, path) = (tools.script(program, dir), format!("{making}/{program}.sh"));
            self.l1.put_bytes(script.as_bytes(), &path)?;
            let made = self
                .l1
                .shell(&format!(
                    "chmod 755 {path} && {{ [ -e /bin/{program} ] || cp {path} /bin/{program}; }}"
                ))
                .run(HOUSEKEEPING)?;
            ensure!(made.status.success(), "{program}: {made}");
        }
        let moved = self
            .l1
            .command("mv")
            .args([making.as_str(), dir])
            .run(HOUSEKEEPING)?;
        ensure!(moved.status.success(), "mv: {moved}");
        Ok(())
    }

    /// A program of Debian that runs in L1, such as `e2fsck`; what is below `/tmp` and `/dev` it
    /// finds there as well.
    pub fn debian(&self, program: &str) -> anyhow::Result<Command> {
        let disk = self.l1.drive(pool::ROOT)?;
        let mounted = self.l1.shell(MOUNT_DEBIAN).arg(disk).run(HOUSEKEEPING)?;
        ensure!(mounted.status.success(), "mounting Debian: {mounted}");
        // By way of `env`, or busybox would run its own program of that name.
        let command = [DEBIAN, "/usr/bin/env", "PATH=/usr/sbin:/usr/bin", program];
        Ok(self.l1.command("chroot").args(command))
    }

    /// A disk of the story's own in L1 with a Debian root file system, to be booted from; its
    /// path.
    pub fn debian_root(&self) -> anyhow::Result<String> {
        let path = self.file("root.img");
        let copied = self
            .debian("cp")?
            .args(["--sparse=always", &self.l1.drive(pool::ROOT)?, &path])
            .run(COPY)?;
        ensure!(copied.status.success(), "copying the root: {copied}");
        Ok(path)
    }

    /// Checks the file system of a disk that came from [`Story::debian_root`], from outside: it
    /// must be clean, and its journal empty.
    pub fn check_debian_root(&self, path: &str) -> anyhow::Result<()> {
        let partition = format!("{path}?offset={}", debian_root::OFFSET);
        let checked = self
            .debian("e2fsck")?
            .args(["-f", "-n", &partition])
            .run(COPY)?;
        ensure!(
            checked.status.success() && !checked.stdout_text().contains("skipping journal"),
            "fsck: {checked}"
        );
        Ok(())
    }

    /// Puts a local program into this L1 unless it is there, and returns its path.
    fn program(&self, name: &str, local: &Path) -> anyhow::Result<String> {
        let remote = format!("{PROGRAMS}/{name}");
        let there = self
            .l1
            .command("test")
            .args(["-e", &remote])
            .run(HOUSEKEEPING)?;
        if !there.status.success() {
            self.l1
                .put(local, &remote)
                .with_context(|| format!("putting {name} into L1"))?;
        }
        Ok(remote)
    }

    /// How often to do something: `short`, or `long` when `VMBUS_SOAK` is set.
    pub fn count(&self, short: u64, long: u64) -> u64 {
        if is_soak() { long } else { short }
    }
}

/// Whether long counts are asked for.
pub fn is_soak() -> bool {
    env::var_os("VMBUS_SOAK").is_some_and(|value| !value.is_empty())
}
