//! What users may get wrong: each time one sentence that says what to do, an exit code that is not
//! 0, and files as they were.

use anyhow::{Context, bail, ensure};
use bed::l1::{Command, Output};
use e2e::{Entry, Story};

use crate::guest::{Guest, NEXT};

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("disks", disks),
    Entry::new("kernels", kernels),
    Entry::new("sizes", sizes),
    Entry::new("options", options),
    Entry::new("outputs", outputs),
    Entry::new("without_kvm", without_kvm),
    Entry::new("without_permission", without_permission),
    Entry::new("check_says_no", check_says_no),
];

/// The machine could not be made.
const IMPOSSIBLE: i32 = 1;
/// The command line is wrong.
const USAGE: i32 = 2;

/// Longest sentence, in characters: three lines of a terminal and a long path.
const SENTENCE: usize = 400;

/// A user in L1 that is not root.
const USER: &str = "tester";

/// Files in the story's directory, and what can be seen of them from outside.
struct Files<'a> {
    story: &'a Story,
    before: String,
}

impl<'a> Files<'a> {
    /// Two images, kernels in various states and a file of a guest's size.
    fn prepare(story: &'a Story) -> anyhow::Result<Self> {
        let script = "
            head -c 1048576 /dev/urandom > disk.img
            head -c 1048576 /dev/urandom > other.img
            head -c 100 /dev/urandom > small.img
            truncate -s 40M large
            : > empty
            echo 'this is a text, and no kernel' > text
            mkdir directory
            head -c 3000000 $VMLINUZ > cut.bzimage
            head -c 600 $VMLINUZ > stub.bzimage
            head -c 20000 $KERNEL > cut.elf
            head -c 70 $KERNEL > stub.elf
            printf '\\177ELF\\1\\1\\1' > i386.elf
            touch -d '2020-02-02 02:02:02' *
            chmod 755 .";
        let made = story
            .l1()
            .shell(&format!("set -e\n{script}"))
            .env("VMLINUZ", &story.stock_kernel()?)
            .env("KERNEL", &story.guest_kernel()?)
            .dir(story.dir())
            .run(NEXT)?;
        ensure!(made.status.success(), "making the files: {made}");
        let mut files = Self {
            story,
            before: String::new(),
        };
        files.before = files.look("md5sum $(find . -type f | sort)")?;
        Ok(files)
    }

    /// What `how` prints, and each file's size and times of change, of data and of anything.
    fn look(&self, how: &str) -> anyhow::Result<String> {
        let line = format!("{how} && stat -c '%n %s %a %y %z' $(find . | sort)");
        let seen = self
            .story
            .l1()
            .shell(&line)
            .dir(self.story.dir())
            .run(NEXT)?;
        ensure!(seen.status.success(), "looking at the files: {seen}");
        Ok(seen.stdout_text())
    }

    /// Sees that all files are what they were when they were made.
    fn are_untouched(&self) -> anyhow::Result<()> {
        let now = self.look("md5sum $(find . -type f | sort)")?;
        ensure!(
            now == self.before,
            "files changed, from\n{}to\n{now}",
            self.before
        );
        Ok(())
    }

    /// `host-vsp run` with `arguments`, of a good kernel if they name none.
    fn run(&self, arguments: &str) -> anyhow::Result<Output> {
        if arguments.contains("--kernel") {
            let stock = self.story.stock_kernel()?;
            return self.host_vsp(&format!("run {}", arguments.replace("STOCK", &stock)));
        }
        let kernel = self.story.guest_kernel()?;
        self.host_vsp(&format!("run --kernel {kernel} {arguments}"))
    }

    fn host_vsp(&self, arguments: &str) -> anyhow::Result<Output> {
        let program = self.story.host_vsp_program()?;
        let command = self.story.l1().command(&program);
        let command = command.args(arguments.split_ascii_whitespace());
        self.finish(command)
            .with_context(|| format!("host-vsp {arguments}"))
    }

    fn finish(&self, command: Command) -> anyhow::Result<Output> {
        Ok(command.dir(self.story.dir()).run(NEXT)?)
    }
}

/// Sees that `output` is a refusal with `code`, in one sentence with all of `says`.
fn refused(output: &Output, code: i32, says: &[&str]) -> anyhow::Result<()> {
    let text = output.stderr_text();
    let sentence = text.strip_suffix('\n').unwrap_or_default();
    ensure!(
        output.status.code() == Some(code),
        "not exit code {code}: {output}"
    );
    ensure!(
        sentence.starts_with("host-vsp: ")
            && !sentence.contains(['\n', '\x1B'])
            && sentence.chars().count() <= SENTENCE,
        "not one sentence: {output}"
    );
    ensure!(output.stdout.is_empty(), "more than a sentence: {output}");
    for part in says {
        ensure!(
            sentence.contains(part),
            "it does not say {part:?}: {output}"
        );
    }
    Ok(())
}

/// Runs `cases` and sees that no file was touched. Each line holds arguments of `host-vsp run`, the
/// exit code, and two parts of the sentence: what is wrong and what to do. Without a word about the
/// kernel it is a good one; `STOCK` stands for Debian's.
fn all_refused(files: &Files<'_>, cases: &str) -> anyhow::Result<()> {
    for case in cases.trim().lines() {
        let fields: Vec<&str> = case.split('|').map(str::trim).collect();
        let [arguments, code, says @ ..] = &fields[..] else {
            bail!("not a case: {case}");
        };
        let output = files.run(arguments)?;
        refused(&output, code.parse()?, says).with_context(|| format!("with {arguments}"))?;
    }
    files.are_untouched()
}

fn disks(story: &mut Story) -> anyhow::Result<()> {
    let files = Files::prepare(story)?;
    const CASES: &str = r#"
        --disk path=nope.img                                           | 1 | no disk image at nope.img | create it first
        --disk path=no/such/place.img                                  | 1 | no disk image at | create it first
        --disk path=disk.img --disk path=nope.img                      | 1 | at nope.img | create it
        --disk path=directory                                          | 1 | directory is a directory | name a file
        --disk path=/dev/null                                          | 1 | /dev/null is neither | file nor a block device
        --disk path=empty                                              | 1 | 0 bytes | make it larger
        --disk path=small.img                                          | 1 | 100 bytes | make it larger
        --disk path=disk.img --disk path=./disk.img                    | 1 | given twice, as --disk and as --disk | give each a file of its own
        --disk path=disk.img,readonly=on --disk path=disk.img          | 1 | "disk.img" is given twice | give each a file of its own
        --disk disk.img                                                | 2 | "disk.img" is not path=FILE | run --help
        --disk path=                                                   | 2 | "path=" is not path=FILE | run --help
        --disk readonly=on                                             | 2 | path is missing | path=FILE
        --disk path=disk.img,cache=none                                | 2 | "cache=none" is not | readonly=on
        --disk path=disk.img,readonly=yes                              | 2 | readonly is on or off | "yes"
        --disk path=disk.img,lun=first                                 | 2 | lun is a number | "first"
        --disk path=disk.img,lun=64                                    | 1 | no LUN 64 | from 0 to 63
        --disk path=disk.img,lun=3 --disk path=other.img,lun=3         | 1 | LUN 3 already has a disk | use another one
        --disk path=disk.img,block-size=1024                           | 1 | 1024 bytes | use 512 or 4096
        --disk path=disk.img,serial=                                   | 1 | no serial number | 1 to 64
        --disk path=disk.img,serial=x --disk path=other.img,serial=x   | 1 | serial number "x" | take both for one
    "#;
    all_refused(&files, CASES)?;

    // A disk that another machine has.
    let before = files.look("true")?;
    let mut other = Guest::new(story, "wait").disk("other.img").start()?;
    other.says("WAITING")?;
    let output = files.run("--disk path=other.img")?;
    let says = ["in use by another process", "stop that one first"];
    refused(&output, IMPOSSIBLE, &says)?;
    let now = files.look("true")?;
    ensure!(now == before, "files changed, from\n{before}to\n{now}");
    Ok(())
}

fn kernels(story: &mut Story) -> anyhow::Result<()> {
    let files = Files::prepare(story)?;
    const CASES: &str = r#"
        --kernel nope --disk path=disk.img                             | 1 | cannot read the kernel "nope" | give --kernel the path
        --kernel empty --disk path=disk.img                            | 1 | the kernel "empty" is empty | give --kernel the path
        --kernel text --disk path=disk.img                             | 1 | neither a bzImage nor an ELF | give a 64-bit x86 Linux bzImage
        --kernel directory                                             | 1 | not a regular file | give the path of one
        --kernel /dev/zero                                             | 1 | not a regular file | give the path of one
        --kernel disk.img                                              | 1 | neither a bzImage nor an ELF | give a 64-bit x86 Linux bzImage
        --kernel cut.bzimage --disk path=disk.img                      | 1 | cut short | copy it again
        --kernel stub.bzimage                                          | 1 | cut short | copy it again
        --kernel cut.elf --disk path=disk.img                          | 1 | cut short | copy it again
        --kernel stub.elf                                              | 1 | cut short | copy it again
        --kernel i386.elf                                              | 1 | not a 64-bit one | give a 64-bit x86 Linux bzImage
        --kernel STOCK --memory 16M --disk path=disk.img               | 1 | the kernel does not fit | --memory
        --kernel STOCK --boot pvh                                      | 1 | cannot be booted by PVH | leave out --boot
        --memory 32M --initrd large --disk path=disk.img               | 1 | the initrd, above the kernel, does not fit | --memory
        --initrd nope                                                  | 1 | cannot read the initrd "nope" | give --initrd
        --initrd directory                                             | 1 | not a regular file | give the path of one
        --initrd empty                                                 | 1 | the initrd "empty" is empty | give --initrd
    "#;
    all_refused(&files, CASES)
}

fn sizes(story: &mut Story) -> anyhow::Result<()> {
    let files = Files::prepare(story)?;
    const CASES: &str = r#"
        --memory 0                                                     | 1 | needs at least 16M | --memory 512M
        --memory 15M                                                   | 1 | needs at least 16M | --memory 512M
        --memory 20000K                                                | 1 | whole number of MiB | memory
        --memory 1T --disk path=disk.img                               | 1 | not the 1048576M | lower --memory
        --memory 16777215T                                             | 1 | this host has | lower --memory
        --memory 16777216T                                             | 2 | more than any machine has | run --help
        --memory 99999999999999999999G                                 | 2 | a size is a whole number | 512M or 4G
        --memory 16E                                                   | 2 | a size is a whole number | 512M or 4G
        --memory lots                                                  | 2 | a size is a whole number | 512M or 4G
        --memory -512M                                                 | 2 | a size is a whole number | 512M or 4G
        --memory 512                                                   | 2 | the unit is missing | did you mean 512M?
        --memory                                                       | 2 | '--memory <SIZE>' | run --help
        --cpus 0 --disk path=disk.img                                  | 1 | 1 to 255 processors | change --cpus
        --cpus 1000                                                    | 1 | 1 to 255 processors | change --cpus
        --cpus 4294967296                                              | 2 | is a whole number | such as 2
        --cpus -1                                                      | 2 | is a whole number | such as 2
        --cpus two                                                     | 2 | is a whole number | such as 2
    "#;
    all_refused(&files, CASES)
}

fn options(story: &mut Story) -> anyhow::Result<()> {
    let files = Files::prepare(story)?;
    const CASES: &str = r#"
        --frobnicate                                                   | 2 | '--frobnicate' | run --help
        frobnicate                                                     | 2 | 'frobnicate' | run --help
        --boot bios                                                    | 2 | 'bios' | run --help
        --on-reset dance                                               | 2 | 'dance' | run --help
        --console screen                                               | 2 | stdio, pty or file=PATH | run --help
        --serial pty                                                   | 2 | stdio, stderr, null or file=PATH | run --help
        --console stdio --serial stdio                                 | 2 | only one of | can have stdio
        --serial stdio --com2 stdio                                    | 2 | only one of | can have stdio
        --exit-port=0x10000                                            | 2 | up to 0xffff | run --help
        --exit-port=0x510 --steady-port                                | 2 | --steady-port and --exit-port | different
        --memory 1G --memory 2G                                        | 2 | '--memory <SIZE>' cannot be used | run --help
    "#;
    all_refused(&files, CASES)?;
    for (line, says) in [
        ("", ["say what to do", "--help"]),
        ("run", ["--kernel <FILE>", "run --help"]),
        ("dance", ["'dance'", "--help"]),
        ("check this", ["'this'", "--help"]),
    ] {
        let output = files.host_vsp(line)?;
        refused(&output, USAGE, &says).with_context(|| format!("host-vsp {line}"))?;
    }
    files.are_untouched()
}

fn outputs(story: &mut Story) -> anyhow::Result<()> {
    let files = Files::prepare(story)?;
    const CASES: &str = r#"
        --console file=no/such.txt                                     | 1 | no directory for | create it first
        --serial file=no/such.txt                                      | 1 | no directory for | create it first
        --console file=text/below                                      | 1 | no directory for | create it first
        --console file=directory                                       | 1 | is a directory | give --console the path
        --serial file=directory                                        | 1 | is a directory | give --serial the path
        --disk path=disk.img --console file=disk.img                   | 1 | given twice, as --disk and as --console | a file of its own
        --disk path=disk.img,readonly=on --serial file=./disk.img      | 1 | given twice, as --disk and as --serial | a file of its own
        --initrd text --console file=text                              | 1 | given twice, as --initrd and as --console | a file of its own
        --serial file=text --console file=text                         | 1 | given twice, as --serial and as --console | a file of its own
        --serial file=new.txt --console file=./new.txt                 | 1 | given twice, as --serial and as --console | a file of its own
        --serial file=text --console file=directory                    | 1 | is a directory | --console
        --serial file=text --disk path=nope.img                        | 1 | no disk image | create it
        --console file=text --memory 1T                                | 1 | this host has | lower --memory
    "#;
    all_refused(&files, CASES)
}

fn without_kvm(story: &mut Story) -> anyhow::Result<()> {
    let files = Files::prepare(story)?;
    // An empty /dev that only this process sees.
    let line = format!(
        "mount -t tmpfs none /dev && exec {} run --kernel {} --disk path=disk.img --console file=text",
        story.host_vsp_program()?,
        story.guest_kernel()?
    );
    let command = story
        .l1()
        .command("unshare")
        .args(["-m", "sh", "-c", &line]);
    let output = files.finish(command)?;
    refused(
        &output,
        IMPOSSIBLE,
        &["there is no /dev/kvm", "load the kernel module"],
    )?;
    files.are_untouched()
}

/// Runs `line` as somebody who is not root.
fn as_user(story: &Story, line: &str) -> anyhow::Result<Command> {
    let users = format!("root:x:0:0::/root:/bin/sh\n{USER}:x:1000:1000::/tmp:/bin/sh\n");
    story.l1().put_bytes(users.as_bytes(), "/etc/passwd")?;
    Ok(story
        .l1()
        .command("su")
        .args(["-s", "/bin/sh", "-c", line, USER]))
}

fn without_permission(story: &mut Story) -> anyhow::Result<()> {
    let files = Files::prepare(story)?;
    let prepared = story
        .l1()
        .shell("chmod 660 /dev/kvm; chmod 600 other.img text; chmod 644 disk.img")
        .dir(story.dir())
        .run(NEXT)?;
    ensure!(prepared.status.success(), "{prepared}");
    let before = files.look("true")?;
    let program = story.host_vsp_program()?;
    let kernel = story.guest_kernel()?;
    for (arguments, says) in [
        (
            "--disk path=disk.img,readonly=on",
            ["no permission to use /dev/kvm", "its group"],
        ),
        (
            "--disk path=disk.img",
            ["no permission to write", "or add readonly=on"],
        ),
        (
            "--disk path=other.img",
            ["no permission to write", "change its permissions"],
        ),
        (
            "--disk path=other.img,readonly=on",
            ["no permission to read", "run as its owner"],
        ),
        (
            "--initrd text",
            ["cannot read the initrd \"text\"", "that can be read"],
        ),
    ] {
        let line = format!(
            "cd {} && exec {program} run --kernel {kernel} {arguments}",
            story.dir()
        );
        let output = files.finish(as_user(story, &line)?)?;
        refused(&output, IMPOSSIBLE, &says).with_context(|| format!("with {arguments}"))?;
    }
    let line = format!("cd {} && exec {program} run --kernel text", story.dir());
    let output = files.finish(as_user(story, &line)?)?;
    refused(
        &output,
        IMPOSSIBLE,
        &["cannot read the kernel \"text\"", "that can be read"],
    )?;
    let now = files.look("true")?;
    ensure!(now == before, "files changed, from\n{before}to\n{now}");
    Ok(())
}

/// What is missing is marked, with what to do; a screen, not a book.
fn check_says_no(story: &mut Story) -> anyhow::Result<()> {
    let program = story.host_vsp_program()?;
    let line = format!("mount -t tmpfs none /dev && exec {program} check");
    let without = story
        .l1()
        .command("unshare")
        .args(["-m", "sh", "-c", &line]);
    let denied = format!("chmod 660 /dev/kvm && su -s /bin/sh -c '{program} check' {USER}");
    as_user(story, "true")?.run(NEXT)?;
    let denied = story.l1().shell(&denied);
    for (command, says) in [(without, "load the kernel module"), (denied, "its group")] {
        let output = command.run(NEXT)?;
        let screen = output.stdout_text();
        let missing: Vec<&str> = screen
            .lines()
            .filter(|line| line.starts_with("  NO "))
            .collect();
        ensure!(
            output.status.code() == Some(IMPOSSIBLE)
                && missing.len() == 1
                && missing[0].contains("/dev/kvm")
                && missing[0].contains(says)
                && screen.ends_with("cannot host: see the lines marked NO.\n")
                && screen.lines().count() <= 24,
            "{output}"
        );
    }
    Ok(())
}
