//! A device that lies.

use std::io;
use std::os::fd::RawFd;

use host_vsp::vmbus::channel::{Channel, ChannelError};
use host_vsp::vsp::{StateError, Vsp};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vmbus_proto::message::OfferChannel;
use vmbus_proto::ring::SendError;

use crate::lies::Lie;

/// Makes up the next lie.
pub(crate) type Imagination = fn(&mut StdRng) -> Lie;

/// Most lies at a time.
const LIES: u32 = 6;

/// A device that does all that the one behind it does, and lies in between.
pub(crate) struct Liar {
    honest: Box<dyn Vsp>,
    imagine: Imagination,
    random: StdRng,
}

impl Liar {
    pub(crate) fn new(honest: Box<dyn Vsp>, imagine: Imagination, seed: u64) -> Self {
        Self {
            honest,
            imagine,
            random: StdRng::seed_from_u64(seed),
        }
    }
}

impl Vsp for Liar {
    fn offer(&self) -> OfferChannel {
        self.honest.offer()
    }

    fn opened(&mut self) {
        self.honest.opened();
    }

    fn service(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        // First the work: what it writes to the guest's memory is for requests that no lie has ended.
        self.honest.service(channel)?;
        for _ in 0..self.random.random_range(0..=LIES) {
            let lie = (self.imagine)(&mut self.random);
            match channel.send(&lie.packet()) {
                // A lie that has no room remains untold.
                Ok(()) | Err(SendError::Full | SendError::TooLong) => {}
                Err(SendError::Corrupt(corrupt)) => return Err(corrupt.into()),
            }
        }
        Ok(())
    }

    fn sub_channels(&self) -> u16 {
        self.honest.sub_channels()
    }

    fn sub_channel(&mut self, index: u16) -> io::Result<Box<dyn Vsp>> {
        let honest = self.honest.sub_channel(index)?;
        Ok(Box::new(Self::new(
            honest,
            self.imagine,
            self.random.random(),
        )))
    }

    fn event(&self) -> Option<RawFd> {
        self.honest.event()
    }

    fn quiesce(&mut self) {
        self.honest.quiesce();
    }

    fn save(&self) -> Vec<u8> {
        self.honest.save()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        self.honest.restore(state)
    }
}
