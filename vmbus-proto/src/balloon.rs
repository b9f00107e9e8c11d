//! Dynamic memory, of which the balloon is a part: the guest tells how much memory it needs, and the
//! host asks it to give some up, takes it back, or adds more.
//!
//! A plain channel without pipe framing: each packet is in-band and one message, which begins with a
//! [`Header`]. The guest begins, newest version first, with a [`VersionRequest`] until the host takes
//! one; then come its [`CapabilitiesReport`] and the host's answer. From then on the guest sends a
//! [`StatusReport`] each second, and the host asks. Sources: Linux `drivers/hv/hv_balloon.c`, QEMU
//! `hw/hyperv/hv-balloon.c`.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::guid::Guid;

/// Class of dynamic memory (Linux `HV_DM_GUID`).
pub const CLASS: Guid = Guid::new(0x525074dc, 0x8985, 0x46e2, 0x8057, 0xa307dc18a502);

/// The versions, newest first: 2.0 (Windows 10), 1.0 (Windows 8), 0.3 (Windows 7); major number in the
/// upper half.
pub const VERSIONS: [u32; 3] = [0x2_0000, 0x1_0000, 3];

/// First two bytes of each message.
pub mod message_type {
    /// From the guest: [`VersionRequest`](super::VersionRequest).
    pub const VERSION_REQUEST: u16 = 1;
    /// From the host: [`FlagsResponse`](super::FlagsResponse).
    pub const VERSION_RESPONSE: u16 = 2;
    /// From the guest: [`CapabilitiesReport`](super::CapabilitiesReport).
    pub const CAPABILITIES_REPORT: u16 = 3;
    /// From the host: [`FlagsResponse`](super::FlagsResponse).
    pub const CAPABILITIES_RESPONSE: u16 = 4;
    /// From the guest: [`StatusReport`](super::StatusReport).
    pub const STATUS_REPORT: u16 = 5;
    /// From the host: [`BalloonRequest`](super::BalloonRequest).
    pub const BALLOON_REQUEST: u16 = 6;
    /// From the guest: [`BalloonResponse`](super::BalloonResponse), then ranges.
    pub const BALLOON_RESPONSE: u16 = 7;
    /// From the host: [`UnballoonRequest`](super::UnballoonRequest), then ranges.
    pub const UNBALLOON_REQUEST: u16 = 8;
    /// From the guest: a header alone.
    pub const UNBALLOON_RESPONSE: u16 = 9;
    /// From the host: [`HotAddRequest`](super::HotAddRequest).
    pub const HOT_ADD_REQUEST: u16 = 10;
    /// From the guest: [`HotAddResponse`](super::HotAddResponse).
    pub const HOT_ADD_RESPONSE: u16 = 11;
    /// From the host, from 1.0 on: the most memory that the guest will ever have.
    pub const INFO: u16 = 12;
    /// From the host, from 2.0 on: give memory up for good.
    pub const HOT_REMOVE_REQUEST: u16 = 13;
    /// From the guest: its answer.
    pub const HOT_REMOVE_RESPONSE: u16 = 14;
}

/// Bits of [`CapabilitiesReport::capabilities`].
pub mod capability {
    /// The guest gives pages up when it is asked.
    pub const BALLOON: u64 = 1 << 0;
    /// The guest takes more memory.
    pub const HOT_ADD: u64 = 1 << 1;
    /// The guest gives memory up for good.
    pub const HOT_REMOVE: u64 = 1 << 6;
}

/// Bits of [`FlagsResponse::flags`].
pub mod response_flag {
    /// The host takes the version, or the capabilities.
    pub const ACCEPTED: u64 = 1 << 0;
    /// Of capabilities: the host knows how to remove memory.
    pub const HOT_REMOVE: u64 = 1 << 1;
    /// Of capabilities: the host has no use for status reports.
    pub const NO_STATUS_REPORTS: u64 = 1 << 2;
}

/// Start of each message.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// One of [`message_type`].
    pub message_type: U16,
    /// Bytes of the message with this header.
    pub size: U16,
    /// Chosen by who begins, repeated in the answer.
    pub transaction_id: U32,
}
const _: () = assert!(size_of::<Header>() == 8);

impl Header {
    const fn new(message_type: u16, size: usize, transaction_id: u32) -> Self {
        Self {
            message_type: U16::new(message_type),
            size: U16::new(size as u16),
            transaction_id: U32::new(transaction_id),
        }
    }
}

/// The guest would speak a version.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct VersionRequest {
    /// [`VERSION_REQUEST`](message_type::VERSION_REQUEST).
    pub header: Header,
    /// One of [`VERSIONS`].
    pub version: U32,
    /// Bit 0: the guest will not ask for another one.
    pub last_attempt: U32,
}
const _: () = assert!(size_of::<VersionRequest>() == 16);

impl VersionRequest {
    /// The question for `version`.
    pub const fn new(transaction_id: u32, version: u32, last_attempt: bool) -> Self {
        let size = size_of::<Self>();
        Self {
            header: Header::new(message_type::VERSION_REQUEST, size, transaction_id),
            version: U32::new(version),
            last_attempt: U32::new(last_attempt as u32),
        }
    }
}

/// The host's answer to a version, or to capabilities.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct FlagsResponse {
    /// [`VERSION_RESPONSE`](message_type::VERSION_RESPONSE) or
    /// [`CAPABILITIES_RESPONSE`](message_type::CAPABILITIES_RESPONSE).
    pub header: Header,
    /// Bits of [`response_flag`].
    pub flags: U64,
}
const _: () = assert!(size_of::<FlagsResponse>() == 16);

impl FlagsResponse {
    /// The answer to a version.
    pub const fn version(transaction_id: u32, flags: u64) -> Self {
        Self::new(message_type::VERSION_RESPONSE, transaction_id, flags)
    }

    /// The answer to capabilities.
    pub const fn capabilities(transaction_id: u32, flags: u64) -> Self {
        Self::new(message_type::CAPABILITIES_RESPONSE, transaction_id, flags)
    }

    const fn new(message_type: u16, transaction_id: u32, flags: u64) -> Self {
        Self {
            header: Header::new(message_type, size_of::<Self>(), transaction_id),
            flags: U64::new(flags),
        }
    }
}

/// What the guest can do.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CapabilitiesReport {
    /// [`CAPABILITIES_REPORT`](message_type::CAPABILITIES_REPORT).
    pub header: Header,
    /// Bits of [`capability`]; bits 2 to 5: memory is added in pieces of 2 to the power of this, in
    /// MiB.
    pub capabilities: U64,
    /// Fewest pages the guest can do with; hosts do not look at it.
    pub min_pages: U64,
    /// The highest frame number the guest can have; hosts do not look at it.
    pub max_frame: U64,
}
const _: () = assert!(size_of::<CapabilitiesReport>() == 32);

impl CapabilitiesReport {
    /// Of `capabilities`.
    pub const fn new(transaction_id: u32, capabilities: u64) -> Self {
        let size = size_of::<Self>();
        Self {
            header: Header::new(message_type::CAPABILITIES_REPORT, size, transaction_id),
            capabilities: U64::new(capabilities),
            min_pages: U64::new(0),
            max_frame: U64::new(u64::MAX),
        }
    }
}

/// How the guest is for memory; has no answer. All numbers are pages.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct StatusReport {
    /// [`STATUS_REPORT`](message_type::STATUS_REPORT).
    pub header: Header,
    /// Could be had at once.
    pub available: U64,
    /// Promised to programs, whether they use it or not: what hosts go by.
    pub committed: U64,
    /// Of all page files.
    pub page_file: U64,
    /// Free and zeroed.
    pub zero_free: U64,
    /// Written to page files.
    pub page_file_writes: U32,
    /// Faults on cached files less reads of them.
    pub io_difference: U32,
}
const _: () = assert!(size_of::<StatusReport>() == 48);

impl StatusReport {
    /// Of `available` and `committed` pages.
    pub const fn new(transaction_id: u32, available: u64, committed: u64) -> Self {
        let size = size_of::<Self>();
        Self {
            header: Header::new(message_type::STATUS_REPORT, size, transaction_id),
            available: U64::new(available),
            committed: U64::new(committed),
            page_file: U64::new(0),
            zero_free: U64::new(0),
            page_file_writes: U32::new(0),
            io_difference: U32::new(0),
        }
    }
}

/// The host would have pages.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct BalloonRequest {
    /// [`BALLOON_REQUEST`](message_type::BALLOON_REQUEST).
    pub header: Header,
    /// How many.
    pub pages: U32,
    /// Zero.
    pub reserved: U32,
}
const _: () = assert!(size_of::<BalloonRequest>() == 16);

impl BalloonRequest {
    /// For `pages`.
    pub const fn new(transaction_id: u32, pages: u32) -> Self {
        let size = size_of::<Self>();
        Self {
            header: Header::new(message_type::BALLOON_REQUEST, size, transaction_id),
            pages: U32::new(pages),
            reserved: U32::new(0),
        }
    }
}

/// The guest gives pages up: `ranges` of them follow. None says that it has no more to give.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct BalloonResponse {
    /// [`BALLOON_RESPONSE`](message_type::BALLOON_RESPONSE).
    pub header: Header,
    /// Zero.
    pub reserved: U32,
    /// Bit 0: more answers follow; above, how many [`PageRange`]s there are here.
    pub more_and_ranges: U32,
}
const _: () = assert!(size_of::<BalloonResponse>() == 16);

impl BalloonResponse {
    /// The answer that gives nothing up.
    pub const fn nothing(transaction_id: u32) -> Self {
        let size = size_of::<Self>();
        Self {
            header: Header::new(message_type::BALLOON_RESPONSE, size, transaction_id),
            reserved: U32::new(0),
            more_and_ranges: U32::new(0),
        }
    }
}

/// The host gives pages back: `ranges` of them follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct UnballoonRequest {
    /// [`UNBALLOON_REQUEST`](message_type::UNBALLOON_REQUEST).
    pub header: Header,
    /// Bit 0: more requests follow, and only the last one is answered.
    pub more: U32,
    /// How many [`PageRange`]s there are here.
    pub ranges: U32,
}
const _: () = assert!(size_of::<UnballoonRequest>() == 16);

/// The host would add memory. With a second [`PageRange`] after it, the first is a part of that one.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct HotAddRequest {
    /// [`HOT_ADD_REQUEST`](message_type::HOT_ADD_REQUEST).
    pub header: Header,
    /// Which.
    pub range: PageRange,
}
const _: () = assert!(size_of::<HotAddRequest>() == 16);

/// What became of that.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct HotAddResponse {
    /// [`HOT_ADD_RESPONSE`](message_type::HOT_ADD_RESPONSE).
    pub header: Header,
    /// Pages that were added.
    pub pages: U32,
    /// 1: added; 0: not.
    pub result: U32,
}
const _: () = assert!(size_of::<HotAddResponse>() == 16);

impl HotAddResponse {
    /// The answer that nothing was added.
    pub const fn nothing(transaction_id: u32) -> Self {
        let size = size_of::<Self>();
        Self {
            header: Header::new(message_type::HOT_ADD_RESPONSE, size, transaction_id),
            pages: U32::new(0),
            result: U32::new(0),
        }
    }
}

/// Pages that lie together.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct PageRange {
    /// Bits 0 to 39: the first page's frame number; bits 40 to 63: how many pages.
    pub start_and_count: U64,
}
const _: () = assert!(size_of::<PageRange>() == 8);

impl PageRange {
    /// Frame number of the first page.
    pub const fn start(&self) -> u64 {
        self.start_and_count.get() & ((1 << 40) - 1)
    }

    /// How many pages.
    pub const fn count(&self) -> u64 {
        self.start_and_count.get() >> 40
    }
}

/// The guest's acknowledgement of pages that came back.
pub const fn unballooned(transaction_id: u32) -> Header {
    let size = size_of::<Header>();
    Header::new(message_type::UNBALLOON_RESPONSE, size, transaction_id)
}

/// What a host says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromHost {
    /// Its answer to a version.
    Version {
        /// Whether it will do.
        accepted: bool,
    },
    /// Its answer to capabilities.
    Capabilities {
        /// Whether they will do.
        accepted: bool,
        /// Whether it has a use for status reports.
        wants_reports: bool,
    },
    /// It would have pages.
    Balloon {
        /// How many.
        pages: u32,
    },
    /// It gives pages back.
    Unballoon {
        /// Whether more requests follow before the answer.
        more: bool,
    },
    /// It would add memory.
    HotAdd {
        /// Frame number of the first page.
        start: u64,
        /// How many pages.
        count: u64,
    },
    /// Something to know, without an answer.
    Info,
}

impl FromHost {
    /// Reads the payload of a packet from the host: the transaction id, and what it says.
    ///
    /// # Errors
    /// It is shorter than it says or has to be, or of no type that is known of hosts.
    pub fn parse(payload: &[u8]) -> Result<(u32, Self), BadMessage> {
        let header: Header = prefix(payload)?;
        let message = payload.get(..header.size.get().into()).ok_or(BadMessage)?;
        let said = match header.message_type.get() {
            message_type::VERSION_RESPONSE => {
                let response: FlagsResponse = prefix(message)?;
                Self::Version {
                    accepted: response.flags.get() & response_flag::ACCEPTED != 0,
                }
            }
            message_type::CAPABILITIES_RESPONSE => {
                let response: FlagsResponse = prefix(message)?;
                let flags = response.flags.get();
                Self::Capabilities {
                    accepted: flags & response_flag::ACCEPTED != 0,
                    wants_reports: flags & response_flag::NO_STATUS_REPORTS == 0,
                }
            }
            message_type::BALLOON_REQUEST => {
                let request: BalloonRequest = prefix(message)?;
                Self::Balloon {
                    pages: request.pages.get(),
                }
            }
            message_type::UNBALLOON_REQUEST => {
                let request: UnballoonRequest = prefix(message)?;
                Self::Unballoon {
                    more: request.more.get() & 1 != 0,
                }
            }
            message_type::HOT_ADD_REQUEST => {
                let request: HotAddRequest = prefix(message)?;
                Self::HotAdd {
                    start: request.range.start(),
                    count: request.range.count(),
                }
            }
            message_type::INFO => Self::Info,
            _ => return Err(BadMessage),
        };
        Ok((header.transaction_id.get(), said))
    }
}

fn prefix<T: zerocopy::FromBytes>(bytes: &[u8]) -> Result<T, BadMessage> {
    T::read_from_prefix(bytes)
        .map(|(value, _)| value)
        .map_err(|_| BadMessage)
}

/// A message that is none of a host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadMessage;

impl core::fmt::Display for BadMessage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("a dynamic memory message is cut short or of an unknown type")
    }
}

impl core::error::Error for BadMessage {}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;
    use zerocopy::IntoBytes as _;

    #[test]
    fn in_bytes() {
        let request = VersionRequest::new(7, VERSIONS[0], true);
        assert_eq!(
            request.as_bytes(),
            [1, 0, 16, 0, 7, 0, 0, 0, 0, 0, 2, 0, 1, 0, 0, 0]
        );
        let report = StatusReport::new(9, 0x1234, 0x56);
        let bytes = report.as_bytes();
        assert_eq!(bytes[..10], [5, 0, 48, 0, 9, 0, 0, 0, 0x34, 0x12]);
        assert_eq!(bytes[16], 0x56);
        assert_eq!(unballooned(3).as_bytes(), [9, 0, 8, 0, 3, 0, 0, 0]);
    }

    #[test]
    fn what_hosts_say() {
        let flags = response_flag::ACCEPTED | response_flag::NO_STATUS_REPORTS;
        let parse = |bytes: &[u8]| FromHost::parse(bytes);
        assert_eq!(
            parse(FlagsResponse::version(5, 1).as_bytes()),
            Ok((5, FromHost::Version { accepted: true }))
        );
        assert_eq!(
            parse(FlagsResponse::capabilities(6, flags).as_bytes()),
            Ok((
                6,
                FromHost::Capabilities {
                    accepted: true,
                    wants_reports: false
                }
            ))
        );
        assert_eq!(
            parse(BalloonRequest::new(1, 300).as_bytes()),
            Ok((1, FromHost::Balloon { pages: 300 }))
        );
        let mut hot_add = Vec::from([10, 0, 16, 0, 2, 0, 0, 0]);
        hot_add.extend((5_u64 << 40 | 0x12_3456).to_le_bytes());
        assert_eq!(
            parse(&hot_add),
            Ok((
                2,
                FromHost::HotAdd {
                    start: 0x12_3456,
                    count: 5
                }
            ))
        );
        assert_eq!(parse(&hot_add[..15]), Err(BadMessage), "cut short");
        hot_add[2] = 15;
        assert_eq!(parse(&hot_add), Err(BadMessage), "by its own word");
        let own = VersionRequest::new(1, VERSIONS[0], false);
        assert_eq!(parse(own.as_bytes()), Err(BadMessage), "a guest's");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = FromHost::parse(&bytes);
        }

        #[test]
        fn no_message_panics(kind in 0..16_u16, size: u16, bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut message = Vec::from(kind.to_le_bytes());
            message.extend(size.to_le_bytes());
            message.extend(bytes);
            let _ = FromHost::parse(&message);
        }
    }
}
