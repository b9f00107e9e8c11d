//! Key-value pairs (KVP, "data exchange"): host and guest read and write small texts.
//!
//! The pairs live in the guest, in pools ([`pool`]). The host reads, writes and lists them by
//! requests of one [`Exchange`] each; an answer has the same layout with the key or the value
//! filled in. Texts are UTF-16 and end with a zero, which their sizes count.
//!
//! In Linux a daemon answers (`hv_kvp_daemon`): without it the kernel answers neither the choice
//! of versions (for most of a minute) nor, later, any request but with
//! [`FAIL`](super::status::FAIL).

use zerocopy::FromBytes as _;
use zerocopy::little_endian::{U16, U32};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{BadMessage, Version};
use crate::guid::Guid;

/// Class of the service (Linux `HV_KVP_GUID`).
pub const CLASS: Guid = Guid::new(0xa9a0f4e7, 0x5a45, 0x4d96, 0xb827, 0x8a841e8c03e6);

/// The instance that Hyper-V offers.
pub const INSTANCE: Guid = Guid::new(0x242ff919, 0x07db, 0x4180, 0x9c2e, 0xb86cb68c8c55);

/// Versions of the service; the layouts here are those of both.
pub const VERSIONS: &[Version] = &[Version::new(3, 0), Version::new(4, 0)];

/// Most bytes of a key, its final zero included.
pub const MAX_KEY: usize = 512;
/// Most bytes of a value, its final zero included.
pub const MAX_VALUE: usize = 2048;

/// [`Exchange::operation`] (Linux `enum hv_kvp_exchg_op`).
pub mod operation {
    /// Reads the value of a key.
    pub const GET: u8 = 0;
    /// Writes a key with its value.
    pub const SET: u8 = 1;
    /// Takes a key away.
    pub const DELETE: u8 = 2;
    /// Reads the pair of an index.
    pub const ENUMERATE: u8 = 3;
}

/// [`Exchange::pool`] (Linux `enum hv_kvp_exchg_pool`).
pub mod pool {
    /// Written by the host, for the guest.
    pub const EXTERNAL: u8 = 0;
    /// Written by the guest's users, for the host.
    pub const GUEST: u8 = 1;
    /// Made by the guest's system: its name, version, addresses.
    pub const AUTO: u8 = 2;
    /// Made by the host's system, for the guest.
    pub const AUTO_EXTERNAL: u8 = 3;
    /// Made by the guest's system for itself.
    pub const AUTO_INTERNAL: u8 = 4;
}

/// [`Pair::value_type`]: a text (Windows `REG_SZ`).
pub const VALUE_TEXT: u32 = 1;

/// A key with its value (Linux `struct hv_kvp_exchg_msg_value`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Pair {
    /// What the value is: [`VALUE_TEXT`].
    pub value_type: U32,
    /// Bytes of the key.
    pub key_size: U32,
    /// Bytes of the value.
    pub value_size: U32,
    /// The key.
    pub key: [u8; MAX_KEY],
    /// The value.
    pub value: [u8; MAX_VALUE],
}
const _: () = assert!(size_of::<Pair>() == 2572);

impl Pair {
    /// A pair of texts; `None` where one is too long or contains a zero.
    pub fn new(key: &str, value: &str) -> Option<Self> {
        let mut pair: Self = zerocopy::FromZeros::new_zeroed();
        pair.value_type = VALUE_TEXT.into();
        pair.key_size = put_text(&mut pair.key, key)?.into();
        pair.value_size = put_text(&mut pair.value, value)?.into();
        Some(pair)
    }

    /// The key's UTF-16 units, without the final zero.
    pub fn key(&self) -> impl Iterator<Item = u16> + '_ {
        units(&self.key, self.key_size.get())
    }

    /// The value's UTF-16 units, without the final zero.
    pub fn value(&self) -> impl Iterator<Item = u16> + '_ {
        units(&self.value, self.value_size.get())
    }
}

/// Writes `text` with its final zero; the bytes it took.
fn put_text(to: &mut [u8], text: &str) -> Option<u32> {
    let mut places = to.chunks_exact_mut(2);
    let mut size = 0u32;
    for unit in text.encode_utf16().chain([0]) {
        let ends = unit == 0;
        places.next()?.copy_from_slice(&unit.to_le_bytes());
        size = size.checked_add(2)?;
        if ends {
            break;
        }
    }
    // A zero within the text would hide the rest of it.
    (!text.contains('\0')).then_some(size)
}

/// The units of a text of `size` bytes, up to a zero.
fn units(bytes: &[u8], size: u32) -> impl Iterator<Item = u16> + '_ {
    let length = bytes.len().min(size as usize);
    let pairs = bytes.get(..length).unwrap_or_default().chunks_exact(2);
    pairs
        .map(|pair| <[u8; 2]>::try_from(pair).map_or(0, u16::from_le_bytes))
        .take_while(|unit| *unit != 0)
}

/// Start of a request: what is to be done, and where (Linux `struct hv_kvp_hdr`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Head {
    /// One of [`operation`].
    pub operation: u8,
    /// One of [`pool`].
    pub pool: u8,
    /// Zero.
    pub padding: U16,
}
const _: () = assert!(size_of::<Head>() == 4);

/// Body of each request of this module and of its answer: [`Head`], then what belongs to the
/// operation, in as many bytes for all operations.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Exchange {
    head: Head,
    rest: [u8; REST],
}
const _: () = assert!(size_of::<Exchange>() == 2580);

/// The longest of what follows a head: an index and a pair.
const REST: usize = size_of::<U32>() + size_of::<Pair>();

impl Exchange {
    fn new(operation: u8, pool: u8, parts: [&[u8]; 2]) -> Self {
        let mut exchange = Self {
            head: Head {
                operation,
                pool,
                padding: 0.into(),
            },
            rest: [0; REST],
        };
        let bytes = parts.into_iter().flatten();
        for (to, from) in exchange.rest.iter_mut().zip(bytes) {
            *to = *from;
        }
        exchange
    }

    /// Reads the value of `key`; `None` where the key is too long.
    pub fn get(pool: u8, key: &str) -> Option<Self> {
        let pair = Pair::new(key, "")?;
        Some(Self::of_pair(operation::GET, pool, &pair))
    }

    /// Writes `value` to `key`; `None` where either is too long.
    pub fn set(pool: u8, key: &str, value: &str) -> Option<Self> {
        let pair = Pair::new(key, value)?;
        Some(Self::of_pair(operation::SET, pool, &pair))
    }

    /// Takes `key` away; `None` where it is too long (Linux `struct hv_kvp_msg_delete`).
    pub fn delete(pool: u8, key: &str) -> Option<Self> {
        let pair = Pair::new(key, "")?;
        let size = pair.key_size.get().to_le_bytes();
        Some(Self::new(operation::DELETE, pool, [&size, &pair.key]))
    }

    /// Reads the pair of `index`, from 0 (Linux `struct hv_kvp_msg_enumerate`).
    pub fn enumerate(pool: u8, index: u32) -> Self {
        Self::new(operation::ENUMERATE, pool, [&index.to_le_bytes(), &[]])
    }

    fn of_pair(operation: u8, pool: u8, pair: &Pair) -> Self {
        Self::new(operation, pool, [zerocopy::IntoBytes::as_bytes(pair), &[]])
    }

    /// Reads the `body` of a request or an answer.
    ///
    /// # Errors
    /// It is too short.
    pub fn parse(body: &[u8]) -> Result<Self, BadMessage> {
        Self::read_from_prefix(body)
            .map(|(exchange, _)| exchange)
            .map_err(|_| BadMessage)
    }

    /// One of [`operation`].
    pub fn operation(&self) -> u8 {
        self.head.operation
    }

    /// One of [`pool`].
    pub fn pool(&self) -> u8 {
        self.head.pool
    }

    /// The pair in a request to [`GET`](operation::GET) or [`SET`](operation::SET) and in its
    /// answer.
    pub fn pair(&self) -> Pair {
        Pair::read_from_prefix(&self.rest).map_or_else(|_| zerocopy::FromZeros::new_zeroed(), first)
    }

    /// The index and the pair in a request to [`ENUMERATE`](operation::ENUMERATE) and in its
    /// answer.
    pub fn indexed_pair(&self) -> (u32, Pair) {
        U32::read_from_prefix(&self.rest)
            .ok()
            .and_then(|(index, rest)| {
                let (pair, _) = Pair::read_from_prefix(rest).ok()?;
                Some((index.get(), pair))
            })
            .unwrap_or_else(|| (0, zerocopy::FromZeros::new_zeroed()))
    }

    /// The UTF-16 units of the key in a request to [`DELETE`](operation::DELETE).
    pub fn deleted_key(&self) -> impl Iterator<Item = u16> + '_ {
        let (size, key) = U32::read_from_prefix(&self.rest).map_or((0, &[][..]), |(size, rest)| {
            (size.get(), rest.get(..MAX_KEY).unwrap_or_default())
        });
        units(key, size)
    }
}

fn first<A, B>((first, _): (A, B)) -> A {
    first
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::string::String;
    use zerocopy::IntoBytes as _;

    fn text(units: impl Iterator<Item = u16>) -> String {
        char::decode_utf16(units)
            .map(|unit| unit.unwrap_or('?'))
            .collect()
    }

    #[test]
    fn a_request_in_bytes() {
        let set = Exchange::set(pool::EXTERNAL, "ab", "c").unwrap();
        let bytes = set.as_bytes();
        assert_eq!(
            bytes[..22],
            [
                1, 0, 0, 0, 1, 0, 0, 0, 6, 0, 0, 0, 4, 0, 0, 0, b'a', 0, b'b', 0, 0, 0
            ]
        );
        assert_eq!(bytes[528..532], [b'c', 0, 0, 0]);
        let list = Exchange::enumerate(pool::AUTO, 5);
        assert_eq!(list.as_bytes()[..12], [3, 2, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
        let delete = Exchange::delete(pool::EXTERNAL, "k").unwrap();
        assert_eq!(
            delete.as_bytes()[..12],
            [2, 0, 0, 0, 4, 0, 0, 0, b'k', 0, 0, 0]
        );
        assert_eq!(text(delete.deleted_key()), "k");
    }

    #[test]
    fn an_answer_in_bytes() {
        // Index 5 of the automatic pool, as Linux's daemon answers.
        let mut bytes = [0; 2580];
        bytes[..20].copy_from_slice(&[3, 2, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, 14, 0, 0, 0, 6, 0, 0, 0]);
        for (at, unit) in "OSName".encode_utf16().enumerate() {
            bytes[20 + 2 * at..][..2].copy_from_slice(&unit.to_le_bytes());
        }
        bytes[532..536].copy_from_slice(&[0xE9, 0, b'!', 0]);
        let answer = Exchange::parse(&bytes).unwrap();
        assert_eq!(
            (answer.operation(), answer.pool()),
            (operation::ENUMERATE, pool::AUTO)
        );
        let (index, pair) = answer.indexed_pair();
        assert_eq!((index, pair.value_type.get()), (5, VALUE_TEXT));
        assert_eq!(text(pair.key()), "OSName");
        assert_eq!(text(pair.value()), "é!");
    }

    #[test]
    fn texts_have_limits() {
        let most = "k".repeat(MAX_KEY / 2 - 1);
        assert!(Exchange::get(0, &most).is_some());
        assert!(Exchange::get(0, &(most.clone() + "k")).is_none());
        assert!(Exchange::set(0, "k", &"v".repeat(MAX_VALUE / 2)).is_none());
        assert!(Exchange::get(0, "a\0b").is_none());
        let pair = Pair::new(&most, "").unwrap();
        assert_eq!(pair.key_size.get() as usize, MAX_KEY);
        assert_eq!(text(pair.key()), most);
    }

    proptest! {
        #[test]
        fn texts_come_back(key in "[^\0]{0,100}", value in "[^\0]{0,200}") {
            let set = Exchange::set(pool::GUEST, &key, &value).unwrap();
            let pair = Exchange::parse(set.as_bytes()).unwrap().pair();
            prop_assert_eq!(text(pair.key()), key);
            prop_assert_eq!(text(pair.value()), value);
        }

        #[test]
        fn no_bytes_panic(head in proptest::collection::vec(any::<u8>(), 0..40), fill: u8, length in 2570..2590usize) {
            let mut bytes = head;
            bytes.resize(length, fill);
            if let Ok(exchange) = Exchange::parse(&bytes) {
                let pair = exchange.pair();
                prop_assert!(pair.key().count() <= MAX_KEY / 2);
                prop_assert!(pair.value().count() <= MAX_VALUE / 2);
                prop_assert!(exchange.indexed_pair().1.value().count() <= MAX_VALUE / 2);
                prop_assert!(exchange.deleted_key().count() <= MAX_KEY / 2);
            }
        }
    }
}
