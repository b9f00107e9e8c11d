//! What is offered: devices, the sub-channels beside their primary channels, and how both go.
//!
//! A guest tells channels apart by class, instance and sub-channel number. It takes a second offer
//! of the same three for a mistake while it has not let the first one go, so an offer waits
//! ([`ChannelState::Withheld`]) until the guest has released the relid of the one before. This also
//! bounds what a guest that releases nothing can make the bus remember.
#![warn(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use vmbus_proto::hv::synic::EVENT_FLAG_COUNT;
use vmbus_proto::message::{ChannelId, Message, OfferChannel};

use super::super::state::{Channel, ChannelState, Connection, Name};
use super::{Action, Bus, doorbell_id, status};

/// A sub-channel that is offered, or waits to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubChannel {
    /// Its own relid.
    pub relid: u32,
    /// The relid of its primary channel.
    pub primary: u32,
    /// Its number: 1 and up.
    pub index: u16,
}

impl Bus {
    /// The relids of the primary channels of all devices that are there, in order.
    pub fn relids(&self) -> impl Iterator<Item = u32> {
        let channels = self.state.channels.iter();
        let there = channels.filter(|(_, channel)| channel.is_there() && channel.primary.is_none());
        there.map(|(&relid, _)| relid)
    }

    /// The sub-channels of all devices, by relid.
    pub fn sub_channels(&self) -> impl Iterator<Item = SubChannel> {
        let channels = self.state.channels.iter();
        let there = channels.filter(|(_, channel)| channel.is_there());
        there.filter_map(|(&relid, channel)| {
            Some(SubChannel {
                relid,
                primary: channel.primary?,
                index: channel.offer().sub_channel_index.get(),
            })
        })
    }

    /// Offers a device; its relid, or `None` where all are taken.
    pub fn offer(&mut self, offer: OfferChannel) -> Option<u32> {
        self.add(offer, None)
    }

    /// Offers sub-channel `index` beside the primary channel `primary`. It goes when that closes.
    /// `None` where all relids are taken, the primary channel is not open, or `index` is 0 or
    /// offered already.
    pub fn offer_sub_channel(&mut self, primary: u32, index: u16) -> Option<u32> {
        let channel = self.state.channels.get(&primary)?;
        let is_open = matches!(channel.state, ChannelState::Open(_));
        let is_new = |sub: SubChannel| (sub.primary, sub.index) != (primary, index);
        if !is_open || channel.primary.is_some() || index == 0 || !self.sub_channels().all(is_new) {
            return None;
        }
        let mut offer = channel.offer();
        offer.sub_channel_index = index.into();
        self.add(offer, Some(primary))
    }

    fn add(&mut self, mut offer: OfferChannel, primary: Option<u32>) -> Option<u32> {
        let relid = (1..EVENT_FLAG_COUNT).find(|relid| !self.state.channels.contains_key(relid))?;
        offer.relid = relid.into();
        offer.connection_id = doorbell_id(relid).into();
        offer.dedicated_interrupt = 1.into();
        let channel = Channel {
            offer: zerocopy::IntoBytes::as_bytes(&offer).to_vec(),
            primary,
            state: ChannelState::Withheld,
        };
        let name = channel.name();
        self.state.channels.insert(relid, channel);
        self.offer_withheld(name);
        Some(relid)
    }

    /// Offers what has waited for this name, where no other channel has it any more.
    fn offer_withheld(&mut self, name: Name) {
        let mut namesakes = self.state.channels.values();
        if namesakes.any(|other| !other.is_there() && other.name() == name) {
            return;
        }
        let mut channels = self.state.channels.values_mut();
        let waits = |channel: &&mut Channel| {
            matches!(channel.state, ChannelState::Withheld) && channel.name() == name
        };
        let Some(channel) = channels.find(waits) else {
            return;
        };
        channel.state = ChannelState::Closed;
        let offer = channel.offer();
        if self.offers_are_heard() {
            self.send(&Message::OfferChannel(offer));
        }
    }

    /// Takes a device away, with its sub-channels. The channels stop at once.
    pub fn rescind(&mut self, relid: u32) {
        // A guest closes them in this order, too.
        self.rescind_sub_channels(relid);
        self.rescind_channel(relid);
    }

    pub(super) fn rescind_sub_channels(&mut self, primary: u32) {
        let all: Vec<SubChannel> = self.sub_channels().collect();
        for sub in all.iter().filter(|sub| sub.primary == primary) {
            self.rescind_channel(sub.relid);
        }
    }

    fn rescind_channel(&mut self, relid: u32) {
        let Some(channel) = self.state.channels.get_mut(&relid) else {
            return;
        };
        let was = std::mem::replace(&mut channel.state, ChannelState::Rescinded);
        let mut is_known = self.offers_are_heard();
        match was {
            ChannelState::Open(open) => self.stop(&open),
            ChannelState::Opening(open) => self.send_open_result(&open, status::UNSUCCESSFUL),
            ChannelState::Rescinded => return,
            ChannelState::Withheld => is_known = false,
            ChannelState::Closed => {}
        }
        if is_known {
            self.send(&Message::RescindChannelOffer(ChannelId::new(relid)));
        } else {
            self.release(relid);
        }
        self.actions.push_back(Action::Remove { relid });
    }

    pub(super) fn request_offers(&mut self) {
        let Connection::Connected {
            offers_requested, ..
        } = &mut self.state.connection
        else {
            return;
        };
        if std::mem::replace(offers_requested, true) {
            return self.refuse();
        }
        let offers: Vec<OfferChannel> = self.state.channels.values().map(Channel::offer).collect();
        for offer in offers {
            self.send(&Message::OfferChannel(offer));
        }
        self.send(&Message::AllOffersDelivered);
    }

    /// Whether the guest has asked for offers, and so hears of each.
    fn offers_are_heard(&self) -> bool {
        matches!(
            self.state.connection,
            Connection::Connected {
                offers_requested: true,
                ..
            }
        )
    }

    pub(super) fn relid_released(&mut self, relid: u32) {
        match self.state.channels.get(&relid) {
            Some(channel) if !channel.is_there() => self.release(relid),
            _ => self.refuse(),
        }
    }

    fn release(&mut self, relid: u32) {
        self.state.gpadls.remove_channel(relid);
        if let Some(channel) = self.state.channels.remove(&relid) {
            self.offer_withheld(channel.name());
        }
    }

    /// Whether the guest may build on channel `relid`.
    pub(super) fn is_usable(&self, relid: u32) -> bool {
        let channel = self.state.channels.get(&relid);
        channel.is_some_and(|channel| {
            channel.is_there() && !matches!(channel.state, ChannelState::Withheld)
        })
    }
}
