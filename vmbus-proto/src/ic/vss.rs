//! Volume shadow copies (VSS, "backup"): the host has the guest's file systems stand still for as
//! long as a copy of the disks takes.
//!
//! [`FREEZE`](operation::FREEZE) is answered when all file systems have written everything and
//! hold back further writes, [`THAW`](operation::THAW) when they go on. In Linux a daemon does it
//! (`hv_vss_daemon`); without it the answer is [`FAIL`](super::status::FAIL). It thaws by itself
//! after a quarter of an hour.

use zerocopy::FromBytes as _;
use zerocopy::little_endian::U32;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{BadMessage, Version};
use crate::guid::Guid;

/// Class of the service (Linux `HV_VSS_GUID`).
pub const CLASS: Guid = Guid::new(0x35fa2e29, 0xea23, 0x4236, 0x96ae, 0x3a6ebacba440);

/// The instance that Hyper-V offers.
pub const INSTANCE: Guid = Guid::new(0x2450ee40, 0x33bf, 0x4fbd, 0x892e, 0x9fb06e9214cf);

/// Versions of the service: the first with [`FREEZE`](operation::FREEZE).
pub const VERSIONS: &[Version] = &[Version::new(5, 0)];

/// [`Message::operation`] (Linux `enum hv_vss_op`).
pub mod operation {
    /// Asks what the guest can do.
    pub const HOT_BACKUP: u8 = 2;
    /// File systems shall stand still.
    pub const FREEZE: u8 = 5;
    /// File systems shall go on.
    pub const THAW: u8 = 6;
}

/// Body of a request and of its answer (Linux `struct hv_vss_msg`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Message {
    /// One of [`operation`].
    pub operation: u8,
    /// Zero.
    pub reserved: [u8; 7],
    /// In the answer to [`HOT_BACKUP`](operation::HOT_BACKUP), what the guest can do; else zero.
    pub flags: U32,
}
const _: () = assert!(size_of::<Message>() == 12);

impl Message {
    /// A request.
    pub const fn new(operation: u8) -> Self {
        Self {
            operation,
            reserved: [0; 7],
            flags: U32::new(0),
        }
    }

    /// Reads the `body` of a request or an answer.
    ///
    /// # Errors
    /// It is too short.
    pub fn parse(body: &[u8]) -> Result<Self, BadMessage> {
        Self::read_from_prefix(body)
            .map(|(message, _)| message)
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
        let bytes = [5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(Message::new(operation::FREEZE).as_bytes(), bytes);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..32)) {
            prop_assert_eq!(Message::parse(&bytes).is_ok(), bytes.len() >= 12);
        }
    }
}
