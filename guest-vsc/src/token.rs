//! What names a request while the host has it.
//!
//! A driver keeps its requests in a table. A token is a place in it and the place's generation, so
//! that whatever the host completes, nothing but a request that is in flight, and that only once,
//! is found.

/// Names a request while it is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    pub(crate) index: u16,
    pub(crate) generation: u32,
}

impl Token {
    /// The transaction id on the wire. Never 0, which is the host's for packets of its own.
    pub(crate) fn transaction_id(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The token of this transaction id; `None` where no token has it.
    pub(crate) fn from_transaction_id(id: u64) -> Option<Self> {
        Some(Self {
            index: u16::try_from(id & 0xFFFF_FFFF).ok()?,
            generation: (id >> 32) as u32,
        })
    }
}

/// The generation after this one. Zero is skipped, so that no transaction id is 0.
pub(crate) fn next_generation(generation: u32) -> u32 {
    generation.wrapping_add(1).max(1)
}
