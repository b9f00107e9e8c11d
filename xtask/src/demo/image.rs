//! The demo's disk image: a GPT disk with one partition full of random bytes, and what it must
//! look like after the guest wrote its pattern.

use anyhow::ensure;
use bed::pattern::Pattern;
use rand::RngExt;
use sha2::{Digest, Sha256};

/// Bytes of a block.
pub(crate) const BLOCK: usize = 512;

/// Size of the image, in blocks: 64 MiB.
pub(crate) const BLOCKS: u64 = 131_072;

/// First block of the partition: at 1 MiB, as everybody does.
const FIRST: u64 = 2048;

/// Entries of the partition table and the bytes of each.
const ENTRIES: u32 = 128;
const ENTRY_BYTES: u32 = 128;

/// Blocks of the partition table, without its header.
const TABLE_BLOCKS: u64 = 32;

/// Partition type "Linux filesystem data", as on disk.
const LINUX_DATA: [u8; 16] = [
    0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4,
];

/// What the guest is to write, chosen at random for each run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Task {
    /// Seed of the pattern.
    pub(crate) seed: u64,
    /// First block.
    pub(crate) lba: u64,
    /// Number of blocks.
    pub(crate) blocks: u64,
}

impl Task {
    /// A random task inside the partition.
    pub(crate) fn random() -> Self {
        let mut rng = rand::rng();
        let blocks = rng.random_range(3000..5000);
        let lba = rng.random_range(FIRST..last() - blocks);
        Self {
            seed: rng.random(),
            lba,
            blocks,
        }
    }
}

/// The last block of the partition.
const fn last() -> u64 {
    BLOCKS - TABLE_BLOCKS - 2
}

/// A fresh image.
pub(crate) fn create() -> Vec<u8> {
    let mut rng = rand::rng();
    let mut image = vec![0; BLOCKS as usize * BLOCK];
    rng.fill(&mut image[FIRST as usize * BLOCK..(last() + 1) as usize * BLOCK]);
    protective_mbr(&mut image[..BLOCK]);

    let mut table = vec![0; (ENTRIES * ENTRY_BYTES) as usize];
    table[..16].copy_from_slice(&LINUX_DATA);
    rng.fill(&mut table[16..32]);
    table[32..40].copy_from_slice(&FIRST.to_le_bytes());
    table[40..48].copy_from_slice(&last().to_le_bytes());
    for (at, letter) in "demo".encode_utf16().enumerate() {
        table[56 + 2 * at..58 + 2 * at].copy_from_slice(&letter.to_le_bytes());
    }
    let id: [u8; 16] = rng.random();
    let backup = BLOCKS - 1;
    for (header, other, entries) in [(1, backup, 2), (backup, 1, backup - TABLE_BLOCKS)] {
        put(
            &mut image,
            header,
            &gpt_header(header, other, entries, &id, &table),
        );
        put(&mut image, entries, &table);
    }
    image
}

/// Writes `bytes` to the blocks from `lba` on.
fn put(image: &mut [u8], lba: u64, bytes: &[u8]) {
    let at = lba as usize * BLOCK;
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A partition of type 0xEE over the whole disk, for those who know no GPT.
fn protective_mbr(block: &mut [u8]) {
    block[447..450].copy_from_slice(&[0x00, 0x02, 0x00]);
    block[450..454].copy_from_slice(&[0xee, 0xff, 0xff, 0xff]);
    block[454..458].copy_from_slice(&1_u32.to_le_bytes());
    block[458..462].copy_from_slice(&(BLOCKS as u32 - 1).to_le_bytes());
    block[510..512].copy_from_slice(&[0x55, 0xaa]);
}

/// The GPT header at block `own` whose copy is at `other` and whose table begins at `entries`.
fn gpt_header(own: u64, other: u64, entries: u64, id: &[u8; 16], table: &[u8]) -> Vec<u8> {
    let mut header = Vec::with_capacity(92);
    header.extend(b"EFI PART");
    header.extend(0x0001_0000_u32.to_le_bytes());
    header.extend(92_u32.to_le_bytes());
    header.extend([0; 8]);
    for lba in [own, other, TABLE_BLOCKS + 2, last()] {
        header.extend(lba.to_le_bytes());
    }
    header.extend(id);
    header.extend(entries.to_le_bytes());
    header.extend(ENTRIES.to_le_bytes());
    header.extend(ENTRY_BYTES.to_le_bytes());
    header.extend(crc32(table).to_le_bytes());
    let crc = crc32(&header);
    header[16..20].copy_from_slice(&crc.to_le_bytes());
    header
}

/// The CRC-32 of Ethernet and GPT.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 {
                crc >> 1 ^ 0xedb8_8320
            } else {
                crc >> 1
            }
        })
    })
}

/// Does to `image` what the guest is to do.
pub(crate) fn apply(image: &mut [u8], task: &Task) {
    let at = task.lba as usize * BLOCK;
    Pattern::new(task.seed).fill(&mut image[at..at + task.blocks as usize * BLOCK]);
}

/// Compares what the closed file holds with what it must; the SHA-256 of both.
pub(crate) fn verify(found: &[u8], expected: &[u8]) -> anyhow::Result<String> {
    ensure!(
        found.len() == expected.len(),
        "the image has {} bytes, and it had {}",
        found.len(),
        expected.len()
    );
    if let Some(at) = found
        .iter()
        .zip(expected)
        .position(|(found, expected)| found != expected)
    {
        anyhow::bail!(
            "the image differs from what the guest was told to write at byte {at} (block {}): \
             {:#04x} instead of {:#04x}",
            at / BLOCK,
            found[at],
            expected[at]
        );
    }
    let [found, expected] = [found, expected].map(sha256);
    ensure!(found == expected, "SHA-256 {found} instead of {expected}");
    Ok(found)
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32_of_a_known_text() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn the_pattern_goes_to_its_blocks() {
        let mut image = vec![0; 3 * BLOCK];
        let task = Task {
            seed: 1_234_567,
            lba: 1,
            blocks: 1,
        };
        apply(&mut image, &task);
        assert_eq!(image[..BLOCK], [0; BLOCK]);
        assert_eq!(image[BLOCK..2 * BLOCK], Pattern::new(task.seed).take(BLOCK));
        assert_eq!(image[2 * BLOCK..], [0; BLOCK]);
    }

    #[test]
    fn a_changed_byte_is_found() {
        let image = create();
        verify(&image, &image).unwrap();
        let mut changed = image.clone();
        changed[5_000_000] ^= 1;
        let error = verify(&changed, &image).unwrap_err().to_string();
        assert!(error.contains("byte 5000000 (block 9765)"), "{error}");
    }
}
