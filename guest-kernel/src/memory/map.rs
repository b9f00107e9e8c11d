//! The memory map: which physical addresses are RAM.

use super::{IDENTITY_END, PAGE};
use core::ops::Range;

/// The E820 type of RAM; every other type is something to stay away from.
const RAM: u32 = 1;

/// Entries that fit; QEMU and host-vsp report fewer than ten.
const MAX_ENTRIES: usize = 128;

struct Entry {
    range: Range<u64>,
    ram: bool,
}

/// The machine's memory map, as the loader reported it.
pub(crate) struct MemoryMap {
    entries: heapless::Vec<Entry, MAX_ENTRIES>,
}

impl MemoryMap {
    /// A map that knows of nothing yet.
    pub(crate) const fn new() -> Self {
        Self {
            entries: heapless::Vec::new(),
        }
    }

    /// Adds `bytes` at `address` with an E820 type. Entries that do not fit are dropped: unknown
    /// memory is never used.
    pub(crate) fn add(&mut self, address: u64, bytes: u64, kind: u32) {
        let entry = Entry {
            range: address..address.saturating_add(bytes),
            ram: kind == RAM,
        };
        let _dropped_when_full = self.entries.push(entry);
    }

    /// The bytes of RAM, anywhere.
    pub(crate) fn ram_bytes(&self) -> u64 {
        self.entries
            .iter()
            .filter(|entry| entry.ram)
            .map(|entry| entry.range.end - entry.range.start)
            .sum()
    }

    /// Whether all of `range` is RAM, and nothing else claims a part of it.
    pub(crate) fn is_ram(&self, range: &Range<u64>) -> bool {
        let inside =
            |entry: &Entry| entry.range.start <= range.start && range.end <= entry.range.end;
        let overlaps =
            |entry: &Entry| entry.range.start < range.end && range.start < entry.range.end;
        self.entries.iter().any(|entry| entry.ram && inside(entry))
            && !self
                .entries
                .iter()
                .any(|entry| !entry.ram && overlaps(entry))
    }

    /// The RAM from `from` to the end of what is mapped, in whole pages, without pieces that
    /// another entry claims a part of.
    pub(crate) fn free_ram(&self, from: u64) -> impl Iterator<Item = Range<u64>> {
        self.entries
            .iter()
            .filter(|entry| entry.ram)
            .map(move |entry| {
                let start = entry.range.start.max(from).next_multiple_of(PAGE);
                let end = entry.range.end.min(IDENTITY_END) & !(PAGE - 1);
                start..end
            })
            .filter(|range| !range.is_empty() && self.is_ram(range))
    }
}
