//! What `guest-kernel` writes for a seed: the outputs of SplitMix64, little-endian, one after the
//! other. The kernel has its own; two that agree are worth more than one.

/// An endless pattern.
#[derive(Debug, Clone)]
pub struct Pattern {
    state: u64,
}

impl Pattern {
    /// The pattern of a seed, from its beginning.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// Fills `bytes`, whose length is a multiple of eight, with what comes next.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_exact_mut(8) {
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.state ^ self.state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            word.copy_from_slice(&(mixed ^ mixed >> 31).to_le_bytes());
        }
    }

    /// The next `length` bytes, a multiple of eight.
    pub fn take(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.fill(&mut bytes);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::Pattern;

    #[test]
    fn it_is_splitmix64() {
        let mut pattern = Pattern::new(1_234_567);
        assert_eq!(pattern.take(8), 6_457_827_717_110_365_317_u64.to_le_bytes());
        assert_eq!(pattern.take(8), 3_203_168_211_198_807_973_u64.to_le_bytes());
    }
}
