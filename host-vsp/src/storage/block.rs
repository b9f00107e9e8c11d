//! The size of a disk's logical blocks.

/// Bytes of a logical block: what a guest counts a disk in.
///
/// Physical blocks have 4096 bytes either way, the page cache's unit, and guests are told so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BlockSize {
    /// 512 bytes, which every guest can use and boot from.
    #[default]
    B512,
    /// 4096 bytes, "4K native".
    B4096,
}

impl BlockSize {
    /// The size of so many bytes, where it is one.
    pub const fn from_bytes(bytes: u32) -> Option<Self> {
        match bytes {
            512 => Some(Self::B512),
            4096 => Some(Self::B4096),
            _ => None,
        }
    }

    /// In bytes.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::B512 => 512,
            Self::B4096 => 4096,
        }
    }

    /// A physical block is 2 to this many logical ones.
    pub(super) const fn physical_exponent(self) -> u8 {
        match self {
            Self::B512 => 3,
            Self::B4096 => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn physical_blocks_are_pages() {
        for size in [BlockSize::B512, BlockSize::B4096] {
            assert_eq!(size.bytes() << size.physical_exponent(), 4096);
            assert_eq!(BlockSize::from_bytes(size.bytes()), Some(size));
        }
        assert_eq!(BlockSize::from_bytes(1024), None);
    }
}
