//! Sections of the receive buffer: which are free, and which the guest has.
//!
//! Sections go to the guest in batches, one packet each, and come back when the guest completes the
//! packet. Sections of a batch are linked, and the first one names it: no batch takes memory of its
//! own, and a completion of something that is not out is found out at once.
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

/// Sections that frames leave free, for answers: a guest that is flooded can still be spoken to.
pub(super) const RESERVED: usize = 16;

/// Who a section belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Owner {
    /// The host.
    Free,
    /// The guest, as the first of a batch.
    First { next: Option<u32> },
    /// The guest, behind another one.
    Linked { next: Option<u32> },
}

/// All sections of a buffer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Sections {
    /// Bytes of each.
    size: u32,
    /// Which buffer of the conversation it is: packets of the ones before are nobody's any more.
    generation: u32,
    owners: Vec<Owner>,
    /// Free ones, the next to be used last.
    free: Vec<u32>,
}

impl Sections {
    /// `count` sections of `size` bytes, all free, in buffer number `generation`.
    pub(super) fn new(generation: u32, size: u32, count: u32) -> Self {
        Self {
            size,
            generation,
            owners: vec![Owner::Free; count as usize],
            free: (0..count).rev().collect(),
        }
    }

    /// Bytes of each.
    pub(super) fn size(&self) -> u32 {
        self.size
    }

    /// Which buffer of the conversation it is.
    pub(super) fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether a packet is one of this buffer.
    pub(super) fn names(&self, transaction_id: u64) -> bool {
        transaction_id >> 32 == u64::from(self.generation)
    }

    /// Takes back what was on its way to the guest when this was saved.
    pub(super) fn free_the_lost(&mut self) {
        let owners = (0_u32..).zip(&self.owners);
        let free = owners.filter(|(_, owner)| **owner == Owner::Free);
        self.free = free.map(|(index, _)| index).collect();
    }

    /// Whether what was saved can be: free ones are free, and no more than there are.
    pub(super) fn is_sound(&self) -> bool {
        let count = self.owners.len();
        let free = |index: &u32| self.owners.get(*index as usize) == Some(&Owner::Free);
        let next = |owner: &Owner| match owner {
            Owner::First { next } | Owner::Linked { next } => *next,
            Owner::Free => None,
        };
        self.free.len() <= count
            && self.free.iter().all(free)
            && self
                .owners
                .iter()
                .filter_map(next)
                .all(|next| (next as usize) < count)
    }

    /// Where a section begins in the buffer.
    pub(super) fn offset(&self, index: u32) -> u32 {
        index.saturating_mul(self.size)
    }

    /// How many frames can have at all.
    pub(super) fn for_frames(&self) -> usize {
        self.owners.len().saturating_sub(RESERVED)
    }

    /// How many frames can have now.
    pub(super) fn free_for_frames(&self) -> usize {
        self.free.len().saturating_sub(RESERVED)
    }

    /// Takes a free one for an answer.
    pub(super) fn take(&mut self) -> Option<u32> {
        self.free.pop()
    }

    /// Takes a free one for a frame.
    pub(super) fn take_for_frame(&mut self) -> Option<u32> {
        if self.free.len() <= RESERVED {
            return None;
        }
        self.free.pop()
    }

    /// Gives one back that the guest has not seen.
    pub(super) fn put_back(&mut self, index: u32) {
        self.free.push(index);
    }

    /// These go to the guest in one packet; the packet's transaction id.
    pub(super) fn give(&mut self, batch: &[u32]) -> u64 {
        for (at, &index) in batch.iter().enumerate() {
            let next = batch.get(at.saturating_add(1)).copied();
            if let Some(owner) = self.owners.get_mut(index as usize) {
                *owner = match at {
                    0 => Owner::First { next },
                    _ => Owner::Linked { next },
                };
            }
        }
        // Zero would look like no transaction at all.
        let first = u64::from(batch.first().copied().unwrap_or_default()).saturating_add(1);
        u64::from(self.generation) << 32 | first
    }

    /// The guest has completed a packet; false where it has none of that id.
    pub(super) fn come_back(&mut self, transaction_id: u64) -> bool {
        let Some(first) = (transaction_id as u32).checked_sub(1) else {
            return false;
        };
        if !self.names(transaction_id) {
            return false;
        }
        let Some(Owner::First { mut next }) = self.owners.get(first as usize).copied() else {
            return false;
        };
        self.free(first);
        // Each step frees one that was linked, so that this ends.
        while let Some(index) = next {
            let Some(Owner::Linked { next: after }) = self.owners.get(index as usize).copied()
            else {
                break;
            };
            self.free(index);
            next = after;
        }
        true
    }

    fn free(&mut self, index: u32) {
        if let Some(owner) = self.owners.get_mut(index as usize) {
            *owner = Owner::Free;
            self.free.push(index);
        }
    }

    /// How many are free.
    #[cfg(test)]
    pub(super) fn free_count(&self) -> usize {
        self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn batches_come_back_once() {
        let mut sections = Sections::new(3, 100, 40);
        let batch: Vec<u32> = (0..3).map(|_| sections.take_for_frame().unwrap()).collect();
        assert_eq!(batch, [0, 1, 2]);
        assert_eq!(sections.offset(2), 200);
        let id = sections.give(&batch);
        for lie in [0, 1, id + 1, id + 2, id - 1, id + (1 << 32), u64::MAX] {
            assert!(!sections.come_back(lie), "{lie}");
        }
        assert!(sections.come_back(id));
        assert!(!sections.come_back(id));
        assert_eq!(sections.free_count(), 40);
    }

    #[test]
    fn answers_have_sections_of_their_own() {
        let mut sections = Sections::new(3, 100, 40);
        let frames = std::iter::from_fn(|| sections.take_for_frame()).count();
        assert_eq!(frames, 40 - RESERVED);
        assert_eq!(std::iter::from_fn(|| sections.take()).count(), RESERVED);
    }

    proptest! {
        /// Whatever is completed, no section is lost and none is there twice.
        #[test]
        fn none_is_lost(steps in prop::collection::vec((0usize..5, 0u64..45), 0..200)) {
            let mut sections = Sections::new(0, 64, 40);
            let mut out = Vec::new();
            for (take, complete) in steps {
                let batch: Vec<u32> = std::iter::from_fn(|| sections.take()).take(take).collect();
                if !batch.is_empty() {
                    out.push((sections.give(&batch), batch.len()));
                }
                let known = out.iter().position(|(id, _)| *id == complete);
                prop_assert_eq!(sections.come_back(complete), known.is_some());
                if let Some(known) = known {
                    out.remove(known);
                }
                prop_assert!(sections.is_sound());
            }
            let with_guest: usize = out.iter().map(|(_, length)| length).sum();
            prop_assert_eq!(sections.free_count() + with_guest, 40);
        }
    }
}
