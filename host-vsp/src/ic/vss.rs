//! Volume shadow copies: the guest's file systems stand still while their disks are copied.

use std::io;
use std::time::Duration;

use vmbus_proto::ic::message_type;
use vmbus_proto::ic::vss::{self as proto, Message, operation};
use zerocopy::IntoBytes as _;

use super::exchange::{self, Client, Error};
use super::link::Service;
use crate::vsp::Vsp;

static SERVICE: Service = Service {
    name: "volume shadow copies",
    class: proto::CLASS,
    instance: proto::INSTANCE,
    message_type: message_type::VSS,
    versions: proto::VERSIONS,
};

/// The embedder's end of the volume shadow copies.
#[derive(Clone)]
pub struct Vss(Client);

impl Vss {
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

    /// Has the guest's file systems write everything and stand still, and waits at most `patience`
    /// until they do. After an error they may do so all the same, or be about to:
    /// [`thaw`](Self::thaw) them then, too.
    ///
    /// # Errors
    /// The guest does not listen, does not answer or cannot.
    pub fn freeze(&self, patience: Duration) -> Result<(), Error> {
        self.ask(operation::FREEZE, patience)
    }

    /// Has the guest's file systems go on.
    ///
    /// # Errors
    /// The guest does not listen, does not answer or cannot.
    pub fn thaw(&self, patience: Duration) -> Result<(), Error> {
        self.ask(operation::THAW, patience)
    }

    fn ask(&self, operation: u8, patience: Duration) -> Result<(), Error> {
        let request = Message::new(operation);
        self.0.ask(request.as_bytes(), patience).map(drop)
    }
}
