//! Stock Linux on `host-vsp`: how a story boots it, types into it, and sees it end.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bed::guest_initramfs::{self, DONE, READY};
use bed::guest_root_initramfs;
use bed::l1::{Output, Process, Signal};
use bed::linux_module;
use bed::provision::kernel::{Kernel, Series};
use bed::provision::{Carried, debian_root};
use bed::wire::Stream;
use e2e::Story;
use serde_json::Value;

/// Boot to the shell: 7 to 17 s in an L1 that has a core of its own.
const BOOT: Duration = Duration::from_secs(240);

/// For one command, unless the story says otherwise.
pub(crate) const COMMAND: Duration = Duration::from_secs(120);

/// A whole log, of which the serial port carries some kilobytes a second.
const LOG: Duration = Duration::from_secs(600);

/// Power-off, from the command to the end of `host-vsp`.
const POWER_OFF: Duration = Duration::from_secs(60);

/// Prints what every boot of a kernel chooses anew.
pub(crate) const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";

/// Bytes of the image of [`make_disk`].
pub(crate) const DISK: u64 = 32 << 20;

/// Bytes that [`write_and_verify`] writes.
const WRITTEN: u64 = 8 << 20;

/// Boot of Debian to its login, and from there to the shell: 23 to 43 s in an L1 that has a core
/// of its own.
const LOGIN: Duration = Duration::from_secs(600);

/// What makes a shell of the login's one of [`bed::guest_initramfs`]. What it prints is quoted
/// in a way that the line itself, which the terminal shows, does not look like it.
const SHELL: &str = "stty -echo -onlcr; echo '@@ 'ready; \
    while read -r line; do eval \"$line\" </dev/null; echo '@@ 'done $?; done";

/// Where a guest whose root is an initramfs has Debian's programs.
const CARRIED: &str = "root";

/// Where the console is, and less on it. What guards against a processor's flaws is of no use where
/// it is emulated, and takes a fifth of the time.
const COMMAND_LINE: &str = "console=ttyS0 quiet mitigations=off";

/// What every guest loads, as Debian's own initramfs does on Hyper-V.
pub(crate) const MODULES: [&str; 5] = [
    "hv_vmbus",
    "hv_storvsc",
    "sd_mod",
    "hv_utils",
    "hyperv_keyboard",
];

/// The level of a warning; graver ones are less.
const WARNING: u32 = 4;

/// Words that begin a report of the kernel about its own state.
const REPORTS: [&str; 6] = [
    "WARNING:",
    "BUG:",
    "Call Trace",
    "Oops",
    "INFO: task",
    "general protection",
];

/// Words by which a line belongs to what this product stands behind.
const OURS: [&str; 11] = [
    "hv_",
    "hyperv",
    "hyper-v",
    "vmbus",
    "storvsc",
    "clocksource",
    "tsc",
    "sched_clock",
    "timekeeping",
    "scsi",
    "[sd",
];

/// A stock Linux to be booted.
pub(crate) struct Stock<'a> {
    story: &'a Story,
    series: Series,
    cpus: u32,
    memory: &'a str,
    command_line: String,
    modules: Vec<&'a str>,
    files: Vec<(&'a str, &'a [u8])>,
    arguments: Vec<String>,
    debian: bool,
    our_modules: bool,
    lied_to: bool,
}

impl<'a> Stock<'a> {
    /// The current kernel of `series`, with two processors.
    pub(crate) fn new(story: &'a Story, series: Series) -> Self {
        Self {
            story,
            series,
            cpus: 2,
            memory: "512M",
            command_line: COMMAND_LINE.into(),
            modules: MODULES.to_vec(),
            files: Vec::new(),
            arguments: Vec::new(),
            debian: false,
            our_modules: false,
            lied_to: false,
        }
    }

    /// Runs it on a host whose devices lie, the same lies for the same `seed`.
    pub(crate) fn lied_to(mut self, seed: u64) -> Self {
        self.lied_to = true;
        self.args(["--seed".into(), seed.to_string()])
    }

    /// Gives it our own modules, which are for [`Series::Linux7`]: a Debian has them where `modprobe`
    /// looks, by their aliases too; another guest as `/modules/NAME.ko`. Nothing loads them at boot but
    /// that the host offers a device for one.
    pub(crate) fn our_modules(mut self) -> Self {
        self.our_modules = true;
        self
    }

    /// Makes it a Debian with systemd, whose root file system is on the disk image `root` of L1:
    /// see [`Story::debian_root`]. Modules and programs of [`Stock::module`] and
    /// [`Stock::program`] are not for it.
    pub(crate) fn debian(mut self, root: &str) -> Self {
        self.debian = true;
        self.memory = "768M";
        self.append(&format!("root=LABEL={}", debian_root::LABEL))
            .disk(root)
    }

    /// Sets the number of processors.
    pub(crate) fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Adds to the kernel's command line.
    pub(crate) fn append(mut self, text: &str) -> Self {
        self.command_line.push(' ');
        self.command_line.push_str(text);
        self
    }

    /// Adds a program to the initramfs.
    pub(crate) fn program(mut self, path: &'a str, text: &'a str) -> Self {
        self.files.push((path, text.as_bytes()));
        self
    }

    /// Adds a file to the initramfs.
    pub(crate) fn file(mut self, path: &'a str, bytes: &'a [u8]) -> Self {
        self.files.push((path, bytes));
        self
    }

    /// Adds the disk in the file `path` of L1.
    pub(crate) fn disk(mut self, path: &str) -> Self {
        self.arguments
            .extend(["--disk".to_owned(), format!("path={path}")]);
        self
    }

    /// Adds a module of the kernel to those that every guest loads.
    pub(crate) fn module(mut self, name: &'a str) -> Self {
        self.modules.push(name);
        self
    }

    /// Adds arguments of `host-vsp run`.
    pub(crate) fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(args.into_iter().map(Into::into));
        self
    }

    /// Boots it and waits for its shell.
    pub(crate) fn boot(self) -> anyhow::Result<Linux> {
        let kernel = Kernel::get(self.series)?;
        let probe = self.story.l2_probe()?;
        let ours = if self.our_modules {
            linux_module::for_the_bed()?
        } else {
            Vec::new()
        };
        let initramfs = if self.debian {
            guest_root_initramfs::build(&kernel, &ours, &[("probe", &probe)])?
        } else {
            let paths: Vec<String> = ours
                .iter()
                .map(|it| format!("modules/{}.ko", it.name))
                .collect();
            let mut files = self.files;
            files.push(("bin/probe", &probe));
            let ours = ours.iter().map(|it| it.bytes.as_slice());
            files.extend(paths.iter().map(String::as_str).zip(ours));
            guest_initramfs::build(&kernel, &self.modules, &files)?
        };
        let path = self.story.file("initramfs");
        self.story.l1().put_bytes(&initramfs, &path)?;
        let host = if self.lied_to {
            self.story.lying_host_program()?
        } else {
            self.story.host_vsp_program()?
        };
        let process = self
            .story
            .l1()
            .command(&host)
            .args(["run", "--memory", self.memory, "--serial", "stdio"])
            .args(["--kernel", &self.story.kernel_of(self.series)?])
            .args(["--initrd", &path, "--cmdline", &self.command_line])
            .args(["--cpus", &self.cpus.to_string()])
            .args(self.arguments)
            .dir(self.story.dir())
            .spawn()?;
        let mut linux = Linux {
            process,
            read: 0,
            debian: self.debian,
        };
        linux.wait_ready()?;
        Ok(linux)
    }
}

/// A stock Linux that runs, at its shell.
pub(crate) struct Linux {
    process: Process,
    /// How much of standard output belongs to commands before.
    read: usize,
    debian: bool,
}

impl Linux {
    /// One that `process` boots from an initramfs of [`bed::guest_initramfs`], with its console at
    /// standard input and output; waits for its shell.
    pub(crate) fn of(process: Process) -> anyhow::Result<Self> {
        let mut linux = Self {
            process,
            read: 0,
            debian: false,
        };
        linux.wait_ready()?;
        Ok(linux)
    }

    /// Waits for the shell, after a start or restart.
    pub(crate) fn wait_ready(&mut self) -> anyhow::Result<()> {
        if self.debian {
            self.process
                .expect("login: ", LOGIN)
                .context("waiting for Debian's login")?;
            self.type_line("root")?;
            self.process
                .expect("root@debian:~# ", LOGIN)
                .context("waiting for root's shell")?;
            self.type_line(SHELL)?;
        }
        self.process
            .expect_line_on(Stream::Stdout, READY, BOOT)
            .context("waiting for the guest's shell")?;
        self.read = self.process.stdout().len();
        Ok(())
    }

    /// Waits for the first disk.
    pub(crate) fn wait_disk(&mut self) -> anyhow::Result<()> {
        self.sh("n=0; until [ -b /dev/sda ]; do sleep 0.1; n=$((n+1)); [ $n -lt 100 ] || break; done; [ -b /dev/sda ]")?;
        Ok(())
    }

    /// Runs a command, which must succeed; returns what it printed.
    pub(crate) fn sh(&mut self, line: &str) -> anyhow::Result<String> {
        self.sh_within(line, COMMAND)
    }

    /// Like [`Linux::sh`], with another deadline.
    pub(crate) fn sh_within(&mut self, line: &str, limit: Duration) -> anyhow::Result<String> {
        self.type_line(line)?;
        let (status, output) = self.answer(limit).with_context(|| format!("`{line}`"))?;
        ensure!(
            status == 0,
            "`{line}` in the guest: exit code {status}\n{output}"
        );
        Ok(output)
    }

    /// Types a line without waiting for anything.
    pub(crate) fn type_line(&mut self, line: &str) -> anyhow::Result<()> {
        Ok(self.process.write(format!("{line}\n").as_bytes())?)
    }

    /// Waits for the end of the line that was typed last, which must succeed; returns what it printed.
    pub(crate) fn ended(&mut self) -> anyhow::Result<String> {
        let (status, output) = self.answer(COMMAND)?;
        ensure!(status == 0, "exit code {status}\n{output}");
        Ok(output)
    }

    /// Waits for the end of the command; its exit status, and what it printed.
    fn answer(&mut self, limit: Duration) -> anyhow::Result<(i32, String)> {
        let done = self.process.expect_line_on(Stream::Stdout, DONE, limit)?;
        let Some((_, status)) = done.split_once(DONE) else {
            bail!("{done:?} has no {DONE:?}");
        };
        let status = status.trim().parse().with_context(|| done.clone())?;
        let all = self.process.stdout();
        let text = String::from_utf8_lossy(&all[self.read..]).replace('\r', "");
        let end = text.find(DONE).unwrap_or(text.len());
        self.read = all.len();
        Ok((status, text[..end].trim_end_matches('\n').to_owned()))
    }

    /// The kernel's log, each line with its level, as in `<6>[    0.000000] Linux version`.
    pub(crate) fn log(&mut self) -> anyhow::Result<String> {
        self.sh_within("dmesg -r", LOG)
    }

    /// Fails if the kernel's log has a stack trace, or a warning about what is ours.
    pub(crate) fn expect_clean_log(&mut self) -> anyhow::Result<()> {
        self.expect_clean_log_but(&[])
    }

    /// Like [`Linux::expect_clean_log`], but for lines with one of `expected` in them.
    pub(crate) fn expect_clean_log_but(&mut self, expected: &[&str]) -> anyhow::Result<()> {
        let log = self.sh(&suspects())?;
        ensure!(log.contains("Linux version"), "no kernel log: {log}");
        let is_expected = |line: &str| expected.iter().any(|text| line.contains(text));
        let bad = log
            .lines()
            .filter(|line| is_bad(line) && !is_expected(line));
        let bad: Vec<&str> = bad.collect();
        if bad.is_empty() {
            return Ok(());
        }
        let whole = self.log()?;
        bail!(
            "the guest's kernel complains:\n{}\nin its log:\n{whole}",
            bad.join("\n")
        )
    }

    /// The process of `host-vsp`.
    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    /// The host's counters.
    pub(crate) fn counters(&mut self) -> anyhow::Result<Value> {
        self.process.signal(Signal::USR1)?;
        let line = self
            .process
            .expect_line_on(Stream::Stderr, "{\"counters\":\"now\"", COMMAND)?;
        Ok(serde_json::from_str(&line)?)
    }

    /// Sends a signal to `host-vsp`.
    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(self.process.signal(signal)?)
    }

    /// Waits for a line of the guest, or of anybody else on its console.
    pub(crate) fn says(&mut self, text: &str) -> anyhow::Result<String> {
        self.says_within(text, COMMAND)
    }

    /// Like [`Linux::says`], with another deadline.
    pub(crate) fn says_within(&mut self, text: &str, limit: Duration) -> anyhow::Result<String> {
        Ok(self.process.expect_line_on(Stream::Stdout, text, limit)?)
    }

    /// What the guest has said so far, even if `host-vsp` or its L1 is no more.
    pub(crate) fn said(&self) -> String {
        String::from_utf8_lossy(&self.process.stdout()).into_owned()
    }

    /// Waits for a line of `host-vsp` itself.
    pub(crate) fn host_says(&mut self, text: &str) -> anyhow::Result<String> {
        Ok(self.process.expect_line_on(Stream::Stderr, text, COMMAND)?)
    }

    /// Waits until `condition`, as `test` of the shell knows them, is true in the guest.
    pub(crate) fn wait(&mut self, condition: &str) -> anyhow::Result<()> {
        self.sh(&format!(
            "n=0; until [ {condition} ]; do sleep 0.1; n=$((n+1)); [ $n -lt 300 ] || break; done; \
             [ {condition} ]"
        ))
        .with_context(|| format!("{condition} does not come"))?;
        Ok(())
    }

    /// Waits for the end of `host-vsp`; what it said.
    pub(crate) fn end(self) -> anyhow::Result<Output> {
        Ok(self.process.finish(POWER_OFF)?)
    }

    /// Powers off, which must end `host-vsp` well; what it said.
    pub(crate) fn power_off(mut self) -> anyhow::Result<Output> {
        let (command, limit) = if self.debian {
            ("systemctl poweroff", LOGIN)
        } else {
            ("poweroff -f", POWER_OFF)
        };
        self.type_line(command)?;
        let output = self.process.finish(limit)?;
        ensure!(output.status.success(), "power-off: {output}");
        Ok(output)
    }
}

/// Debian's programs, for a guest whose root is an initramfs: paths, and what is there.
pub(crate) fn carried(programs: &Carried) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for file in programs.files()? {
        let name = file.file_name().context("a file without a name")?;
        let path = format!("{CARRIED}/{}", name.to_string_lossy());
        files.push((path, std::fs::read(&file)?));
    }
    for program in programs.programs() {
        let script = programs.script(program, &format!("/{CARRIED}"));
        files.push((format!("bin/{program}"), script.into_bytes()));
    }
    Ok(files)
}

/// Makes an image full of holes; its path.
pub(crate) fn make_disk(story: &Story) -> anyhow::Result<String> {
    let path = story.file("disk.img");
    let made = story
        .l1()
        .command("truncate")
        .args(["-s", &DISK.to_string(), &path])
        .run(Duration::from_secs(30))?;
    ensure!(made.status.success(), "{made}");
    Ok(path)
}

/// Writes random data to the disk and reads it back past the page cache; returns its SHA-256.
pub(crate) fn write_and_verify(linux: &mut Linux) -> anyhow::Result<String> {
    linux.wait_disk()?;
    let size = linux.sh("cat /sys/block/sda/size")?;
    ensure!(
        size == (DISK / 512).to_string(),
        "the disk has {size} sectors"
    );
    linux.sh(&format!("head -c {WRITTEN} /dev/urandom >/tmp/data"))?;
    let written = linux.sh("sha256sum </tmp/data")?;
    linux.sh("dd if=/tmp/data of=/dev/sda bs=256k conv=fsync 2>/dev/null")?;
    linux.sh("echo 3 >/proc/sys/vm/drop_caches")?;
    let (sum, _) = written.split_once(' ').context("no checksum")?;
    expect_in_guest(linux, sum)?;
    Ok(sum.to_owned())
}

/// Reads what [`write_and_verify`] wrote, from the disk itself.
pub(crate) fn expect_in_guest(linux: &mut Linux, sum: &str) -> anyhow::Result<()> {
    linux.wait_disk()?;
    let command = format!("head -c {WRITTEN} /dev/sda | sha256sum");
    let read = linux.sh(&command)?;
    ensure!(read.starts_with(sum), "written {sum}, read {read}");
    Ok(())
}

/// Reads what [`write_and_verify`] wrote, from the image.
pub(crate) fn expect_on_host(story: &Story, disk: &str, sum: &str) -> anyhow::Result<()> {
    let command = format!("head -c {WRITTEN} {disk} | sha256sum");
    let read = story.l1().shell(&command).run(COMMAND)?.stdout_text();
    ensure!(
        read.starts_with(sum),
        "the guest wrote {sum}, the image has {read}"
    );
    Ok(())
}

/// The command that prints the lines of the kernel's log that may be bad, and its first one. The serial
/// port takes ten seconds and more for all of them.
fn suspects() -> String {
    format!(
        "dmesg -r | awk -F '[<>]' '!/^</ || $2 % 8 <= {WARNING} || /Linux version|{}/'",
        REPORTS.join("|")
    )
}

/// Whether a line of the kernel's log must not be there in a run without faults.
fn is_bad(line: &str) -> bool {
    let level = line
        .strip_prefix('<')
        .and_then(|rest| rest.split_once('>')?.0.parse::<u32>().ok())
        .map_or(WARNING, |level| level & 7);
    // Reports begin a line: words in the midst of one may be about the processor's flaws.
    let text = line.split_once("] ").map_or(line, |(_, text)| text);
    let text = text.trim_start();
    let lower = text.to_lowercase();
    REPORTS.iter().any(|report| text.starts_with(report))
        || (level <= WARNING && OURS.iter().any(|word| lower.contains(word)))
}
