//! What a disk must not do: the refusal is the right one, and the disk works after it.

use super::machine::Machine;
use super::{Outcome, Scenario};
use crate::devices::{Disk, DiskError};
use crate::println;
use alloc::format;
use alloc::vec;
use vmbus_proto::scsi::{Sense, SenseKey};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "beyond-end",
        about: "reads and writes beyond the disk's end are refused with 05/21/00",
        run: beyond_end,
    },
    Scenario {
        name: "read-only",
        about: "a write to a read-only disk is refused with 07/27/00, a read is not",
        run: read_only,
    },
    Scenario {
        name: "medium-error",
        about: "a read at disk.bad_lba= fails with 03/xx, one at disk.good_lba=0 does not",
        run: medium_error,
    },
];

/// The outcome of a request that has to fail: `Ok` if it failed as `expected` says.
fn refused(
    what: &str,
    result: Result<(), DiskError>,
    expected: impl FnOnce(&Sense) -> bool,
) -> Outcome {
    match result {
        Err(DiskError::Sense(sense)) if expected(&sense) => {
            println!("{what}: {}", DiskError::Sense(sense));
            Ok(())
        }
        Err(other) => Err(format!("{what} was refused for the wrong reason: {other}")),
        Ok(()) => Err(format!("{what} was not refused")),
    }
}

fn read_one(disk: &mut dyn Disk, lba: u64) -> Result<(), DiskError> {
    let mut buffer = vec![0; disk.block_bytes()];
    disk.read(lba, &mut buffer)
}

fn works(disk: &mut dyn Disk, lba: u64) -> Outcome {
    read_one(disk, lba).map_err(|error| format!("read of block {lba}: {error}"))
}

fn beyond_end(machine: &mut Machine<'_>) -> Outcome {
    let disk = machine.disk()?;
    let end = disk.blocks();
    let last = end.checked_sub(1).ok_or("the disk has no blocks")?;
    let mut two = vec![0; 2 * disk.block_bytes()];
    let one = two.len() / 2;
    let expected = |sense: &Sense| *sense == Sense::LBA_OUT_OF_RANGE;

    works(disk, last)?;
    refused(
        "a read of the block after the last",
        disk.read(end, &mut two[..one]),
        expected,
    )?;
    refused("a read across the end", disk.read(last, &mut two), expected)?;
    // The largest address whose sector number still is one.
    let far = (1 << 60) - 1;
    refused(
        "a read far beyond the end",
        disk.read(far, &mut two[..one]),
        expected,
    )?;
    if !disk.is_read_only() {
        refused(
            "a write of the block after the last",
            disk.write(end, &two[..one]),
            expected,
        )?;
        refused("a write across the end", disk.write(last, &two), expected)?;
    }
    works(disk, last)
}

fn read_only(machine: &mut Machine<'_>) -> Outcome {
    let disk = machine.disk()?;
    if !disk.is_read_only() {
        return Err("the disk does not say that it is read-only".into());
    }
    let data = vec![0x55; disk.block_bytes()];
    refused(
        "a write to a read-only disk",
        disk.write(0, &data),
        |sense| (sense.key, sense.asc, sense.ascq) == (SenseKey::DataProtect, 0x27, 0x00),
    )?;
    works(disk, 0)
}

fn medium_error(machine: &mut Machine<'_>) -> Outcome {
    let options = machine.options;
    let good = options.number("disk.good_lba", 0)?;
    let bad = options.number("disk.bad_lba", 0)?;
    if options.text("disk.bad_lba").is_none() {
        return Err("disk.bad_lba= must name a block that the host cannot read".into());
    }
    let disk = machine.disk()?;
    for _ in 0..2 {
        refused("a read of the bad block", read_one(disk, bad), |sense| {
            sense.key == SenseKey::MediumError
        })?;
        works(disk, good)?;
    }
    Ok(())
}
