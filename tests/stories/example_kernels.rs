//! The kernels to copy from: each once on `host-vsp`, its words and its disk looked at.

use anyhow::ensure;
use e2e::{Entry, Story};

use crate::guest::NEXT;

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("polled", polled),
    Entry::new("interrupts", interrupts),
];

/// `host-vsp`'s exit code when a kernel writes 0x10 to the exit port.
const PASS: i32 = 33;

/// Bytes of a sector.
const SECTOR: usize = 512;

/// Sectors of the disk.
const SECTORS: usize = 2048;

/// Boots the kernel with a disk full of ones; what it said, and the disk after that.
fn boot(story: &Story, name: &str) -> anyhow::Result<(String, Vec<u8>)> {
    let disk = story.file("disk.img");
    story.l1().put_bytes(&[0xFF; SECTORS * SECTOR], &disk)?;
    let kernel = story.example_kernel(name)?;
    let disk_option = format!("path={disk}");
    let machine = story.host_vsp([
        "run",
        "--boot=pvh",
        "--memory=64M",
        "--serial=stderr",
        "--exit-port=0xF4",
        "--kernel",
        &kernel,
        "--disk",
        &disk_option,
    ])?;
    let output = machine.finish(NEXT)?;
    ensure!(output.status.code() == Some(PASS), "{name}: {output}");
    Ok((output.stderr_text(), story.l1().get(&disk)?))
}

/// Whether the disk begins with blocks of `bytes` that are full of their numbers, `count` of them,
/// and goes on as it was.
fn is_numbered(disk: &[u8], bytes: usize, count: usize) -> bool {
    let (written, rest) = disk.split_at(bytes * count);
    let mut blocks = written.chunks(bytes).enumerate();
    blocks.all(|(number, block)| block.iter().all(|byte| usize::from(*byte) == number))
        && rest.iter().all(|byte| *byte == 0xFF)
}

fn polled(story: &mut Story) -> anyhow::Result<()> {
    let (said, disk) = boot(story, "polled")?;
    for words in [
        "polled: VMBus 5.3, 2048 sectors",
        "polled: 64 sectors written, 0 differ",
    ] {
        ensure!(said.contains(words), "not {words:?}: {said}");
    }
    ensure!(
        is_numbered(&disk, SECTOR, 64),
        "the disk holds something else"
    );
    Ok(())
}

fn interrupts(story: &mut Story) -> anyhow::Result<()> {
    let (said, disk) = boot(story, "interrupts")?;
    for words in [
        "interrupts: VMBus 5.3, 2048 sectors",
        "interrupts: 8 requests at once, 0 differ, ",
    ] {
        ensure!(said.contains(words), "not {words:?}: {said}");
    }
    ensure!(
        !said.contains(", 0 interrupts"),
        "nothing interrupted it: {said}"
    );
    ensure!(
        is_numbered(&disk, 8 * SECTOR, 8),
        "the disk holds something else"
    );
    Ok(())
}
