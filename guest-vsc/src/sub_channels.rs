//! Further channels of a device, so that processors need not share one.
//!
//! A driver asks its device for them, by the device's own protocol; then the host offers them, with the
//! device's class and instance and a number each. They are opened like the first one, each for a
//! processor of its own as far as there are so many. What comes of them is the driver's affair: some
//! may be missing, and the host takes them away when the first one closes.

use core::time::Duration;

use crate::bus::Offer;
use crate::channel::{Channel, OpenOptions};
use crate::error::Error;
use crate::hal::Hal;

/// Most sub-channels of a device.
pub const MAX_SUB_CHANNELS: usize = 15;

/// How long the host gets to offer them.
const PATIENCE: Duration = Duration::from_secs(1);

/// A device's sub-channels.
pub(crate) struct SubChannels<'b, H: Hal>([Option<Channel<'b, H>>; MAX_SUB_CHANNELS]);

impl<'b, H: Hal> SubChannels<'b, H> {
    /// No sub-channels.
    pub(crate) const fn none() -> Self {
        Self([const { None }; MAX_SUB_CHANNELS])
    }

    /// Opens the `count` sub-channels, all of them if they come, that the host has been asked for, of
    /// the device that `offer` names and whose first channel is `primary`. Waits for the host.
    pub(crate) fn open(
        &mut self,
        primary: &Channel<'b, H>,
        offer: &Offer,
        count: usize,
        options: &OpenOptions,
    ) {
        let bus = primary.bus();
        let ours = |other: &Offer| {
            let number = usize::from(other.sub_channel_index());
            (other.class(), other.instance()) == (offer.class(), offer.instance())
                && (1..=count).contains(&number)
                && !other.is_in_use()
        };
        let mut deadline = bus.hypervisor.deadline(bus.timeout().min(PATIENCE));
        loop {
            bus.handle_interrupt();
            let complete = bus.offers().filter(ours).count() >= count;
            if complete || primary.check().is_err() || deadline.is_over() {
                break;
            }
            bus.rest(|| bus.message_waits());
        }
        let others = bus.started_cpus().filter(|cpu| *cpu != primary.cpu());
        let mut cpus = others.chain([primary.cpu()]).cycle();
        let mut places = self.0.iter_mut();
        for offer in bus.offers().filter(ours).take(count) {
            let options = OpenOptions {
                cpu: cpus.next(),
                ..*options
            };
            // One that does not open is done without.
            if let Ok(channel) = Channel::open(bus, &offer, &options)
                && let Some(place) = places.next()
            {
                *place = Some(channel);
            }
        }
    }

    /// Those that are open.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Channel<'b, H>> + Clone {
        self.0.iter().flatten()
    }

    /// Closes all of them, as [`Channel::close`] does.
    ///
    /// # Errors
    /// The host did not give the memory of all of them back.
    pub(crate) fn close(&self) -> Result<(), Error> {
        let mut result = Ok(());
        for channel in self.iter() {
            result = result.and(channel.close());
        }
        result
    }
}
