//! One kernel with one implementation of its memory for both crates' drivers: over virtio in plain
//! QEMU, and over VMBus on `host-vsp`, it says the same.

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bed::cargo;
use bed::provision::Qemu;
use e2e::{Entry, Story};

use crate::disk::Disk;
use crate::guest::{Guest, NEXT};

pub(crate) const STORIES: &[Entry] = &[Entry::new(
    "virtio_and_vmbus_say_the_same",
    virtio_and_vmbus,
)];

/// Blocks of the disks here.
const BLOCKS: u64 = 8192;

/// What the kernel is to do.
const SCENARIOS: &str = "storage,odd-buffers";

/// QEMU's exit status when the kernel says PASS to its `isa-debug-exit`.
const PASS: i32 = 33;

fn virtio_and_vmbus(story: &mut Story) -> anyhow::Result<()> {
    let seed: u64 = rand::random();
    let over_virtio = plain_qemu(seed)?;
    let disk = Disk::create(story, "disk", BLOCKS)?;
    let over_vmbus = Guest::new(story, SCENARIOS)
        .option("seed", seed)
        .disk(&disk.path)
        .run()?;
    let (virtio, vmbus) = (told(&over_virtio), told(&over_vmbus));
    ensure!(
        over_virtio.contains("virtio disk: ") && over_vmbus.contains("VMBus disk, "),
        "these are not the two buses: {over_virtio}{over_vmbus}"
    );
    // A line at the begin and the end of each scenario, and what the two say of the disk.
    ensure!(
        virtio.len() >= 7 && virtio == vmbus,
        "over virtio: {over_virtio}, over VMBus: {over_vmbus}"
    );
    Ok(())
}

/// What the scenarios say, without the names that the two buses have for their disks.
fn told(log: &str) -> Vec<String> {
    let lines = log.lines().map(str::trim_end);
    let lines = lines
        .skip_while(|line| !line.starts_with("SCENARIO "))
        .take_while(|line| !line.starts_with("GUEST-KERNEL"));
    let nameless = lines.map(|line| match line.split_once(": ") {
        Some((_, what)) if line.contains(" blocks of ") => what.to_owned(),
        _ => line.to_owned(),
    });
    nameless.collect()
}

/// Runs the kernel in QEMU without a hypervisor's identity, on this machine; returns its log.
fn plain_qemu(seed: u64) -> anyhow::Result<String> {
    let kernel = cargo::guest_kernel()?;
    let disk = tempfile::NamedTempFile::new()?;
    disk.as_file().set_len(BLOCKS * 512)?;
    let mut command: Command = Qemu::get()?.command();
    command
        .args(["-machine", "q35", "-accel", "tcg", "-m", "128M"])
        .args(["-display", "none", "-monitor", "none", "-no-reboot"])
        .args(["-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4"])
        .args(["-device", "virtio-blk-pci,drive=disk", "-drive"])
        .arg(format!(
            "if=none,id=disk,format=raw,file={}",
            disk.path().display()
        ))
        .arg("-kernel")
        .arg(kernel)
        .arg("-append")
        .arg(format!("scenario={SCENARIOS} seed={seed}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut qemu = command.spawn().context("starting QEMU")?;
    let end = Instant::now() + NEXT;
    // Its log is shorter than a pipe, so nobody has to read it meanwhile.
    while qemu.try_wait()?.is_none() {
        if Instant::now() > end {
            qemu.kill()?;
            let output = qemu.wait_with_output()?;
            let said = String::from_utf8_lossy(&output.stdout);
            bail!("QEMU has not ended within {NEXT:?}: {said}");
        }
        thread::sleep(Duration::from_millis(50));
    }
    let output = qemu.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.code() == Some(PASS),
        "QEMU ended with {}: {said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(said)
}
