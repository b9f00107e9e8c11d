//! Further channels of a device, so that processors need not share one.
//!
//! A driver asks its device for them, by the device's own protocol; then the host offers them, with the
//! device's class and instance and a number each. They are opened like the first one, each for a
//! processor of its own as far as there are so many. What comes of them is the driver's affair: some
//! may be missing, and the host takes them away when the first one closes.

use core::time::Duration;

use crate::bus::Offer;
use crate::channel::{Channel, OpenOptions};
use crate::channels::Channels;
use crate::error::Error;
use crate::hal::Hal;

/// Most sub-channels of a device.
pub const MAX_SUB_CHANNELS: usize = 15;

/// How long the host gets to offer them.
const PATIENCE: Duration = Duration::from_secs(1);

/// A device's sub-channels; the places are filled from the first one on.
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
        count: u16,
        options: &OpenOptions,
    ) {
        let bus = primary.bus();
        let unused = |number| bus.find_channel(offer.class(), Some(offer.instance()), number);
        let mut deadline = bus.hypervisor.deadline(bus.timeout().min(PATIENCE));
        loop {
            bus.handle_interrupt();
            let complete = (1..=count).all(|number| unused(number).is_some());
            if complete || primary.check().is_err() || deadline.is_over() {
                break;
            }
            bus.rest(|| bus.message_waits());
        }
        let mut cpu = primary.cpu();
        let mut places = self.0.iter_mut();
        for offer in (1..=count).filter_map(unused) {
            cpu = bus.started_cpu_after(cpu);
            let options = OpenOptions {
                cpu: Some(cpu),
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

    /// All channels of the device: `primary`, then those that are open.
    pub(crate) fn after<'c>(&'c self, primary: &'c Channel<'b, H>) -> Channels<'c, 'b, H> {
        Channels::new(primary, &self.0)
    }

    /// The one in place `place`, where there is one.
    pub(crate) fn get(&self, place: usize) -> Option<&Channel<'b, H>> {
        self.0.get(place)?.as_ref()
    }

    /// Closes all of them, as [`Channel::close`] does.
    ///
    /// # Errors
    /// The host did not give the memory of all of them back.
    pub(crate) fn close(&self) -> Result<(), Error> {
        let mut result = Ok(());
        for channel in self.0.iter().flatten() {
            result = result.and(channel.close());
        }
        result
    }
}
