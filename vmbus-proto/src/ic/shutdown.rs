//! Shutdown: the host asks the guest's operating system to power off, to restart or to hibernate.
//!
//! The guest answers whether it will do so, before it begins. Linux does what an administrator's
//! command would do, forced or not.

use zerocopy::FromBytes as _;
use zerocopy::little_endian::U32;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{BadMessage, Version};
use crate::guid::Guid;

/// Class of the service (Linux `HV_SHUTDOWN_GUID`).
pub const CLASS: Guid = Guid::new(0x0e0b6031, 0x5213, 0x4934, 0x818b, 0x38d90ced39db);

/// The instance that Hyper-V offers.
pub const INSTANCE: Guid = Guid::new(0xb6650ff7, 0x33bc, 0x4840, 0x8048, 0xe0676786f393);

/// Versions of the service; since 3.1 guests can be asked to restart, since 3.2 to hibernate.
pub const VERSIONS: &[Version] = &[
    Version::new(1, 0),
    Version::new(3, 0),
    Version::new(3, 1),
    Version::new(3, 2),
];

/// [`Shutdown::reason`]: it was planned (Windows `SHTDN_REASON_FLAG_PLANNED`).
pub const REASON_PLANNED: u32 = 0x8000_0000;

/// [`Shutdown::flags`]: programs that do not end by themselves are ended.
pub const FLAG_FORCE: u32 = 1;
/// [`Shutdown::flags`]: restart instead of powering off.
pub const FLAG_RESTART: u32 = 2;
/// [`Shutdown::flags`]: hibernate instead of powering off.
pub const FLAG_HIBERNATE: u32 = 4;

/// Body of a request (Linux `struct shutdown_msg_data`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Shutdown {
    /// Why: [`REASON_PLANNED`].
    pub reason: U32,
    /// Seconds that the guest may take before it begins.
    pub timeout: U32,
    /// A combination of [`FLAG_FORCE`], [`FLAG_RESTART`] and [`FLAG_HIBERNATE`].
    pub flags: U32,
    /// Text for the guest's users, ending with a zero.
    pub message: [u8; 2048],
}
const _: () = assert!(size_of::<Shutdown>() == 2060);

/// What of a request is not text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Why.
    pub reason: u32,
    /// Seconds that the guest may take before it begins.
    pub timeout: u32,
    /// A combination of [`FLAG_FORCE`], [`FLAG_RESTART`] and [`FLAG_HIBERNATE`].
    pub flags: u32,
}

impl Request {
    /// Reads the `body` of a request, whose text may be cut short.
    ///
    /// # Errors
    /// It is too short even so.
    pub fn parse(body: &[u8]) -> Result<Self, BadMessage> {
        let ([reason, timeout, flags], _) =
            <[U32; 3]>::read_from_prefix(body).map_err(|_| BadMessage)?;
        Ok(Self {
            reason: reason.get(),
            timeout: timeout.get(),
            flags: flags.get(),
        })
    }
}

impl Shutdown {
    /// A planned one, at once, with `flags`.
    pub const fn planned(flags: u32) -> Self {
        Self {
            reason: U32::new(REASON_PLANNED),
            timeout: U32::new(0),
            flags: U32::new(flags),
            message: [0; 2048],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes as _;

    #[test]
    fn in_bytes() {
        let request = Shutdown::planned(FLAG_RESTART);
        assert_eq!(
            request.as_bytes()[..16],
            [0, 0, 0, 0x80, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]
        );
        let read = Request {
            reason: REASON_PLANNED,
            timeout: 0,
            flags: FLAG_RESTART,
        };
        assert_eq!(Request::parse(request.as_bytes()), Ok(read));
        assert_eq!(Request::parse(&request.as_bytes()[..12]), Ok(read));
        assert_eq!(Request::parse(&request.as_bytes()[..11]), Err(BadMessage));
    }
}
