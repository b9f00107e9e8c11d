//! The table of requests in flight.
//!
//! A request's transaction id is its place in the table and the place's generation, so that
//! whatever the host completes, nothing but a request that is in flight, and that only once, is
//! found. A finished request with an owned buffer waits in a queue for
//! [`Storage::poll`](super::Storage::poll); one with a borrowed buffer waits for the caller that
//! is blocked on it.
#![expect(unsafe_code, reason = "buffers are shared with the host here")]

use core::ptr::NonNull;
use core::sync::atomic::AtomicBool;

use vmbus_proto::storvsp::VstorPacket;

use super::buffer::{Buffer, Mapping, Parked};
use crate::error::Error;
use crate::hal::{BufferDirection, Hal};
use crate::sync::IrqMutex;

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

/// Names a request while it is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    index: u16,
    generation: u32,
}

impl Token {
    /// The transaction id on the wire. Never 0, which is the host's for packets of its own.
    pub(super) fn transaction_id(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    fn from_transaction_id(id: u64) -> Option<Self> {
        Some(Self {
            index: u16::try_from(id & 0xFFFF_FFFF).ok()?,
            generation: (id >> 32) as u32,
        })
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

/// A place for a request.
pub(super) struct Entry<B> {
    state: State,
    generation: u32,
    /// The next entry in the list this one is in.
    next: u16,
    /// The buffer, where the request owns it.
    owned: Option<Parked<B>>,
    mapping: Mapping,
    /// Length of the buffer in bytes.
    length: u32,
    /// The host's answer, or why there is none.
    answer: Result<VstorPacket, Error>,
}

impl<B> Entry<B> {
    const fn new() -> Self {
        Self {
            state: State::Free,
            generation: 1,
            next: NONE,
            owned: None,
            mapping: Mapping::none(),
            length: 0,
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
    entries: E,
}

impl<B> Table<[Entry<B>]> {
    /// Forgets all requests. Buffers that the host kept from an earlier life stay lost.
    pub(super) fn reset(&mut self) {
        (self.free, self.done_first, self.done_last, self.busy) = (NONE, NONE, NONE, 0);
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
    fn allocate(&mut self) -> Option<(Token, &mut Entry<B>)> {
        let index = self.free;
        let entry = self.entries.get_mut(usize::from(index))?;
        self.free = entry.next;
        self.busy = self.busy.saturating_add(1);
        entry.state = State::InFlight;
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

    /// Starts a request without a buffer, sent by `send`.
    pub(super) fn start(
        &mut self,
        send: impl FnOnce(Token, &Mapping) -> Result<(), Error>,
    ) -> Result<Token, Error> {
        let (token, entry) = self.allocate().ok_or(Error::Full)?;
        let sent = send(token, &entry.mapping);
        if sent.is_err() {
            self.release(token);
        }
        sent.map(|()| token)
    }

    /// Starts a request that owns its buffer, sent by `send`.
    pub(super) fn start_owned<H: Hal>(
        &mut self,
        buffer: B,
        direction: BufferDirection,
        send: impl FnOnce(Token, &Mapping) -> Result<(), Error>,
    ) -> Result<Token, (Error, B)>
    where
        B: Buffer,
    {
        let Some((token, entry)) = self.allocate() else {
            return Err((Error::Full, buffer));
        };
        let mut parked = Parked::new(buffer);
        let region = parked.region();
        // SAFETY: valid and ours alone by the contract of `Buffer`; the entry keeps the value
        // until `finish` has unshared it.
        let fits = unsafe { entry.mapping.share::<H>(region, direction) };
        entry.length = region.len() as u32;
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

    /// Starts a request over a borrowed buffer, sent by `send`.
    ///
    /// # Safety
    /// The buffer is valid, and nobody else accesses it, until [`take`](Self::take) has returned
    /// the request or [`abandon`](Self::abandon) has ended it.
    pub(super) unsafe fn start_borrowed<H: Hal>(
        &mut self,
        region: NonNull<[u8]>,
        direction: BufferDirection,
        send: impl FnOnce(Token, &Mapping) -> Result<(), Error>,
    ) -> Result<Token, Error> {
        let (token, entry) = self.allocate().ok_or(Error::Full)?;
        // SAFETY: the caller's promise; `finish` and `abandon` unshare.
        let fits = unsafe { entry.mapping.share::<H>(region, direction) };
        entry.length = region.len() as u32;
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

    /// The host completed `id`; says whether that was in flight.
    pub(super) fn complete<H: Hal>(&mut self, id: u64, answer: VstorPacket) -> bool {
        let token = Token::from_transaction_id(id);
        token.is_some_and(|token| self.finish::<H>(token, Ok(answer)))
    }

    fn finish<H: Hal>(&mut self, token: Token, answer: Result<VstorPacket, Error>) -> bool {
        let entry = self.entries.get_mut(usize::from(token.index));
        let Some(entry) = entry
            .filter(|entry| entry.state == State::InFlight && entry.generation == token.generation)
        else {
            return false;
        };
        entry.mapping.unshare::<H>();
        entry.state = State::Done;
        entry.answer = answer;
        if entry.owned.is_some() {
            entry.next = NONE;
            let last = self.entries.get_mut(usize::from(self.done_last));
            match last.filter(|_| self.done_first != NONE) {
                Some(last) => last.next = token.index,
                None => self.done_first = token.index,
            }
            self.done_last = token.index;
        }
        true
    }

    /// The channel has ended: finishes what is in flight with `error`. Where the host has not
    /// given the memory back, `kept`, owned buffers stay in its hands.
    pub(super) fn fail_all<H: Hal>(&mut self, error: Error, kept: bool) {
        for index in 0..self.entries.len() {
            let Some(entry) = self.entries.get(index) else {
                return;
            };
            if kept && entry.owned.is_some() {
                continue;
            }
            let token = Token {
                index: index as u16,
                generation: entry.generation,
            };
            self.finish::<H>(token, Err(error));
        }
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

    /// Takes the first finished request from the queue.
    pub(super) fn take_next(&mut self) -> Option<Finished<B>> {
        let index = self.done_first;
        let entry = self.entries.get(usize::from(index))?;
        let token = Token {
            index,
            generation: entry.generation,
        };
        self.done_first = entry.next;
        self.take(token)
    }

    /// Ends a request over a borrowed buffer, whatever the host does with it.
    pub(super) fn abandon<H: Hal>(&mut self, token: Token) {
        self.finish::<H>(token, Err(Error::Closed));
        self.take(token);
    }
}

/// Zero is skipped, so that no transaction id is 0.
fn next_generation(generation: u32) -> u32 {
    generation.wrapping_add(1).max(1)
}
