//! A device's channels, and a wait for news of any of them.

use crate::channel::Channel;
use crate::clock::Deadline;
use crate::error::{Error, Waited};
use crate::hal::Hal;

/// The channels of a device, the first one first.
pub(crate) struct Channels<'c, 'b, H: Hal> {
    next: Option<&'c Channel<'b, H>>,
    further: &'c [Option<Channel<'b, H>>],
}

impl<'c, 'b, H: Hal> Channels<'c, 'b, H> {
    /// `first`, then `further` up to the first place without one.
    pub(crate) fn new(first: &'c Channel<'b, H>, further: &'c [Option<Channel<'b, H>>]) -> Self {
        Self {
            next: Some(first),
            further,
        }
    }

    /// Waits until `done` has a value, letting time pass while none of the channels has news.
    pub(crate) fn wait<T>(
        &self,
        what: Waited,
        mut deadline: Deadline<'_, H>,
        mut done: impl FnMut() -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        loop {
            let seen = self.news();
            if let Some(value) = done()? {
                return Ok(value);
            }
            if deadline.is_over() {
                return Err(Error::Timeout(what));
            }
            self.rest(seen);
        }
    }

    /// A number that changes with the news of each channel.
    fn news(&self) -> u32 {
        // Counters that only grow: the sum changes with each of them.
        self.clone().map(Channel::news).fold(0, u32::wrapping_add)
    }

    /// Lets time pass, unless there is news since [`news`](Self::news) was `seen`.
    fn rest(&self, seen: u32) {
        let Some(bus) = self.next.map(Channel::bus) else {
            return;
        };
        // A kernel without interrupts still hears of a rescind this way.
        bus.handle_interrupt();
        bus.rest(|| self.news() != seen || self.clone().any(Channel::has_news));
    }
}

impl<H: Hal> Clone for Channels<'_, '_, H> {
    fn clone(&self) -> Self {
        Self {
            next: self.next,
            further: self.further,
        }
    }
}

impl<'c, 'b, H: Hal> Iterator for Channels<'c, 'b, H> {
    type Item = &'c Channel<'b, H>;

    fn next(&mut self) -> Option<Self::Item> {
        let channel = self.next.take();
        if let [place, further @ ..] = self.further {
            self.next = place.as_ref();
            self.further = further;
        }
        channel
    }
}
