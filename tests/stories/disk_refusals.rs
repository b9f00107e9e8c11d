//! What a disk must not do is refused in SCSI's own terms, and the disk works after it.

use anyhow::ensure;
use bed::pattern::Pattern;
use e2e::{Entry, Story};

use crate::disk::{Disk, Task};
use crate::guest::{Guest, NEXT};

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("beyond_the_end", beyond_the_end),
    Entry::new("read_only", read_only),
    Entry::new("backend_error", backend_error),
    Entry::new("no_space_on_the_host", no_space),
];

/// Blocks of the disks here.
const BLOCKS: u64 = 8192;

fn beyond_the_end(story: &mut Story) -> anyhow::Result<()> {
    let disk = Disk::create(story, "disk", BLOCKS)?;
    let log = Guest::new(story, "beyond-end").disk(&disk.path).run()?;
    for what in [
        "a read of the block after the last",
        "a read across the end",
        "a read far beyond the end",
        "a write of the block after the last",
        "a write across the end",
    ] {
        let told = format!("{what}: IllegalRequest, sense 05/21/00");
        ensure!(log.contains(&told), "the guest did not say {told:?}: {log}");
    }
    disk.verify(story)
}

fn read_only(story: &mut Story) -> anyhow::Result<()> {
    let disk = Disk::create(story, "disk", BLOCKS)?;
    let log = Guest::new(story, "read-only,beyond-end")
        .disk(&format!("{},readonly=on", disk.path))
        .run()?;
    let told = "a write to a read-only disk: DataProtect, sense 07/27/00";
    ensure!(log.contains(told), "the guest did not say {told:?}: {log}");
    disk.verify(story)
}

/// The image loses its second half while the guest waits at the console: reads of that half fail
/// on the host, and nothing else does.
fn backend_error(story: &mut Story) -> anyhow::Result<()> {
    /// The scenario `in-flight` writes that many first blocks, that often.
    const IN_FLIGHT: u64 = 64;
    const ROUNDS: u64 = 8;
    let half = BLOCKS / 2;
    let mut disk = Disk::create(story, "disk", BLOCKS)?;
    let task = Task::random(IN_FLIGHT, half);
    let bad = rand::random_range(half..BLOCKS);
    let guest = Guest::new(story, "console,medium-error,storage,in-flight")
        .option("disk.bad_lba", bad)
        .option("queue.rounds", ROUNDS)
        .disk(&disk.path)
        .args(["--console", "stdio"]);
    let mut vm = task.tell(guest).start()?;
    vm.console_says("hello from the guest")?;
    disk.expect_end(half);
    let cut = story
        .l1()
        .command("truncate")
        .args(["-s", &(half * 512).to_string(), &disk.path])
        .run(NEXT)?;
    ensure!(cut.status.success(), "truncate: {cut}");
    vm.write(b"go on\n")?;
    let log = vm.pass()?.stderr_text();
    let told = "a read of the bad block: MediumError, sense 03/11/00";
    ensure!(
        log.matches(told).count() == 2,
        "the guest did not say twice {told:?}: {log}"
    );
    let failures = log.matches("a disk's transfer failed").count();
    ensure!(
        failures == 2,
        "the host tells of {failures} failures: {log}"
    );
    task.expect(&mut disk);
    for request in 0..IN_FLIGHT {
        let seed = task.seed.wrapping_add((ROUNDS - 1) * IN_FLIGHT + request);
        disk.expect(&mut Pattern::new(seed), request, 1);
    }
    disk.verify(story)
}

/// A sparse image on a file system that is too small for it: the guest is told, and goes on.
fn no_space(story: &mut Story) -> anyhow::Result<()> {
    let (dir, path) = (story.file("small"), story.file("small/disk"));
    let in_l1 = |line: &str| -> anyhow::Result<()> {
        let output = story.l1().shell(line).run(NEXT)?;
        ensure!(output.status.success(), "{line}: {output}");
        Ok(())
    };
    in_l1(&format!(
        "mkdir {dir} && mount -t tmpfs -o size=1m tmpfs {dir} && truncate -s 8M {path}"
    ))?;
    let output = Guest::new(story, "storage,beyond-end")
        .option("disk.blocks", 4096)
        .disk(&path)
        .start()?
        .end()?;
    in_l1(&format!("umount {dir}"))?;
    let log = output.stderr_text();
    for told in [
        ": DataProtect, sense 07/27/07",
        "SCENARIO beyond-end: PASS",
        "a disk's transfer failed",
    ] {
        ensure!(log.contains(told), "nobody said {told:?}: {output}");
    }
    Ok(())
}
