//! What the control plane remembers of a guest, as plain values.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vmbus_proto::guid::Guid;
use vmbus_proto::message::OfferChannel;
use zerocopy::FromBytes as _;

use super::gpadl::Gpadls;

/// What a channel is opened with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OpenRequest {
    /// Which channel.
    pub relid: u32,
    /// From the guest, for the result.
    pub open_id: u32,
    /// VP index to interrupt, or `None` for no interrupts.
    pub target_vp: Option<u32>,
    /// The GPADL with the rings.
    pub gpadl: u32,
    /// Pages of the `to_host` ring.
    pub to_host: Arc<[u64]>,
    /// Pages of the `to_guest` ring.
    pub to_guest: Arc<[u64]>,
}

/// Where a channel is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum ChannelState {
    /// Not offered yet: the guest has not released another channel of the same name.
    Withheld,
    /// Offered, or about to be; the guest has not opened it.
    Closed,
    /// The guest asked, the device has not answered.
    Opening(OpenRequest),
    /// In use.
    Open(OpenRequest),
    /// The device is gone and the guest was told; the relid waits to be released.
    Rescinded,
}

/// A channel: its offer and where it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Channel {
    /// The bytes of the offer.
    pub(super) offer: Vec<u8>,
    /// Of a sub-channel, the relid of its primary channel.
    pub(super) primary: Option<u32>,
    pub(super) state: ChannelState,
}

/// What a guest tells channels apart by: class, instance and number of the sub-channel.
pub(super) type Name = (Guid, Guid, u16);

impl Channel {
    /// The offer.
    pub(super) fn offer(&self) -> OfferChannel {
        // The bytes were made from one.
        OfferChannel::read_from_bytes(&self.offer).unwrap_or_default()
    }

    /// What a guest tells it from others by.
    pub(super) fn name(&self) -> Name {
        let offer = self.offer();
        (offer.class, offer.instance, offer.sub_channel_index.get())
    }

    /// Whether there is a device behind it.
    pub(super) fn is_there(&self) -> bool {
        !matches!(self.state, ChannelState::Rescinded)
    }
}

/// Where the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Connection {
    /// No version is agreed on. Only contact and unload mean something.
    Disconnected,
    /// A version is agreed on.
    Connected {
        version: u32,
        /// VP index to which all messages go.
        target_vp: u32,
        /// The guest has asked for offers and gets new ones as they come.
        offers_requested: bool,
    },
}

/// Everything the control plane remembers: a plain value that can be saved and taken up again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BusState {
    pub(super) connection: Connection,
    pub(super) channels: BTreeMap<u32, Channel>,
    pub(super) gpadls: Gpadls,
    pub(super) refused: u64,
}

impl Default for BusState {
    /// No guest, no channels.
    fn default() -> Self {
        Self {
            connection: Connection::Disconnected,
            channels: BTreeMap::new(),
            gpadls: Gpadls::default(),
            refused: 0,
        }
    }
}
