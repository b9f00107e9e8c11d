//! The bed is what it says it is: a KVM with Hyper-V support, and an API that tells the truth.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use bed::l1::{Drive, L1, Signal};
use e2e::{Entry, Story};

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("kvm_has_hyperv", kvm_has_hyperv),
    Entry::new("kernel_can_be_watched", kernel_can_be_watched),
    Entry::new("processes_and_files", processes_and_files),
    Entry::new("a_dead_l1_is_noticed", a_dead_l1_is_noticed),
    Entry::new("deadlines_and_signals", deadlines_and_signals),
];

const SHORT: Duration = Duration::from_secs(20);

/// Bytes of the disks of an L1.
const DRIVE: usize = 1 << 20;

fn kvm_has_hyperv(story: &mut Story) -> anyhow::Result<()> {
    // SYNIC2, EVENTFD, CPUID, as in `KVM_CAP_HYPERV_…`.
    for capability in [148, 154, 167] {
        let value = story.l1().kvm_extension(capability)?;
        ensure!(value != 0, "L1's KVM lacks capability {capability}");
    }
    Ok(())
}

fn kernel_can_be_watched(story: &mut Story) -> anyhow::Result<()> {
    let id = story
        .l1()
        .get_text("/sys/kernel/tracing/events/kvm/kvm_userspace_exit/id")?;
    ensure!(id.parse::<u32>().is_ok(), "tracepoint id: {id:?}");
    let kvm = story
        .l1()
        .command("ls")
        .arg("/sys/kernel/debug/kvm")
        .run(SHORT)?;
    ensure!(
        kvm.stdout_text().contains("halt_exits"),
        "KVM's counters: {kvm}"
    );
    Ok(())
}

fn processes_and_files(story: &mut Story) -> anyhow::Result<()> {
    let l1 = story.l1();
    let input: Vec<u8> = (0..3_000_000_u32).map(|at| (at * 7 / 5) as u8).collect();
    let output = l1.command("cat").run_with(&input, SHORT)?;
    ensure!(
        output.status.success() && output.stdout == input,
        "`cat` lost something"
    );

    let path = story.file("deep/er/file");
    l1.put_bytes(&input, &path)?;
    ensure!(l1.get(&path)? == input, "a file came back changed");

    let output = l1.shell("echo out; echo err >&2; exit 7").run(SHORT)?;
    ensure!(output.status.code() == Some(7), "{output}");
    ensure!(
        output.stdout_text() == "out\n" && output.stderr_text() == "err\n",
        "{output}"
    );

    match l1.get("/no/such/file") {
        Err(bed::Error::InL1(text)) => ensure!(text.contains("/no/such/file"), "{text}"),
        other => bail!("a missing file gave {other:?}"),
    }
    Ok(())
}

fn deadlines_and_signals(story: &mut Story) -> anyhow::Result<()> {
    let mut process = story
        .l1()
        .shell("echo begun; while read x; do echo got $x; done")
        .spawn()?;
    process.expect("begun", SHORT)?;
    process.write(b"one\ntwo\n")?;
    ensure!(process.expect("got", SHORT)? == "got one");
    ensure!(process.expect("got", SHORT)? == "got two");

    let begun = Instant::now();
    match process.expect("got", Duration::from_millis(300)) {
        Err(bed::Error::Deadline { seen, .. }) => ensure!(seen.contains("got two"), "{seen}"),
        other => bail!("silence gave {other:?}"),
    }
    ensure!(
        begun.elapsed() >= Duration::from_millis(300),
        "the deadline came early"
    );

    process.signal(Signal::TERM)?;
    let status = process.wait(SHORT)?;
    ensure!(
        status == bed::wire::Status::Signal(15),
        "after SIGTERM: {status}"
    );
    match process.expect("more", SHORT) {
        Err(bed::Error::Ended { .. }) => Ok(()),
        other => bail!("an ended process gave {other:?}"),
    }
}

/// An L1 of its own, since this one is not to come back; what it wrote to its disk is.
fn a_dead_l1_is_noticed(_: &mut Story) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let [kept, source] = ["kept", "source"].map(|name| dir.path().join(name));
    fs::write(&kept, vec![0; DRIVE])?;
    fs::write(&source, vec![7; DRIVE])?;
    let l1 = L1::setup()
        .drive(Drive::scratch("scratch", &source))
        .drive(Drive::written("kept", &kept))
        .drive(Drive::read_only("source", &source))
        .boot()?;
    let [from, to, scratch] = [l1.drive("source")?, l1.drive("kept")?, l1.drive("scratch")?];
    let copy = format!(
        "dd if={from} of={to} bs=4k oflag=direct && dd if=/dev/zero of={scratch} bs=4k count=1 && \
         sync && cmp {from} {to} && ! cmp -s {from} {scratch} && ! dd if={to} of={from}"
    );
    let copied = l1.shell(&copy).run(SHORT)?;
    ensure!(copied.status.success(), "{copied}");

    // One whose processor stands still answers again when it is too late for whoever waited.
    l1.check()?;
    let lockup = "<0>watchdog: BUG: soft lockup - CPU#0 stuck for 114s! [vcpu0:220]";
    let said = l1
        .shell(&format!("echo '{lockup}' >/dev/kmsg"))
        .run(SHORT)?;
    ensure!(said.status.success(), "{said}");
    match l1.check() {
        Err(bed::Error::BedDied { reason, .. }) if reason.contains("stuck for 114s") => {}
        other => bail!("an L1 that stood still gives {other:?}"),
    }

    let mut waiting = l1.shell("echo begun; sleep 100").spawn()?;
    waiting.expect("begun", SHORT)?;
    let panic = l1.shell("echo c > /proc/sysrq-trigger").spawn();
    match waiting.wait(SHORT) {
        Err(bed::Error::BedDied { console, .. }) => {
            ensure!(console.contains("Kernel panic"), "L1's console: {console}");
        }
        other => bail!("a panic of L1 gave {other:?}"),
    }
    drop(panic);
    ensure!(
        matches!(l1.check(), Err(bed::Error::BedDied { .. })),
        "a dead L1 answers"
    );
    for file in [kept, source] {
        ensure!(
            fs::read(&file)? == vec![7; DRIVE],
            "{} is not what it has to be",
            file.display()
        );
    }
    Ok(())
}
