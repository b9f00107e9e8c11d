//! Which flow a frame belongs to, and the hash by which flows are spread over channels.
//!
//! A host spreads what it receives so, by the key and the table that the guest has set; a guest what
//! it sends, by the host's [`SendTable`](crate::netvsp::SendTable). Source: Windows "RSS hashing
//! functions".

/// Bytes before an Ethernet frame's type.
const ETHERNET_ADDRESSES: usize = 12;
/// Bytes of a VLAN tag with its type.
const TAG: usize = 4;

const TYPE_IPV4: u16 = 0x0800;
const TYPE_IPV6: u16 = 0x86dd;
const TYPES_TAGGED: [u16; 2] = [0x8100, 0x88a8];

/// TCP, as IP numbers it.
const PROTOCOL_TCP: u8 = 6;

/// Where the IP header begins in a frame, behind its tags, and whether it is IPv6.
pub fn network_header(headers: &[u8]) -> Option<(usize, bool)> {
    let mut at = ETHERNET_ADDRESSES;
    loop {
        let kind = u16::from_be_bytes(bytes(headers, at)?);
        match kind {
            TYPE_IPV4 => return Some((at.checked_add(2)?, false)),
            TYPE_IPV6 => return Some((at.checked_add(2)?, true)),
            kind if TYPES_TAGGED.contains(&kind) => at = at.checked_add(TAG)?,
            _ => return None,
        }
    }
}

/// Bytes of the IPv4 header at `network`.
pub fn ipv4_header(headers: &[u8], network: usize) -> Option<usize> {
    let [first] = bytes(headers, network)?;
    let length = usize::from(first & 0xf).checked_mul(4)?;
    (first >> 4 == 4 && length >= 20).then_some(length)
}

/// What IP carries in a frame, without a look behind IPv6's extensions.
pub fn transport_protocol(headers: &[u8]) -> Option<u8> {
    let (network, ipv6) = network_header(headers)?;
    let at = network.checked_add(if ipv6 { 6 } else { 9 })?;
    headers.get(at).copied()
}

/// What tells flows apart: as much of it as there is in a frame's headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow<'a> {
    /// Over IPv6.
    pub ipv6: bool,
    /// Both addresses, the source's first.
    pub addresses: &'a [u8],
    /// Both ports, the source's first, where it is TCP. A fragment has none: only the first of
    /// several would, and they belong together.
    pub ports: Option<[u8; 4]>,
}

impl<'a> Flow<'a> {
    /// Of a frame that begins with `headers`; `None` where it is no IP.
    pub fn of(headers: &'a [u8]) -> Option<Self> {
        let (network, ipv6) = network_header(headers)?;
        let (at, length) = if ipv6 { (8, 32) } else { (12, 8) };
        let at = network.checked_add(at)?;
        let addresses = headers.get(at..at.checked_add(length)?)?;
        Some(Self {
            ipv6,
            addresses,
            ports: ports(headers, network, ipv6),
        })
    }

    /// Microsoft's hash of it with `key`.
    pub fn hash(&self, key: &[u8]) -> u32 {
        let addresses = self.addresses.iter().copied();
        toeplitz(key, addresses.chain(self.ports.into_iter().flatten()))
    }
}

/// The ports of TCP in a frame that is no fragment; not behind IPv6's extensions.
fn ports(headers: &[u8], network: usize, ipv6: bool) -> Option<[u8; 4]> {
    let length = if ipv6 {
        40
    } else {
        // More fragments, and the offset of this one.
        let fragment = u16::from_be_bytes(bytes(headers, network.checked_add(6)?)?);
        if fragment & 0x3fff != 0 {
            return None;
        }
        ipv4_header(headers, network)?
    };
    if transport_protocol(headers)? != PROTOCOL_TCP {
        return None;
    }
    bytes(headers, network.checked_add(length)?)
}

/// Microsoft's hash: for each bit of the input that is set, the 32 bits of the key that begin there.
/// A key that is too short goes on with zeros.
pub fn toeplitz(key: &[u8], input: impl IntoIterator<Item = u8>) -> u32 {
    let mut bytes = key.iter().copied().chain(core::iter::repeat(0));
    let mut window = 0_u32;
    for byte in bytes.by_ref().take(4) {
        window = window << 8 | u32::from(byte);
    }
    let mut sum = 0;
    for (byte, next) in input.into_iter().zip(bytes) {
        for bit in (0..8).rev() {
            if byte >> bit & 1 != 0 {
                sum ^= window;
            }
            window = window << 1 | u32::from(next >> bit & 1);
        }
    }
    sum
}

/// The `N` bytes at `at`.
fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// The key of Microsoft's examples.
    const KEY: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f,
        0xb0, 0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30,
        0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    /// A frame of `protocol` from 66.9.149.187:2794 to 161.142.100.80:1766, behind `tags`.
    fn frame(tags: &[u8], fragment: u16, protocol: u8) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend(tags);
        frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0]);
        frame.extend(fragment.to_be_bytes());
        frame.extend([64, protocol, 0, 0, 66, 9, 149, 187, 161, 142, 100, 80]);
        frame.extend([0x0a, 0xea, 0x06, 0xe6]);
        frame
    }

    #[test]
    fn microsofts_examples() {
        const WITH_PORTS: u32 = 0x51cc_c178;
        const WITHOUT: u32 = 0x323e_8fc2;
        let hash = |frame: &[u8]| Flow::of(frame).map(|flow| flow.hash(&KEY));
        assert_eq!(hash(&frame(&[], 0, 6)), Some(WITH_PORTS));
        let tags = [0x88, 0xa8, 0, 5, 0x81, 0, 0, 7];
        assert_eq!(hash(&frame(&tags, 0, 6)), Some(WITH_PORTS));
        assert_eq!(hash(&frame(&[], 0, 17)), Some(WITHOUT));
        // "Do not fragment" makes no fragment.
        assert_eq!(hash(&frame(&[], 0x4000, 6)), Some(WITH_PORTS));
        for fragment in [0x2000, 0x0001] {
            assert_eq!(hash(&frame(&[], fragment, 6)), Some(WITHOUT));
        }
        let mut other = frame(&[], 0, 6);
        other[12..14].copy_from_slice(&[8, 6]);
        assert_eq!(hash(&other), None, "ARP");
    }

    #[test]
    fn a_short_key_goes_on_with_zeros() {
        assert_eq!(toeplitz(&[], [0xff; 36]), 0);
        assert_eq!(toeplitz(&[0x80], [0x80]), 0x8000_0000);
        assert_eq!(toeplitz(&[0, 0, 0, 0, 0x80], [0, 1]), 1 << 14);
    }

    proptest! {
        /// Whatever is in a frame, and wherever it ends.
        #[test]
        fn no_frame_is_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..100), at in 0_usize..42) {
            let frame = frame(&[], 0, 6);
            for frame in [bytes.clone(), [&frame[..at.min(frame.len())], &bytes[..]].concat()] {
                if let Some(flow) = Flow::of(&frame) {
                    prop_assert_eq!(flow.addresses.len(), if flow.ipv6 { 32 } else { 8 });
                    flow.hash(&KEY);
                }
                transport_protocol(&frame);
            }
        }
    }
}
