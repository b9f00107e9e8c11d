// SPDX-License-Identifier: GPL-2.0

//! The requests that a device works on.
//!
//! A device names a request by an [`Id`] in its answer, and may name any. An id is the request's tag
//! and the generation of the tag's place, so that only what is in flight is found, and that once:
//! whoever moves the place from in flight to idle owns the request. That may be the device's answer, a
//! timeout, or the end of the device; each may be first.

use core::marker::PhantomData;

use kernel::bindings;
use kernel::prelude::*;
use kernel::sync::atomic::{Acquire, Atomic, Full, Relaxed};

use super::operations::Operations;
use super::request::{Request, Tag, TimedOut};

/// Bits of an id that are the tag. Above is a generation, which comes around after so many requests
/// with the same tag that no answer is left of the first one.
const TAG_BITS: u32 = u32::BITS;

/// The name of a request in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Id(pub(crate) u64);

/// Bit of a place's state: there is a request in flight. The bits above are the generation.
const IN_FLIGHT: u64 = 1;

/// A tag's place.
struct Place {
    state: Atomic<u64>,
    /// Address of the `struct request`. It means something while the state says in flight, and then to
    /// whoever ends that.
    request: Atomic<usize>,
}

/// Places for all requests of a tag set.
pub(crate) struct InFlight<T: Operations> {
    places: KVec<Place>,
    /// Tags of a hardware queue.
    depth: usize,
    _operations: PhantomData<fn() -> T>,
}

impl<T: Operations> InFlight<T> {
    /// Places for the requests of `queues` hardware queues with `depth` tags each.
    pub(crate) fn new(queues: u16, depth: u16) -> Result<Self> {
        let depth = usize::from(depth);
        let count = usize::from(queues) * depth;
        let mut places = KVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            places.push(
                Place {
                    state: Atomic::new(0),
                    request: Atomic::new(0),
                },
                GFP_KERNEL,
            )?;
        }
        Ok(Self {
            places,
            depth,
            _operations: PhantomData,
        })
    }

    fn place(&self, tag: Tag) -> Option<&Place> {
        let place = tag.queue() * self.depth + tag.number();
        self.places.get(place).filter(|_| tag.number() < self.depth)
    }

    /// The request is in flight from now on. It comes back where its tag has no place.
    ///
    /// What was written before is seen by whoever takes the request, and what follows comes after: who
    /// looks afterwards whether the device is gone, and whoever takes all requests after having said so,
    /// do not miss each other.
    pub(crate) fn insert(&self, request: Request<T>) -> Result<Id, Request<T>> {
        let tag = request.tag();
        let Some(place) = self.place(tag) else {
            return Err(request);
        };
        let before = place.state.load(Relaxed);
        if before & IN_FLIGHT != 0 {
            return Err(request);
        }
        let state = (before | IN_FLIGHT).wrapping_add(2);
        place.request.store(request.into_raw() as usize, Relaxed);
        // Nobody else writes while the tag is not in flight: only one request has it.
        place.state.xchg(state, Full);
        Ok(Id((state >> 1) << TAG_BITS | u64::from(tag.0)))
    }

    /// The request of this id, which is not in flight any more. `None` where it is not in flight.
    pub(crate) fn take(&self, id: Id) -> Option<Request<T>> {
        let place = self.place(Tag(id.0 as u32))?;
        let state = place.state.load(Relaxed);
        // The bits of the state that are in the id.
        if (state >> 1) as u32 != (id.0 >> TAG_BITS) as u32 {
            return None;
        }
        self.claim(place, state)
    }

    /// The request that has timed out, where it is in flight still.
    pub(crate) fn take_expired(&self, request: &TimedOut<'_, T>) -> Option<Request<T>> {
        let place = self.place(request.tag())?;
        let state = place.state.load(Acquire);
        if place.request.load(Relaxed) != request.as_raw() as usize {
            return None;
        }
        self.claim(place, state)
    }

    /// Takes all requests that are in flight, one after the other.
    pub(crate) fn take_all(&self) -> impl Iterator<Item = Request<T>> + '_ {
        self.places
            .iter()
            .filter_map(|place| self.claim(place, place.state.load(Acquire)))
    }

    /// The request of a place that is in flight in this state.
    fn claim(&self, place: &Place, state: u64) -> Option<Request<T>> {
        if state & IN_FLIGHT == 0 {
            return None;
        }
        // The generation stays, so that the id of this request never names another one.
        place.state.cmpxchg(state, state & !IN_FLIGHT, Full).ok()?;
        let raw = place.request.load(Relaxed) as *mut bindings::request;
        // SAFETY: `insert` was given a `Request`, and stored its pointer before the state that was just
        // ended. Only one caller ends it, and until then nobody writes to this place: its tag is taken.
        Some(unsafe { Request::from_raw(raw) })
    }
}
