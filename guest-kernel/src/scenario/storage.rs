//! The disk: what is written is what is read back.

use super::machine::Machine;
use super::pattern::Pattern;
use super::{Outcome, Scenario};
use crate::devices::Disk;
use crate::memory::PAGE;
use crate::println;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "storage",
        about: "a pattern written, flushed, read back (seed=, disk.lba=0, disk.blocks=256)",
        run,
    },
    Scenario {
        name: "odd-buffers",
        about: "buffers at odd addresses across many pages, nothing beside them touched (disk.lba=0)",
        run: odd_buffers,
    },
    Scenario {
        name: "beyond-2tib",
        about: "writes and reads around and beyond block 2^32 of a disk that has it (seed=)",
        run: beyond_2tib,
    },
    Scenario {
        name: "two-disks",
        about: "units 0 and 1 written in turn, each keeps its own (seed=, disk.lba=0, disk.blocks=256)",
        run: two_disks,
    },
];

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

fn odd_buffers(machine: &mut Machine<'_>) -> Outcome {
    /// Where buffers begin in their first page.
    const OFFSETS: [usize; 8] = [0, 1, 2, 3, 511, 513, 2047, 4095];
    /// Their lengths in blocks, up to more than one request can move.
    const LENGTHS: [usize; 6] = [1, 2, 9, 64, 257, 1100];
    /// What surrounds the data.
    const AROUND: u8 = 0xEE;

    let seed = machine.options.number("seed", 0x5EED)?;
    let lba = machine.options.number("disk.lba", 0)?;
    let disk = machine.disk()?;
    let mut pattern = Pattern::new(seed);
    for length in LENGTHS {
        let bytes = length * disk.block_bytes();
        // Each is written from one misalignment and read to another.
        for (from, to) in OFFSETS.into_iter().zip(OFFSETS.into_iter().cycle().skip(3)) {
            let mut written = PageAligned::new(from + bytes, AROUND);
            pattern.fill(&mut written.bytes()[from..]);
            let mut found = PageAligned::new(to + bytes + PAGE as usize, AROUND);
            disk.write(lba, &written.bytes()[from..])
                .map_err(|error| format!("write of {length} blocks from offset {from}: {error}"))?;
            disk.read(lba, &mut found.bytes()[to..to + bytes])
                .map_err(|error| format!("read of {length} blocks to offset {to}: {error}"))?;
            let found = found.bytes();
            if found[to..to + bytes] != written.bytes()[from..] {
                return Err(format!(
                    "{length} blocks from offset {from} to {to} are not the same"
                ));
            }
            let beside = found[..to].iter().chain(&found[to + bytes..]);
            if beside.copied().any(|byte| byte != AROUND) {
                return Err(format!(
                    "a read of {length} blocks to offset {to} wrote beside them"
                ));
            }
        }
    }
    println!(
        "{} buffers, all misalignments: equal",
        OFFSETS.len() * LENGTHS.len()
    );
    Ok(())
}

/// Bytes that begin at the beginning of a page.
struct PageAligned {
    memory: Vec<u8>,
    start: usize,
}

impl PageAligned {
    fn new(bytes: usize, fill: u8) -> Self {
        let memory = vec![fill; bytes + PAGE as usize];
        let start = memory.as_ptr().align_offset(PAGE as usize);
        Self { memory, start }
    }

    fn bytes(&mut self) -> &mut [u8] {
        let end = self.memory.len() - (PAGE as usize - self.start);
        &mut self.memory[self.start..end]
    }
}

fn beyond_2tib(machine: &mut Machine<'_>) -> Outcome {
    const COUNT: u64 = 24;
    let seed = machine.options.number("seed", 0x5EED)?;
    let disk = machine.disk()?;
    let border = 1 << 32;
    let last = disk.blocks().saturating_sub(COUNT);
    if last <= border + 2 * COUNT {
        return Err(format!(
            "the disk has {} blocks, 2^32 and some more are needed",
            disk.blocks()
        ));
    }
    // An address cut to 32 bits would hit one of the first two places instead of the others.
    let places = [0, last % border, border - COUNT / 2, border + COUNT, last];
    for (seed, lba) in (seed..).zip(places) {
        write(disk, lba, COUNT, seed)?;
    }
    disk.flush().map_err(|error| format!("flush: {error}"))?;
    for (seed, lba) in (seed..).zip(places) {
        compare(disk, lba, COUNT, seed)?;
    }
    println!("{COUNT} blocks at each of {places:?}: written, flushed, read back");
    Ok(())
}

fn two_disks(machine: &mut Machine<'_>) -> Outcome {
    let seed = machine.options.number("seed", 0x5EED)?;
    let lba = machine.options.number("disk.lba", 0)?;
    let count = machine.options.number("disk.blocks", 256)?;
    // Each unit is written twice, and the other one in between.
    let turns = [0, 1, 0, 1]
        .into_iter()
        .zip((lba..).step_by(count.max(1) as usize));
    for (seed, (unit, lba)) in (seed..).zip(turns.clone()) {
        machine.change_unit(Some(unit));
        let disk = machine.disk()?;
        println!("{}: {} blocks", disk.name(), disk.blocks());
        write(disk, lba, count, seed)?;
        disk.flush().map_err(|error| format!("flush: {error}"))?;
    }
    for (seed, (unit, lba)) in (seed..).zip(turns) {
        machine.change_unit(Some(unit));
        compare(machine.disk()?, lba, count, seed)?;
    }
    machine.change_unit(None);
    Ok(())
}
