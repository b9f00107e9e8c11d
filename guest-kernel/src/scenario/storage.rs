//! The disk: what is written is what is read back.

use super::pattern::Pattern;
use super::{Machine, Outcome, Scenario};
use crate::devices::Disk;
use crate::println;
use alloc::format;
use alloc::string::String;
use alloc::vec;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "storage",
    about: "a pattern written, flushed, read back (seed=, disk.lba=0, disk.blocks=256)",
    run,
}];

/// Request sizes in blocks, used in turn: single blocks, odd numbers, a large one.
const SIZES: [usize; 6] = [1, 8, 3, 64, 17, 32];

fn run(machine: &mut Machine<'_>) -> Outcome {
    let seed = machine.options.number("seed", 0x5EED)?;
    let lba = machine.options.number("disk.lba", 0)?;
    let count = machine.options.number("disk.blocks", 256)?;
    let disk = machine.disk()?;
    println!(
        "{}: {} blocks of {} bytes{}",
        disk.name(),
        disk.blocks(),
        disk.block_bytes(),
        if disk.is_read_only() {
            ", read-only"
        } else {
            ""
        }
    );
    let end = lba.checked_add(count).filter(|&end| end <= disk.blocks());
    if end.is_none() {
        return Err(format!("the disk has no blocks {lba} to {lba}+{count}"));
    }
    write(disk, lba, count, seed)?;
    disk.flush().map_err(|error| format!("flush: {error}"))?;
    compare(disk, lba, count, seed)?;
    println!("{count} blocks from block {lba}: pattern {seed:#x} written, flushed, read back");
    Ok(())
}

/// Cuts a range into requests; `each` gets a request's first block and the number of its blocks.
fn in_requests(lba: u64, count: u64, mut each: impl FnMut(u64, usize) -> Outcome) -> Outcome {
    let mut done = 0;
    for size in SIZES.into_iter().cycle() {
        if done == count {
            break;
        }
        let blocks = (size as u64).min(count - done);
        each(lba + done, blocks as usize)?;
        done += blocks;
    }
    Ok(())
}

fn write(disk: &mut dyn Disk, lba: u64, count: u64, seed: u64) -> Outcome {
    let mut pattern = Pattern::new(seed);
    in_requests(lba, count, |lba, blocks| {
        let mut data = vec![0; blocks * disk.block_bytes()];
        pattern.fill(&mut data);
        disk.write(lba, &data)
            .map_err(|error| format!("write of block {lba}: {error}"))
    })
}

fn compare(disk: &mut dyn Disk, lba: u64, count: u64, seed: u64) -> Outcome {
    let mut pattern = Pattern::new(seed);
    in_requests(lba, count, |lba, blocks| {
        let mut expected = vec![0; blocks * disk.block_bytes()];
        let mut found = expected.clone();
        pattern.fill(&mut expected);
        disk.read(lba, &mut found)
            .map_err(|error| format!("read of block {lba}: {error}"))?;
        match expected
            .iter()
            .zip(&found)
            .position(|(expected, found)| expected != found)
        {
            None => Ok(()),
            Some(byte) => Err(mismatch(lba, byte, &expected, &found)),
        }
    })
}

fn mismatch(lba: u64, byte: usize, expected: &[u8], found: &[u8]) -> String {
    format!(
        "byte {byte} of the request at block {lba} reads {:#04x}, {:#04x} was written",
        found[byte], expected[byte]
    )
}
