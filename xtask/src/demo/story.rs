//! The machine's run: what the guest does, what it says, and what the host says back.

use std::time::Duration;

use anyhow::{Context, ensure};
use bed::l1::{L1, Process};
use bed::wire::Stream;

use super::Programs;
use super::exits;
use super::image::{self, Task};

/// From start to the guest's first words, in software emulation on a busy machine.
const BOOT: Duration = Duration::from_secs(60);

/// For each thing that the guest does after that.
const EACH: Duration = Duration::from_secs(60);

/// For the steady run.
const STEADY: Duration = Duration::from_secs(180);

/// The machine.
const MEMORY: &str = "256M";

/// Reads of the steady run and how many are under way at a time.
const READS: u64 = 10_000;
const DEPTH: u64 = 32;

/// Runs the machine with `disk` and prints the story as it goes.
pub(super) fn tell(place: &L1, programs: &Programs, disk: &str, task: &Task) -> anyhow::Result<()> {
    let Task { seed, lba, blocks } = *task;
    let cmdline = format!(
        "scenario=contact,storage,steady,console seed={seed:#x} disk.lba={lba} \
         disk.blocks={blocks} steady.reads={READS} steady.depth={DEPTH}"
    );
    let mut vm = place
        .command(&programs.host_vsp)
        .args([
            "run",
            "--kernel",
            &programs.guest_kernel,
            "--cmdline",
            &cmdline,
        ])
        .args([
            "--memory",
            MEMORY,
            "--cpus",
            "1",
            "--disk",
            &format!("path={disk}"),
        ])
        .args(["--console", "stdio", "--counters", "--steady-port"])
        .spawn()?;

    let contact = guest(&mut vm, "VMBus ", BOOT)?;
    println!("vmbus:     {contact}");
    guest(&mut vm, "SCENARIO contact: PASS", EACH)?;

    let found = guest(&mut vm, " blocks of ", EACH)?;
    ensure!(
        found.contains(&format!("{} blocks of {}", image::BLOCKS, image::BLOCK)),
        "the guest sees another disk than it was given: {found}"
    );
    println!("disk:      {found}");
    println!(
        "pattern:   {}",
        guest(&mut vm, "written, flushed, read back", EACH)?
    );
    guest(&mut vm, "SCENARIO storage: PASS", EACH)?;

    let window = guest(&mut vm, exits::WINDOW, STEADY)?;
    guest(&mut vm, "SCENARIO steady: PASS", EACH)?;
    println!("steady:    {READS} reads, {DEPTH} under way at a time:");
    exits::tell_window(&window, READS)?;

    let hello = vm.expect_line_on(Stream::Stdout, "hello from the guest", EACH)?;
    let words = format!("the host knows seed {:x}", seed.rotate_left(32));
    vm.write(format!("{words}\n").as_bytes())?;
    let echo = vm.expect_line_on(Stream::Stdout, "echo: ", EACH)?;
    ensure!(
        echo.contains(&words),
        "the console gave back {echo:?} for {words:?}"
    );
    println!("console:   guest: {hello:?}, host: {words:?}, guest: {echo:?}");
    guest(&mut vm, "SCENARIO console: PASS", EACH)?;

    guest(&mut vm, "GUEST-KERNEL: PASS", EACH)?;
    let ended = vm.finish(EACH)?;
    ensure!(ended.status.success(), "host-vsp: {ended}");
    exits::tell_run(&ended.stderr_text())?;
    Ok(())
}

/// Waits for a line of the guest's log, which `host-vsp` writes to its standard error.
fn guest(vm: &mut Process, text: &str, limit: Duration) -> anyhow::Result<String> {
    vm.expect_line_on(Stream::Stderr, text, limit)
        .with_context(|| format!("waiting for {text:?}"))
}
