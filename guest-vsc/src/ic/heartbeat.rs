//! Heartbeat: the host asks every two seconds whether the guest still does its work.

use core::sync::atomic::{AtomicU32, Ordering};

use vmbus_proto::ic::heartbeat::{self as proto, application};
use vmbus_proto::ic::message_type;

use super::link::{Link, Service, Verdict, overwrite};
use crate::bus::{Offer, VmBus};
use crate::channel::{Channel, OpenOptions};
use crate::error::Error;
use crate::hal::Hal;

/// Class of the service, for [`VmBus::find`].
pub use vmbus_proto::ic::heartbeat::CLASS;

static SERVICE: Service = Service {
    message_type: message_type::HEARTBEAT,
    versions: proto::VERSIONS,
};

/// How what the guest is there for does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// The guest does not say.
    Unknown,
    /// It does its work.
    Healthy,
    /// It met an error that keeps it from its work.
    Critical,
    /// It has stopped.
    Stopped,
}

/// The heartbeat. Dropped, it is closed, which waits for the host.
pub struct Heartbeat<'b, H: Hal> {
    link: Link<'b, H>,
    application: AtomicU32,
    beats: AtomicU32,
}

impl<'b, H: Hal> Heartbeat<'b, H> {
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
            application: AtomicU32::new(application::UNKNOWN),
            beats: AtomicU32::new(0),
        })
    }

    /// The channel.
    pub fn channel(&self) -> &Channel<'b, H> {
        self.link.channel()
    }

    /// Says how the guest does, from the next beat on.
    pub fn set_health(&self, health: Health) {
        let application = match health {
            Health::Unknown => application::UNKNOWN,
            Health::Healthy => application::HEALTHY,
            Health::Critical => application::CRITICAL,
            Health::Stopped => application::STOPPED,
        };
        self.application.store(application, Ordering::Relaxed);
    }

    /// Answers the host, where it has asked. Never waits; may be called in interrupt context.
    ///
    /// # Errors
    /// The channel has come to an end.
    pub fn poll(&self) -> Result<(), Error> {
        let nothing = self.link.poll::<()>(|_, body| {
            let Ok(beat) = proto::Heartbeat::parse(body) else {
                return Verdict::Meaningless;
            };
            let answer = proto::Heartbeat {
                sequence: beat.sequence.get().wrapping_add(1).into(),
                application: self.application.load(Ordering::Relaxed).into(),
                reserved: beat.reserved,
            };
            if !overwrite(body, &answer) {
                return Verdict::Meaningless;
            }
            self.beats.fetch_add(1, Ordering::Relaxed);
            Verdict::Answer(None)
        });
        nothing.map(drop)
    }

    /// Beats answered so far.
    pub fn beats(&self) -> u32 {
        self.beats.load(Ordering::Relaxed)
    }
}
