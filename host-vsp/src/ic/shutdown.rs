//! Shutdown: the guest's operating system is asked to end in an orderly way.

use std::io;
use std::time::Duration;

use vmbus_proto::ic::message_type;
use vmbus_proto::ic::shutdown::{self as proto, FLAG_HIBERNATE, FLAG_RESTART};
use zerocopy::IntoBytes as _;

use super::exchange::{self, Client, Error};
use super::link::Service;
use crate::vsp::Vsp;

static SERVICE: Service = Service {
    name: "shutdown",
    class: proto::CLASS,
    instance: proto::INSTANCE,
    message_type: message_type::SHUTDOWN,
    versions: proto::VERSIONS,
};

/// How to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownKind {
    /// Power off.
    PowerOff,
    /// Start again.
    Restart,
    /// Save everything to disk and power off.
    Hibernate,
}

/// The embedder's end of the shutdown service.
#[derive(Clone)]
pub struct Shutdown(Client);

impl Shutdown {
    /// The service: its VSP to offer, and this.
    ///
    /// # Errors
    /// The system gives no file descriptor.
    pub fn new() -> io::Result<(Box<dyn Vsp>, Self)> {
        let (vsp, client) = exchange::new(&SERVICE)?;
        Ok((vsp, Self(client)))
    }

    /// Whether the guest has a driver that would listen.
    pub fn is_ready(&self) -> bool {
        self.0.is_ready()
    }

    /// Asks the guest to end, and waits at most `patience` for its word that it will. When it is
    /// done, the machine powers off or is reset like by any other cause.
    ///
    /// # Errors
    /// The guest does not listen, does not answer or does not want to.
    pub fn request(&self, kind: ShutdownKind, patience: Duration) -> Result<(), Error> {
        let flags = match kind {
            ShutdownKind::PowerOff => 0,
            ShutdownKind::Restart => FLAG_RESTART,
            ShutdownKind::Hibernate => FLAG_HIBERNATE,
        };
        let request = proto::Shutdown::planned(flags);
        self.0.ask(request.as_bytes(), patience).map(drop)
    }
}
