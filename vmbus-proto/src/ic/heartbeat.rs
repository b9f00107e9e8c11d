//! Heartbeat: whether the guest's operating system still does its work.
//!
//! The host sends a [`Heartbeat`] every two seconds; the guest answers with the sequence number
//! plus one and, where it knows, the state of what runs on it.

use zerocopy::FromBytes as _;
use zerocopy::little_endian::{U32, U64};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{BadMessage, Version};
use crate::guid::Guid;

/// Class of the service (Linux `HV_HEART_BEAT_GUID`).
pub const CLASS: Guid = Guid::new(0x57164f39, 0x9115, 0x4e78, 0xab55, 0x382f3bd5422d);

/// The instance that Hyper-V offers.
pub const INSTANCE: Guid = Guid::new(0xfd149e91, 0x82e0, 0x4a7d, 0xafa6, 0x2a4166cbd7c0);

/// Versions of the service; they differ in nothing that is sent.
pub const VERSIONS: &[Version] = &[Version::new(1, 0), Version::new(3, 0)];

/// Body of a request and of its answer (Linux `struct heartbeat_msg_data`, openvmm
/// `HeartbeatMessage`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Heartbeat {
    /// The host's number; one more in the answer.
    pub sequence: U64,
    /// In answers, one of [`application`]; Linux leaves it as it came.
    pub application: U32,
    /// Zero.
    pub reserved: U32,
}
const _: () = assert!(size_of::<Heartbeat>() == 16);

/// [`Heartbeat::application`]: the state of what the guest is there for.
pub mod application {
    /// The guest does not say.
    pub const UNKNOWN: u32 = 0;
    /// It does its work.
    pub const HEALTHY: u32 = 1;
    /// It met an error that keeps it from its work.
    pub const CRITICAL: u32 = 2;
    /// It has stopped.
    pub const STOPPED: u32 = 3;
}

impl Heartbeat {
    /// Reads the `body` of an answer.
    ///
    /// # Errors
    /// It is too short.
    pub fn parse(body: &[u8]) -> Result<Self, BadMessage> {
        Self::read_from_prefix(body)
            .map(|(heartbeat, _)| heartbeat)
            .map_err(|_| BadMessage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes as _;

    #[test]
    fn in_bytes() {
        let bytes = [4, 3, 2, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        let heartbeat = Heartbeat::parse(&bytes).unwrap();
        assert_eq!(heartbeat.sequence, 0x0102_0304);
        assert_eq!(heartbeat.application, application::HEALTHY);
        assert_eq!(heartbeat.as_bytes(), bytes);
        assert_eq!(
            CLASS.0[..4],
            [0x39, 0x4f, 0x16, 0x57],
            "groups are little-endian"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..32)) {
            prop_assert_eq!(Heartbeat::parse(&bytes).is_ok(), bytes.len() >= 16);
        }
    }
}
