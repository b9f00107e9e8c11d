//! The table of packets that are on their way to the net.
//!
//! Each place has a section of the send buffer of its own, and is what the transaction id of a packet
//! names ([`Token`]). A frame that was copied into the section leaves nothing else; one that is sent
//! out of its own buffer leaves that here until the host is done with it.
#![expect(unsafe_code, reason = "buffers are shared with the host here")]

use crate::buffer::{Buffer, Mapping, Parked};
use crate::error::{Error, Waited};
use crate::hal::{BufferDirection, Hal};
use crate::token::{Token, next_generation};

/// Pages that one frame can have: 64 KiB and its headers, wherever they begin.
pub(super) const MAX_PAGES: usize = 18;

/// The pages of a frame.
pub(super) type Pages = Mapping<MAX_PAGES>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    /// Somebody writes to its section.
    Reserved,
    /// The host has it.
    InFlight,
    /// The host is done with it, and its buffer waits to be taken.
    Done,
}

/// Who takes the buffer of a frame that was sent.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "alloc"),
    expect(dead_code, reason = "the driver has no buffers of its own")
)]
pub(super) enum Taker {
    /// Whoever calls [`Network::poll_sent`](super::Network::poll_sent).
    Poll,
    /// The driver, to use it again.
    Driver,
}

/// A place.
pub(super) struct Place<B> {
    state: State,
    taker: Taker,
    generation: u32,
    /// The frame, where it is not in the section.
    owned: Option<Parked<B>>,
    mapping: Pages,
    result: Result<(), Error>,
}

impl<B> Place<B> {
    pub(super) const fn new() -> Self {
        Self {
            state: State::Free,
            taker: Taker::Poll,
            generation: 1,
            owned: None,
            mapping: Mapping::none(),
            result: Ok(()),
        }
    }
}

/// A frame that was sent out of a buffer of its own.
#[derive(Debug)]
pub struct Sent<B> {
    /// Which one.
    pub token: Token,
    /// Its buffer.
    pub buffer: B,
    /// Whether the host took it; not whether it arrived anywhere.
    pub result: Result<(), Error>,
}

/// The table, over its places.
pub(super) struct Places<P: ?Sized> {
    /// How many have a section.
    usable: u16,
    /// Of these, the free ones.
    free: u16,
    /// Where to look for one first.
    next: u16,
    /// Those that wait to be taken.
    done: u16,
    places: P,
}

impl<P> Places<P> {
    pub(super) const fn new(places: P) -> Self {
        Self {
            usable: 0,
            free: 0,
            next: 0,
            done: 0,
            places,
        }
    }
}

impl<B> Places<[Place<B>]> {
    /// Forgets all frames; from now on there are as many places as `sections`, if there is memory
    /// for so many. Buffers that the host kept from an earlier life stay lost.
    pub(super) fn reset(&mut self, sections: usize) {
        for place in &mut self.places {
            *place = Place {
                generation: next_generation(place.generation),
                ..Place::new()
            };
        }
        self.usable = self.places.len().min(sections) as u16;
        (self.free, self.next, self.done) = (self.usable, 0, 0);
    }

    /// How many frames can be on their way.
    pub(super) fn usable(&self) -> usize {
        usize::from(self.usable)
    }

    /// Whether a frame can go.
    pub(super) fn has_free(&self) -> bool {
        self.free != 0
    }

    /// Frames that the host has, or whose buffers wait to be taken.
    pub(super) fn busy(&self) -> usize {
        usize::from(self.usable.saturating_sub(self.free))
    }

    /// Takes a free place, to write to its section.
    pub(super) fn reserve(&mut self) -> Option<Token> {
        if self.free == 0 {
            return None;
        }
        let usable = usize::from(self.usable);
        let places = self.places.get_mut(..usable)?;
        let first = usize::from(self.next).min(usable);
        let (before, after) = places.split_at_mut(first);
        let after = (first..).zip(after);
        let mut places = after.chain((0..).zip(before));
        let (index, place) = places.find(|(_, place)| place.state == State::Free)?;
        place.state = State::Reserved;
        let token = Token {
            index: index as u16,
            generation: place.generation,
        };
        self.free = self.free.saturating_sub(1);
        self.next = token.index.saturating_add(1);
        Some(token)
    }

    /// The place of `token`, if it is in this state.
    fn place(&mut self, token: Token, state: State) -> Option<&mut Place<B>> {
        let place = self.places.get_mut(usize::from(token.index));
        place.filter(|place| place.state == state && place.generation == token.generation)
    }

    /// Makes a place free, with a new generation.
    pub(super) fn release(&mut self, token: Token) {
        if let Some(place) = self.places.get_mut(usize::from(token.index)) {
            place.state = State::Free;
            place.generation = next_generation(place.generation);
            self.free = self.free.saturating_add(1);
        }
    }

    /// Sends, by `send`, what is in the section of a reserved place. Where that fails, the place is
    /// free again.
    pub(super) fn start(
        &mut self,
        token: Token,
        send: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        // A channel that was shut down meanwhile has no places any more.
        let place = self.place(token, State::Reserved).ok_or(Error::Closed)?;
        place.state = State::InFlight;
        let sent = send();
        if sent.is_err() {
            self.release(token);
        }
        sent
    }

    /// The same of a frame in `buffer`, before which goes what is in the section.
    pub(super) fn start_owned<H: Hal>(
        &mut self,
        token: Token,
        taker: Taker,
        buffer: B,
        send: impl FnOnce(&Pages) -> Result<(), Error>,
    ) -> Result<(), (Error, B)>
    where
        B: Buffer,
    {
        let Some(place) = self.place(token, State::Reserved) else {
            return Err((Error::Closed, buffer));
        };
        let mut parked = Parked::new(buffer);
        let region = parked.region();
        // SAFETY: valid and ours alone by the contract of `Buffer`; the place keeps the value until
        // the mapping is unshared.
        let fits = unsafe {
            place
                .mapping
                .share::<H>(region, BufferDirection::DriverToDevice)
        };
        let sent = if fits {
            send(&place.mapping)
        } else {
            Err(Error::TooLong)
        };
        if let Err(error) = sent {
            place.mapping.unshare::<H>();
            self.release(token);
            return Err((error, parked.into_inner()));
        }
        place.state = State::InFlight;
        place.taker = taker;
        place.owned = Some(parked);
        Ok(())
    }

    /// The host is done with the packet of this transaction id; says whether it had it. `status` is
    /// the reason where it refused the packet.
    pub(super) fn complete<H: Hal>(&mut self, id: u64, status: Result<(), u32>) -> bool {
        let result = status.map_err(|status| Error::Refused(Waited::Completion, status));
        Token::from_transaction_id(id).is_some_and(|token| self.finish::<H>(token, result))
    }

    fn finish<H: Hal>(&mut self, token: Token, result: Result<(), Error>) -> bool {
        let Some(place) = self.place(token, State::InFlight) else {
            return false;
        };
        if place.owned.is_some() {
            place.mapping.unshare::<H>();
            place.state = State::Done;
            place.result = result;
            self.done = self.done.saturating_add(1);
        } else {
            self.release(token);
        }
        true
    }

    /// Takes the buffer of a frame that was sent.
    pub(super) fn take_done(&mut self, taker: Taker) -> Option<Sent<B>> {
        if self.done == 0 {
            return None;
        }
        let mut places = (0..).zip(&mut self.places);
        let (index, place) =
            places.find(|(_, place)| place.state == State::Done && place.taker == taker)?;
        let token = Token {
            index,
            generation: place.generation,
        };
        let result = place.result;
        let buffer = place.owned.take().map(Parked::into_inner);
        self.done = self.done.saturating_sub(1);
        self.release(token);
        buffer.map(|buffer| Sent {
            token,
            buffer,
            result,
        })
    }

    /// The channel has ended: frames that the host has are done, as failed with `error`, and no more
    /// can go. Where the host has not given the memory back, `kept`, their buffers stay in its hands.
    pub(super) fn end<H: Hal>(&mut self, error: Error, kept: bool) {
        for index in 0..self.usable {
            let Some(place) = self.places.get_mut(usize::from(index)) else {
                break;
            };
            let token = Token {
                index,
                generation: place.generation,
            };
            match place.state {
                State::InFlight if kept && place.owned.is_some() => {}
                State::InFlight => {
                    self.finish::<H>(token, Err(error));
                }
                // Whoever writes to its section finds out when it would send.
                State::Reserved => self.release(token),
                State::Free | State::Done => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use core::ptr::NonNull;

    use super::*;
    use crate::hal::PhysAddr;

    fn table<const N: usize>() -> Places<[Place<&'static mut [u8]>; N]> {
        Places::new([const { Place::new() }; N])
    }

    #[test]
    fn only_what_is_in_flight_is_completed_and_only_once() {
        let mut table = table::<4>();
        let table: &mut Places<[Place<&'static mut [u8]>]> = &mut table;
        assert!(!table.has_free());
        assert_eq!(table.reserve(), None);
        table.reset(3);
        let first = table.reserve().unwrap();
        assert!(!complete(table, first.transaction_id()), "only reserved");
        table.start(first, || Ok(())).unwrap();
        assert_eq!(table.busy(), 1);
        for wrong in [0, 1, u64::MAX, first.transaction_id() ^ 1 << 40] {
            assert!(!complete(table, wrong));
        }
        assert!(complete(table, first.transaction_id()));
        assert!(!complete(table, first.transaction_id()), "twice");
        assert_eq!(table.busy(), 0);
        assert_eq!(table.start(first, || Ok(())), Err(Error::Closed));

        let all = [(); 3].map(|()| table.reserve().unwrap());
        assert_eq!(
            table.reserve(),
            None,
            "there is memory for 4, and 3 sections"
        );
        let failed = table.start(all[1], || Err(Error::Full));
        assert_eq!(failed, Err(Error::Full));
        let again = table.reserve().unwrap();
        assert_eq!(again.index, all[1].index);
        assert_ne!(again.generation, all[1].generation);
    }

    /// What is in these tables has no pages, so that no kernel is asked about any.
    fn complete(table: &mut Places<[Place<&'static mut [u8]>]>, id: u64) -> bool {
        table.complete::<NoKernel>(id, Ok(()))
    }

    struct NoKernel;

    // SAFETY: no method returns.
    unsafe impl Hal for NoKernel {
        fn dma_alloc(_: usize, _: BufferDirection) -> Option<(PhysAddr, NonNull<u8>)> {
            unreachable!()
        }
        unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) {
            unreachable!()
        }
        unsafe fn share(_: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
            unreachable!()
        }
        unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {
            unreachable!()
        }
        fn code_to_phys(_: NonNull<u8>) -> PhysAddr {
            unreachable!()
        }
        fn current_cpu() -> usize {
            unreachable!()
        }
    }
}
