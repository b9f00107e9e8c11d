//! Shutdown: the host asks the guest to power off, to restart or to hibernate.

use core::time::Duration;

use vmbus_proto::ic::shutdown::{self as proto, FLAG_FORCE, FLAG_HIBERNATE, FLAG_RESTART};
use vmbus_proto::ic::{message_type, status};

use super::link::{Link, Service, Verdict};
use crate::bus::{Offer, VmBus};
use crate::channel::{Channel, OpenOptions};
use crate::error::Error;
use crate::hal::Hal;

/// Class of the service, for [`VmBus::find`].
pub use vmbus_proto::ic::shutdown::CLASS;

static SERVICE: Service = Service {
    message_type: message_type::SHUTDOWN,
    versions: proto::VERSIONS,
};

/// What the host wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownKind {
    /// Power off.
    PowerOff,
    /// Start again.
    Restart,
    /// Save everything to disk and power off.
    Hibernate,
}

/// A request of the host, which waits for the answer. Dropped, it is refused.
#[must_use = "the host waits for the answer"]
pub struct ShutdownRequest<'s, 'b, H: Hal> {
    /// What it wants.
    pub kind: ShutdownKind,
    /// Programs that do not end by themselves are to be ended.
    pub force: bool,
    /// How long the guest may take before it begins.
    pub timeout: Duration,
    /// Why: Windows' reason code, see [`proto::REASON_PLANNED`].
    pub reason: u32,
    link: &'s Link<'b, H>,
    status: u32,
}

impl<H: Hal> ShutdownRequest<'_, '_, H> {
    /// Answers that the guest will do it. Never waits. What comes after is the kernel's work.
    ///
    /// # Errors
    /// The channel has come to an end. That is no reason not to do what was asked.
    pub fn accept(mut self) -> Result<(), Error> {
        self.status = status::OK;
        self.link.answer(status::OK)
    }

    /// Answers that the guest will not. Never waits.
    pub fn refuse(self) {}
}

impl<H: Hal> Drop for ShutdownRequest<'_, '_, H> {
    fn drop(&mut self) {
        if self.status != status::OK {
            // A host that has gone does not wait for it.
            let _ = self.link.answer(self.status);
        }
    }
}

impl<H: Hal> core::fmt::Debug for ShutdownRequest<'_, '_, H> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ShutdownRequest")
            .field("kind", &self.kind)
            .field("force", &self.force)
            .field("timeout", &self.timeout)
            .field("reason", &self.reason)
            .finish_non_exhaustive()
    }
}

/// The shutdown service. Dropped, it is closed, which waits for the host.
pub struct Shutdown<'b, H: Hal> {
    link: Link<'b, H>,
}

impl<'b, H: Hal> Shutdown<'b, H> {
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

    /// Takes the host's request, where there is one; the next comes when this one is answered.
    /// Never waits; may be called in interrupt context.
    ///
    /// # Errors
    /// The channel has come to an end.
    pub fn poll(&self) -> Result<Option<ShutdownRequest<'_, 'b, H>>, Error> {
        let request = self
            .link
            .poll(|_, body| match proto::Request::parse(body) {
                Ok(request) => Verdict::Later(request),
                Err(_) => Verdict::Meaningless,
            })?;
        Ok(request.map(|request| ShutdownRequest {
            kind: match request.flags {
                flags if flags & FLAG_HIBERNATE != 0 => ShutdownKind::Hibernate,
                flags if flags & FLAG_RESTART != 0 => ShutdownKind::Restart,
                _ => ShutdownKind::PowerOff,
            },
            force: request.flags & FLAG_FORCE != 0,
            timeout: Duration::from_secs(request.timeout.into()),
            reason: request.reason,
            link: &self.link,
            status: status::FAIL,
        }))
    }
}
