//! The table of requests in flight.
//!
//! A request's transaction id is its place in the table and the place's generation, so that
//! whatever the host completes, nothing but a request that is in flight, and that only once, is
//! found. A finished request with an owned buffer waits in a queue for
//! [`Storage::poll`](super::Storage::poll); one with a borrowed buffer waits for the caller that
//! is blocked on it, and one of a future's for that. Where the future is dropped first, its buffer
//! stays here until the host is done with it, and then until task context comes to take it.
#![expect(unsafe_code, reason = "buffers are shared with the host here")]

use core::ptr::NonNull;
use core::sync::atomic::AtomicBool;
use core::task::Waker;

use vmbus_proto::storvsp::VstorPacket;

use super::Mapping;
use crate::buffer::{Buffer, Parked};
use crate::error::Error;
use crate::hal::{BufferDirection, Hal};
use crate::sync::IrqMutex;
use crate::token::{Token, next_generation};

/// Memory of a storage driver: places for `REQUESTS` requests in flight, whose owned buffers are
/// of type `B`. One driver uses it at a time.
pub struct StorageMemory<H: Hal, B = &'static mut [u8], const REQUESTS: usize = 64> {
    pub(super) claimed: AtomicBool,
    pub(super) table: IrqMutex<H, Table<[Entry<B>; REQUESTS]>>,
}

impl<H: Hal, B, const REQUESTS: usize> StorageMemory<H, B, REQUESTS> {
    /// Memory that no driver uses yet.
    pub const fn new() -> Self {
        const { assert!(REQUESTS > 0 && REQUESTS < NONE as usize) }
        Self {
            claimed: AtomicBool::new(false),
            table: IrqMutex::new(Table {
                free: NONE,
                done_first: NONE,
                done_last: NONE,
                busy: 0,
                orphans: 0,
                waiting: 0,
                entries: [const { Entry::new() }; REQUESTS],
            }),
        }
    }
}

impl<H: Hal, B, const REQUESTS: usize> Default for StorageMemory<H, B, REQUESTS> {
    fn default() -> Self {
        Self::new()
    }
}

/// No entry.
const NONE: u16 = u16::MAX;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    /// The host has it.
    InFlight,
    /// The host is done with it.
    Done,
}

/// Who takes a request when it is done.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "async"),
    expect(dead_code, reason = "there are no futures")
)]
pub(super) enum Taker {
    /// Whoever calls [`Storage::poll`](super::Storage::poll).
    Poll,
    /// The caller that is blocked on it.
    Caller,
    /// A future.
    Future,
    /// The future was dropped: task context, for the buffer.
    Nobody,
}

/// A place for a request.
pub(super) struct Entry<B> {
    state: State,
    taker: Taker,
    /// Of the future that takes the request.
    waker: Option<Waker>,
    /// Of a future that waits for a place. These have nothing to do with this entry's request:
    /// there are as many as entries because some number has to do.
    room_waker: Option<Waker>,
    generation: u32,
    /// The next entry in the list this one is in.
    next: u16,
    /// The buffer, where the request owns it.
    owned: Option<Parked<B>>,
    mapping: Mapping,
    /// Length of the buffer in bytes.
    length: u32,
    /// The unit that it is for.
    lun: u8,
    /// The host's answer, or why there is none.
    answer: Result<VstorPacket, Error>,
}

impl<B> Entry<B> {
    const fn new() -> Self {
        Self {
            state: State::Free,
            taker: Taker::Caller,
            waker: None,
            room_waker: None,
            generation: 1,
            next: NONE,
            owned: None,
            mapping: Mapping::none(),
            length: 0,
            lun: 0,
            answer: Err(Error::Closed),
        }
    }
}

/// What became of a request.
pub(super) struct Finished<B> {
    pub(super) token: Token,
    pub(super) owned: Option<B>,
    pub(super) length: u32,
    pub(super) answer: Result<VstorPacket, Error>,
}

/// The table: a list of free entries and a queue of finished ones, over the entries.
pub(super) struct Table<E: ?Sized> {
    free: u16,
    done_first: u16,
    done_last: u16,
    /// Entries that are not free.
    busy: u16,
    /// Entries that are done, and that nobody takes.
    orphans: u16,
    /// Futures that wait for a place.
    waiting: u16,
    entries: E,
}

impl<B> Table<[Entry<B>]> {
    /// Forgets all requests. Buffers that the host kept from an earlier life stay lost.
    pub(super) fn reset(&mut self) {
        (self.free, self.done_first, self.done_last, self.busy) = (NONE, NONE, NONE, 0);
        (self.orphans, self.waiting) = (0, 0);
        for (index, entry) in self.entries.iter_mut().enumerate().rev() {
            *entry = Entry {
                generation: next_generation(entry.generation),
                next: self.free,
                ..Entry::new()
            };
            self.free = index as u16;
        }
    }

    /// Requests that are in flight or wait to be taken.
    pub(super) fn busy(&self) -> usize {
        usize::from(self.busy)
    }

    /// Takes a free entry.
    fn allocate(&mut self, taker: Taker) -> Option<(Token, &mut Entry<B>)> {
        let index = self.free;
        let entry = self.entries.get_mut(usize::from(index))?;
        self.free = entry.next;
        self.busy = self.busy.saturating_add(1);
        entry.state = State::InFlight;
        entry.taker = taker;
        entry.next = NONE;
        entry.length = 0;
        let token = Token {
            index,
            generation: entry.generation,
        };
        Some((token, entry))
    }

    /// Makes an entry free, with a new generation.
    fn release(&mut self, token: Token) {
        if let Some(entry) = self.entries.get_mut(usize::from(token.index)) {
            entry.state = State::Free;
            entry.generation = next_generation(entry.generation);
            entry.next = self.free;
            self.free = token.index;
            self.busy = self.busy.saturating_sub(1);
        }
    }

    /// Starts a request that owns its buffer, for unit `lun`, sent by `send`.
    pub(super) fn start_owned<H: Hal>(
        &mut self,
        taker: Taker,
        lun: u8,
        buffer: B,
        direction: BufferDirection,
        send: impl FnOnce(Token, &Mapping) -> Result<(), Error>,
    ) -> Result<Token, (Error, B)>
    where
        B: Buffer,
    {
        let Some((token, entry)) = self.allocate(taker) else {
            return Err((Error::Full, buffer));
        };
        let mut parked = Parked::new(buffer);
        let region = parked.region();
        // SAFETY: valid and ours alone by the contract of `Buffer`; the entry keeps the value
        // until `finish` has unshared it.
        let fits = unsafe { entry.mapping.share::<H>(region, direction) };
        entry.length = region.len() as u32;
        entry.lun = lun;
        let sent = if fits {
            send(token, &entry.mapping)
        } else {
            Err(Error::TooLong)
        };
        if let Err(error) = sent {
            entry.mapping.unshare::<H>();
            self.release(token);
            return Err((error, parked.into_inner()));
        }
        entry.owned = Some(parked);
        Ok(token)
    }

    /// Starts a request over a borrowed buffer, or without one, sent by `send`.
    ///
    /// # Safety
    /// The buffer is valid, and nobody else accesses it, until [`take`](Self::take) has returned
    /// the request or [`abandon`](Self::abandon) has ended it.
    pub(super) unsafe fn start_borrowed<H: Hal>(
        &mut self,
        buffer: Option<(NonNull<[u8]>, BufferDirection)>,
        send: impl FnOnce(Token, &Mapping) -> Result<(), Error>,
    ) -> Result<Token, Error> {
        let (token, entry) = self.allocate(Taker::Caller).ok_or(Error::Full)?;
        let fits = buffer.is_none_or(|(region, direction)| {
            entry.length = region.len() as u32;
            // SAFETY: the caller's promise; `finish` and `abandon` unshare.
            unsafe { entry.mapping.share::<H>(region, direction) }
        });
        let sent = if fits {
            send(token, &entry.mapping)
        } else {
            Err(Error::TooLong)
        };
        if let Err(error) = sent {
            entry.mapping.unshare::<H>();
            self.release(token);
            return Err(error);
        }
        Ok(token)
    }

    /// The host completed `id`; `None` where that was not in flight, else whom to wake after the
    /// table's lock is released.
    pub(super) fn complete<H: Hal>(
        &mut self,
        id: u64,
        answer: VstorPacket,
    ) -> Option<Option<Waker>> {
        self.finish::<H>(Token::from_transaction_id(id)?, Ok(answer))
    }

    fn finish<H: Hal>(
        &mut self,
        token: Token,
        answer: Result<VstorPacket, Error>,
    ) -> Option<Option<Waker>> {
        let entry = self.entries.get_mut(usize::from(token.index))?;
        if entry.state != State::InFlight || entry.generation != token.generation {
            return None;
        }
        entry.mapping.unshare::<H>();
        entry.state = State::Done;
        entry.answer = answer;
        let waker = entry.waker.take();
        if entry.taker == Taker::Nobody {
            self.orphans = self.orphans.saturating_add(1);
        } else if entry.taker == Taker::Poll {
            entry.next = NONE;
            let last = self.entries.get_mut(usize::from(self.done_last));
            match last.filter(|_| self.done_first != NONE) {
                Some(last) => last.next = token.index,
                None => self.done_first = token.index,
            }
            self.done_last = token.index;
        }
        Some(waker)
    }

    /// The number of places.
    pub(super) fn places(&self) -> usize {
        self.entries.len()
    }

    /// The channel has ended: finishes the request at place `index`, where there is one, with
    /// `error`; whom to wake. Where the host has not given the memory back, `kept`, an owned
    /// buffer stays in its hands.
    pub(super) fn fail<H: Hal>(&mut self, index: usize, error: Error, kept: bool) -> Option<Waker> {
        let entry = self.entries.get_mut(index)?;
        if kept && entry.owned.is_some() {
            // Its future has to be told that the buffer is lost.
            return entry.waker.take();
        }
        let token = Token {
            index: index as u16,
            generation: entry.generation,
        };
        self.finish::<H>(token, Err(error)).flatten()
    }

    /// Whoever waits for the request at place `index`, to look why it does not come.
    pub(super) fn take_waker(&mut self, index: usize) -> Option<Waker> {
        self.entries.get_mut(index)?.waker.take()
    }

    /// One of the futures that wait for a place.
    pub(super) fn take_room_waker(&mut self) -> Option<Waker> {
        if self.waiting == 0 {
            return None;
        }
        let waker = self.entries.iter_mut().find_map(|e| e.room_waker.take());
        self.waiting = self.waiting.saturating_sub(1);
        waker
    }

    /// Takes a request that is done and that nobody takes.
    pub(super) fn take_orphan(&mut self) -> Option<Finished<B>> {
        if self.orphans == 0 {
            return None;
        }
        let done = |e: &Entry<B>| e.state == State::Done && e.taker == Taker::Nobody;
        let index = self.entries.iter().position(done)?;
        self.orphans = self.orphans.saturating_sub(1);
        let generation = self.entries.get(index)?.generation;
        self.take(Token {
            index: index as u16,
            generation,
        })
    }

    /// Takes a finished request that is not in the queue.
    pub(super) fn take(&mut self, token: Token) -> Option<Finished<B>> {
        let entry = self.entries.get_mut(usize::from(token.index))?;
        if entry.state != State::Done || entry.generation != token.generation {
            return None;
        }
        let finished = Finished {
            token,
            owned: entry.owned.take().map(Parked::into_inner),
            length: entry.length,
            answer: entry.answer,
        };
        self.release(token);
        Some(finished)
    }

    /// Takes the first finished request from the queue, of unit `lun` where one is named.
    pub(super) fn take_next(&mut self, lun: Option<u8>) -> Option<Finished<B>> {
        let mut before = NONE;
        let mut index = self.done_first;
        loop {
            let entry = self.entries.get(usize::from(index))?;
            let (next, generation) = (entry.next, entry.generation);
            if lun.is_some_and(|lun| lun != entry.lun) {
                (before, index) = (index, next);
                continue;
            }
            if self.done_last == index {
                self.done_last = before;
            }
            match self.entries.get_mut(usize::from(before)) {
                Some(before) => before.next = next,
                None => self.done_first = next,
            }
            return self.take(Token { index, generation });
        }
    }

    /// Ends a request over a borrowed buffer, whatever the host does with it.
    pub(super) fn abandon<H: Hal>(&mut self, token: Token) {
        self.finish::<H>(token, Err(Error::Closed));
        self.take(token);
    }
}

#[cfg(feature = "async")]
impl<B> Table<[Entry<B>]> {
    /// Starts a request without a buffer, sent by `send`.
    pub(super) fn start(
        &mut self,
        taker: Taker,
        send: impl FnOnce(Token, &Mapping) -> Result<(), Error>,
    ) -> Result<Token, Error> {
        let (token, entry) = self.allocate(taker).ok_or(Error::Full)?;
        let sent = send(token, &entry.mapping);
        if sent.is_err() {
            self.release(token);
        }
        sent.map(|()| token)
    }

    /// Takes the request of a future where it is done; else `waker` is woken when it is. With it
    /// comes a waker to drop after the table's lock is released.
    pub(super) fn take_or_wait(
        &mut self,
        token: Token,
        waker: &Waker,
    ) -> (Option<Finished<B>>, Option<Waker>) {
        let finished = self.take(token);
        let mut before = None;
        if finished.is_none()
            && let Some(entry) = self.entries.get_mut(usize::from(token.index))
            && entry.generation == token.generation
            && !entry.waker.as_ref().is_some_and(|now| now.will_wake(waker))
        {
            before = entry.waker.replace(waker.clone());
        }
        (finished, before)
    }

    /// Has `waker` woken when there may be a place; false where too many wait already.
    pub(super) fn wait_for_room(&mut self, waker: &Waker) -> bool {
        let mut wakers = self.entries.iter().filter_map(|e| e.room_waker.as_ref());
        if wakers.any(|known| known.will_wake(waker)) {
            return true;
        }
        let mut rooms = self.entries.iter_mut().map(|entry| &mut entry.room_waker);
        let Some(room) = rooms.find(|room| room.is_none()) else {
            return false;
        };
        *room = Some(waker.clone());
        self.waiting = self.waiting.saturating_add(1);
        true
    }

    /// The future of a request was dropped. What was done already comes back, and a waker to drop
    /// after the table's lock is released.
    pub(super) fn orphan(&mut self, token: Token) -> (Option<Finished<B>>, Option<Waker>) {
        let entry = self.entries.get_mut(usize::from(token.index));
        let waker = entry
            .filter(|entry| entry.generation == token.generation)
            .and_then(|entry| {
                entry.taker = Taker::Nobody;
                entry.waker.take()
            });
        (self.take(token), waker)
    }
}
