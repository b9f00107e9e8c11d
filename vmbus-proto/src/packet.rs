//! Packets: what a ring carries.
//!
//! A packet is a 16-byte [`Descriptor`], an optional list of memory ranges that belongs to its
//! type, and a payload that belongs to the device. [`Packet`] is a checked view of one that was
//! received; [`Outgoing`] describes one to send.

use zerocopy::FromBytes as _;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::gpa::GpaRanges;
use crate::ring::Corrupt;

/// Bytes of a [`Descriptor`].
pub const DESCRIPTOR_SIZE: usize = 16;

/// Descriptor flag: the sender waits for a completion with the same transaction id.
pub const FLAG_COMPLETION_REQUESTED: u16 = 1;

/// The start of every packet (Linux `struct vmpacket_descriptor`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Descriptor {
    /// Type of the packet, a [`PacketType`].
    pub packet_type: U16,
    /// Offset of the payload from the descriptor's start, in units of 8 bytes.
    pub offset8: U16,
    /// Length of the packet with its descriptor, without its trailer, in units of 8 bytes.
    pub length8: U16,
    /// Bit 0: [`FLAG_COMPLETION_REQUESTED`].
    pub flags: U16,
    /// Chosen by the sender of a request, repeated in its completion.
    pub transaction_id: U64,
}
const _: () = assert!(size_of::<Descriptor>() == DESCRIPTOR_SIZE);

/// Types of packets (Linux `enum vmbus_packet_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum PacketType {
    /// Payload only.
    InBand = 6,
    /// Payload, and ranges in pages that both sides agreed on before.
    TransferPages = 7,
    /// Payload, and ranges of guest physical memory.
    GpaDirect = 9,
    /// The answer to a packet that asked for one.
    Completion = 11,
}

/// Header of a GPA-direct packet between descriptor and ranges.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct GpaDirectHeader {
    /// Zero.
    pub reserved: U32,
    /// Number of ranges that follow.
    pub range_count: U32,
}
const _: () = assert!(size_of::<GpaDirectHeader>() == 8);

/// Header of a transfer-page packet between descriptor and ranges.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct TransferPagesHeader {
    /// Which page set, by the device's own numbering.
    pub pageset_id: U16,
    /// Non-zero where the sender owns the set.
    pub sender_owns_set: u8,
    /// Zero.
    pub reserved: u8,
    /// Number of ranges that follow.
    pub range_count: U32,
}
const _: () = assert!(size_of::<TransferPagesHeader>() == 8);

/// One range of a transfer-page packet.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct TransferPageRange {
    /// Length in bytes.
    pub byte_count: U32,
    /// Offset into the page set in bytes.
    pub byte_offset: U32,
}
const _: () = assert!(size_of::<TransferPageRange>() == 8);

/// A received packet, checked, over a private copy of its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// The sender's transaction id.
    pub transaction_id: u64,
    /// Whether the sender waits for a completion.
    pub completion_requested: bool,
    /// The type, with what belongs to it.
    pub kind: PacketKind<'a>,
    /// The device's payload, padded by its sender to a multiple of 8 bytes.
    pub payload: &'a [u8],
}

/// The type of a received packet, with what belongs to it.
#[derive(Clone, Copy, Debug)]
pub enum PacketKind<'a> {
    /// Payload only.
    InBand,
    /// Payload with ranges in an agreed page set.
    TransferPages {
        /// The page set.
        pageset_id: u16,
        /// Ranges in it; their place in the set is for the device to check.
        ranges: &'a [TransferPageRange],
    },
    /// Payload with guest physical ranges.
    GpaDirect(GpaRanges<'a>),
    /// An answer.
    Completion,
}

impl<'a> Packet<'a> {
    /// Checks a packet whose bytes after the descriptor are `body`.
    ///
    /// # Errors
    /// Says what in it cannot be.
    pub fn parse(descriptor: &Descriptor, body: &'a [u8]) -> Result<Self, Corrupt> {
        let payload_at = usize::from(descriptor.offset8.get())
            .checked_mul(8)
            .and_then(|offset| offset.checked_sub(DESCRIPTOR_SIZE))
            .ok_or(Corrupt::PacketLayout)?;
        let (head, payload) = body
            .split_at_checked(payload_at)
            .ok_or(Corrupt::PacketLayout)?;
        let kind = match descriptor.packet_type.get() {
            t if t == PacketType::InBand as u16 => PacketKind::InBand,
            t if t == PacketType::Completion as u16 => PacketKind::Completion,
            t if t == PacketType::GpaDirect as u16 => {
                let (header, ranges) =
                    GpaDirectHeader::read_from_prefix(head).map_err(|_| Corrupt::PacketLayout)?;
                let ranges = GpaRanges::parse(header.range_count.get(), ranges)
                    .ok_or(Corrupt::PacketLayout)?;
                PacketKind::GpaDirect(ranges)
            }
            t if t == PacketType::TransferPages as u16 => {
                let (header, ranges) = TransferPagesHeader::read_from_prefix(head)
                    .map_err(|_| Corrupt::PacketLayout)?;
                let (ranges, _) = <[TransferPageRange]>::ref_from_prefix_with_elems(
                    ranges,
                    header.range_count.get() as usize,
                )
                .map_err(|_| Corrupt::PacketLayout)?;
                PacketKind::TransferPages {
                    pageset_id: header.pageset_id.get(),
                    ranges,
                }
            }
            t => return Err(Corrupt::PacketType(t)),
        };
        Ok(Self {
            transaction_id: descriptor.transaction_id.get(),
            completion_requested: descriptor.flags.get() & FLAG_COMPLETION_REQUESTED != 0,
            kind,
            payload,
        })
    }
}

/// A packet to send: its descriptor and the pieces that follow it.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    packet_type: PacketType,
    flags: u16,
    transaction_id: u64,
    /// Ranges with their header (a multiple of 8 bytes), then pieces of payload.
    parts: [&'a [u8]; 3],
}

impl<'a> Outgoing<'a> {
    /// A packet with nothing but `payload`; `completion` asks for an answer.
    pub fn in_band(transaction_id: u64, payload: &'a [u8], completion: bool) -> Self {
        Self {
            packet_type: PacketType::InBand,
            flags: if completion {
                FLAG_COMPLETION_REQUESTED
            } else {
                0
            },
            transaction_id,
            parts: [&[], payload, &[]],
        }
    }

    /// The answer to the packet that had `transaction_id`.
    pub fn completion(transaction_id: u64, payload: &'a [u8]) -> Self {
        Self {
            packet_type: PacketType::Completion,
            flags: 0,
            transaction_id,
            parts: [&[], payload, &[]],
        }
    }

    /// A request with guest memory: `ranges` is a [`GpaDirectHeader`] and its ranges, as
    /// [`GpaRangeWriter`](crate::gpa::GpaRangeWriter) writes them.
    pub fn gpa_direct(transaction_id: u64, ranges: &'a [u8], payload: &'a [u8]) -> Self {
        Self {
            packet_type: PacketType::GpaDirect,
            flags: FLAG_COMPLETION_REQUESTED,
            transaction_id,
            parts: [ranges, payload, &[]],
        }
    }

    /// A packet about transfer pages: `ranges` is a [`TransferPagesHeader`] and its ranges.
    pub fn transfer_pages(transaction_id: u64, ranges: &'a [u8], payload: &'a [u8]) -> Self {
        Self {
            packet_type: PacketType::TransferPages,
            flags: FLAG_COMPLETION_REQUESTED,
            transaction_id,
            parts: [ranges, payload, &[]],
        }
    }

    /// The same packet with `tail` after its payload, for payloads in two pieces.
    #[must_use]
    pub fn with_tail(mut self, tail: &'a [u8]) -> Self {
        self.parts[2] = tail;
        self
    }

    /// Bytes it takes in a ring, trailer included; `None` where a descriptor cannot say its
    /// length.
    pub fn ring_len(&self) -> Option<u32> {
        crate::ring::ring_len(self.body_len()?)
    }

    fn body_len(&self) -> Option<usize> {
        self.parts
            .iter()
            .try_fold(0usize, |sum, part| sum.checked_add(part.len()))
    }

    pub(crate) fn descriptor(&self) -> Descriptor {
        // The caller has checked `ring_len`, so neither length exceeds its field.
        let units = |bytes: usize| (bytes.div_ceil(8) as u16).saturating_add(2);
        Descriptor {
            packet_type: (self.packet_type as u16).into(),
            offset8: units(self.parts[0].len()).into(),
            length8: units(self.body_len().unwrap_or_default()).into(),
            flags: self.flags.into(),
            transaction_id: self.transaction_id.into(),
        }
    }

    pub(crate) fn parts(&self) -> impl Iterator<Item = &'a [u8]> {
        self.parts.into_iter()
    }
}
