//! Random bytes that the host can compute, too.
//!
//! The generator is SplitMix64, which is three lines in any language: its outputs, little-endian,
//! one after the other, are the pattern.

/// An endless pattern.
pub(super) struct Pattern {
    state: u64,
}

impl Pattern {
    /// The pattern of a seed, from its beginning.
    pub(super) const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next eight bytes, as a number.
    pub(super) const fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.state ^ self.state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    /// Fills `buffer`, whose length is a multiple of eight, with what comes next.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) {
        for bytes in buffer.chunks_exact_mut(8) {
            bytes.copy_from_slice(&self.next().to_le_bytes());
        }
    }
}
