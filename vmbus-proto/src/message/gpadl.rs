//! GPADLs: guest memory described page by page, over several messages.
//!
//! One header message names the GPADL and starts its list of ranges; body messages go on with
//! frame numbers until [`GpadlHeaderHeader::range_bytes`] bytes of ranges were sent. The host
//! answers once, after the last.

use zerocopy::IntoBytes as _;
use zerocopy::little_endian::{U16, U32};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Encoded, Message};
use crate::gpa::GpaRangeHeader;
use crate::hv::synic::MESSAGE_PAYLOAD;

/// Frame numbers that fit a header message with one range.
pub const PFNS_IN_HEADER: usize = (MESSAGE_PAYLOAD - 28) / 8;
/// Frame numbers that fit a body message.
pub const PFNS_IN_BODY: usize = (MESSAGE_PAYLOAD - 16) / 8;
/// The most frame numbers that a GPADL of one range can have, as its length is said in 16 bits.
pub const MAX_PFNS: usize = (u16::MAX as usize - size_of::<GpaRangeHeader>()) / 8;

const _: () = assert!(PFNS_IN_HEADER == 26);
const _: () = assert!(PFNS_IN_BODY == 28);

/// Fixed part of GPADL_HEADER's body; ranges follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct GpadlHeaderHeader {
    /// The channel's relid.
    pub relid: U32,
    /// The guest's handle, non-zero and not in use.
    pub gpadl: U32,
    /// Bytes that the ranges take over all messages.
    pub range_bytes: U16,
    /// Number of ranges.
    pub range_count: U16,
}
const _: () = assert!(size_of::<GpadlHeaderHeader>() == 12);

/// Fixed part of GPADL_BODY's body; frame numbers follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct GpadlBodyHeader {
    /// Number of the message; guests count from 0 or 1, so it says nothing.
    pub message_number: U32,
    /// The guest's handle.
    pub gpadl: U32,
}
const _: () = assert!(size_of::<GpadlBodyHeader>() == 8);

/// The messages that announce a GPADL of one range to the host: `byte_count` bytes from the start
/// of its first page, in the pages `pfns`.
///
/// `None` where `pfns` does not have exactly the pages of `byte_count`, or too many for a GPADL.
pub fn announce<I>(relid: u32, gpadl: u32, byte_count: u32, pfns: I) -> Option<Announcement<I>>
where
    I: ExactSizeIterator<Item = u64>,
{
    let range = GpaRangeHeader {
        byte_count: byte_count.into(),
        byte_offset: 0.into(),
    };
    if pfns.len() != range.page_count()? || pfns.len() > MAX_PFNS || pfns.len() == 0 {
        return None;
    }
    let range_bytes = pfns
        .len()
        .checked_mul(8)?
        .checked_add(size_of::<GpaRangeHeader>())?
        .try_into()
        .ok()?;
    let header = GpadlHeaderHeader {
        relid: relid.into(),
        gpadl: gpadl.into(),
        range_bytes: U16::new(range_bytes),
        range_count: 1.into(),
    };
    Some(Announcement {
        first: Some((header, range)),
        gpadl,
        next_number: 0,
        pfns,
    })
}

/// Iterator over the messages of one GPADL; made by [`announce`].
#[derive(Debug)]
pub struct Announcement<I> {
    first: Option<(GpadlHeaderHeader, GpaRangeHeader)>,
    gpadl: u32,
    next_number: u32,
    pfns: I,
}

impl<I: ExactSizeIterator<Item = u64>> Iterator for Announcement<I> {
    type Item = Encoded;

    fn next(&mut self) -> Option<Encoded> {
        if self.pfns.len() == 0 {
            return None;
        }
        let (mut encoded, room) = if let Some((header, range)) = self.first.take() {
            let mut encoded = Message::GpadlHeader(header, &[]).encode();
            encoded.push(range.as_bytes());
            (encoded, PFNS_IN_HEADER)
        } else {
            let body = GpadlBodyHeader {
                message_number: self.next_number.into(),
                gpadl: self.gpadl.into(),
            };
            self.next_number = self.next_number.wrapping_add(1);
            (Message::GpadlBody(body, &[]).encode(), PFNS_IN_BODY)
        };
        for pfn in self.pfns.by_ref().take(room) {
            encoded.push(&pfn.to_le_bytes());
        }
        Some(encoded)
    }
}
