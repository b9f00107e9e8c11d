//! Numbered blocks: written one after the other at places that look random, each synced before the
//! next, so that whoever knows how far the writer came knows what must be on the disk.

use std::collections::BTreeMap;
use std::io;

use crate::pattern::Pattern;

/// Bytes of a block.
pub const BLOCK: usize = 4096;

/// Blocks after the last that was reported may have been written, or be half written.
const UNREPORTED: u64 = 256;

/// A sequence of blocks on a disk.
#[derive(Debug, Clone, Copy)]
pub struct Sequence {
    /// Makes it differ from others.
    pub seed: u64,
    /// Blocks of the disk.
    pub blocks: u64,
}

impl Sequence {
    /// The place of block `number`, in blocks.
    pub fn place(self, number: u64) -> u64 {
        // The finalizer of SplitMix64.
        let mut x = self
            .seed
            .wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % self.blocks
    }

    /// The bytes of block `number`, which begin with the number.
    pub fn fill(self, number: u64, block: &mut [u8; BLOCK]) {
        let (head, rest) = block.split_at_mut(8);
        head.copy_from_slice(&number.to_le_bytes());
        Pattern::new(self.seed ^ number.rotate_left(32)).fill(rest);
    }

    /// Checks that all blocks up to number `last` are there, or later ones in their places, as far
    /// as `read` finds them by their places; how many places that were.
    ///
    /// # Errors
    /// What is missing, or could not be read.
    pub fn verify(
        self,
        last: u64,
        mut read: impl FnMut(u64) -> io::Result<[u8; BLOCK]>,
    ) -> Result<usize, String> {
        let newest: BTreeMap<u64, u64> = (1..=last).map(|it| (self.place(it), it)).collect();
        for (&place, &number) in &newest {
            let found = read(place).map_err(|error| format!("block {place}: {error}"))?;
            let [a, b, c, d, e, f, g, h, ..] = found;
            let there = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
            let mut expected = [0; BLOCK];
            self.fill(there, &mut expected);
            let is_one = found == expected && self.place(there) == place;
            if is_one && there >= number {
                continue;
            }
            if is_one || !(last + 1..=last + UNREPORTED).any(|it| self.place(it) == place) {
                let what = if is_one {
                    "an older one"
                } else {
                    "none of them"
                };
                return Err(format!(
                    "block {place} has lost number {number}, whose sync had returned: it holds \
                     {what}"
                ));
            }
        }
        Ok(newest.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with the first `count` blocks of a sequence, without those that `lost` chooses.
    fn disk(sequence: Sequence, count: u64, lost: impl Fn(u64) -> bool) -> Vec<[u8; BLOCK]> {
        let mut disk = vec![[0; BLOCK]; sequence.blocks as usize];
        for number in (1..=count).filter(|number| !lost(*number)) {
            sequence.fill(number, &mut disk[sequence.place(number) as usize]);
        }
        disk
    }

    const SEQUENCE: Sequence = Sequence {
        seed: 7,
        blocks: 100,
    };

    fn verify(last: u64, disk: &[[u8; BLOCK]]) -> Result<usize, String> {
        SEQUENCE.verify(last, |place| Ok(disk[place as usize]))
    }

    #[test]
    fn what_was_written_is_found() {
        let places = verify(300, &disk(SEQUENCE, 300, |_| false)).unwrap();
        assert!((80..=100).contains(&places), "{places}");
        // Those that were not reported any more.
        verify(300, &disk(SEQUENCE, 340, |_| false)).unwrap();
    }

    #[test]
    fn one_lost_write_is_noticed() {
        // The last one is in its place for certain.
        let error = verify(300, &disk(SEQUENCE, 300, |number| number == 300)).unwrap_err();
        assert!(error.contains("number 300"), "{error}");
        assert!(verify(20, &disk(SEQUENCE, 0, |_| false)).is_err());
    }

    #[test]
    fn one_changed_byte_is_noticed() {
        // Nothing was under way there.
        let quiet = Sequence {
            seed: 7,
            blocks: 100_000,
        };
        let mut disk = disk(quiet, 10, |_| false);
        disk[quiet.place(3) as usize][BLOCK - 1] ^= 1;
        let error = quiet
            .verify(10, |place| Ok(disk[place as usize]))
            .unwrap_err();
        assert!(error.contains("number 3,"), "{error}");
    }
}
