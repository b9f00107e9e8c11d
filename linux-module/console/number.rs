// SPDX-License-Identifier: GPL-2.0

//! The consoles' numbers: the lowest that is free.

use kernel::sync::atomic::{
    Atomic,
    Full,
    Relaxed, //
};

/// A bit for each number that is taken.
static TAKEN: Atomic<u64> = Atomic::new(0);

/// A number that no other console has.
pub(crate) struct Number(u32);

impl Number {
    /// Takes the lowest that is free.
    pub(crate) fn claim() -> Option<Self> {
        let mut taken = TAKEN.load(Relaxed);
        loop {
            let number = taken.trailing_ones();
            let with = taken | 1u64.checked_shl(number)?;
            match TAKEN.cmpxchg(taken, with, Full) {
                Ok(_) => return Some(Self(number)),
                Err(now) => taken = now,
            }
        }
    }

    pub(crate) fn get(&self) -> u32 {
        self.0
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        let mut taken = TAKEN.load(Relaxed);
        while let Err(now) = TAKEN.cmpxchg(taken, taken & !(1 << self.0), Full) {
            taken = now;
        }
    }
}
