//! `cargo xtask bed`, as somebody who works on Linux's drivers uses it.
//!
//! It brings its own L1; the story's own is not used.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bed::guest_initramfs;
use bed::provision::busybox;
use bed::provision::kernel::{Kernel, Series};
use e2e::{Entry, Story};

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("runs_commands_with_a_disk", runs_commands_with_a_disk),
    Entry::new("tells_how_a_guest_ended", tells_how_a_guest_ended),
];

/// One run: an L1, and a stock Linux in it.
const RUN: Duration = Duration::from_secs(300);

/// Bytes of the disk.
const DISK: u64 = 16 << 20;

/// What came of a run.
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn expect(&self, code: i32) -> anyhow::Result<()> {
        let Self { stdout, stderr, .. } = self;
        ensure!(
            self.code == Some(code),
            "exit code {:?}, not {code}\n--- stdout ---\n{stdout}\n--- stderr ---\n{stderr}",
            self.code
        );
        Ok(())
    }
}

/// Runs `cargo xtask bed` with `arguments`.
fn run<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> anyhow::Result<Ran> {
    let mut child = bed::cargo::cargo()
        .current_dir(bed::cargo::workspace())
        .args(["run", "--quiet", "--package", "xtask", "--", "bed"])
        .args(["--where", "bed"])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cargo")?;
    let streams = (child.stdout.take(), child.stderr.take());
    let (Some(stdout), Some(stderr)) = streams else {
        anyhow::bail!("no pipes");
    };
    let (stdout, stderr) = (text_of(stdout), text_of(stderr));
    let code = wait(&mut child);
    let text = |reader: thread::JoinHandle<String>| reader.join().unwrap_or_default();
    Ok(Ran {
        code: code?,
        stdout: text(stdout),
        stderr: text(stderr),
    })
}

fn text_of(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is what there is to show.
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn wait(child: &mut Child) -> anyhow::Result<Option<i32>> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code());
        }
        if begun.elapsed() > RUN {
            // Cargo hands its place to what it runs, so this is xtask itself.
            child.kill()?;
            child.wait()?;
            anyhow::bail!("`cargo xtask bed` did not end within {RUN:?}");
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// A user's files.
struct Files {
    dir: tempfile::TempDir,
    kernel: Kernel,
}

impl Files {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            dir: tempfile::tempdir()?,
            kernel: Kernel::get(Series::Linux6_12)?,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// An initramfs with a shell and modules that nobody loads, compressed.
    fn initrd(&self, modules: &[&str]) -> anyhow::Result<PathBuf> {
        let path = self.path("initrd");
        fs::write(&path, guest_initramfs::build(&self.kernel, modules, &[])?)?;
        let zipped = Command::new(busybox()?).arg("gzip").arg(&path).status()?;
        ensure!(zipped.success(), "gzip: {zipped}");
        Ok(self.path("initrd.gz"))
    }

    /// `--module` for each of `modules` and what it needs.
    fn modules(&self, modules: &[&str]) -> anyhow::Result<Vec<String>> {
        let mut options = Vec::new();
        for module in self.kernel.modules(modules)? {
            let path = self.path(&format!("{}.ko", module.name));
            fs::write(&path, &module.bytes)?;
            options.extend(["--module".to_owned(), text(&path)]);
        }
        Ok(options)
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A disk that is made in one run and is the root in another; both ways to load modules.
fn runs_commands_with_a_disk(_: &mut Story) -> anyhow::Result<()> {
    let files = Files::new()?;
    let modules = ["hv_vmbus", "hv_storvsc", "sd_mod", "ext4"];
    let disk = files.path("disk.img");
    fs::File::create(&disk)?.set_len(DISK)?;

    let made = run(&[
        "--kernel",
        &text(files.kernel.image()),
        "--initrd",
        &text(&files.initrd(&modules)?),
        "--disk",
        &format!("{},keep", text(&disk)),
        "--",
        "for m in $(cat /modules/list); do insmod /modules/$m.ko || exit 1; done;",
        "until [ -b /dev/sda ]; do sleep 0.1; done;",
        "mke2fs -F /dev/sda >&2 && mount /dev/sda /mnt && mkdir /mnt/bin &&",
        "cp /bed/busybox /mnt/bin/sh && umount /mnt && uname -r",
    ])?;
    made.expect(0)?;
    ensure!(
        made.stdout == format!("{}\n", files.kernel.version()),
        "stdout: {:?}",
        made.stdout
    );
    ensure!(
        !made.stderr.contains("console"),
        "a console where all is well: {}",
        made.stderr
    );

    let before = fs::read(&disk)?;
    ensure!(
        before.iter().any(|byte| *byte != 0),
        "the disk was not kept"
    );
    let mut options = files.modules(&modules)?;
    options.extend(
        [
            "--kernel",
            &text(files.kernel.image()),
            "--disk",
            &text(&disk),
            "--root",
            "/dev/sda",
            "--max-version",
            "4.0",
            "--cpus",
            "1",
            "--",
            "set -e; /bin/sh --help >&2; echo changed >/file; test -s /file;",
            "test ! -e /bed; printf 'a\\nb'; exit 7",
        ]
        .map(str::to_owned),
    );
    let ran = run(&options)?;
    ran.expect(7)?;
    ensure!(ran.stdout == "a\nb", "stdout: {:?}", ran.stdout);
    for part in ["BusyBox", "the guest's console", "Vmbus version:4.0"] {
        ensure!(
            ran.stderr.contains(part),
            "no {part:?} on stderr: {}",
            ran.stderr
        );
    }
    ensure!(fs::read(&disk)? == before, "the image has changed");
    Ok(())
}

/// A guest that dies, and one that takes too long.
fn tells_how_a_guest_ended(_: &mut Story) -> anyhow::Result<()> {
    let files = Files::new()?;
    let kernel = text(files.kernel.image());
    let console = text(&files.path("console"));
    let died = run(&[
        "--kernel",
        &kernel,
        "--console",
        &console,
        "--",
        "echo begun; sleep 1; echo c >/proc/sysrq-trigger",
    ])?;
    died.expect(123)?;
    ensure!(died.stdout == "begun\n", "stdout: {:?}", died.stdout);
    let last = died.stderr.lines().last().unwrap_or_default();
    ensure!(
        last.contains("died before the command had ended"),
        "stderr ends with {last:?}"
    );
    let console = fs::read_to_string(console)?;
    for text in [&died.stderr, &console] {
        ensure!(text.contains("Kernel panic"), "no panic in {text}");
    }

    let late = run(&["--kernel", &kernel, "--timeout", "3", "--", "true"])?;
    late.expect(124)?;
    ensure!(
        late.stderr.contains("3 s were over"),
        "stderr: {}",
        late.stderr
    );
    Ok(())
}
