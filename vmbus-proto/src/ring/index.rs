//! Ring arithmetic, pure: the one place where indices wrap.
//!
//! An index is a byte offset into the data area, a multiple of 8 below its size. Equal indices
//! mean an empty ring, so a producer never fills the last byte.

use super::Corrupt;

/// Bytes to which packets are aligned.
pub const ALIGN: u32 = 8;

/// A ring's geometry: the size of its data area, a non-zero multiple of 8 below 2^31.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    size: u32,
}

impl Geometry {
    /// The geometry of a data area of `size` bytes, or `None` where no ring can have it.
    pub const fn new(size: u32) -> Option<Self> {
        if size == 0 || size % ALIGN != 0 || size >= 1 << 31 {
            return None;
        }
        Some(Self { size })
    }

    /// Bytes in the data area.
    pub const fn size(self) -> u32 {
        self.size
    }

    /// `index` as the peer wrote it, if it can be one.
    pub const fn check(self, index: u32) -> Result<u32, Corrupt> {
        if index < self.size && index % ALIGN == 0 {
            Ok(index)
        } else {
            Err(Corrupt::Index)
        }
    }

    /// Bytes that wait to be read. Both indices are below the size.
    pub const fn used(self, write: u32, read: u32) -> u32 {
        if write >= read {
            write.saturating_sub(read)
        } else {
            self.size.saturating_sub(read.saturating_sub(write))
        }
    }

    /// Bytes not waiting to be read. A packet fits only if its length is *less* than this.
    pub const fn free(self, write: u32, read: u32) -> u32 {
        self.size.saturating_sub(self.used(write, read))
    }

    /// `index` moved on by `bytes`, which is at most the size.
    pub const fn advance(self, index: u32, bytes: u32) -> u32 {
        // Both are at most 2^31 - 1, so the sum cannot overflow.
        let at = index.saturating_add(bytes);
        if at >= self.size {
            at.saturating_sub(self.size)
        } else {
            at
        }
    }

    /// How many of the `bytes` from `index` on lie before the end of the data area; the rest
    /// continue at its start.
    pub const fn before_wrap(self, index: u32, bytes: u32) -> u32 {
        let room = self.size.saturating_sub(index);
        if bytes < room { bytes } else { room }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_that_cannot_be() {
        for size in [0, 4, 12, 1 << 31, u32::MAX] {
            assert_eq!(Geometry::new(size), None, "{size}");
        }
    }

    proptest! {
        #[test]
        fn used_free_and_advance_agree(words in 1u32..10_000, r in any::<u32>(), n in any::<u32>()) {
            let g = Geometry::new(words * 8).unwrap();
            let read = r % words * 8;
            let bytes = n % words * 8;
            let write = g.advance(read, bytes);
            prop_assert!(g.check(write).is_ok());
            prop_assert_eq!(g.used(write, read), bytes);
            prop_assert_eq!(g.free(write, read), words * 8 - bytes);
            let first = g.before_wrap(read, bytes);
            prop_assert!(first <= bytes && read + first <= g.size());
        }

        #[test]
        fn foreign_indices_are_refused(words in 1u32..10_000, index in any::<u32>()) {
            let g = Geometry::new(words * 8).unwrap();
            prop_assert_eq!(g.check(index).is_ok(), index < words * 8 && index % 8 == 0);
        }
    }
}
