//! Disk images: made full of random bytes, and compared byte for byte when the machine has ended.

use anyhow::{bail, ensure};
use bed::pattern::Pattern;
use e2e::Story;
use rand::RngExt;

/// Bytes of a block.
pub(crate) const BLOCK: usize = 512;

/// An image in L1, and what it has to hold.
pub(crate) struct Disk {
    /// Where it is.
    pub(crate) path: String,
    content: Vec<u8>,
}

impl Disk {
    /// An image of `blocks` blocks of random bytes, as `name` in the story's directory.
    pub(crate) fn create(story: &Story, name: &str, blocks: u64) -> anyhow::Result<Self> {
        let mut content = vec![0; blocks as usize * BLOCK];
        rand::rng().fill(&mut content);
        let path = story.file(name);
        story.l1().put_bytes(&content, &path)?;
        Ok(Self { path, content })
    }

    /// From now on it has to hold what `pattern` gives next in `blocks` blocks from `lba` on.
    pub(crate) fn expect(&mut self, pattern: &mut Pattern, lba: u64, blocks: usize) {
        let at = lba as usize * BLOCK;
        pattern.fill(&mut self.content[at..at + blocks * BLOCK]);
    }

    /// What it has to hold.
    pub(crate) fn content(&self) -> &[u8] {
        &self.content
    }

    /// From now on it has to hold `bytes` from block `lba` on, whatever they are.
    pub(crate) fn adopt(&mut self, lba: u64, bytes: &[u8]) {
        let at = lba as usize * BLOCK;
        self.content[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// From now on it has to end after `blocks` blocks.
    pub(crate) fn expect_end(&mut self, blocks: u64) {
        self.content.truncate(blocks as usize * BLOCK);
    }

    /// Compares the file with what it has to hold.
    pub(crate) fn verify(&self, story: &Story) -> anyhow::Result<()> {
        let found = story.l1().get(&self.path)?;
        ensure!(
            found.len() == self.content.len(),
            "{} has {} bytes instead of {}",
            self.path,
            found.len(),
            self.content.len()
        );
        match found.iter().zip(&self.content).position(|(a, b)| a != b) {
            None => Ok(()),
            Some(at) => bail!(
                "{} is wrong at byte {at} (block {}): {:#04x} instead of {:#04x}",
                self.path,
                at / BLOCK,
                found[at],
                self.content[at]
            ),
        }
    }
}

/// What the scenario `storage` is to write, chosen at random.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Task {
    pub(crate) seed: u64,
    pub(crate) lba: u64,
    pub(crate) blocks: u64,
}

impl Task {
    /// Somewhere in the blocks from `from` to `to`, which are more than 1000.
    pub(crate) fn random(from: u64, to: u64) -> Self {
        let mut rng = rand::rng();
        let blocks = rng.random_range(300..1000);
        Self {
            seed: rng.random(),
            lba: rng.random_range(from..to - blocks),
            blocks,
        }
    }

    /// The options that tell the guest.
    pub(crate) fn tell<'a>(self, guest: crate::guest::Guest<'a>) -> crate::guest::Guest<'a> {
        guest
            .option("seed", self.seed)
            .option("disk.lba", self.lba)
            .option("disk.blocks", self.blocks)
    }

    /// What `disk` has to hold after that.
    pub(crate) fn expect(self, disk: &mut Disk) {
        disk.expect(&mut Pattern::new(self.seed), self.lba, self.blocks as usize);
    }
}
