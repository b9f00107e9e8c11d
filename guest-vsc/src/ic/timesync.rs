//! Time synchronization: the host tells the guest what time it is.

use core::time::Duration;

use vmbus_proto::ic::message_type;
use vmbus_proto::ic::timesync::{
    self as proto, FLAG_SYNC, ReferencedTime, Time, VERSION_REFERENCED, since_unix_epoch,
};
use zerocopy::FromBytes as _;

use super::link::{Link, Service, Verdict};
use crate::bus::{Offer, VmBus};
use crate::channel::{Channel, OpenOptions};
use crate::error::Error;
use crate::hal::Hal;

/// Class of the service, for [`VmBus::find`].
pub use vmbus_proto::ic::timesync::CLASS;

static SERVICE: Service = Service {
    message_type: message_type::TIME_SYNC,
    versions: proto::VERSIONS,
};

/// The host's time at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostTime {
    /// Time since the beginning of the year 1970, in UTC.
    pub since_unix_epoch: Duration,
    /// The moment, on the reference clock ([`VmBus::reference_time`]), in units of 100 ns.
    pub reference_time: u64,
    /// The guest is to set its clock: it has just started, or was paused. Otherwise this is for
    /// its information.
    pub set: bool,
}

impl HostTime {
    /// The host's time, since the beginning of the year 1970, when the reference clock shows
    /// `reference_time`.
    pub fn at(&self, reference_time: u64) -> Duration {
        let units = |units: u64| Duration::from_nanos_u128(u128::from(units).saturating_mul(100));
        match reference_time.checked_sub(self.reference_time) {
            Some(since) => self.since_unix_epoch.saturating_add(units(since)),
            None => {
                let before = self.reference_time.saturating_sub(reference_time);
                self.since_unix_epoch.saturating_sub(units(before))
            }
        }
    }
}

/// The time synchronization. Dropped, it is closed, which waits for the host.
pub struct TimeSync<'b, H: Hal> {
    link: Link<'b, H>,
}

impl<'b, H: Hal> TimeSync<'b, H> {
    /// Opens the service that `offer` names. Waits for the host.
    ///
    /// # Errors
    /// The channel cannot be opened.
    pub fn open(
        bus: &'b VmBus<'b, H>,
        offer: &Offer,
        options: &OpenOptions,
    ) -> Result<Self, Error> {
        Ok(Self {
            link: Link::open(bus, offer, options, &SERVICE)?,
        })
    }

    /// The channel.
    pub fn channel(&self) -> &Channel<'b, H> {
        self.link.channel()
    }

    /// Takes the host's next message, where there is one; it is answered. Never waits; may be
    /// called in interrupt context.
    ///
    /// # Errors
    /// The channel has come to an end.
    pub fn poll(&self) -> Result<Option<HostTime>, Error> {
        self.link.poll(|version, body| {
            let parsed = if version == VERSION_REFERENCED {
                ReferencedTime::read_from_prefix(body)
                    .ok()
                    .map(|(time, _)| (time.host_time, Some(time.reference_time.get()), time.flags))
            } else {
                // The message does not say when it was sent: as good as now.
                Time::read_from_prefix(body)
                    .ok()
                    .map(|(time, _)| (time.host_time, None, time.flags))
            };
            let time = parsed.and_then(|(host_time, reference_time, flags)| {
                let now = || self.channel().bus().reference_time();
                Some(HostTime {
                    since_unix_epoch: since_unix_epoch(host_time.get())?,
                    reference_time: reference_time.unwrap_or_else(now),
                    set: flags & FLAG_SYNC != 0,
                })
            });
            match time {
                Some(time) => Verdict::Answer(Some(time)),
                None => Verdict::Meaningless,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_at_other_moments() {
        let time = HostTime {
            since_unix_epoch: Duration::from_secs(1000),
            reference_time: 50_000_000,
            set: true,
        };
        assert_eq!(time.at(50_000_000), Duration::from_secs(1000));
        assert_eq!(time.at(70_000_000), Duration::from_secs(1002));
        assert_eq!(time.at(40_000_000), Duration::from_secs(999));
        // A host may say anything.
        assert!(time.at(u64::MAX) > Duration::from_secs(1000));
        let late = HostTime {
            reference_time: u64::MAX,
            ..time
        };
        assert_eq!(late.at(0), Duration::ZERO);
    }
}
