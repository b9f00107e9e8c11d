//! Frames as futures (feature `async`).
//!
//! Nothing is given away before a future is ready, so it may be dropped at any time: a frame that came
//! waits for the next taker, and one that was not sent was not sent. A future knows no executor; it is
//! woken by whoever takes what the host has sent, above all by
//! [`handle_interrupt`](super::Network::handle_interrupt).

use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use vmbus_proto::rndis::packet::PacketInfo;

use super::receive::Received;
use super::{Buffer, Network};
use crate::error::Error;
use crate::hal::Hal;

/// Most futures that wait at a time without asking again and again.
const WAITING: usize = 16;

/// Those who wait for news of an adapter.
pub(super) struct Wakers([Option<Waker>; WAITING]);

impl Wakers {
    pub(super) const fn new() -> Self {
        Self([const { None }; WAITING])
    }

    /// Has `waker` woken at the next news; false where too many wait already.
    fn add(&mut self, waker: &Waker) -> bool {
        let mut known = self.0.iter().flatten();
        if known.any(|known| known.will_wake(waker)) {
            return true;
        }
        let Some(place) = self.0.iter_mut().find(|place| place.is_none()) else {
            return false;
        };
        *place = Some(waker.clone());
        true
    }

    fn take(&mut self) -> Option<Waker> {
        self.0.iter_mut().find_map(Option::take)
    }
}

/// A frame that is to be received, as a future.
#[must_use = "nothing is received unless it is polled"]
pub struct ReceiveFrame<'n, 'b, H: Hal, B: Buffer> {
    network: &'n Network<'b, H, B>,
    buffer: &'n mut [u8],
}

/// A frame that is to be sent, as a future.
#[must_use = "nothing is sent unless it is polled"]
pub struct SendFrame<'n, 'b, H: Hal, B: Buffer> {
    network: &'n Network<'b, H, B>,
    frame: &'n [u8],
    info: PacketInfo,
}

impl<'b, H: Hal, B: Buffer> Network<'b, H, B> {
    /// Receives the next frame, copied into `buffer`, as [`try_receive`](Self::try_receive) does.
    pub fn receive_async<'n>(&'n self, buffer: &'n mut [u8]) -> ReceiveFrame<'n, 'b, H, B> {
        let network = self;
        ReceiveFrame { network, buffer }
    }

    /// Sends a frame by a copy, as [`try_send_with`](Self::try_send_with) does, when there is a place
    /// for it.
    pub fn send_async<'n>(&'n self, frame: &'n [u8], info: &PacketInfo) -> SendFrame<'n, 'b, H, B> {
        SendFrame {
            network: self,
            frame,
            info: *info,
        }
    }

    /// Wakes everybody who waits for news.
    pub(super) fn wake(&self) {
        // Each once: one that finds nothing comes back, and is not to be woken for ever.
        for _ in 0..WAITING {
            // Outside the lock: a waker is anybody's code.
            match self.wakers.with(Wakers::take) {
                Some(waker) => waker.wake(),
                None => break,
            }
        }
    }

    /// Has the task of `context` woken at the next news.
    fn wait_for_news(&self, context: &Context<'_>) {
        if !self.wakers.with(|wakers| wakers.add(context.waker())) {
            context.waker().wake_by_ref();
        }
    }
}

impl<H: Hal, B: Buffer> Future for ReceiveFrame<'_, '_, H, B> {
    type Output = Result<Received, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { network, buffer } = self.get_mut();
        if let Some(received) = network.try_receive(buffer)? {
            return Poll::Ready(Ok(received));
        }
        network.wait_for_news(context);
        // What came before anybody could tell us has to be seen now.
        match network.try_receive(buffer)? {
            Some(received) => Poll::Ready(Ok(received)),
            None => Poll::Pending,
        }
    }
}

impl<H: Hal, B: Buffer> Future for SendFrame<'_, '_, H, B> {
    type Output = Result<(), Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self {
            network,
            frame,
            info,
        } = self.get_mut();
        match network.try_send_with(frame, info) {
            Err(Error::Full) => {}
            result => return Poll::Ready(result),
        }
        network.wait_for_news(context);
        match network.try_send_with(frame, info) {
            Err(Error::Full) => Poll::Pending,
            result => Poll::Ready(result),
        }
    }
}
