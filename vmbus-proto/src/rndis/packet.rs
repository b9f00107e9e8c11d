//! PACKET: a frame, and what belongs to it beside its bytes.
//!
//! The body is a [`PacketHeader`], a list of *per-packet information*, and the frame. Each entry of
//! the list is an [`InfoHeader`] and a value of four bytes, such as what to do about checksums.
//! Whoever receives a message copies its beginning, parses that as a [`Packet`], and need not have
//! the frame itself in one piece.

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes as _, IntoBytes as _};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{BadMessage, HEADER_SIZE, Header, message_type};

/// Start of the body (Linux `struct rndis_packet`). Offsets count from its own start.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct PacketHeader {
    /// Where the frame is.
    pub data_offset: U32,
    /// Its bytes.
    pub data_length: U32,
    /// Data out of band: none.
    pub oob_offset: U32,
    /// None.
    pub oob_length: U32,
    /// None.
    pub oob_count: U32,
    /// Where the list is; 0 where there is none.
    pub info_offset: U32,
    /// Its bytes.
    pub info_length: U32,
    /// Zero.
    pub handle: U32,
    /// Zero.
    pub reserved: U32,
}
const _: () = assert!(size_of::<PacketHeader>() == 36);

/// Start of an entry (Linux `struct rndis_per_packet_info`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct InfoHeader {
    /// Bytes of the entry with this header.
    pub size: U32,
    /// A value of [`info_type`].
    pub info_type: U32,
    /// Where the value is, from the start of this header.
    pub offset: U32,
}
const _: () = assert!(size_of::<InfoHeader>() == 12);

/// Values of [`InfoHeader::info_type`].
pub mod info_type {
    /// [`TxChecksum`](super::TxChecksum) to the host, [`rx_checksum`](super::rx_checksum) from it.
    pub const CHECKSUM: u32 = 0;
    /// [`LargeSend`](super::LargeSend).
    pub const LARGE_SEND: u32 = 2;
    /// [`Vlan`](super::Vlan).
    pub const IEEE_8021Q: u32 = 6;
    /// The hash by which a frame was given to a queue.
    pub const HASH: u32 = 8;
    /// The bit of types that only netvsp knows.
    pub const INTERNAL: u32 = 0x8000_0000;
    /// [`PacketId`](super::PacketId).
    pub const PACKET_ID: u32 = INTERNAL | 1;
}

/// Checksums that the host shall complete in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxChecksum(pub u32);

impl TxChecksum {
    /// The frame is IPv4.
    pub const IPV4: u32 = 1;
    /// The frame is IPv6.
    pub const IPV6: u32 = 2;
    /// That of TCP.
    pub const TCP: u32 = 4;
    /// That of UDP.
    pub const UDP: u32 = 8;
    /// That of IPv4's header.
    pub const IP_HEADER: u32 = 16;

    /// What `flags` say, with TCP's or UDP's header at `transport_offset` bytes of the frame, below
    /// 1024.
    pub const fn new(flags: u32, transport_offset: u16) -> Self {
        Self(flags | (transport_offset as u32 & 0x3ff) << 16)
    }

    /// Whether any bit of `flags` is set.
    pub const fn any(self, flags: u32) -> bool {
        self.0 & flags != 0
    }

    /// Where TCP's header begins in the frame, in bytes.
    pub const fn transport_offset(self) -> usize {
        (self.0 >> 16 & 0x3ff) as usize
    }
}

/// Bits by which the host says what it found about checksums of a received frame. Where it says
/// nothing, the guest looks itself.
pub mod rx_checksum {
    /// That of TCP is wrong.
    pub const TCP_FAILED: u32 = 1;
    /// That of UDP is wrong.
    pub const UDP_FAILED: u32 = 2;
    /// That of IPv4's header is wrong.
    pub const IP_FAILED: u32 = 4;
    /// That of TCP is right.
    pub const TCP_SUCCEEDED: u32 = 8;
    /// That of UDP is right.
    pub const UDP_SUCCEEDED: u32 = 16;
    /// That of IPv4's header is right.
    pub const IP_SUCCEEDED: u32 = 32;
}

/// A frame of many segments, which the host shall cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LargeSend(pub u32);

impl LargeSend {
    /// Segments of `mss` bytes of payload, below 2^20, with TCP's header at `transport_offset`
    /// bytes of the frame, below 1024.
    pub const fn new(mss: u32, transport_offset: u16, ipv6: bool) -> Self {
        let version_2 = 1 << 30;
        let ipv6 = (ipv6 as u32) << 31;
        Self(mss & 0xf_ffff | (transport_offset as u32 & 0x3ff) << 20 | version_2 | ipv6)
    }

    /// Most bytes of payload in a segment.
    pub const fn mss(self) -> u32 {
        self.0 & 0xf_ffff
    }

    /// Where TCP's header begins in the frame, in bytes.
    pub const fn transport_offset(self) -> usize {
        (self.0 >> 20 & 0x3ff) as usize
    }

    /// Whether this is the second version, the one with IPv6.
    pub const fn is_version_2(self) -> bool {
        self.0 & 1 << 30 != 0
    }

    /// Whether the frame is IPv6.
    pub const fn is_ipv6(self) -> bool {
        self.0 & 1 << 31 != 0
    }
}

/// A VLAN tag that is not in the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan(pub u32);

impl Vlan {
    /// The tag as it is in frames: priority in the upper three bits, then one that allows to drop,
    /// then twelve of the VLAN's number.
    pub const fn from_tag(tag: u16) -> Self {
        let tag = tag as u32;
        Self(tag >> 13 | (tag >> 12 & 1) << 3 | (tag & 0xfff) << 4)
    }

    /// The tag as it is in frames.
    pub const fn tag(self) -> u16 {
        ((self.0 & 7) << 13 | (self.0 >> 3 & 1) << 12 | self.0 >> 4 & 0xfff) as u16
    }
}

/// Which frame a piece belongs to, where a frame comes in several sections (RSC, version 6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketId(pub u32);

impl PacketId {
    const VERSION: u32 = 1;
    const PIECE: u32 = 1 << 8;
    const FIRST: u32 = 1 << 9;
    const LAST: u32 = 1 << 10;

    /// A piece of frame `id`.
    pub const fn piece(id: u16, first: bool, last: bool) -> Self {
        let mut value = Self::VERSION | Self::PIECE | (id as u32) << 16;
        if first {
            value |= Self::FIRST;
        }
        if last {
            value |= Self::LAST;
        }
        Self(value)
    }

    /// Whether it is a piece and not all of a frame.
    pub const fn is_piece(self) -> bool {
        self.0 & Self::PIECE != 0
    }

    /// Whether a frame begins.
    pub const fn is_first(self) -> bool {
        self.0 & Self::FIRST != 0
    }

    /// Whether a frame ends.
    pub const fn is_last(self) -> bool {
        self.0 & Self::LAST != 0
    }
}

/// What belongs to a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketInfo {
    /// [`TxChecksum`] to the host, a combination of [`rx_checksum`] from it.
    pub checksum: Option<u32>,
    /// Cut it.
    pub large_send: Option<LargeSend>,
    /// Its tag.
    pub vlan: Option<Vlan>,
    /// Its hash.
    pub hash: Option<u32>,
    /// It is a piece.
    pub id: Option<PacketId>,
}

impl PacketInfo {
    /// Reads a list. Entries that nobody knows are passed over; of two of a type the last counts.
    fn parse(mut list: &[u8]) -> Result<Self, BadMessage> {
        let mut info = Self::default();
        while !list.is_empty() {
            let (header, _) = InfoHeader::read_from_prefix(list).map_err(|_| BadMessage)?;
            let size = header.size.get() as usize;
            // Each entry takes its header at least, or a list would never end.
            if size < size_of::<InfoHeader>() {
                return Err(BadMessage);
            }
            let (entry, rest) = list.split_at_checked(size).ok_or(BadMessage)?;
            list = rest;
            let value = || {
                let value = entry.get(header.offset.get() as usize..);
                let (value, _) =
                    U32::read_from_prefix(value.unwrap_or_default()).map_err(|_| BadMessage)?;
                Ok(value.get())
            };
            match header.info_type.get() {
                info_type::CHECKSUM => info.checksum = Some(value()?),
                info_type::LARGE_SEND => info.large_send = Some(LargeSend(value()?)),
                info_type::IEEE_8021Q => info.vlan = Some(Vlan(value()?)),
                info_type::HASH => info.hash = Some(value()?),
                info_type::PACKET_ID => info.id = Some(PacketId(value()?)),
                _ => {}
            }
        }
        Ok(info)
    }

    /// The entries there are: type and value.
    fn entries(&self) -> impl Iterator<Item = (u32, u32)> + use<> {
        [
            (info_type::CHECKSUM, self.checksum),
            (info_type::LARGE_SEND, self.large_send.map(|value| value.0)),
            (info_type::IEEE_8021Q, self.vlan.map(|value| value.0)),
            (info_type::HASH, self.hash),
            (info_type::PACKET_ID, self.id.map(|value| value.0)),
        ]
        .into_iter()
        .filter_map(|(kind, value)| Some((kind, value?)))
    }
}

/// The body of a PACKET message, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where the frame is, in bytes from the body's start.
    pub data_offset: usize,
    /// Its bytes: they end within the body.
    pub data_length: usize,
    /// What belongs to it.
    pub info: PacketInfo,
}

impl Packet {
    /// Reads a body of `length` bytes, of which `beginning` is a private copy of the first ones. The
    /// list must be within that.
    ///
    /// # Errors
    /// It is too short, or the frame or the list are not within it.
    pub fn parse(beginning: &[u8], length: usize) -> Result<Self, BadMessage> {
        let (header, _) = PacketHeader::read_from_prefix(beginning).map_err(|_| BadMessage)?;
        let data_offset = header.data_offset.get() as usize;
        let data_length = header.data_length.get() as usize;
        let end = data_offset.checked_add(data_length).ok_or(BadMessage)?;
        if data_offset < size_of::<PacketHeader>() || end > length {
            return Err(BadMessage);
        }
        let info = match (header.info_offset.get(), header.info_length.get()) {
            (0, _) | (_, 0) => PacketInfo::default(),
            (offset, length) => {
                let list = beginning.get(offset as usize..).ok_or(BadMessage)?;
                let list = list.get(..length as usize).ok_or(BadMessage)?;
                PacketInfo::parse(list)?
            }
        };
        Ok(Self {
            data_offset,
            data_length,
            info,
        })
    }
}

/// Most bytes of a message before its frame, as [`Prefix`] writes it.
pub const MAX_PREFIX: usize = HEADER_SIZE + size_of::<PacketHeader>() + 5 * INFO_SIZE;

/// Bytes of an entry.
const INFO_SIZE: usize = size_of::<InfoHeader>() + 4;

/// What comes before the frame in a message: header, body's header and list.
#[derive(Clone, Copy, Debug)]
pub struct Prefix {
    bytes: [u8; MAX_PREFIX],
    length: usize,
}

impl Prefix {
    /// Before a frame of `data_length` bytes with `info`; the frame has to follow at once.
    /// `padding` bytes follow it.
    ///
    /// The sum of both may be at most 2^31.
    pub fn new(data_length: u32, info: &PacketInfo, padding: u32) -> Self {
        let mut prefix = Self {
            bytes: [0; MAX_PREFIX],
            length: HEADER_SIZE.saturating_add(size_of::<PacketHeader>()),
        };
        for (kind, value) in info.entries() {
            let header = InfoHeader {
                size: (INFO_SIZE as u32).into(),
                info_type: kind.into(),
                offset: (size_of::<InfoHeader>() as u32).into(),
            };
            let at = prefix.length;
            prefix.put(at, header.as_bytes());
            prefix.put(
                at.saturating_add(size_of::<InfoHeader>()),
                &value.to_le_bytes(),
            );
            prefix.length = at.saturating_add(INFO_SIZE);
        }
        let data_offset = prefix.length.saturating_sub(HEADER_SIZE) as u32;
        let info_length = data_offset.saturating_sub(size_of::<PacketHeader>() as u32);
        let length = (prefix.length as u32)
            .saturating_add(data_length)
            .saturating_add(padding);
        let header = Header {
            message_type: message_type::PACKET.into(),
            length: length.into(),
        };
        let body = PacketHeader {
            data_offset: data_offset.into(),
            data_length: data_length.into(),
            oob_offset: 0.into(),
            oob_length: 0.into(),
            oob_count: 0.into(),
            info_offset: match info_length {
                0 => 0.into(),
                _ => (size_of::<PacketHeader>() as u32).into(),
            },
            info_length: info_length.into(),
            handle: 0.into(),
            reserved: 0.into(),
        };
        prefix.put(0, header.as_bytes());
        prefix.put(HEADER_SIZE, body.as_bytes());
        prefix
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        // There is room for each entry once.
        let end = at.saturating_add(bytes.len());
        if let Some(place) = self.bytes.get_mut(at..end) {
            place.copy_from_slice(bytes);
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&self.bytes)
    }
}
