//! Time synchronization: the guest's clock is set when it starts and after each pause, and the
//! guest hears what time it is every five seconds.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vmbus_proto::ic::message_type;
use vmbus_proto::ic::timesync::{
    self as proto, FLAG_SAMPLE, FLAG_SYNC, ReferencedTime, Time, VERSION_REFERENCED, wall_clock,
};
use vmbus_proto::message::OfferChannel;
use zerocopy::IntoBytes as _;

use super::link::{Link, Service};
use super::ticker::Ticker;
use crate::vmbus::channel::{Channel, ChannelError};
use crate::vsp::{StateError, Vsp};

/// Time between two samples.
const PERIOD: Duration = Duration::from_secs(5);

static SERVICE: Service = Service {
    name: "time synchronization",
    class: proto::CLASS,
    instance: proto::INSTANCE,
    message_type: message_type::TIME_SYNC,
    versions: proto::VERSIONS,
};

/// One moment on two clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Time since the beginning of the year 1970, UTC.
    pub host: Duration,
    /// What the guest reads in its reference counter (MSR TIME_REF_COUNT), in units of 100 ns.
    pub reference: u64,
}

/// The clocks of a machine.
pub trait Clock: Send + Sync {
    /// This moment; `None` where the hypervisor does not tell.
    fn now(&self) -> Option<Moment>;
}

/// What both ends share.
struct Shared {
    /// The guest shall set its clock.
    sync: AtomicBool,
    ticker: Ticker,
}

/// The embedder's end of the time synchronization.
#[derive(Clone)]
pub struct TimeSync(Arc<Shared>);

impl TimeSync {
    /// The service: its VSP to offer, and this. `clock` is the machine's.
    ///
    /// # Errors
    /// The system gives no timer.
    pub fn new(clock: Arc<dyn Clock>) -> io::Result<(Box<dyn Vsp>, Self)> {
        let shared = Arc::new(Shared {
            sync: AtomicBool::new(false),
            ticker: Ticker::new(PERIOD)?,
        });
        let vsp = TimeSyncVsp {
            link: Link::new(&SERVICE),
            clock,
            shared: Arc::clone(&shared),
            due: Some(FLAG_SYNC),
        };
        Ok((Box::new(vsp), Self(shared)))
    }

    /// Has the guest set its clock, now or when its driver comes.
    pub fn sync(&self) {
        self.0.sync.store(true, Ordering::Release);
        self.0.ticker.ring();
    }
}

struct TimeSyncVsp {
    link: Link,
    clock: Arc<dyn Clock>,
    shared: Arc<Shared>,
    /// The flag of the message to send next.
    due: Option<u8>,
}

impl TimeSyncVsp {
    /// This moment in the guest's words.
    fn message(&self, flags: u8) -> Option<Vec<u8>> {
        let moment = self.clock.now()?;
        let host_time = wall_clock(moment.host).into();
        let message = if self.link.version()? == VERSION_REFERENCED {
            let time = ReferencedTime {
                host_time,
                reference_time: moment.reference.into(),
                flags,
                leap_indicator: 0,
                stratum: 0,
                reserved: [0; 5],
            };
            time.as_bytes().to_vec()
        } else {
            let time = Time {
                host_time,
                guest_time: 0.into(),
                round_trip_time: 0.into(),
                flags,
                reserved: [0; 7],
            };
            time.as_bytes().to_vec()
        };
        Some(message)
    }
}

impl Vsp for TimeSyncVsp {
    fn offer(&self) -> OfferChannel {
        SERVICE.offer()
    }

    fn opened(&mut self) {
        self.link.opened();
        self.due = Some(FLAG_SYNC);
    }

    fn service(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        // An order is taken together with its tick: a tick that came after it would be one too many.
        if self.shared.ticker.clear() {
            if self.shared.sync.swap(false, Ordering::AcqRel) {
                self.due = Some(FLAG_SYNC);
            } else if self.due.is_none() {
                self.due = Some(FLAG_SAMPLE);
            }
        }
        self.link.negotiate(channel)?;
        // Guests answer, but there is nothing to learn from it.
        while self.link.receive(channel)?.is_some() {}
        if let Some(message) = self.due.and_then(|flags| self.message(flags))
            && self.link.send(channel, &message)?.is_some()
        {
            self.due = None;
        }
        Ok(())
    }

    fn event(&self) -> Option<RawFd> {
        Some(self.shared.ticker.event())
    }

    fn quiesce(&mut self) {
        // The next that this conversation hears, if it goes on, comes after a pause.
        self.due = Some(FLAG_SYNC);
    }

    fn save(&self) -> Vec<u8> {
        self.link.save()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        self.due = Some(FLAG_SYNC);
        self.link.restore(state)
    }
}
