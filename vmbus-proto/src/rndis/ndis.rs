//! Values of objects that are structures: offloads, receive side scaling, link state.
//!
//! They grew with NDIS. A revision says how far: whoever knows less reads less of it, whoever knows
//! more finds zeros. Sources: Windows `ntddndis.h` as documented, Linux `hyperv_net.h`.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes as _, FromZeros as _, IntoBytes as _};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The start of most structures.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct ObjectHeader {
    /// A value of [`object_type`].
    pub object_type: u8,
    /// Of this type.
    pub revision: u8,
    /// Bytes of the structure as of this revision, with this header.
    pub size: U16,
}
const _: () = assert!(size_of::<ObjectHeader>() == 4);

/// Values of [`ObjectHeader::object_type`].
pub mod object_type {
    /// One that has no type of its own.
    pub const DEFAULT: u8 = 0x80;
    /// [`ReceiveScaleCapabilities`](super::ReceiveScaleCapabilities).
    pub const RSS_CAPABILITIES: u8 = 0x88;
    /// [`ReceiveScaleParameters`](super::ReceiveScaleParameters).
    pub const RSS_PARAMETERS: u8 = 0x89;
    /// [`Offload`](super::Offload).
    pub const OFFLOAD: u8 = 0xa7;
    /// [`OffloadEncapsulation`](super::OffloadEncapsulation).
    pub const OFFLOAD_ENCAPSULATION: u8 = 0xa8;
}

/// Fields `*_encapsulation` of [`Offload`]: for Ethernet frames.
pub const ENCAPSULATION_ETHERNET: u32 = 2;

/// Bits of [`Offload`]'s fields `*_flags`, each the first of two that hold
/// "supported" (1) or "not supported" (0).
pub mod checksum {
    /// Also where there are IPv4 options, or IPv6 extension headers.
    pub const IP_OPTIONS: u32 = 0x001;
    /// Also where there are TCP options.
    pub const TCP_OPTIONS: u32 = 0x004;
    /// Of TCP.
    pub const TCP: u32 = 0x010;
    /// Of UDP.
    pub const UDP: u32 = 0x040;
    /// Of IPv4's header.
    pub const IP: u32 = 0x100;
}

/// Bits of [`Offload::lso_ipv6_flags`].
pub mod lso {
    /// Also where there are extension headers.
    pub const IPV6_EXTENSIONS: u32 = 0x001;
    /// Also where there are TCP options.
    pub const TCP_OPTIONS: u32 = 0x004;
}

/// What an adapter can do, or does, for the guest (Windows `NDIS_OFFLOAD`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Offload {
    /// Type [`OFFLOAD`](object_type::OFFLOAD), revision 1, 2 or 3.
    pub header: ObjectHeader,
    /// Checksums of IPv4 frames that are sent: how framed.
    pub ipv4_tx_encapsulation: U32,
    /// Which: a combination of [`checksum`].
    pub ipv4_tx_flags: U32,
    /// The same of frames received.
    pub ipv4_rx_encapsulation: U32,
    /// The same.
    pub ipv4_rx_flags: U32,
    /// The same of IPv6 frames that are sent.
    pub ipv6_tx_encapsulation: U32,
    /// The same.
    pub ipv6_tx_flags: U32,
    /// The same of IPv6 frames received.
    pub ipv6_rx_encapsulation: U32,
    /// The same.
    pub ipv6_rx_flags: U32,
    /// Large sends as they were before version 2. None.
    pub lso_v1: [U32; 4],
    /// IPsec. None.
    pub ipsec_v1: [U32; 7],
    /// Large sends over IPv4: how framed.
    pub lso_ipv4_encapsulation: U32,
    /// Most bytes of one.
    pub lso_ipv4_max_size: U32,
    /// Fewest segments of one.
    pub lso_ipv4_min_segments: U32,
    /// The same over IPv6.
    pub lso_ipv6_encapsulation: U32,
    /// The same.
    pub lso_ipv6_max_size: U32,
    /// The same.
    pub lso_ipv6_min_segments: U32,
    /// What may be in the headers: a combination of [`lso`].
    pub lso_ipv6_flags: U32,
    /// Zero. Revision 1 ends here.
    pub flags: U32,
    /// IPsec. None. Revision 2 ends here.
    pub ipsec_v2: [U32; 8],
    /// Whether received segments of IPv4 may come joined.
    pub rsc_ipv4: u8,
    /// The same of IPv6.
    pub rsc_ipv6: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// Frames within frames. None. Revision 3 ends here.
    pub encapsulated: [U32; 2],
}
const _: () = assert!(size_of::<Offload>() == 156);

impl Offload {
    /// Nothing, of the highest revision that has room in `room` bytes; `None` where not even the
    /// first has.
    pub fn none(room: usize) -> Option<Self> {
        let (revision, size) = match room {
            0..112 => return None,
            112..144 => (1, 112_u16),
            144..156 => (2, 144),
            _ => (3, 156),
        };
        let mut offload = Self::new_zeroed();
        offload.header = ObjectHeader {
            object_type: object_type::OFFLOAD,
            revision,
            size: size.into(),
        };
        Some(offload)
    }

    /// Its bytes as of its revision.
    pub fn wire_bytes(&self) -> &[u8] {
        let bytes = zerocopy::IntoBytes::as_bytes(self);
        let size = usize::from(self.header.size.get());
        bytes.get(..size).unwrap_or(bytes)
    }

    /// Reads what an adapter said; `None` where it is shorter than revision 1.
    pub fn parse(value: &[u8]) -> Option<Self> {
        read_object(value, object_type::OFFLOAD, 112)
    }
}

/// Which offloads the guest wants (Windows `NDIS_OFFLOAD_PARAMETERS`): of each a value of
/// [`wanted`], for large sends and joined segments one of [`switched`].
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct OffloadParameters {
    /// Type [`DEFAULT`](object_type::DEFAULT).
    pub header: ObjectHeader,
    /// Checksum of IPv4's header.
    pub ipv4_checksum: u8,
    /// Checksum of TCP over IPv4.
    pub tcp_ipv4_checksum: u8,
    /// Checksum of UDP over IPv4.
    pub udp_ipv4_checksum: u8,
    /// Checksum of TCP over IPv6.
    pub tcp_ipv6_checksum: u8,
    /// Checksum of UDP over IPv6.
    pub udp_ipv6_checksum: u8,
    /// Large sends as they were.
    pub lso_v1: u8,
    /// IPsec.
    pub ipsec_v1: u8,
    /// Large sends over IPv4.
    pub lso_ipv4: u8,
    /// Large sends over IPv6.
    pub lso_ipv6: u8,
    /// Connections of the adapter's own over IPv4.
    pub connection_ipv4: u8,
    /// The same over IPv6.
    pub connection_ipv6: u8,
    /// Zero.
    pub reserved: u8,
    /// Zero.
    pub flags: U32,
    /// IPsec.
    pub ipsec_v2: [u8; 2],
    /// Joined segments over IPv4.
    pub rsc_ipv4: u8,
    /// Joined segments over IPv6.
    pub rsc_ipv6: u8,
    /// Frames within frames.
    pub encapsulated: [u8; 2],
    /// Zero.
    pub padding: [u8; 2],
}
const _: () = assert!(size_of::<OffloadParameters>() == 28);

/// Values of [`OffloadParameters`] for checksums.
pub mod wanted {
    /// As before.
    pub const NO_CHANGE: u8 = 0;
    /// Neither way.
    pub const DISABLED: u8 = 1;
    /// Of frames sent.
    pub const TX: u8 = 2;
    /// Of frames received.
    pub const RX: u8 = 3;
    /// Both ways.
    pub const BOTH: u8 = 4;
}

/// Values of [`OffloadParameters`] for large sends and joined segments.
pub mod switched {
    /// As before.
    pub const NO_CHANGE: u8 = 0;
    /// Off.
    pub const OFF: u8 = 1;
    /// On.
    pub const ON: u8 = 2;
}

impl OffloadParameters {
    /// As before, all of it.
    pub fn unchanged() -> Self {
        let mut parameters = Self::new_zeroed();
        parameters.header = ObjectHeader {
            object_type: object_type::DEFAULT,
            revision: 3,
            size: (size_of::<Self>() as u16).into(),
        };
        parameters
    }

    /// Reads what a guest wants; `None` where it is shorter than revision 1.
    pub fn parse(value: &[u8]) -> Option<Self> {
        // Revision 1 ends with the flags.
        read_object(value, object_type::DEFAULT, 20)
    }
}

/// How a Windows guest lets offloads begin (`NDIS_OFFLOAD_ENCAPSULATION`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct OffloadEncapsulation {
    /// Type [`OFFLOAD_ENCAPSULATION`](object_type::OFFLOAD_ENCAPSULATION).
    pub header: ObjectHeader,
    /// 1: on; 2: off.
    pub ipv4_enabled: U32,
    /// [`ENCAPSULATION_ETHERNET`].
    pub ipv4_encapsulation: U32,
    /// Bytes before the IPv4 header.
    pub ipv4_header_size: U32,
    /// The same of IPv6.
    pub ipv6_enabled: U32,
    /// The same.
    pub ipv6_encapsulation: U32,
    /// The same.
    pub ipv6_header_size: U32,
}
const _: () = assert!(size_of::<OffloadEncapsulation>() == 28);

/// How received frames can be spread over queues (`NDIS_RECEIVE_SCALE_CAPABILITIES`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ReceiveScaleCapabilities {
    /// Type [`RSS_CAPABILITIES`](object_type::RSS_CAPABILITIES), revision 2.
    pub header: ObjectHeader,
    /// The hash function ([`hash::TOEPLITZ`]), and kinds of hashes and of interrupts; hashes of TCP
    /// over IPv4 and IPv6: [`RSS_HASH_TCP_IPV4`] and [`RSS_HASH_TCP_IPV6`].
    pub flags: U32,
    /// Interrupts.
    pub interrupts: U32,
    /// Queues.
    pub queues: U32,
    /// Entries of the table that says which queue: 128.
    pub table_entries: U16,
}
const _: () = assert!(size_of::<ReceiveScaleCapabilities>() == 18);

impl ReceiveScaleCapabilities {
    /// What a guest says of the structure when it asks for it.
    pub fn question() -> Self {
        let mut capabilities = Self::new_zeroed();
        capabilities.header = ObjectHeader {
            object_type: object_type::RSS_CAPABILITIES,
            revision: 2,
            size: (size_of::<Self>() as u16).into(),
        };
        capabilities
    }

    /// Reads what an adapter said; `None` where it is shorter than revision 1, which ends before the
    /// entries of the table.
    pub fn parse(value: &[u8]) -> Option<Self> {
        read_object(value, object_type::RSS_CAPABILITIES, 16)
    }
}

/// [`ReceiveScaleCapabilities::flags`].
pub const RSS_HASH_TCP_IPV4: u32 = 0x100;
/// [`ReceiveScaleCapabilities::flags`].
pub const RSS_HASH_TCP_IPV6: u32 = 0x200;

/// Most entries of the table of [`ReceiveScaleParameters`].
pub const RSS_TABLE_ENTRIES: usize = 128;

/// Most bytes of the key of [`ReceiveScaleParameters`].
pub const RSS_KEY_SIZE: usize = 40;

/// How received frames shall be spread over queues (`NDIS_RECEIVE_SCALE_PARAMETERS`), without what
/// it points to.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ReceiveScaleParameters {
    /// Type [`RSS_PARAMETERS`](object_type::RSS_PARAMETERS).
    pub header: ObjectHeader,
    /// What stays as it is, and whether to spread at all: a combination of [`rss_flag`].
    pub flags: U16,
    /// The first processor. Not used.
    pub base_processor: U16,
    /// Function and kinds of hashes, a combination of [`hash`].
    pub hash: U32,
    /// Bytes of the table, four for each entry.
    pub table_size: U16,
    /// Zero.
    pub reserved1: U16,
    /// Where the table is, from the start of this structure.
    pub table_offset: U32,
    /// Bytes of the key.
    pub key_size: U16,
    /// Zero.
    pub reserved2: U16,
    /// Where the key is, from the start of this structure.
    pub key_offset: U32,
}
const _: () = assert!(size_of::<ReceiveScaleParameters>() == 28);

/// Bits of [`ReceiveScaleParameters::flags`].
pub mod rss_flag {
    /// The hash stays.
    pub const HASH_UNCHANGED: u16 = 0x02;
    /// The table stays.
    pub const TABLE_UNCHANGED: u16 = 0x04;
    /// The key stays.
    pub const KEY_UNCHANGED: u16 = 0x08;
    /// Everything goes to the first queue.
    pub const DISABLE: u16 = 0x10;
}

/// Bits of [`ReceiveScaleParameters::hash`].
pub mod hash {
    /// Microsoft's own function; the one there is.
    pub const TOEPLITZ: u32 = 0x01;
    /// Of IPv4 addresses.
    pub const IPV4: u32 = 0x100;
    /// Of IPv4 addresses and TCP ports.
    pub const TCP_IPV4: u32 = 0x200;
    /// Of IPv6 addresses.
    pub const IPV6: u32 = 0x400;
    /// Of IPv6 addresses and TCP ports.
    pub const TCP_IPV6: u32 = 0x1000;
}

/// [`ReceiveScaleParameters`] with what it points to, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiveScale<'a> {
    /// A combination of [`rss_flag`].
    pub flags: u16,
    /// A combination of [`hash`].
    pub hash: u32,
    /// Numbers of queues; empty where it stays, else at least one and at most
    /// [`RSS_TABLE_ENTRIES`].
    pub table: &'a [U32],
    /// Empty where it stays, else at most [`RSS_KEY_SIZE`] bytes.
    pub key: &'a [u8],
}

/// Bytes of [`ReceiveScaleParameters`] as of revision 2: masks of processors come behind it, of which
/// there are none.
const SCALE_REVISION_2: usize = 40;

/// Bytes of the longest [`ReceiveScale`].
pub const RECEIVE_SCALE_SIZE: usize = SCALE_REVISION_2 + 4 * RSS_TABLE_ENTRIES + RSS_KEY_SIZE;

impl<'a> ReceiveScale<'a> {
    /// Writes it into `to`, as stock Linux lays it out: of revision 2, the table, the key. `None`
    /// where table or key are too long.
    pub fn encode<'t>(&self, to: &'t mut [u8; RECEIVE_SCALE_SIZE]) -> Option<&'t [u8]> {
        if self.table.len() > RSS_TABLE_ENTRIES || self.key.len() > RSS_KEY_SIZE {
            return None;
        }
        let table = self.table.as_bytes();
        let key_offset = SCALE_REVISION_2.checked_add(table.len())?;
        let parameters = ReceiveScaleParameters {
            header: ObjectHeader {
                object_type: object_type::RSS_PARAMETERS,
                revision: 2,
                size: (SCALE_REVISION_2 as u16).into(),
            },
            flags: self.flags.into(),
            base_processor: 0.into(),
            hash: self.hash.into(),
            table_size: (table.len() as u16).into(),
            reserved1: 0.into(),
            table_offset: (SCALE_REVISION_2 as u32).into(),
            key_size: (self.key.len() as u16).into(),
            reserved2: 0.into(),
            key_offset: (key_offset as u32).into(),
        };
        *to = [0; RECEIVE_SCALE_SIZE];
        let parts = [
            (0, parameters.as_bytes()),
            (SCALE_REVISION_2, table),
            (key_offset, self.key),
        ];
        for (at, part) in parts {
            to.get_mut(at..)?
                .get_mut(..part.len())?
                .copy_from_slice(part);
        }
        to.get(..key_offset.checked_add(self.key.len())?)
    }

    /// Reads what a guest wants; `None` where it cannot be.
    pub fn parse(value: &'a [u8]) -> Option<Self> {
        let (parameters, _) = ReceiveScaleParameters::read_from_prefix(value).ok()?;
        if parameters.header.object_type != object_type::RSS_PARAMETERS {
            return None;
        }
        let flags = parameters.flags.get();
        let piece = |flag: u16, offset: U32, size: U16| {
            if flags & (flag | rss_flag::DISABLE) != 0 {
                return Some(&[][..]);
            }
            let from = value.get(offset.get() as usize..)?;
            from.get(..usize::from(size.get()))
        };
        let table = piece(
            rss_flag::TABLE_UNCHANGED,
            parameters.table_offset,
            parameters.table_size,
        )?;
        let key = piece(
            rss_flag::KEY_UNCHANGED,
            parameters.key_offset,
            parameters.key_size,
        )?;
        let table = <[U32]>::ref_from_bytes(table).ok()?;
        let table_stays = flags & (rss_flag::TABLE_UNCHANGED | rss_flag::DISABLE) != 0;
        // A table of no entries would be divided by.
        if (table.is_empty() && !table_stays)
            || table.len() > RSS_TABLE_ENTRIES
            || key.len() > RSS_KEY_SIZE
        {
            return None;
        }
        Some(Self {
            flags,
            hash: parameters.hash.get(),
            table,
            key,
        })
    }
}

/// Speed of the link (`NDIS_LINK_SPEED`), in bits per second.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct LinkSpeed {
    /// To the net.
    pub transmit: U64,
    /// From the net.
    pub receive: U64,
}
const _: () = assert!(size_of::<LinkSpeed>() == 16);

/// The link (`NDIS_LINK_STATE`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct LinkState {
    /// Type [`DEFAULT`](object_type::DEFAULT), revision 1.
    pub header: ObjectHeader,
    /// 1: connected; 2: not.
    pub connected: U32,
    /// 2: both directions at once.
    pub duplex: U32,
    /// Zero.
    pub reserved: U32,
    /// Its speed.
    pub speed: LinkSpeed,
    /// 0: nobody asks anybody to pause.
    pub pause: U32,
    /// Zero.
    pub negotiated: U32,
}
const _: () = assert!(size_of::<LinkState>() == 40);

/// Start of the value of
/// [`GEN_RNDIS_CONFIG_PARAMETER`](super::oid::GEN_RNDIS_CONFIG_PARAMETER): a name and a value, both
/// UTF-16 where the type is [`CONFIG_STRING`].
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ConfigParameter {
    /// Where the name is, from the start of this structure.
    pub name_offset: U32,
    /// Its bytes.
    pub name_length: U32,
    /// [`CONFIG_STRING`], or 0 for a number.
    pub parameter_type: U32,
    /// Where the value is, from the start of this structure.
    pub value_offset: U32,
    /// Its bytes.
    pub value_length: U32,
}
const _: () = assert!(size_of::<ConfigParameter>() == 20);

/// [`ConfigParameter::parameter_type`]: text.
pub const CONFIG_STRING: u32 = 2;

/// The parameter that holds another address: twelve hexadecimal digits.
pub const CONFIG_NETWORK_ADDRESS: &str = "NetworkAddress";

impl ConfigParameter {
    /// Name, type and value in `bytes`; `None` where they are not within.
    pub fn parse(bytes: &[u8]) -> Option<(&[u8], u32, &[u8])> {
        let (parameter, _) = Self::read_from_prefix(bytes).ok()?;
        let piece = |offset: U32, length: U32| {
            let from = bytes.get(offset.get() as usize..)?;
            from.get(..length.get() as usize)
        };
        Some((
            piece(parameter.name_offset, parameter.name_length)?,
            parameter.parameter_type.get(),
            piece(parameter.value_offset, parameter.value_length)?,
        ))
    }
}

/// A structure of this type at the beginning of `value`, of which there are `least` bytes at least, by
/// its header and in fact; what is missing behind them is zero.
fn read_object<T>(value: &[u8], object_type: u8, least: usize) -> Option<T>
where
    T: zerocopy::FromBytes + zerocopy::IntoBytes,
{
    let (header, _) = ObjectHeader::read_from_prefix(value).ok()?;
    let size = usize::from(header.size.get()).min(value.len());
    if header.object_type != object_type || size < least {
        return None;
    }
    let mut object = T::new_zeroed();
    let length = size.min(size_of::<T>());
    let to = object.as_mut_bytes().get_mut(..length)?;
    to.copy_from_slice(value.get(..length)?);
    Some(object)
}
