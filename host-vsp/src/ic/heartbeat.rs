//! Heartbeat: whether the guest's operating system still does its work.

use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vmbus_proto::ic::heartbeat::{self as proto, application};
use vmbus_proto::ic::message_type;
use vmbus_proto::message::OfferChannel;
use zerocopy::IntoBytes as _;

use super::link::{Link, Service};
use super::ticker::Ticker;
use crate::vmbus::channel::{Channel, ChannelError};
use crate::vsp::{StateError, Vsp};

/// Time between two beats.
const PERIOD: Duration = Duration::from_secs(2);

/// A guest whose last answer is older has lost contact.
const PATIENCE: Duration = Duration::from_secs(10);

static SERVICE: Service = Service {
    name: "heartbeat",
    class: proto::CLASS,
    instance: proto::INSTANCE,
    message_type: message_type::HEARTBEAT,
    versions: proto::VERSIONS,
};

/// How the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It has not answered since its driver came, or has no driver, or is paused.
    NoContact,
    /// It answers.
    Alive {
        /// It says that what it is there for runs well; Linux never says.
        healthy: bool,
    },
    /// It answers, but says that what it is there for has failed or ended.
    Critical,
    /// It has answered, and does so no more.
    Lost,
}

/// What the guest's answers say.
#[derive(Default)]
struct Pulse {
    last: Option<Instant>,
    application: u32,
    beats: u64,
}

/// The embedder's end of the heartbeat.
#[derive(Clone)]
pub struct Heartbeat(Arc<Mutex<Pulse>>);

impl Heartbeat {
    /// The service: its VSP to offer, and this.
    ///
    /// # Errors
    /// The system gives no timer.
    pub fn new() -> io::Result<(Box<dyn Vsp>, Self)> {
        let pulse = Arc::new(Mutex::default());
        let vsp = HeartbeatVsp {
            link: Link::new(&SERVICE),
            ticker: Ticker::new(PERIOD)?,
            pulse: Arc::clone(&pulse),
            rhythm: Rhythm::default(),
        };
        Ok((Box::new(vsp), Self(pulse)))
    }

    fn pulse(&self) -> MutexGuard<'_, Pulse> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the guest does.
    pub fn status(&self) -> Life {
        let pulse = self.pulse();
        match (pulse.last, pulse.application) {
            (None, _) => Life::NoContact,
            (Some(last), _) if last.elapsed() > PATIENCE => Life::Lost,
            (Some(_), application::CRITICAL | application::STOPPED) => Life::Critical,
            (Some(_), application) => Life::Alive {
                healthy: application == application::HEALTHY,
            },
        }
    }

    /// Beats that the guest has answered since the machine was made.
    pub fn beats(&self) -> u64 {
        self.pulse().beats
    }
}

struct HeartbeatVsp {
    link: Link,
    ticker: Ticker,
    pulse: Arc<Mutex<Pulse>>,
    rhythm: Rhythm,
}

/// Where the beats are.
#[derive(Serialize, Deserialize)]
struct Rhythm {
    sequence: u64,
    /// The next beat's time has come.
    due: bool,
    /// Transaction id of the beat that the guest owes an answer to: it gets no other before.
    asked: Option<u8>,
}

impl Default for Rhythm {
    fn default() -> Self {
        Self {
            sequence: 0,
            due: true,
            asked: None,
        }
    }
}

impl HeartbeatVsp {
    fn pulse(&self) -> MutexGuard<'_, Pulse> {
        self.pulse.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self) {
        self.pulse().last = None;
    }
}

impl Vsp for HeartbeatVsp {
    fn offer(&self) -> OfferChannel {
        SERVICE.offer()
    }

    fn opened(&mut self) {
        self.link.opened();
        self.rhythm = Rhythm::default();
        self.forget();
    }

    fn service(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        self.rhythm.due |= self.ticker.clear();
        self.link.negotiate(channel)?;
        while let Some(answer) = self.link.receive(channel)? {
            let Some(beat) = proto::Heartbeat::parse(&answer.body).ok().filter(|beat| {
                self.rhythm.asked == Some(answer.id)
                    && beat.sequence.get() == self.rhythm.sequence.wrapping_add(1)
            }) else {
                continue;
            };
            self.rhythm.asked = None;
            self.rhythm.sequence = beat.sequence.get();
            let mut pulse = self.pulse();
            pulse.last = Some(Instant::now());
            pulse.application = beat.application.get();
            pulse.beats += 1;
        }
        if self.rhythm.due && self.rhythm.asked.is_none() {
            let beat = proto::Heartbeat {
                sequence: self.rhythm.sequence.into(),
                application: application::UNKNOWN.into(),
                reserved: 0.into(),
            };
            self.rhythm.asked = self.link.send(channel, beat.as_bytes())?;
            self.rhythm.due = self.rhythm.asked.is_none();
        }
        Ok(())
    }

    fn event(&self) -> Option<RawFd> {
        Some(self.ticker.event())
    }

    fn quiesce(&mut self) {
        // A guest that does not run cannot be asked how it does.
        self.forget();
    }

    fn save(&self) -> Vec<u8> {
        // Numbers and bytes cannot fail to serialize.
        postcard::to_stdvec(&(self.link.save(), &self.rhythm)).unwrap_or_default()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let (link, rhythm): (Vec<u8>, Rhythm) =
            postcard::from_bytes(state).map_err(|error| StateError {
                device: SERVICE.name,
                reason: error.to_string(),
            })?;
        self.link.restore(&link)?;
        self.rhythm = rhythm;
        Ok(())
    }
}
