//! Receive side scaling: which channel gets a frame off the net.
//!
//! The guest says by a key, a table and kinds of headers how frames are spread, so that all frames
//! of a connection come to the processor that it has chosen (Windows "RSS hashing functions").
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

use serde::{Deserialize, Serialize};
use vmbus_proto::rndis::flow::Flow;
use vmbus_proto::rndis::ndis::{ReceiveScale, hash, rss_flag};

/// Bytes of a key that nobody has set.
const NO_KEY: [u8; 40] = [0; 40];

/// How frames are spread over channels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Scaling {
    /// Kinds of hashes, a combination of [`hash`].
    kinds: u32,
    key: Vec<u8>,
    /// Numbers of channels; empty where all goes to the first.
    table: Vec<u16>,
}

impl Default for Scaling {
    fn default() -> Self {
        Self {
            kinds: 0,
            key: NO_KEY.to_vec(),
            table: Vec::new(),
        }
    }
}

impl Scaling {
    /// Takes over what the guest has set, of `channels` channels; `None` where that cannot be.
    pub(super) fn set(&mut self, wish: &ReceiveScale<'_>, channels: u16) -> Option<()> {
        if wish.flags & rss_flag::DISABLE != 0 {
            self.table.clear();
            return Some(());
        }
        let number = |entry: u32| u16::try_from(entry).ok().filter(|&it| it < channels);
        let table: Option<Vec<u16>> = wish.table.iter().map(|it| number(it.get())).collect();
        let table = table?;
        if wish.flags & rss_flag::TABLE_UNCHANGED == 0 {
            self.table = table;
        }
        if wish.flags & rss_flag::KEY_UNCHANGED == 0 && !wish.key.is_empty() {
            self.key = wish.key.to_vec();
        }
        if wish.flags & rss_flag::HASH_UNCHANGED == 0 {
            self.kinds = wish.hash;
        }
        Some(())
    }

    /// The channel for a frame that begins with `headers`; the first one where they have nothing
    /// to tell it by.
    pub(super) fn channel(&self, headers: &[u8]) -> u16 {
        if self.table.is_empty() {
            return 0;
        }
        let Some(hash) = self.hash(headers) else {
            return 0;
        };
        let entry = (hash as usize).checked_rem(self.table.len()).unwrap_or(0);
        self.table.get(entry).copied().unwrap_or(0)
    }

    fn hash(&self, headers: &[u8]) -> Option<u32> {
        let flow = Flow::of(headers)?;
        let (addresses_kind, ports_kind) = if flow.ipv6 {
            (hash::IPV6, hash::TCP_IPV6)
        } else {
            (hash::IPV4, hash::TCP_IPV4)
        };
        let ports = flow.ports.filter(|_| self.kinds & ports_kind != 0);
        if ports.is_none() && self.kinds & addresses_kind == 0 {
            return None;
        }
        Some(Flow { ports, ..flow }.hash(&self.key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vmbus_proto::rndis::ndis::hash::{IPV4, IPV6, TCP_IPV4, TCP_IPV6};
    use zerocopy::little_endian::U32;

    /// The key of Microsoft's examples.
    const KEY: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f,
        0xb0, 0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30,
        0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    /// A frame of TCP from 66.9.149.187:2794 to 161.142.100.80:1766.
    fn frame(fragment: u16) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0]);
        frame.extend(fragment.to_be_bytes());
        frame.extend([64, 6, 0, 0, 66, 9, 149, 187, 161, 142, 100, 80]);
        frame.extend([0x0a, 0xea, 0x06, 0xe6]);
        frame.resize(54, 0);
        frame
    }

    fn scaling(kinds: u32) -> Scaling {
        let table: Vec<U32> = (0..128).map(|entry| U32::new(entry % 4)).collect();
        let wish = ReceiveScale {
            flags: 0,
            hash: kinds | hash::TOEPLITZ,
            table: &table,
            key: &KEY,
        };
        let mut scaling = Scaling::default();
        scaling.set(&wish, 4).unwrap();
        assert_eq!(scaling.set(&wish, 3), None);
        scaling
    }

    #[test]
    fn microsofts_examples() {
        let both = scaling(IPV4 | TCP_IPV4);
        assert_eq!(both.hash(&frame(0)), Some(0x51cc_c178));
        assert_eq!(scaling(IPV4).hash(&frame(0)), Some(0x323e_8fc2));
        // Only the first of several fragments has ports: none is told by them.
        for fragment in [0x2000, 0x0001] {
            assert_eq!(both.hash(&frame(fragment)), Some(0x323e_8fc2));
        }
        assert_eq!(scaling(IPV6 | TCP_IPV6).hash(&frame(0)), None);
        assert_eq!(both.channel(&frame(0)), 0x78 % 4);

        let mut v6 = vec![0; 12];
        v6.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
        v6.extend([
            0x3f, 0xfe, 0x25, 1, 2, 0, 0x1f, 0xff, 0, 0, 0, 0, 0, 0, 0, 7,
        ]);
        v6.extend([0x3f, 0xfe, 0x25, 1, 2, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 1]);
        v6.extend([0x0a, 0xea, 0x06, 0xe6]);
        v6.resize(74, 0);
        assert_eq!(scaling(TCP_IPV6).hash(&v6), Some(0x4020_7d3d));
        assert_eq!(scaling(IPV6).hash(&v6), Some(0x2cc1_8cd5));
    }

    #[test]
    fn nothing_set_is_the_first_channel() {
        assert_eq!(Scaling::default().channel(&frame(0)), 0);
        let mut off = scaling(IPV4);
        let disable = ReceiveScale {
            flags: rss_flag::DISABLE,
            hash: 0,
            table: &[],
            key: &[],
        };
        off.set(&disable, 1).unwrap();
        assert_eq!(off.channel(&frame(0)), 0);
    }

    proptest! {
        /// Whatever is in a frame, it goes to a channel that there is.
        #[test]
        fn no_frame_goes_astray(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            for frame in [bytes.clone(), [&frame(0)[..14], &bytes[..]].concat()] {
                prop_assert!(scaling(IPV4 | TCP_IPV4 | IPV6 | TCP_IPV6).channel(&frame) < 4);
            }
        }
    }
}
