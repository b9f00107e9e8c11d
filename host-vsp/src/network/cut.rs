//! Frames off the net whose segments are joined, cut for a guest that takes single ones.
//!
//! A tap's queue holds a number of frames, however long they are: with single segments the net
//! loses a burst that it has room for with joined ones. So a tap gives segments joined, and who has
//! not asked for them so gets them cut from a private copy.
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

use super::backend::Partial;
use super::headers::{self, MIN_SEGMENT, Sum};

/// Where TCP's checksum is in its header.
const CHECKSUM: u16 = 16;

/// Bits of TCP's flags: the last segment alone ends the connection or pushes, the first one alone
/// says that the window was reduced.
const FIN: u8 = 0x01;
const PUSH: u8 = 0x08;
const REDUCED: u8 = 0x80;

/// A private copy of a frame, checked.
pub(super) struct Joined<'a> {
    headers: &'a [u8],
    payload: &'a [u8],
    network: usize,
    ipv6: bool,
    transport: usize,
    /// Most bytes of payload in a segment.
    size: usize,
    /// The sum of the pseudo header, without TCP's length.
    pseudo: u16,
}

impl<'a> Joined<'a> {
    /// A frame of TCP segments of `size` bytes each, with the sum of the pseudo header where the
    /// checksum will be; `None` where it is none.
    pub(super) fn new(frame: &'a [u8], size: u16, partial: Partial) -> Option<Self> {
        let (network, ipv6) = headers::network_header(frame)?;
        let header = if ipv6 {
            40
        } else {
            headers::ipv4_header(frame, network)?
        };
        let transport = usize::from(partial.start);
        if size < MIN_SEGMENT
            || partial.offset != CHECKSUM
            || transport < network.checked_add(header)?
        {
            return None;
        }
        let [words] = headers::bytes(frame, transport.checked_add(12)?)?;
        // Its upper half is the TCP header's length in words of four bytes.
        let tcp = usize::from(words >> 4).checked_mul(4)?;
        let (headers, payload) = frame.split_at_checked(transport.checked_add(tcp)?)?;
        if tcp < 20 || payload.is_empty() {
            return None;
        }
        let seed: [u8; 2] = headers::bytes(headers, transport.checked_add(CHECKSUM.into())?)?;
        let mut length = Sum::default();
        length.add(
            &u32::try_from(tcp.checked_add(payload.len())?)
                .ok()?
                .to_be_bytes(),
        );
        // In this arithmetic, to add the complement is to take away.
        let mut pseudo = Sum::default();
        pseudo.add(&seed);
        pseudo.add(&(!length.fold()).to_be_bytes());
        Some(Self {
            headers,
            payload,
            network,
            ipv6,
            transport,
            size: size.into(),
            pseudo: pseudo.fold(),
        })
    }

    /// The payloads of its segments.
    pub(super) fn payloads(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.payload.chunks(self.size)
    }

    /// Bytes of the headers of each segment.
    pub(super) fn header_length(&self) -> usize {
        self.headers.len()
    }

    /// Writes the headers of segment `number`, with its checksum, over `headers`.
    pub(super) fn write_headers(
        &self,
        number: usize,
        payload: &[u8],
        headers: &mut Vec<u8>,
    ) -> Option<()> {
        headers.clear();
        headers.extend(self.headers);
        let begin = number.checked_mul(self.size)?;
        let network = self.network;
        let length = self.headers.len().checked_sub(network)?;
        let length = length.checked_add(payload.len())?;
        if self.ipv6 {
            let length = u16::try_from(length.checked_sub(40)?).ok()?;
            headers::set(headers, network.checked_add(4)?, length)?;
        } else {
            let length = u16::try_from(length).ok()?;
            headers::set(headers, network.checked_add(2)?, length)?;
            let at = network.checked_add(4)?;
            let id = u16::from_be_bytes(headers::bytes(headers, at)?);
            headers::set(headers, at, id.wrapping_add(number as u16))?;
            headers::set_ipv4_checksum(headers, network)?;
        }
        let at = self.transport.checked_add(4)?;
        let sequence: &mut [u8; 4] = headers.get_mut(at..)?.first_chunk_mut()?;
        *sequence = u32::from_be_bytes(*sequence)
            .wrapping_add(u32::try_from(begin).ok()?)
            .to_be_bytes();
        let flags = headers.get_mut(self.transport.checked_add(13)?)?;
        if number > 0 {
            *flags &= !REDUCED;
        }
        if begin.checked_add(payload.len())? < self.payload.len() {
            *flags &= !(FIN | PUSH);
        }
        let place = self.transport.checked_add(CHECKSUM.into())?;
        headers::set(headers, place, self.pseudo)?;
        let segment = headers.get(self.transport..)?;
        let length = u32::try_from(segment.len().checked_add(payload.len())?).ok()?;
        let mut sum = Sum::default();
        sum.add(&length.to_be_bytes());
        sum.add(segment);
        sum.add(payload);
        headers::set(headers, place, !sum.fold())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TCP: usize = 32;

    /// A frame as a tap gives it, and where TCP begins in it.
    fn joined(ipv6: bool, tags: usize, payload: usize) -> (Vec<u8>, Partial) {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for _ in 0..tags {
            frame.extend([0x81, 0, 0, 7]);
        }
        let length = TCP + payload;
        let mut seed = Sum::default();
        if ipv6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((length as u16).to_be_bytes());
            frame.extend([6, 64]);
            frame.extend((1..33).map(|n| n * 7));
            seed.add(&frame[frame.len() - 32..]);
        } else {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend(((20 + length) as u16).to_be_bytes());
            frame.extend([
                0xff, 0xfe, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 15, 192, 168, 1, 9,
            ]);
            seed.add(&frame[frame.len() - 8..]);
        }
        seed.add(&[0, 6]);
        seed.add(&(length as u32).to_be_bytes());
        let transport = frame.len();
        frame.extend([
            0, 80, 0, 99, 0xff, 0xff, 0xff, 0, 5, 6, 7, 8, 0x80, 0x99, 1, 0,
        ]);
        frame.extend(seed.fold().to_be_bytes());
        frame.extend([0, 0, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
        frame.extend((0..payload).map(|n| ((n * n) >> 3) as u8));
        let partial = Partial {
            start: transport as u16,
            offset: CHECKSUM,
        };
        (frame, partial)
    }

    /// Whether the checksums of IP and TCP are right.
    fn is_right(frame: &[u8], network: usize, transport: usize, ipv6: bool) -> bool {
        let addresses = if ipv6 { 8..40 } else { 12..20 };
        let mut sum = Sum::default();
        sum.add(&frame[network + addresses.start..network + addresses.end]);
        sum.add(&[0, 6]);
        sum.add(&((frame.len() - transport) as u32).to_be_bytes());
        sum.add(&frame[transport..]);
        let mut header = Sum::default();
        header.add(&frame[network..transport]);
        sum.fold() == 0xffff && (ipv6 || header.fold() == 0xffff)
    }

    #[test]
    fn segments_are_as_if_they_had_come_alone() {
        for (ipv6, tags, payload) in [
            (false, 0, 10_001),
            (true, 0, 65_000),
            (false, 2, 1448),
            (true, 1, 1449),
        ] {
            let (frame, partial) = joined(ipv6, tags, payload);
            let transport = usize::from(partial.start);
            let network = transport - if ipv6 { 40 } else { 20 };
            let joined = Joined::new(&frame, 1448, partial).unwrap();
            assert_eq!(joined.header_length(), transport + TCP);
            let count = payload.div_ceil(1448);
            assert_eq!(joined.payloads().count(), count);
            let mut together: Vec<u8> = Vec::new();
            let mut segment = Vec::new();
            for (number, payload) in joined.payloads().enumerate() {
                joined.write_headers(number, payload, &mut segment).unwrap();
                segment.extend(payload);
                assert!(
                    is_right(&segment, network, transport, ipv6),
                    "{ipv6} {number}"
                );
                let length = (segment.len() - network) as u16;
                if ipv6 {
                    assert_eq!(segment[network + 4..][..2], (length - 40).to_be_bytes());
                } else {
                    assert_eq!(segment[network + 2..][..2], length.to_be_bytes());
                    let id = 0xfffe_u16.wrapping_add(number as u16);
                    assert_eq!(segment[network + 4..][..2], id.to_be_bytes());
                }
                let sequence = 0xffff_ff00_u32.wrapping_add(together.len() as u32);
                assert_eq!(segment[transport + 4..][..4], sequence.to_be_bytes());
                let mut flags = 0x10;
                if number == 0 {
                    flags |= REDUCED;
                }
                if number + 1 == count {
                    flags |= FIN | PUSH;
                }
                assert_eq!(segment[transport + 13], flags);
                together.extend(payload);
            }
            assert_eq!(together, frame[transport + TCP..]);
        }
    }

    #[test]
    fn what_cannot_be_joined_of_segments() {
        let (right, partial) = joined(false, 0, 3000);
        let try_to = |size: u16, partial: Partial, change: fn(&mut Vec<u8>)| {
            let mut frame = right.clone();
            change(&mut frame);
            Joined::new(&frame, size, partial).is_some()
        };
        assert!(try_to(48, partial, |_| {}));
        assert!(try_to(u16::MAX, partial, |_| {}));
        // No segments, or too many; UDP's checksum; TCP within IP, or beyond the frame.
        assert!(!try_to(0, partial, |_| {}));
        assert!(!try_to(47, partial, |_| {}));
        assert!(!try_to(
            1448,
            Partial {
                offset: 6,
                ..partial
            },
            |_| {}
        ));
        for start in [0, 33, 3066, u16::MAX] {
            assert!(
                !try_to(1448, Partial { start, ..partial }, |_| {}),
                "{start}"
            );
        }
        // No IP; no TCP header; nothing behind the headers.
        assert!(!try_to(1448, partial, |frame| frame[12] = 0x99));
        assert!(!try_to(1448, partial, |frame| frame[46] = 0x40));
        assert!(!try_to(1448, partial, |frame| frame.truncate(66)));
        assert!(!try_to(1448, partial, Vec::clear));
    }

    proptest! {
        #[test]
        fn nothing_panics(
            mut frame in prop::collection::vec(any::<u8>(), 0..300),
            ipv6 in any::<bool>(),
            start in 0u16..300,
            size in 0u16..200,
        ) {
            if frame.len() > 14 {
                let kind: [u8; 2] = if ipv6 { [0x86, 0xdd] } else { [8, 0] };
                frame[12..14].copy_from_slice(&kind);
            }
            let partial = Partial { start, offset: CHECKSUM };
            if let Some(joined) = Joined::new(&frame, size, partial) {
                let mut headers = Vec::new();
                for (number, payload) in joined.payloads().enumerate() {
                    let _ = joined.write_headers(number, payload, &mut headers);
                }
            }
        }
    }
}
