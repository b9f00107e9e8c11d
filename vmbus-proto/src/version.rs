//! Versions of the VMBus protocol.

use core::fmt;

/// A VMBus protocol version: major in the upper 16 bits, minor in the lower.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u32);

impl Version {
    /// Windows 8.
    pub const V2_4: Self = Self::new(2, 4);
    /// Windows 8.1.
    pub const V3_0: Self = Self::new(3, 0);
    /// Windows 10.
    pub const V4_0: Self = Self::new(4, 0);
    /// Windows 10 RS3: a channel's target processor may be modified.
    pub const V4_1: Self = Self::new(4, 1);
    /// Windows 10 RS3: INITIATE_CONTACT goes to its own port and names a SINT.
    pub const V5_0: Self = Self::new(5, 0);
    /// Windows 10 RS4.
    pub const V5_1: Self = Self::new(5, 1);
    /// Windows 10 RS5, Windows Server 2019.
    pub const V5_2: Self = Self::new(5, 2);
    /// Windows Server 2022: MODIFYCHANNEL is answered.
    pub const V5_3: Self = Self::new(5, 3);
    /// "Copper": contact carries feature flags.
    pub const V6_0: Self = Self::new(6, 0);

    /// The versions this project speaks, newest first.
    pub const SUPPORTED: [Self; 8] = [
        Self::V5_3,
        Self::V5_2,
        Self::V5_1,
        Self::V5_0,
        Self::V4_1,
        Self::V4_0,
        Self::V3_0,
        Self::V2_4,
    ];

    /// A version from its parts.
    pub const fn new(major: u16, minor: u16) -> Self {
        Self((major as u32) << 16 | minor as u32)
    }

    /// The major part.
    pub const fn major(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// The minor part.
    pub const fn minor(self) -> u16 {
        self.0 as u16
    }

    /// Whether this project speaks it.
    pub fn is_supported(self) -> bool {
        Self::SUPPORTED.contains(&self)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major(), self.minor())
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
