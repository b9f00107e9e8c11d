//! Dynamic memory: the host hears how much memory the guest needs.
//!
//! The protocol ([`vmbus_proto::balloon`]) also lets a host ask for pages, give them back and add
//! memory. This driver says that the guest can do none of that, so that hosts do not ask; one that
//! asks all the same hears that there is nothing to give. What is left is worth having: a host sees
//! the guest's need, and [`Balloon::report`] tells it, once a second where the guest is like others.

use core::sync::atomic::{AtomicU32, Ordering};

use vmbus_proto::balloon::{
    self as proto, BalloonResponse, CapabilitiesReport, FromHost, HotAddResponse, StatusReport,
    VERSIONS, VersionRequest,
};
use vmbus_proto::packet::{Outgoing, PacketKind};
use zerocopy::{Immutable, IntoBytes};

use crate::bus::{Offer, VmBus, count};
use crate::channel::{Channel, OpenOptions};
use crate::error::{Error, Waited};
use crate::hal::Hal;
use crate::sync::IrqMutex;

/// Class of dynamic memory, for [`VmBus::find`].
pub use vmbus_proto::balloon::CLASS;

/// Longest packet that is taken, descriptor not counted, in bytes: hosts send a page at most.
const MAX_PACKET: usize = 4096;

/// Packets taken in one go, so that a storm of them cannot keep a processor for ever.
const PACKETS_AT_ONCE: u32 = 64;

/// Longest answer, in bytes.
const MAX_ANSWER: usize = 16;

/// An answer that waits for room.
#[derive(Clone, Copy)]
struct Answer {
    bytes: [u8; MAX_ANSWER],
    length: usize,
}

impl Answer {
    fn new<T: IntoBytes + Immutable>(message: &T) -> Option<Self> {
        let mut bytes = [0; MAX_ANSWER];
        message.write_to_prefix(&mut bytes).ok()?;
        let length = size_of::<T>();
        Some(Self { bytes, length })
    }
}

/// Dynamic memory. Dropped, it is closed, which waits for the host.
pub struct Balloon<'b, H: Hal> {
    channel: Channel<'b, H>,
    version: u32,
    reports_wanted: bool,
    next_id: AtomicU32,
    answer: IrqMutex<H, Option<Answer>>,
}

impl<'b, H: Hal> Balloon<'b, H> {
    /// Opens the device that `offer` names, and agrees with the host on version and capabilities.
    /// Waits for the host.
    ///
    /// # Errors
    /// The channel cannot be opened, or the host takes no version that this crate speaks.
    pub fn open(
        bus: &'b VmBus<'b, H>,
        offer: &Offer,
        options: &OpenOptions,
    ) -> Result<Self, Error> {
        let mut balloon = Self {
            channel: Channel::open(bus, offer, options)?,
            version: 0,
            reports_wanted: false,
            next_id: AtomicU32::new(1),
            answer: IrqMutex::new(None),
        };
        let last = VERSIONS.last().copied();
        let mut agreed = None;
        for version in VERSIONS {
            let id = balloon.next_id();
            let request = VersionRequest::new(id, version, Some(version) == last);
            match balloon.ask(id, &request)? {
                FromHost::Version { accepted: true } => {
                    agreed = Some(version);
                    break;
                }
                FromHost::Version { accepted: false } => {}
                _ => return Err(Error::Protocol("no answer to a version")),
            }
        }
        let what = Waited::ProtocolVersion;
        balloon.version = agreed.ok_or(Error::Refused(what, 0))?;
        let id = balloon.next_id();
        balloon.reports_wanted = match balloon.ask(id, &CapabilitiesReport::new(id, 0))? {
            FromHost::Capabilities {
                accepted: true,
                wants_reports,
            } => wants_reports,
            FromHost::Capabilities { .. } => return Err(Error::Refused(what, 0)),
            _ => return Err(Error::Protocol("no answer to capabilities")),
        };
        Ok(balloon)
    }

    /// The channel.
    pub fn channel(&self) -> &Channel<'b, H> {
        &self.channel
    }

    /// The version that was agreed on: major and minor.
    pub fn version(&self) -> (u16, u16) {
        ((self.version >> 16) as u16, self.version as u16)
    }

    /// Whether the host has a use for [`report`](Self::report).
    pub fn reports_wanted(&self) -> bool {
        self.reports_wanted
    }

    /// Tells the host how many pages of 4096 bytes are `available` at once, and how many are
    /// `committed`, which is what it goes by. Never waits; may be called in interrupt context.
    ///
    /// # Errors
    /// [`Error::Full`] where there is no room now; the channel has come to an end.
    pub fn report(&self, available: u64, committed: u64) -> Result<(), Error> {
        let report = StatusReport::new(self.next_id(), available, committed);
        self.send(report.as_bytes())
    }

    /// Takes what has come, and answers where an answer is due. Never waits; may be called in
    /// interrupt context.
    ///
    /// # Errors
    /// The channel has come to an end.
    pub fn poll(&self) -> Result<(), Error> {
        self.answer.with(|waiting| {
            for _ in 0..PACKETS_AT_ONCE {
                if let Some(answer) = waiting {
                    let bytes = answer.bytes.get(..answer.length).unwrap_or_default();
                    let sent = self.send(bytes);
                    if sent == Err(Error::Full) {
                        return Ok(());
                    }
                    *waiting = None;
                    sent?;
                }
                let Some((id, said)) = self.take()? else {
                    break;
                };
                *waiting = match said {
                    FromHost::Balloon { .. } => Answer::new(&BalloonResponse::nothing(id)),
                    FromHost::HotAdd { .. } => Answer::new(&HotAddResponse::nothing(id)),
                    FromHost::Unballoon { more: false } => Answer::new(&proto::unballooned(id)),
                    FromHost::Unballoon { more: true } | FromHost::Info => None,
                    // Answers to what was settled when this was opened.
                    FromHost::Version { .. } | FromHost::Capabilities { .. } => {
                        count(&self.channel.bus().counters.bad_packets);
                        None
                    }
                };
            }
            Ok(())
        })
    }

    fn next_id(&self) -> u32 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    fn send(&self, message: &[u8]) -> Result<(), Error> {
        self.channel.send(&Outgoing::in_band(0, message, false))
    }

    /// Sends a question of the handshake and waits for its answer, the message with its id.
    fn ask(&self, id: u32, question: &(impl IntoBytes + Immutable)) -> Result<FromHost, Error> {
        self.send(question.as_bytes())?;
        let deadline = self.channel.bus().deadline();
        self.channel.wait(Waited::ProtocolVersion, deadline, || {
            Ok(match self.take()? {
                Some((answered, said)) if answered == id => Some(said),
                Some(_) => {
                    count(&self.channel.bus().counters.bad_packets);
                    None
                }
                None => None,
            })
        })
    }

    /// Takes the next message; what is none is counted. An error only when there is nothing more.
    fn take(&self) -> Result<Option<(u32, FromHost)>, Error> {
        let mut buffer = [0; MAX_PACKET];
        for _ in 0..PACKETS_AT_ONCE {
            let Some(packet) = self.channel.receive(&mut buffer)? else {
                return self.channel.check().map(|()| None);
            };
            match (packet.kind, FromHost::parse(packet.payload)) {
                (PacketKind::InBand, Ok(message)) => return Ok(Some(message)),
                _ => count(&self.channel.bus().counters.bad_packets),
            }
        }
        Ok(None)
    }
}
