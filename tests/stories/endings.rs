//! How machines end: by the guest, by the host, and with readers and writers that are stuck or
//! gone.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bed::l1::{Output, Signal};
use bed::pattern::Pattern;
use bed::wire::{Status, Stream};
use e2e::{Entry, Story};

use crate::disk::{BLOCK, Disk, Task};
use crate::guest::{Guest, NEXT, Vm};

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("verdicts_and_power_off", verdicts_and_power_off),
    Entry::new("reset_starts_again", reset_starts_again),
    Entry::new("reset_ends_where_asked", reset_ends_where_asked),
    Entry::new("reset_in_traffic", reset_in_traffic),
    Entry::new("triple_fault", triple_fault),
    Entry::new("sigterm_amid_writes", sigterm_amid_writes),
    Entry::new("sigint_amid_writes", sigint_amid_writes),
    Entry::new("sigterm_while_booting", sigterm_while_booting),
    Entry::new("sigkill_frees_the_image", sigkill_frees_the_image),
    Entry::new("terminal_is_given_back", terminal_is_given_back),
    Entry::new("key_that_stops", key_that_stops),
    Entry::new("no_streams_at_all", no_streams_at_all),
    Entry::new("slow_reader_loses_nothing", slow_reader_loses_nothing),
    Entry::new("reader_that_goes", reader_that_goes),
    Entry::new("reader_that_never_reads", reader_that_never_reads),
    Entry::new("log_that_nobody_reads", log_that_nobody_reads),
];

/// Exit codes that `host-vsp run --help` documents.
const RESET: i32 = 3;
const TRIPLE_FAULT: i32 = 4;
const SIGTERM: i32 = 128 + 15;
const SIGINT: i32 = 128 + 2;
/// What the guest kernel's verdicts become at an exit port: twice the byte and one.
const PASS: i32 = 33;
const FAIL: i32 = 35;

/// From a signal to the end, at most: orderly, and not as long as a user's patience.
const ORDERLY: Duration = Duration::from_secs(15);

/// Waits for the end of `vm` and sees that its exit code is `code`.
fn ends_with(vm: Vm, code: i32) -> anyhow::Result<Output> {
    let output = vm.end()?;
    ensure!(
        output.status.code() == Some(code),
        "not exit code {code}: {output}"
    );
    Ok(output)
}

/// Sends `signal`, and sees that the end is orderly and documented as `code`.
fn ends_by(vm: Vm, signal: Signal, code: i32) -> anyhow::Result<Output> {
    let begun = Instant::now();
    vm.signal(signal)?;
    let output = ends_with(vm, code)?;
    ensure!(
        begun.elapsed() < ORDERLY,
        "the end took {:?}: {output}",
        begun.elapsed()
    );
    Ok(output)
}

/// Sees that no VM is left in L1's kernel.
fn nothing_is_left(story: &Story) -> anyhow::Result<()> {
    let left = story
        .l1()
        .shell("ls -d /sys/kernel/debug/kvm/*-* 2>/dev/null; true")
        .run(NEXT)?;
    ensure!(left.stdout.is_empty(), "VMs are left: {left}");
    Ok(())
}

fn verdicts_and_power_off(story: &mut Story) -> anyhow::Result<()> {
    let guest = |scenarios| Guest::new(story, scenarios);
    // No verdict: the machine is off before there is one.
    let output = ends_with(guest("power-off").start()?, 0)?;
    ensure!(
        !output.stderr_text().contains("GUEST-KERNEL"),
        "a verdict: {output}"
    );
    ends_with(guest("contact").args(["--exit-port"]).start()?, PASS)?;
    // A guest that fails is the guest's affair, unless it has a way to tell.
    let output = ends_with(guest("panic").start()?, 0)?;
    let log = output.stderr_text();
    ensure!(
        log.contains("PANIC on CPU 0") && log.contains("GUEST-KERNEL: FAIL"),
        "{output}"
    );
    ends_with(guest("panic").args(["--exit-port"]).start()?, FAIL)?;
    ends_with(guest("stack-overflow").args(["--exit-port"]).start()?, FAIL)?;
    nothing_is_left(story)
}

/// The same process, the same devices, the whole work done again.
fn reset_starts_again(story: &mut Story) -> anyhow::Result<()> {
    let mut disk = Disk::create(story, "disk.img", 4096)?;
    let task = Task::random(0, 4096);
    task.expect(&mut disk);
    let mut vm = task
        .tell(Guest::new(story, "boot,contact,storage,reset"))
        .cpus(2)
        .disk(&disk.path)
        .start()?;
    let rounds = story.count(3, 100);
    for round in 1..=rounds {
        for scenario in ["boot", "contact", "storage"] {
            vm.says(&format!("SCENARIO {scenario}: PASS"))
                .with_context(|| format!("boot {round}"))?;
        }
        let line = vm.says("the machine starts again")?;
        ensure!(
            line.contains("the guest reset the machine by its reset register"),
            "{line}"
        );
    }
    let output = ends_by(vm, Signal::TERM, SIGTERM)?;
    ensure!(
        !output.stderr_text().contains("FAIL"),
        "something failed: {output}"
    );
    disk.verify(story)?;
    nothing_is_left(story)
}

/// Whatever a processor was in the middle of does not reach into its next life.
fn reset_in_traffic(story: &mut Story) -> anyhow::Result<()> {
    let mut vm = Guest::new(story, "boot,contact,reset-in-traffic")
        .cpus(2)
        .start()?;
    for round in 1..=story.count(30, 1000) {
        vm.says("SCENARIO contact: PASS")
            .with_context(|| format!("boot {round}"))?;
        vm.says("the machine starts again")?;
    }
    let output = ends_by(vm, Signal::TERM, SIGTERM)?;
    let log = output.stderr_text();
    let bad = |line: &&str| line.contains("FAIL") || line.starts_with("traffic: ");
    let bad = log.lines().find(bad);
    ensure!(bad.is_none(), "{bad:?}");
    nothing_is_left(story)
}

fn reset_ends_where_asked(story: &mut Story) -> anyhow::Result<()> {
    let mut disk = Disk::create(story, "disk.img", 4096)?;
    let task = Task::random(0, 4096);
    task.expect(&mut disk);
    let vm = task
        .tell(Guest::new(story, "storage,reset"))
        .disk(&disk.path)
        .args(["--on-reset", "exit"])
        .start()?;
    let output = ends_with(vm, RESET)?;
    let last = "host-vsp: the guest reset the machine by its reset register\n";
    ensure!(output.stderr_text().ends_with(last), "{output}");
    disk.verify(story)
}

fn triple_fault(story: &mut Story) -> anyhow::Result<()> {
    let sentence = "the guest took a triple fault on processor 0";
    let vm = Guest::new(story, "contact,triple-fault")
        .args(["--on-reset", "exit"])
        .start()?;
    let output = ends_with(vm, TRIPLE_FAULT)?;
    let log = output.stderr_text();
    ensure!(
        log.ends_with(&format!("host-vsp: {sentence}\n")) && log.matches(sentence).count() == 1,
        "not said in one sentence: {output}"
    );

    let mut vm = Guest::new(story, "boot,contact,triple-fault")
        .cpus(2)
        .start()?;
    for _ in 0..2 {
        vm.says("SCENARIO boot: PASS")?;
        vm.says("SCENARIO contact: PASS")?;
        vm.says(&format!("{sentence}; the machine starts again"))?;
    }
    ends_by(vm, Signal::TERM, SIGTERM)?;
    nothing_is_left(story)
}

fn sigterm_amid_writes(story: &mut Story) -> anyhow::Result<()> {
    stopped_amid_writes(story, Signal::TERM, SIGTERM)
}

fn sigint_amid_writes(story: &mut Story) -> anyhow::Result<()> {
    stopped_amid_writes(story, Signal::INT, SIGINT)
}

/// Requests in flight at a time, each of one block, from block 0 on.
const IN_FLIGHT: usize = 64;
/// Most rounds of requests that the guest can have come to.
const ROUNDS: u64 = 1 << 20;

/// The guest writes and flushes; then it writes 64 blocks at once, round after round, until it is
/// stopped.
fn stopped_amid_writes(story: &mut Story, signal: Signal, code: i32) -> anyhow::Result<()> {
    for round in 0..story.count(3, 50) {
        let mut disk = Disk::create(story, &format!("disk-{round}.img"), 4096)?;
        let task = Task::random(IN_FLIGHT as u64, 4096);
        task.expect(&mut disk);
        let mut vm = task
            .tell(Guest::new(story, "storage,in-flight"))
            .option("queue.rounds", ROUNDS)
            .disk(&disk.path)
            .start()?;
        vm.says("SCENARIO in-flight: begin")?;
        all_written_once(story, &disk)?;
        sleep(Duration::from_millis(rand::random_range(200..1500)));
        let output = ends_by(vm, signal, code)?;
        ensure!(
            !output.stderr_text().contains("FAIL"),
            "something failed: {output}"
        );
        let now = story.l1().get(&disk.path)?;
        let rounds = whole_rounds(&now, task.seed)?;
        // What was flushed is there, and nothing beside it was touched.
        disk.adopt(0, &now[..IN_FLIGHT * BLOCK]);
        disk.verify(story)
            .with_context(|| format!("stopped in rounds {rounds:?}"))?;
        // The next machine takes it as it is.
        Guest::new(story, "contact").disk(&disk.path).run()?;
    }
    nothing_is_left(story)
}

/// Waits until each block in flight has been written.
fn all_written_once(story: &Story, disk: &Disk) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let now = story.l1().get(&disk.path)?;
        let both = now.chunks(BLOCK).zip(disk.content().chunks(BLOCK));
        if both.take(IN_FLIGHT).all(|(now, before)| now != before) {
            return Ok(());
        }
        ensure!(begun.elapsed() < NEXT, "the guest writes nothing");
    }
}

/// Which rounds the blocks in flight are from: each block whole, and none from longer ago than
/// the round before the last, whose writes had all returned.
fn whole_rounds(image: &[u8], seed: u64) -> anyhow::Result<(u64, u64)> {
    let content = |round: u64, block: usize| {
        let seed = seed.wrapping_add(round * IN_FLIGHT as u64 + block as u64);
        Pattern::new(seed)
    };
    let (mut first, mut last) = (ROUNDS, 0);
    for (block, found) in image.chunks(BLOCK).take(IN_FLIGHT).enumerate() {
        let head = |round: &u64| content(*round, block).take(8) == found[..8];
        let near = first.saturating_sub(2)..ROUNDS;
        let Some(round) = near
            .into_iter()
            .find(head)
            .or_else(|| (0..ROUNDS).find(head))
        else {
            bail!("block {block} holds nothing that the guest wrote in flight");
        };
        ensure!(
            content(round, block).take(BLOCK) == found,
            "block {block} is torn in round {round}"
        );
        (first, last) = (first.min(round), last.max(round));
    }
    ensure!(
        last - first <= 1,
        "blocks are from rounds {first} to {last}: completed writes are lost"
    );
    Ok((first, last))
}

fn sigterm_while_booting(story: &mut Story) -> anyhow::Result<()> {
    let disk = Disk::create(story, "disk.img", 4096)?;
    for _ in 0..story.count(10, 200) {
        let vm = Guest::new(story, "boot,contact")
            .cpus(2)
            .disk(&disk.path)
            .start()?;
        sleep(Duration::from_millis(rand::random_range(0..1000)));
        let begun = Instant::now();
        vm.signal(Signal::TERM)?;
        let output = vm.end()?;
        ensure!(begun.elapsed() < ORDERLY, "it took its time: {output}");
        // It may have passed and ended before, or not have begun to listen.
        let early = output.status == Status::Signal(15) && output.stderr.is_empty();
        ensure!(
            early || matches!(output.status.code(), Some(0 | SIGTERM)),
            "{output}"
        );
    }
    disk.verify(story)?;
    nothing_is_left(story)
}

fn sigkill_frees_the_image(story: &mut Story) -> anyhow::Result<()> {
    let mut disk = Disk::create(story, "disk.img", 4096)?;
    let task = Task::random(0, 4096);
    task.expect(&mut disk);
    let mut vm = task
        .tell(Guest::new(story, "storage,wait"))
        .disk(&disk.path)
        .start()?;
    vm.says("WAITING")?;
    vm.signal(Signal::KILL)?;
    let output = vm.end()?;
    ensure!(output.status == Status::Signal(9), "{output}");
    // What was written is there even so, and the next machine gets the image at once.
    disk.verify(story)?;
    let task = Task::random(0, 4096);
    task.expect(&mut disk);
    task.tell(Guest::new(story, "storage"))
        .disk(&disk.path)
        .run()?;
    disk.verify(story)?;
    nothing_is_left(story)
}

/// One machine's pty is the other's terminal.
fn terminal_is_given_back(story: &mut Story) -> anyhow::Result<()> {
    let mut keyboard = Guest::new(story, "wait")
        .args(["--console", "pty"])
        .start()?;
    let line = keyboard.says("the console is at ")?;
    let terminal = line.rsplit(' ').next().context("a path")?;
    let stty = |arguments: &str| -> anyhow::Result<String> {
        let output = story
            .l1()
            .shell(&format!("stty {arguments} < {terminal}"))
            .run(NEXT)?;
        ensure!(output.status.success(), "stty: {output}");
        Ok(output.stdout_text())
    };
    stty("sane")?;
    let before = stty("-a")?;
    for ending in ["SIGTERM", "two SIGTERMs", "power-off"] {
        let seconds = if ending == "power-off" { 2 } else { 300 };
        let mut vm = Guest::new(story, "wait")
            .option("wait.seconds", seconds)
            .args(["--console", "stdio"])
            .redirected(&format!("<{terminal} >{terminal}"))
            .start()?;
        vm.says("WAITING")?;
        let during = stty("-a")?;
        ensure!(
            during.contains("-icanon") && during.contains("-echo ") && before != during,
            "the guest does not get every key: {during}"
        );
        match ending {
            "SIGTERM" => drop(ends_by(vm, Signal::TERM, SIGTERM)?),
            "power-off" => drop(ends_with(vm, 0)?),
            _ => {
                // The second one does not wait for what the first one has begun.
                vm.signal(Signal::TERM)?;
                drop(ends_by(vm, Signal::TERM, SIGTERM)?);
            }
        }
        let after = stty("-a")?;
        ensure!(
            after == before,
            "after {ending}: {after}instead of\n{before}"
        );
    }
    ends_by(keyboard, Signal::TERM, SIGTERM)?;
    Ok(())
}

/// Two guests talk over one terminal; then one types at random, Ctrl-] among it, which ends the
/// other.
fn key_that_stops(story: &mut Story) -> anyhow::Result<()> {
    let mut keyboard = Guest::new(story, "console,console-bulk,wait")
        .option("console.seconds", NEXT.as_secs())
        .args(["--console", "pty"])
        .start()?;
    let line = keyboard.says("the console is at ")?;
    let terminal = line.rsplit(' ').next().context("a path")?;
    let stty = format!("stty -a < {terminal}");
    let before = story.l1().shell(&stty).run(NEXT)?;
    // Only a session's own terminal sends signals.
    let line = format!(
        "setsid sh -c 'exec \"$0\" \"$@\" <{terminal} >{terminal}' \"$@\" & wait $!; exit $?"
    );
    let mut typed_at = story
        .l1()
        .shell(&line)
        .args(["sh", &story.host_vsp_program()?])
        .args(["run", "--kernel", &story.guest_kernel()?])
        .args(["--memory", "128M", "--console", "stdio"])
        .args(["--cmdline", "scenario=console,wait console.seconds=60"])
        .spawn()?;
    keyboard.says("console received: hello from the guest")?;
    typed_at.expect_on(Stream::Stderr, "console received: hello from", NEXT)?;
    let output = typed_at.finish(NEXT)?;
    ensure!(output.status.code() == Some(SIGINT), "{output}");
    let after = story.l1().shell(&stty).run(NEXT)?;
    ensure!(after == before, "{after} instead of {before}");
    ends_by(keyboard, Signal::TERM, SIGTERM)?;
    nothing_is_left(story)
}

/// Input that has ended, streams that are closed, and the device that is always empty.
fn no_streams_at_all(story: &mut Story) -> anyhow::Result<()> {
    for (console, redirections) in [
        ("stdio", "</dev/null"),
        ("stdio", "</dev/null >/dev/null"),
        ("stdio", "<&-"),
        ("stdio", "<&- >&-"),
        ("file=/dev/null", "<&- >&-"),
        ("stdio", "</dev/null >/dev/full"),
    ] {
        let vm = Guest::new(story, "console,contact")
            .option("console.seconds", 1)
            .args(["--console", console])
            .redirected(redirections)
            .start()?;
        let output = ends_with(vm, 0).with_context(|| format!("{console} {redirections}"))?;
        let log = output.stderr_text();
        // The guest hears nothing, and is none the worse for it.
        ensure!(
            log.contains("SCENARIO console: FAIL no whole line came within 1s, only \"\"")
                && log.contains("SCENARIO contact: PASS"),
            "{console} {redirections}: {output}"
        );
    }
    // Nobody hears the machine itself, either.
    let quiet = Guest::new(story, "contact,power-off").redirected("<&- >&- 2>&-");
    ends_with(quiet.start()?, 0)?;
    Ok(())
}

/// The reader begins late and takes little at a time; the guest ends long before it.
fn slow_reader_loses_nothing(story: &mut Story) -> anyhow::Result<()> {
    const PIECES: usize = 64;
    let bytes = PIECES * 4096;
    let seed: u64 = rand::random();
    let pipe = pipe(story)?;
    let vm = Guest::new(story, "console-bulk")
        .option("seed", seed)
        .option("console.bytes", bytes)
        .option("console.seconds", NEXT.as_secs())
        .option("vmbus.seconds", NEXT.as_secs())
        .args(["--console", "stdio"])
        .redirected(&format!(">{pipe}"))
        .start()?;
    vm.write(&Pattern::new(seed.wrapping_add(1)).take(bytes))?;
    let take = "dd bs=4096 count=1 iflag=fullblock 2>/dev/null";
    let slow =
        format!("exec <{pipe}; sleep 3; for i in $(seq {PIECES}); do {take}; sleep 0.1; done; cat");
    let reader = story.l1().shell(&slow).spawn()?;
    vm.pass()?;
    let found = reader.finish(NEXT)?.stdout;
    ensure!(
        found == Pattern::new(seed).take(bytes),
        "{} of {bytes} bytes came, or not the right ones",
        found.len()
    );
    Ok(())
}

/// A named pipe.
fn pipe(story: &Story) -> anyhow::Result<String> {
    let path = story.file("pipe");
    let made = story.l1().command("mkfifo").arg(&path).run(NEXT)?;
    ensure!(made.status.success(), "{made}");
    Ok(path)
}

/// The console's reader takes a little and is gone: the rest goes nowhere, and the guest works on.
fn reader_that_goes(story: &mut Story) -> anyhow::Result<()> {
    let bytes = 1 << 20;
    let seed: u64 = rand::random();
    let pipe = pipe(story)?;
    let vm = Guest::new(story, "console-bulk,contact")
        .option("seed", seed)
        .option("console.bytes", bytes)
        .option("console.seconds", NEXT.as_secs())
        .args(["--console", "stdio"])
        .redirected(&format!(">{pipe}"))
        .start()?;
    vm.write(&Pattern::new(seed.wrapping_add(1)).take(bytes))?;
    let reader = format!("exec head -c 1000 {pipe}");
    let reader = story.l1().shell(&reader).run(NEXT)?;
    ensure!(
        reader.stdout == Pattern::new(seed).take(1000),
        "the first bytes are wrong"
    );
    let output = vm.pass()?;
    ensure!(
        output.stderr_text().contains("goes nowhere from now on"),
        "nobody was told: {output}"
    );

    // The same for its log: nobody hears that it ends well, but it does.
    let vm = Guest::new(story, "boot,contact,list")
        .args(["--exit-port", "--console", "stdio"])
        .redirected(&format!("2>{pipe}"))
        .start()?;
    let reader = format!("exec head -c 20 {pipe}");
    story.l1().shell(&reader).run(NEXT)?;
    ends_with(vm, PASS)?;
    Ok(())
}

/// The console's reader is there and takes nothing: the guest's writer is told after its time, the
/// rest of the guest works on, and the end comes in time.
fn reader_that_never_reads(story: &mut Story) -> anyhow::Result<()> {
    let pipe = pipe(story)?;
    let mut disk = Disk::create(story, "disk.img", 4096)?;
    let task = Task::random(0, 4096);
    task.expect(&mut disk);
    let vm = task
        .tell(Guest::new(story, "console-bulk,storage"))
        .option("console.bytes", 1 << 20)
        .option("vmbus.seconds", 3)
        .args(["--console", "stdio"])
        .disk(&disk.path)
        // Open both ways: there is a reader, and it is no one.
        .redirected(&format!("3<>{pipe} >{pipe}"))
        .start()?;
    let output = ends_with(vm, 0)?;
    let log = output.stderr_text();
    ensure!(
        log.contains("SCENARIO console-bulk: FAIL") && log.contains("SCENARIO storage: PASS"),
        "{output}"
    );
    disk.verify(story)?;

    // And where it is the host that ends it.
    let mut vm = Guest::new(story, "console-bulk,wait")
        .option("console.bytes", 1 << 20)
        .option("vmbus.seconds", 3)
        .args(["--console", "stdio"])
        .redirected(&format!("3<>{pipe} >{pipe}"))
        .start()?;
    vm.says("WAITING")?;
    ends_by(vm, Signal::TERM, SIGTERM)?;
    nothing_is_left(story)
}

/// The log goes to a pipe that is full and that nobody reads: the guest's console still talks, and
/// the host can still end it.
fn log_that_nobody_reads(story: &mut Story) -> anyhow::Result<()> {
    let pipe = pipe(story)?;
    // As much as a pipe holds; open both ways, so that there is a reader, who is no one.
    let fill = format!("exec 3<>{pipe}; head -c 65536 /dev/zero >&3; echo full; read never");
    let mut nobody = story.l1().shell(&fill).spawn()?;
    nobody.expect("full", NEXT)?;
    let seed: u64 = rand::random();
    let mut vm = Guest::new(story, "list,console,wait")
        .option("seed", seed)
        .args(["--console", "stdio"])
        .redirected(&format!("2>{pipe}"))
        .start()?;
    vm.console_says(&format!("hello from the guest, seed {seed:#x}"))?;
    vm.write(b"are you there?\n")?;
    vm.console_says("echo: are you there?")?;
    ends_by(vm, Signal::TERM, SIGTERM)?;
    nothing_is_left(story)
}
