//! The table of offers.
//!
//! A slot is free, or holds an offer that is unused, in use by a
//! [`Channel`](crate::channel::Channel), or leaving: rescinded and out of use, while its relid
//! still has to be released. The host may rescind at any time; a relid stays taken until
//! the guest has released it.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmbus_proto::guid::Guid;
use vmbus_proto::hv::synic::EVENT_FLAG_COUNT;
use vmbus_proto::message::{ChannelId, Message, OfferChannel};

use super::{VmBus, count};
use crate::error::Error;
use crate::hal::Hal;
use crate::sync::IrqMutex;

/// An offer, as it stood when the table was looked at.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    message: OfferChannel,
    pub(crate) in_use: bool,
}

impl Offer {
    /// What kind of device it is.
    pub fn class(&self) -> Guid {
        self.message.class
    }

    /// Which device it is.
    pub fn instance(&self) -> Guid {
        self.message.instance
    }

    /// The number by which host and guest name the channel.
    pub fn relid(&self) -> u32 {
        self.message.relid.get()
    }

    /// 0 for a primary channel, else the number of the sub-channel.
    pub fn sub_channel_index(&self) -> u16 {
        self.message.sub_channel_index.get()
    }

    /// Whether a channel is open over it, or being opened.
    pub fn is_in_use(&self) -> bool {
        self.in_use
    }

    /// The whole message.
    pub fn message(&self) -> &OfferChannel {
        &self.message
    }
}

#[derive(Clone, Copy)]
enum Place {
    /// No offer.
    Free,
    /// An offer that nobody uses.
    Unused(OfferChannel),
    /// An offer whose channel is being used.
    Used(OfferChannel),
    /// A rescinded offer, whose relid is to be released.
    Leaving,
}

/// A place for one offer.
pub(crate) struct Slot<H> {
    place: IrqMutex<H, Place>,
    /// Relid of the offer, 0 where there is none; for the handler.
    relid: AtomicU32,
    rescinded: AtomicBool,
    /// The offer is new: [`VmBus::next_offer`] has not given it out yet.
    new: AtomicBool,
    /// Event flags seen.
    events: AtomicU32,
}

impl<H> Slot<H> {
    pub(crate) const fn new() -> Self {
        Self {
            place: IrqMutex::new(Place::Free),
            relid: AtomicU32::new(0),
            rescinded: AtomicBool::new(false),
            new: AtomicBool::new(false),
            events: AtomicU32::new(0),
        }
    }

    pub(crate) fn relid(&self) -> u32 {
        self.relid.load(Ordering::Relaxed)
    }

    pub(crate) fn is_rescinded(&self) -> bool {
        self.rescinded.load(Ordering::Acquire)
    }

    pub(crate) fn event(&self) {
        self.events.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn events(&self) -> u32 {
        self.events.load(Ordering::Acquire)
    }
}

impl<H: Hal> Slot<H> {
    pub(crate) fn offer(&self) -> Option<Offer> {
        self.place.with(|place| match *place {
            Place::Unused(message) => Some(Offer {
                message,
                in_use: false,
            }),
            Place::Used(message) => Some(Offer {
                message,
                in_use: true,
            }),
            Place::Free | Place::Leaving => None,
        })
    }

    /// The offer, where it is new; it is not after that.
    pub(crate) fn take_new(&self) -> Option<Offer> {
        self.new
            .swap(false, Ordering::Relaxed)
            .then(|| self.offer())
            .flatten()
    }

    /// Puts an offer into a free slot; says whether it was free.
    fn fill(&self, offer: &OfferChannel) -> bool {
        self.place.with(|place| {
            let free = matches!(place, Place::Free);
            if free {
                *place = Place::Unused(*offer);
                self.rescinded.store(false, Ordering::Relaxed);
                self.events.store(0, Ordering::Relaxed);
                let primary = offer.sub_channel_index.get() == 0;
                self.new.store(primary, Ordering::Relaxed);
                self.relid.store(offer.relid.get(), Ordering::Release);
            }
            free
        })
    }

    /// Takes the offer for a channel.
    pub(crate) fn claim(&self) -> Result<OfferChannel, Error> {
        self.place.with(|place| match *place {
            Place::Unused(offer) => {
                *place = Place::Used(offer);
                Ok(offer)
            }
            Place::Used(_) => Err(Error::OfferInUse),
            Place::Free | Place::Leaving => Err(Error::NoOffer),
        })
    }

    /// Gives the offer back; says whether it is leaving.
    fn unclaim(&self) -> bool {
        self.place.with(|place| {
            if let Place::Used(offer) = *place {
                *place = if self.is_rescinded() {
                    Place::Leaving
                } else {
                    Place::Unused(offer)
                };
            }
            matches!(place, Place::Leaving)
        })
    }

    /// Notes that the offer is rescinded; says whether it is leaving.
    fn rescind(&self) -> bool {
        self.place.with(|place| {
            self.rescinded.store(true, Ordering::Release);
            if matches!(place, Place::Unused(_)) {
                *place = Place::Leaving;
            }
            matches!(place, Place::Leaving)
        })
    }

    /// The relid of a leaving offer.
    pub(crate) fn leaving(&self) -> Option<u32> {
        self.place
            .with(|place| matches!(place, Place::Leaving).then(|| self.relid()))
    }

    /// Forgets the offer.
    pub(crate) fn free(&self) {
        self.place.with(|place| {
            *place = Place::Free;
            self.relid.store(0, Ordering::Release);
        });
    }

    /// Whether a channel uses the offer.
    pub(crate) fn is_used(&self) -> bool {
        self.place.with(|place| matches!(place, Place::Used(_)))
    }
}

impl<H: Hal> VmBus<'_, H> {
    /// OFFERCHANNEL came.
    pub(super) fn offered(&self, offer: &OfferChannel) {
        let relid = offer.relid.get();
        if self.version().is_none() {
            count(&self.counters.unexpected);
        } else if relid == 0
            || relid >= EVENT_FLAG_COUNT
            || self.slots.iter().any(|slot| slot.relid() == relid)
        {
            count(&self.counters.bad_offers);
        } else if self.slots.iter().any(|slot| slot.fill(offer)) {
            self.highest_relid.fetch_max(relid, Ordering::Relaxed);
        } else {
            count(&self.counters.dropped_offers);
        }
    }

    /// RESCIND_CHANNELOFFER came.
    pub(super) fn rescinded(&self, relid: u32) {
        let slot = self.slots.iter().find(|slot| slot.relid() == relid);
        match slot.filter(|slot| relid != 0 && !slot.is_rescinded()) {
            None => count(&self.counters.unexpected),
            Some(slot) => {
                if slot.rescind() {
                    self.release_due.store(true, Ordering::Relaxed);
                }
            }
        }
    }

    /// A channel gives its offer back.
    pub(crate) fn unclaim(&self, slot: &Slot<H>) {
        if slot.unclaim() {
            self.release_due.store(true, Ordering::Relaxed);
            self.poll();
        }
    }

    /// Posts RELID_RELEASED. A host that does not take it keeps the relid, which harms nobody.
    pub(super) fn release_relid(&self, relid: u32) {
        let _ = self.post(&Message::RelidReleased(ChannelId::new(relid)).encode());
    }

    /// The slot that holds `offer` still.
    pub(crate) fn slot_of(&self, offer: &Offer) -> Result<&Slot<H>, Error> {
        self.slots
            .iter()
            .find(|slot| {
                slot.relid() == offer.relid()
                    && slot
                        .offer()
                        .is_some_and(|now| now.instance() == offer.instance())
            })
            .ok_or(Error::NoOffer)
    }
}
