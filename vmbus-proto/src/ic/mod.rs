//! Integration services (IC): small services between the host and the guest's operating system.
//!
//! Each service is a channel of its own, offered as a pipe in message mode
//! ([`pipe`](crate::pipe)). All share a framework: the data of each packet is a [`Header`] and a
//! body. The host asks; the guest answers each request with the same message, the status filled
//! in and the flags changed to [`FLAG_TRANSACTION`] and [`FLAG_RESPONSE`].
//!
//! The first exchange of an open channel is the choice of versions. The host sends a
//! [`NEGOTIATE`](message_type::NEGOTIATE) request with a [`NegotiateHeader`], the framework
//! versions it speaks, and the versions of the service, both in ascending order. The guest answers
//! with one of each, or with a count of zero where it likes none ([`Choice`]).
//!
//! A service has at most one request of the host outstanding: Linux leaves the next one in the
//! ring until it has answered, and its user-mode daemons may take seconds.

pub mod heartbeat;
pub mod kvp;
pub mod shutdown;
pub mod timesync;
pub mod vss;

use core::fmt;

use zerocopy::FromBytes as _;
use zerocopy::little_endian::{U16, U32};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Longest message of any service, header included, in bytes (openvmm `hyperv_ic_protocol`).
pub const MAX_MESSAGE: usize = 13312;

/// A version of the framework or of a service (Linux `struct ic_version`).
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    Default,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct Version {
    /// Major number.
    pub major: U16,
    /// Minor number.
    pub minor: U16,
}
const _: () = assert!(size_of::<Version>() == 4);

impl Version {
    /// Version `major.minor`.
    pub const fn new(major: u16, minor: u16) -> Self {
        Self {
            major: U16::new(major),
            minor: U16::new(minor),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Versions of the framework: that of Windows Server 2008, and all later ones'.
pub const FRAMEWORK_VERSIONS: &[Version] = &[Version::new(1, 0), Version::new(3, 0)];

/// [`Header::message_type`] (Linux `ICMSGTYPE_*`).
pub mod message_type {
    /// The choice of versions, for every service.
    pub const NEGOTIATE: u16 = 0;
    /// [`heartbeat`](super::heartbeat).
    pub const HEARTBEAT: u16 = 1;
    /// [`kvp`](super::kvp).
    pub const KVP: u16 = 2;
    /// [`shutdown`](super::shutdown).
    pub const SHUTDOWN: u16 = 3;
    /// [`timesync`](super::timesync).
    pub const TIME_SYNC: u16 = 4;
    /// [`vss`](super::vss).
    pub const VSS: u16 = 5;
}

/// [`Header::flags`]: the message belongs to an exchange of request and answer.
pub const FLAG_TRANSACTION: u8 = 1;
/// [`Header::flags`]: a request.
pub const FLAG_REQUEST: u8 = 2;
/// [`Header::flags`]: an answer.
pub const FLAG_RESPONSE: u8 = 4;

/// [`Header::status`]: an HRESULT (Linux `HV_S_*`, `HV_E_*`).
pub mod status {
    /// Done.
    pub const OK: u32 = 0;
    /// Not done, for no better known reason.
    pub const FAIL: u32 = 0x8000_4005;
    /// An enumeration has come to its end, or a key is not there.
    pub const NO_MORE_ITEMS: u32 = 0x8007_0103;
}

/// Start of every message (Linux `struct icmsg_hdr`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Version of the framework; zero before one is chosen.
    pub framework: Version,
    /// One of [`message_type`].
    pub message_type: U16,
    /// Version of the service; zero before one is chosen.
    pub version: Version,
    /// Bytes of the body that follows.
    pub size: U16,
    /// In answers, one of [`status`] or another HRESULT; zero in requests.
    pub status: U32,
    /// Chosen by the host for each request, repeated in the answer.
    pub transaction_id: u8,
    /// A combination of [`FLAG_TRANSACTION`], [`FLAG_REQUEST`] and [`FLAG_RESPONSE`].
    pub flags: u8,
    /// Zero.
    pub reserved: [u8; 2],
}
const _: () = assert!(size_of::<Header>() == 20);

/// A message that cannot be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadMessage;

impl fmt::Display for BadMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an integration service's message is cut short")
    }
}

impl core::error::Error for BadMessage {}

/// A checked view of a message: the data of one packet of the pipe.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// The header.
    pub header: Header,
    /// As many bytes as the header says.
    pub body: &'a [u8],
}

impl<'a> Message<'a> {
    /// Checks the `data` of a packet.
    ///
    /// # Errors
    /// It is shorter than a header, or than its header says.
    pub fn parse(data: &'a [u8]) -> Result<Self, BadMessage> {
        let (header, rest) = Header::read_from_prefix(data).map_err(|_| BadMessage)?;
        let body = rest
            .get(..usize::from(header.size.get()))
            .ok_or(BadMessage)?;
        Ok(Self { header, body })
    }
}

/// Start of a [`NEGOTIATE`](message_type::NEGOTIATE) message's body (Linux
/// `struct icmsg_negotiate`): the versions follow, the framework's first.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct NegotiateHeader {
    /// Number of framework versions; in the answer 1 or 0.
    pub framework_count: U16,
    /// Number of versions of the service; in the answer 1 or 0.
    pub version_count: U16,
    /// Zero.
    pub reserved: U32,
}
const _: () = assert!(size_of::<NegotiateHeader>() == 8);

/// Body of a guest's answer to [`NEGOTIATE`](message_type::NEGOTIATE).
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct ChoiceBody {
    header: NegotiateHeader,
    framework: Version,
    version: Version,
}
const _: () = assert!(size_of::<ChoiceBody>() == CHOICE_SIZE);

/// The guest's answer to the versions that the host offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// It speaks these.
    Versions {
        /// Of the framework.
        framework: Version,
        /// Of the service.
        version: Version,
    },
    /// It speaks none of them.
    Nothing,
}

/// Bytes of the body of a guest's choice.
pub const CHOICE_SIZE: usize = size_of::<NegotiateHeader>() + 2 * size_of::<Version>();

impl Choice {
    /// The guest's choice: of the host's lists in `body` the highest framework, and the highest
    /// version that is one of `ours`.
    ///
    /// # Errors
    /// The body is too short for its counts.
    pub fn of(body: &[u8], ours: &[Version]) -> Result<Self, BadMessage> {
        let (header, rest) = NegotiateHeader::read_from_prefix(body).map_err(|_| BadMessage)?;
        let list = |from, count: U16| {
            <[Version]>::ref_from_prefix_with_elems(from, count.get().into())
                .map_err(|_| BadMessage)
        };
        let (frameworks, rest) = list(rest, header.framework_count)?;
        let (versions, _) = list(rest, header.version_count)?;
        let highest = |ours: &[Version], theirs: &[Version]| {
            let common = ours.iter().filter(|version| theirs.contains(version));
            common
                .copied()
                .max_by_key(|v| (v.major.get(), v.minor.get()))
        };
        let framework = highest(FRAMEWORK_VERSIONS, frameworks);
        Ok(match framework.zip(highest(ours, versions)) {
            Some((framework, version)) => Self::Versions { framework, version },
            None => Self::Nothing,
        })
    }

    /// The body of the guest's answer.
    pub fn to_body(self) -> [u8; CHOICE_SIZE] {
        let (count, framework, version) = match self {
            Self::Versions { framework, version } => (1, framework, version),
            Self::Nothing => (0, Version::default(), Version::default()),
        };
        zerocopy::transmute!(ChoiceBody {
            header: NegotiateHeader {
                framework_count: count.into(),
                version_count: count.into(),
                reserved: 0.into(),
            },
            framework,
            version,
        })
    }

    /// Reads the `body` of the guest's answer.
    ///
    /// # Errors
    /// It is too short, or its counts are neither both 1 nor both 0.
    pub fn parse(body: &[u8]) -> Result<Self, BadMessage> {
        let (header, rest) = NegotiateHeader::read_from_prefix(body).map_err(|_| BadMessage)?;
        match (header.framework_count.get(), header.version_count.get()) {
            (1, 1) => {
                let ([framework, version], _) =
                    <[Version; 2]>::read_from_prefix(rest).map_err(|_| BadMessage)?;
                Ok(Self::Versions { framework, version })
            }
            (0, 0) => Ok(Self::Nothing),
            _ => Err(BadMessage),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes as _;

    /// What Linux 6.12 answers to the offer of framework 1.0, 3.0 and heartbeat 1.0, 3.0.
    const ANSWER: [u8; 44] = [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 7, 5, 0, 0, // header
        1, 0, 1, 0, 0, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, // the choice
        1, 0, 0, 0, 3, 0, 0, 0, // left over from the request
    ];

    #[test]
    fn the_guests_choice() {
        let message = Message::parse(&ANSWER).unwrap();
        assert_eq!(message.header.message_type, message_type::NEGOTIATE);
        assert_eq!(message.header.transaction_id, 7);
        assert_eq!(message.header.flags, FLAG_TRANSACTION | FLAG_RESPONSE);
        let three = Version::new(3, 0);
        let choice = Choice::Versions {
            framework: three,
            version: three,
        };
        assert_eq!(Choice::parse(message.body), Ok(choice));
        assert_eq!(Choice::parse(&[0; 8]), Ok(Choice::Nothing));
        assert_eq!(Choice::parse(&[1, 0, 0, 0, 0, 0, 0, 0]), Err(BadMessage));
        assert_eq!(
            Choice::parse(message.body.get(..15).unwrap()),
            Err(BadMessage)
        );
    }

    #[test]
    fn the_guest_chooses_the_highest_that_both_speak() {
        let lists = |frameworks: &[Version], versions: &[Version]| {
            let header = NegotiateHeader {
                framework_count: (frameworks.len() as u16).into(),
                version_count: (versions.len() as u16).into(),
                reserved: 0.into(),
            };
            [
                header.as_bytes(),
                frameworks.as_bytes(),
                versions.as_bytes(),
            ]
            .concat()
        };
        let v = Version::new;
        let ours = [v(1, 0), v(3, 0), v(3, 2)];
        let choose = |body: &[u8]| Choice::of(body, &ours);
        let body = lists(&[v(1, 0), v(3, 0)], &[v(3, 1), v(3, 0), v(9, 9)]);
        let choice = Choice::Versions {
            framework: v(3, 0),
            version: v(3, 0),
        };
        assert_eq!(choose(&body), Ok(choice));
        // What is written is what the host reads.
        assert_eq!(Choice::parse(&choice.to_body()), Ok(choice));
        assert_eq!(
            Choice::parse(&Choice::Nothing.to_body()),
            Ok(Choice::Nothing)
        );
        assert_eq!(choose(&lists(&[v(3, 0)], &[v(2, 0)])), Ok(Choice::Nothing));
        assert_eq!(choose(&lists(&[], &[])), Ok(Choice::Nothing));
        for cut in 0..body.len() {
            assert_eq!(choose(&body[..cut]), Err(BadMessage), "{cut} bytes");
        }
    }

    #[test]
    fn the_header_in_bytes() {
        let header = Header {
            framework: Version::new(3, 0),
            message_type: message_type::SHUTDOWN.into(),
            version: Version::new(3, 2),
            size: 0x80C.into(),
            status: status::FAIL.into(),
            transaction_id: 9,
            flags: FLAG_TRANSACTION | FLAG_REQUEST,
            reserved: [0; 2],
        };
        let bytes = [
            3, 0, 0, 0, 3, 0, 3, 0, 2, 0, 0x0C, 8, 0x05, 0x40, 0, 0x80, 9, 3, 0, 0,
        ];
        assert_eq!(header.as_bytes(), bytes);
        // The header says that a body follows.
        assert_eq!(Message::parse(&bytes).unwrap_err(), BadMessage);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(message) = Message::parse(&bytes) {
                let _ = Choice::parse(message.body);
            }
            let _ = Choice::parse(&bytes);
            let _ = Choice::of(&bytes, FRAMEWORK_VERSIONS);
        }
    }
}
