//! What a synthetic device is to the bus: the trait of a VSP.

use std::io;
use std::os::fd::RawFd;

use vmbus_proto::guid::Guid;
use vmbus_proto::message::OfferChannel;

use crate::vmbus::channel::{Channel, ChannelError};

/// A virtualization service provider: the host's end of one device.
///
/// The bus offers it, and while the guest has its channel open, a worker calls
/// [`service`](Self::service) whenever there may be something to do. A VSP never waits: what takes
/// long goes to a backend, whose completions make [`event`](Self::event) readable.
///
/// Opening ([`opened`](Self::opened)) begins a new conversation, whatever the one before came to.
pub trait Vsp: Send {
    /// What to offer. The bus fills in relid and connection id.
    fn offer(&self) -> OfferChannel;

    /// The guest opened the channel: forget the last conversation.
    fn opened(&mut self);

    /// Takes packets, starts work and sends completions until nothing more can be done without
    /// waiting.
    ///
    /// The caller has masked the guest's signals and looks for new packets after the return.
    /// A VSP that gets [`SendError::Full`](vmbus_proto::ring::SendError::Full) keeps what it
    /// wanted to send and returns: it is called again when the guest has made room.
    ///
    /// # Errors
    /// A guest that breaks the protocol beyond an error answer: the channel stops, the VM and its
    /// other channels go on.
    fn service(&mut self, channel: &mut Channel) -> Result<(), ChannelError>;

    /// How many sub-channels the guest has asked for in this conversation. The bus looks after each
    /// [`service`](Self::service), offers the new ones with this device's class and instance,
    /// numbered from 1, and takes them away when this channel closes. It never becomes less in
    /// between, and how many a guest may ask for is for the device to bound.
    fn sub_channels(&self) -> u16 {
        0
    }

    /// The VSP that serves sub-channel `index`, which shares the state of this device. It is a
    /// device of its own to the bus, opened, closed, saved and restored, but for its offer, which
    /// is made from this one's.
    ///
    /// # Errors
    /// There can be no such sub-channel: the guest gets one less.
    fn sub_channel(&mut self, index: u16) -> io::Result<Box<dyn Vsp>> {
        let _ = index;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// A file descriptor that is readable while the VSP has something to do besides packets;
    /// [`service`](Self::service) makes it unreadable again.
    fn event(&self) -> Option<RawFd> {
        None
    }

    /// Ends all work on guest memory. When this returns, no transfer of this conversation touches
    /// the guest's pages any more and what was accepted has been finished or dropped.
    fn quiesce(&mut self);

    /// The state of the conversation, for a paused VM: enough for a fresh VSP over the same
    /// backend to go on by [`restore`](Self::restore). Called after [`quiesce`](Self::quiesce);
    /// requests that are finished and not yet answered are part of it.
    fn save(&self) -> Vec<u8>;

    /// Takes up a conversation that [`save`](Self::save) described.
    ///
    /// # Errors
    /// The bytes are not such a description.
    fn restore(&mut self, state: &[u8]) -> Result<(), StateError>;
}

/// Saved state that cannot be taken up.
#[derive(Debug, thiserror::Error)]
#[error("the saved state of {device} cannot be used: {reason}")]
pub struct StateError {
    /// What it was the state of.
    pub device: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

/// An offer for a device of class `class` and instance `instance`, with the fields zero that most
/// devices leave so.
pub fn plain_offer(class: Guid, instance: Guid) -> OfferChannel {
    OfferChannel {
        class,
        instance,
        ..OfferChannel::default()
    }
}
