//! The console: bytes both ways, over each of the host's ends.

use anyhow::{Context, ensure};
use bed::pattern::Pattern;
use e2e::{Entry, Story};

use crate::guest::{Guest, NEXT};

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("stdio_both_ways", stdio),
    Entry::new("pty_both_ways", pty),
    Entry::new("file_takes_output", file),
    Entry::new("bulk_both_ways", bulk),
];

/// A line that no earlier run can have left anywhere.
fn words() -> String {
    format!("the host knows {:016x}", rand::random::<u64>())
}

fn hello(seed: u64) -> String {
    format!("hello from the guest, seed {seed:#x}")
}

fn stdio(story: &mut Story) -> anyhow::Result<()> {
    let (seed, words) = (rand::random(), words());
    let mut vm = Guest::new(story, "console")
        .option("seed", seed)
        .args(["--console", "stdio"])
        .start()?;
    vm.console_says(&hello(seed))?;
    vm.write(format!("{words}\n").as_bytes())?;
    let output = vm.pass()?;
    let log = output.stderr_text();
    ensure!(
        log.contains(&format!("console received: {words}")),
        "the guest received something else: {log}"
    );
    let expected = format!("{}\r\necho: {words}\r\n", hello(seed));
    ensure!(
        output.stdout == expected.as_bytes(),
        "the console brought {:?} instead of {expected:?}",
        output.stdout_text()
    );
    Ok(())
}

fn pty(story: &mut Story) -> anyhow::Result<()> {
    let (seed, words) = (rand::random(), words());
    let mut vm = Guest::new(story, "console")
        .option("seed", seed)
        .args(["--console", "pty"])
        .start()?;
    let line = vm.says("the console is at ")?;
    let path = line.rsplit(' ').next().context("the path of the console")?;
    // Not `cat`, which uses sendfile: that keeps its output locked while it waits for input.
    let mut terminal = story
        .l1()
        .command("dd")
        .args([&format!("if={path}"), "bs=4096"])
        .spawn()?;
    terminal.expect(&hello(seed), NEXT)?;
    let typed = story
        .l1()
        .shell(&format!("echo '{words}' > {path}"))
        .run(NEXT)?;
    ensure!(typed.status.success(), "typing: {typed}");
    terminal.expect(&format!("echo: {words}"), NEXT)?;
    let log = vm.pass()?.stderr_text();
    ensure!(
        log.contains(&format!("console received: {words}")),
        "the guest received something else: {log}"
    );
    Ok(())
}

/// A file is for output only, so the guest waits for a line in vain.
fn file(story: &mut Story) -> anyhow::Result<()> {
    let (seed, path) = (rand::random(), story.file("console.txt"));
    let vm = Guest::new(story, "console")
        .option("seed", seed)
        .option("console.seconds", 1)
        .args(["--console", &format!("file={path}")])
        .start()?;
    let log = vm.end()?.stderr_text();
    ensure!(
        log.contains("SCENARIO console: FAIL no whole line came within 1s, only \"\""),
        "where does input come from? {log}"
    );
    let (found, expected) = (story.l1().get(&path)?, format!("{}\r\n", hello(seed)));
    ensure!(
        found == expected.as_bytes(),
        "the file holds {:?} instead of {expected:?}",
        String::from_utf8_lossy(&found)
    );
    Ok(())
}

/// More than either side can store; what goes to the guest is there before anybody listens.
fn bulk(story: &mut Story) -> anyhow::Result<()> {
    let bytes = story.count(1 << 20, 1 << 22) as usize;
    let seed: u64 = rand::random();
    let vm = Guest::new(story, "console-bulk")
        .option("seed", seed)
        .option("console.bytes", bytes)
        .option("console.seconds", NEXT.as_secs())
        .args(["--console", "stdio"])
        .start()?;
    vm.write(&Pattern::new(seed.wrapping_add(1)).take(bytes))?;
    let found = vm.pass()?.stdout;
    let expected = Pattern::new(seed).take(bytes);
    let wrong = found.iter().zip(&expected).position(|(a, b)| a != b);
    ensure!(
        found.len() == bytes && wrong.is_none(),
        "{} of {bytes} bytes came; first wrong one: {wrong:?}",
        found.len()
    );
    Ok(())
}
