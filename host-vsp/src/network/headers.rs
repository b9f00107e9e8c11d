//! Headers of frames that are not complete: the guest leaves checksums, and the cutting of frames
//! of many segments, to the host.
//!
//! All is done in a private copy of a frame's headers; its payload is never looked at. Guests leave
//! fields in several states: Linux gives a frame of many segments with an IPv4 length of zero and
//! seeds its TCP checksum with a length of zero. So each field that the net will build upon is made
//! anew here.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

pub(super) use vmbus_proto::rndis::flow::{ipv4_header, network_header, transport_protocol};
use vmbus_proto::rndis::packet::{LargeSend, TxChecksum};

use super::backend::{Offload, Partial, Segments};

/// Bytes before an Ethernet frame's type.
const ETHERNET_ADDRESSES: usize = 12;
/// Bytes of an Ethernet header.
pub(super) const ETHERNET_HEADER: usize = 14;
/// Bytes of a VLAN tag with its type.
pub(super) const TAG: usize = 4;
/// The longest TCP header in bytes.
const MAX_TCP_HEADER: usize = 60;

/// The least payload of the segments that a frame is cut into, as Linux has it (`TCP_MIN_SND_MSS`).
/// With less, one packet would keep the kernel for tens of thousands of segments.
pub(super) const MIN_SEGMENT: u16 = 48;

/// The type of a VLAN tag.
const TYPE_TAGGED: u16 = 0x8100;

/// TCP, as IP numbers it.
pub(super) const PROTOCOL_TCP: u8 = 6;
/// UDP, as IP numbers it.
pub(super) const PROTOCOL_UDP: u8 = 17;

/// What the guest wants to be done to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Complete checksums.
    Checksum(TxChecksum),
    /// Cut it.
    Segments(LargeSend),
}

impl Wish {
    /// Bytes of a frame of which a private copy is needed.
    pub(super) fn header_bytes(self) -> usize {
        let transport = match self {
            Self::Checksum(checksum) if checksum.any(TxChecksum::TCP | TxChecksum::UDP) => {
                checksum.transport_offset()
            }
            // IPv4's header alone, the longest, behind two tags.
            Self::Checksum(_) => 2 * TAG + ETHERNET_HEADER,
            Self::Segments(large) => large.transport_offset(),
        };
        transport.saturating_add(MAX_TCP_HEADER)
    }

    /// Does in `headers`, the first bytes of a frame of `length` bytes, what is done before it goes
    /// to the net, and says what is left to the net. `None` where the frame is not what the guest
    /// says it is.
    pub(super) fn prepare(self, headers: &mut [u8], length: usize) -> Option<Option<Offload>> {
        match self {
            Self::Checksum(checksum) => complete_checksums(checksum, headers, length),
            Self::Segments(large) => cut(large, headers, length).map(Some),
        }
    }
}

fn complete_checksums(
    checksum: TxChecksum,
    headers: &mut [u8],
    length: usize,
) -> Option<Option<Offload>> {
    let (network, ipv6) = network_header(headers)?;
    if checksum.any(TxChecksum::IP_HEADER) && !ipv6 {
        set_ipv4_checksum(headers, network)?;
    }
    let (protocol, offset) = if checksum.any(TxChecksum::TCP) {
        (PROTOCOL_TCP, 16)
    } else if checksum.any(TxChecksum::UDP) {
        (PROTOCOL_UDP, 6)
    } else {
        return Some(None);
    };
    let transport = checksum.transport_offset();
    seed(headers, network, ipv6, transport, protocol, offset, length)?;
    Some(Some(Offload {
        checksum: partial(transport, offset)?,
        segments: None,
    }))
}

fn cut(large: LargeSend, headers: &mut [u8], length: usize) -> Option<Offload> {
    let (network, ipv6) = network_header(headers)?;
    let transport = large.transport_offset();
    if ipv6 != large.is_ipv6() || !large.is_version_2() {
        return None;
    }
    let size = u16::try_from(large.mss()).ok()?;
    if size < MIN_SEGMENT {
        return None;
    }
    let [offset] = bytes(headers, transport.checked_add(12)?)?;
    // Its upper half is the TCP header's length in words of four bytes.
    let tcp = usize::from(offset >> 4).checked_mul(4)?;
    let all = transport.checked_add(tcp)?;
    if tcp < 20 || all > headers.len() || all >= length {
        return None;
    }
    if ipv6 {
        let payload = length.checked_sub(network)?.checked_sub(40)?;
        set(
            headers,
            network.checked_add(4)?,
            u16::try_from(payload).ok()?,
        )?;
    } else {
        let total = length.checked_sub(network)?;
        set(headers, network.checked_add(2)?, u16::try_from(total).ok()?)?;
        set_ipv4_checksum(headers, network)?;
    }
    seed(headers, network, ipv6, transport, PROTOCOL_TCP, 16, length)?;
    Some(Offload {
        checksum: partial(transport, 16)?,
        segments: Some(Segments {
            size,
            headers: u16::try_from(all).ok()?,
            ipv6,
        }),
    })
}

fn partial(transport: usize, offset: usize) -> Option<Partial> {
    Some(Partial {
        start: u16::try_from(transport).ok()?,
        offset: u16::try_from(offset).ok()?,
    })
}

/// Puts the sum of the pseudo header where the checksum will be.
fn seed(
    headers: &mut [u8],
    network: usize,
    ipv6: bool,
    transport: usize,
    protocol: u8,
    offset: usize,
    length: usize,
) -> Option<()> {
    let header = if ipv6 {
        40
    } else {
        ipv4_header(headers, network)?
    };
    // The transport header may come after extensions, and not before the network's ends.
    if transport < network.checked_add(header)? {
        return None;
    }
    let place = transport.checked_add(offset)?;
    if place.checked_add(2)? > length {
        return None;
    }
    // A short frame may be padded: IP knows where the datagram ends.
    let end = network_end(headers, network, ipv6)?;
    let end = if end < place.checked_add(2)? {
        length
    } else {
        end.min(length)
    };
    let covered = u32::try_from(end.checked_sub(transport)?).ok()?;
    let (at, addresses) = if ipv6 { (8, 32) } else { (12, 8) };
    let at = network.checked_add(at)?;
    let addresses = headers.get(at..at.checked_add(addresses)?)?;
    let mut sum = Sum::default();
    sum.add(addresses);
    sum.add(&u32::from(protocol).to_be_bytes());
    sum.add(&covered.to_be_bytes());
    set(headers, place, sum.fold())
}

/// Where the datagram whose header is at `network` ends, as that says.
fn network_end(headers: &[u8], network: usize, ipv6: bool) -> Option<usize> {
    let (at, before) = if ipv6 { (4, 40) } else { (2, 0) };
    let length = u16::from_be_bytes(bytes(headers, network.checked_add(at)?)?);
    network.checked_add(before)?.checked_add(length.into())
}

/// Completes the checksum of the IPv4 header at `network`.
pub(super) fn set_ipv4_checksum(headers: &mut [u8], network: usize) -> Option<()> {
    let length = ipv4_header(headers, network)?;
    let place = network.checked_add(10)?;
    set(headers, place, 0)?;
    let mut sum = Sum::default();
    sum.add(headers.get(network..network.checked_add(length)?)?);
    set(headers, place, !sum.fold())
}

/// Puts a VLAN tag into the headers of a frame; `None` where they have no Ethernet header.
pub(super) fn insert_tag(headers: &mut Vec<u8>, tag: u16) -> Option<()> {
    if headers.len() < ETHERNET_HEADER {
        return None;
    }
    let [a, b] = TYPE_TAGGED.to_be_bytes();
    let [c, d] = tag.to_be_bytes();
    headers.splice(ETHERNET_ADDRESSES..ETHERNET_ADDRESSES, [a, b, c, d]);
    Some(())
}

/// What a tag in front of the headers does to offsets.
pub(super) fn shift(offload: Offload) -> Option<Offload> {
    let tag = TAG as u16;
    Some(Offload {
        checksum: Partial {
            start: offload.checksum.start.checked_add(tag)?,
            ..offload.checksum
        },
        segments: match offload.segments {
            Some(segments) => Some(Segments {
                headers: segments.headers.checked_add(tag)?,
                ..segments
            }),
            None => None,
        },
    })
}

/// The `N` bytes at `at`.
pub(super) fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..)?.first_chunk().copied()
}

/// Puts a word at `at`.
pub(super) fn set(headers: &mut [u8], at: usize, value: u16) -> Option<()> {
    let place = headers.get_mut(at..)?.first_chunk_mut()?;
    *place = value.to_be_bytes();
    Some(())
}

/// The Internet's checksum (RFC 1071), as it grows. Each piece but the last has to have an even
/// number of bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sum(u64);

impl Sum {
    /// Adds bytes.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(4);
        // No sum of less than 2^32 words exceeds its place.
        for word in words.by_ref() {
            let word = u32::from_be_bytes(word.try_into().unwrap_or_default());
            self.0 = self.0.wrapping_add(u64::from(word));
        }
        for pair in words.remainder().chunks(2) {
            let high = pair.first().copied().unwrap_or_default();
            let low = pair.get(1).copied().unwrap_or_default();
            let word = u16::from_be_bytes([high, low]);
            self.0 = self.0.wrapping_add(u64::from(word));
        }
    }

    /// The sum in 16 bits; its complement is the checksum.
    pub(super) fn fold(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum >> 16).wrapping_add(sum & 0xffff);
        }
        sum as u16
    }
}

#[cfg(test)]
mod tests;
