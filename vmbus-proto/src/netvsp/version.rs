//! Versions of netvsp.

/// A version that guests and hosts may speak. Linux asks for the newest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Version {
    /// Windows Server 2008.
    V1 = 2,
    /// Windows Server 2008 R2: SEND_NDIS_CONFIG.
    V2 = 0x0003_0002,
    /// Windows Server 2012: virtual functions.
    V4 = 0x0004_0000,
    /// Windows Server 2012 R2: sub-channels, UDP checksums.
    V5 = 0x0005_0000,
    /// Windows Server 2016.
    V6 = 0x0006_0000,
    /// Windows Server 2019: longer messages, frames in pieces (RSC).
    V6_1 = 0x0006_0001,
}

impl Version {
    /// All versions, the newest first.
    pub const NEWEST_FIRST: [Self; 6] =
        [Self::V6_1, Self::V6, Self::V5, Self::V4, Self::V2, Self::V1];

    /// The version of this number.
    pub const fn from_wire(value: u32) -> Option<Self> {
        Some(match value {
            2 => Self::V1,
            0x0003_0002 => Self::V2,
            0x0004_0000 => Self::V4,
            0x0005_0000 => Self::V5,
            0x0006_0000 => Self::V6,
            0x0006_0001 => Self::V6_1,
            _ => return None,
        })
    }

    /// Bytes of each message but SEND_INDIRECTION_TABLE.
    pub const fn message_size(self) -> usize {
        match self {
            Self::V1 | Self::V2 | Self::V4 | Self::V5 | Self::V6 => 0x1c,
            Self::V6_1 => 0x28,
        }
    }
}
