//! The adapter: packets to messages and frames, and back.
//!
//! The channel's worker calls [`Vsp::service`] when the guest has rung, the net has something, or
//! the cable was touched. Then packets are taken as long as their answers have room, and frames as
//! long as the guest has sections for them. What waits for room is kept and sent first the next
//! time; a frame off the net waits where it is, and is lost there if it must.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::io;
use std::os::fd::{AsRawFd as _, RawFd};

use serde::{Deserialize, Serialize};
use vmbus_proto::message::OfferChannel;
use vmbus_proto::netvsp::{
    CLASS, Message, NO_SECTION, SendRndisPacket, Sender, rndis_channel, status,
};
use vmbus_proto::packet::{Outgoing, Packet, PacketKind};
use vmbus_proto::ring::SendError;
use vmbus_proto::rndis::{self, Request};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::adapter::{Cable, Config, QueueCounters};
use super::backend::Backend;
use super::conversation::{Conversation, MAX_TRANSFER};
use super::gather::Gather;
use super::objects::Objects;
use super::receive::{self, Batch, Gathered};
use super::transmit;
use crate::counters::Counter;
use crate::vmbus::channel::{Channel, ChannelError};
use crate::vmbus::lent::Lent;
use crate::vsp::{StateError, Vsp, plain_offer};

/// The longest packet a descriptor can describe, so that none is too long to be refused.
const LONGEST_PACKET: usize = u16::MAX as usize * 8;

/// Packets, and batches of frames, before the guest is told of them.
const ROUND: usize = 64;

/// Most bytes of a message of RNDIS that is no frame.
const MAX_CONTROL: usize = 8192;

/// A network adapter.
pub struct Network {
    config: Config,
    backend: Box<dyn Backend>,
    cable: Cable,
    counters: QueueCounters,
    /// The cable's event and, where frames are wanted, the net's.
    epoll: Epoll,
    /// What of the net the epoll waits for.
    watched: EventSet,
    /// The net is gone: it is as if the cable were pulled.
    gone: bool,
    /// Where packets are copied to.
    packet: Vec<u8>,
    conversation: Conversation,
    /// A packet that the ring had no room for.
    batch: Option<Batch>,
    /// The guest's buffers, looked up when they are needed.
    receive_memory: Option<Lent>,
    send_memory: Option<Lent>,
    /// What the backend was told of checksums.
    partial_checksums: bool,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    conversation: Conversation,
    batch: Option<Batch>,
}

impl Network {
    /// An adapter whose cable leads to `backend`.
    ///
    /// # Errors
    /// The system gives no file descriptor.
    pub fn new(
        config: Config,
        backend: Box<dyn Backend>,
        cable: Cable,
        counters: QueueCounters,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN, 0);
        epoll.ctl(ControlOperation::Add, cable.event(), event)?;
        if let Some(fd) = backend.event() {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::default())?;
        }
        Ok(Self {
            config,
            backend,
            cable,
            counters,
            epoll,
            watched: EventSet::empty(),
            gone: false,
            packet: vec![0; LONGEST_PACKET],
            conversation: Conversation::default(),
            batch: None,
            receive_memory: None,
            send_memory: None,
            partial_checksums: false,
        })
    }

    fn is_plugged(&self) -> bool {
        self.cable.is_plugged() && !self.gone
    }

    /// Waits for `events` of the net.
    fn watch(&mut self, events: EventSet) {
        if self.watched == events || self.gone {
            return;
        }
        let Some(fd) = self.backend.event() else {
            return;
        };
        let event = EpollEvent::new(events, 1);
        match self.epoll.ctl(ControlOperation::Modify, fd, event) {
            Ok(()) => self.watched = events,
            Err(error) => tracing::warn!(%error, "the net cannot be waited for"),
        }
    }

    /// The net is gone.
    fn lose_net(&mut self) {
        self.gone = true;
        if let Some(fd) = self.backend.event() {
            // An error of its own would be an event for ever. It may be out already.
            let event = EpollEvent::default();
            let _ = self.epoll.ctl(ControlOperation::Delete, fd, event);
        }
        // The guest is to be told.
        self.cable.set_event();
    }

    /// Sends what waits; false where that has to wait on.
    fn send_waiting(&mut self, channel: &mut Channel) -> Result<bool, ChannelError> {
        while let Some((transaction_id, payload)) = self.conversation.completions.front() {
            match channel.send(&Outgoing::completion(*transaction_id, payload)) {
                Ok(()) => drop(self.conversation.completions.pop_front()),
                Err(SendError::Full) => return Ok(false),
                Err(SendError::TooLong) => {
                    return Err(ChannelError::Protocol(
                        "the network adapter's ring is too small",
                    ));
                }
                Err(SendError::Corrupt(corrupt)) => return Err(corrupt.into()),
            }
        }
        let version = self.conversation.version();
        if let Some(batch) = &self.batch {
            if !batch.send(channel, version)? {
                return Ok(false);
            }
            self.batch = None;
        }
        while let Some(message) = self.conversation.messages.front() {
            let Some(buffer) = &mut self.conversation.receive else {
                // The guest has asked before it could be answered, or does not want to be any more.
                self.conversation.messages.clear();
                break;
            };
            let memory = lent(&mut self.receive_memory, channel, buffer.gpadl);
            let locked = memory.as_ref().and_then(Lent::lock);
            let Some(locked) = locked else {
                self.conversation.messages.clear();
                break;
            };
            let Some(batch) = receive::control(&mut buffer.sections, &locked, message) else {
                // Completions, which bring sections back, are taken all the same.
                break;
            };
            self.conversation.messages.pop_front();
            if !batch.send(channel, version)? {
                self.batch = Some(batch);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes one packet; false where there is none.
    fn take_packet(&mut self, channel: &mut Channel) -> Result<bool, ChannelError> {
        let mut bytes = std::mem::take(&mut self.packet);
        let outcome = self.handle_next(channel, &mut bytes);
        self.packet = bytes;
        outcome
    }

    fn handle_next(
        &mut self,
        channel: &mut Channel,
        bytes: &mut [u8],
    ) -> Result<bool, ChannelError> {
        let Some(packet) = channel.receive(bytes)? else {
            return Ok(false);
        };
        if matches!(packet.kind, PacketKind::Completion) {
            let known = self
                .conversation
                .receive
                .as_mut()
                .is_some_and(|buffer| buffer.sections.come_back(packet.transaction_id));
            if !known {
                self.counters.tx_refused.count();
            }
            return Ok(true);
        }
        let answered = packet.completion_requested.then_some(packet.transaction_id);
        match Message::parse(Sender::Guest, packet.payload) {
            Ok(Message::SendRndisPacket(message)) => {
                let outcome = self.rndis(channel, &packet, message)?;
                if let Some(transaction_id) = answered {
                    let answer = Message::SendRndisPacketComplete(outcome);
                    self.conversation.complete(transaction_id, answer);
                }
            }
            Ok(message) => {
                let length = |gpadl| channel.lent(gpadl).map(|lent| lent.len());
                self.conversation
                    .handle(message, answered, &self.config, length);
                if self.conversation.receive.is_none() {
                    self.receive_memory = None;
                    self.batch = None;
                }
                if self.conversation.send.is_none() {
                    self.send_memory = None;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "a netvsp message makes no sense");
                self.counters.tx_refused.count();
                if let Some(transaction_id) = answered {
                    let answer = Message::SendRndisPacketComplete(status::FAILURE);
                    self.conversation.complete(transaction_id, answer);
                }
            }
        }
        Ok(true)
    }

    /// Handles a message of RNDIS, or a chain of frames; a value of [`status`].
    fn rndis(
        &mut self,
        channel: &Channel,
        packet: &Packet<'_>,
        message: SendRndisPacket,
    ) -> Result<u32, ChannelError> {
        let index = message.section_index.get();
        let size = message.section_size.get();
        let buffer = self.conversation.send.filter(|_| index != NO_SECTION);
        let memory = match buffer {
            Some(buffer) => lent(&mut self.send_memory, channel, buffer.gpadl).clone(),
            None => None,
        };
        let locked = memory.as_ref().and_then(Lent::lock);
        let mut slices = Vec::new();
        if index != NO_SECTION {
            let place = buffer.and_then(|buffer| buffer.place(index, size));
            let placed = match (place, &locked) {
                (Some(place), Some(locked)) => locked.slices(place, size as usize, &mut slices),
                _ => None,
            };
            if placed.is_none() {
                self.counters.tx_refused.count();
                return Ok(status::INVALID_RNDIS_PACKET);
            }
        }
        let mut gather = Gather::new(slices);
        let ram = std::sync::Arc::clone(channel.memory());
        let pushed = match packet.kind {
            PacketKind::GpaDirect(ranges) => gather.push_ranges(&*ram, ranges),
            _ => Some(()),
        };
        if pushed.is_none() || gather.len() > MAX_TRANSFER as usize || gather.len() == 0 {
            self.counters.tx_refused.count();
            return Ok(status::INVALID_RNDIS_PACKET);
        }
        let sent = if message.channel.get() == rndis_channel::DATA {
            let plugged = self.is_plugged();
            transmit::send(&mut *self.backend, &gather, plugged, &self.counters).is_ok()
        } else {
            self.control(&gather)?
        };
        Ok(if sent {
            status::SUCCESS
        } else {
            self.counters.tx_refused.count();
            status::INVALID_RNDIS_PACKET
        })
    }

    /// Handles a message of RNDIS that is no frame; false where it cannot be.
    fn control(&mut self, message: &Gather<'_>) -> Result<bool, ChannelError> {
        if message.len() > MAX_CONTROL {
            return Ok(false);
        }
        let mut copy = vec![0; message.len()];
        if message.copy(0, &mut copy).is_none() {
            return Ok(false);
        }
        let parsed = rndis::split(&copy)
            .and_then(|(kind, body, _)| Request::parse(kind, body))
            .ok()
            .flatten();
        let Some(request) = parsed else {
            return Ok(false);
        };
        let objects = Objects {
            config: &self.config,
            features: self.backend.features(),
            counters: &self.counters,
            plugged: self.is_plugged(),
        };
        self.conversation
            .control(request, |conversation, ask| {
                objects.answer(conversation, ask)
            })
            .map_err(|_| ChannelError::Protocol("the guest asks, and takes no answers"))?;
        Ok(true)
    }

    /// Takes frames off the net for the guest; what of the net is to be waited for.
    fn take_frames(
        &mut self,
        channel: &mut Channel,
        net_is_full: bool,
    ) -> Result<EventSet, ChannelError> {
        if self.gone {
            return Ok(EventSet::empty());
        }
        let outcome = if self.conversation.is_running() && self.cable.is_plugged() {
            self.give_frames(channel, net_is_full)?
        } else {
            self.drop_frames(&self.counters.rx_filtered.clone())
        };
        Ok(outcome.unwrap_or_else(|error| {
            tracing::warn!(%error, "the net of a network adapter is gone");
            self.lose_net();
            EventSet::empty()
        }))
    }

    fn give_frames(
        &mut self,
        channel: &mut Channel,
        net_is_full: bool,
    ) -> Result<io::Result<EventSet>, ChannelError> {
        let version = self.conversation.version();
        let Some(buffer) = &self.conversation.receive else {
            return Ok(self.drop_frames(&self.counters.rx_lost.clone()));
        };
        let memory = lent(&mut self.receive_memory, channel, buffer.gpadl).clone();
        let Some(locked) = memory.as_ref().and_then(Lent::lock) else {
            return Ok(self.drop_frames(&self.counters.rx_lost.clone()));
        };
        for _ in 0..ROUND {
            let gathered = receive::frames(
                &mut *self.backend,
                &mut self.conversation,
                &locked,
                self.config.mac,
                &self.counters,
            );
            match gathered {
                Ok(Gathered::Batch(batch)) => {
                    if !batch.send(channel, version)? {
                        self.batch = Some(batch);
                        return Ok(Ok(EventSet::empty()));
                    }
                }
                Ok(Gathered::None) => break,
                // Sections come back behind packets for which the net has no room. Two adapters
                // at one cable would wait for each other: frames are lost instead.
                Ok(Gathered::NoSections) if net_is_full => {
                    return Ok(self.drop_frames(&self.counters.rx_lost.clone()));
                }
                // The next completion wakes us.
                Ok(Gathered::NoSections) => return Ok(Ok(EventSet::empty())),
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(EventSet::IN))
    }

    /// Takes frames off the net that nobody gets, so that none is old when somebody does.
    fn drop_frames(&mut self, counter: &Counter) -> io::Result<EventSet> {
        for _ in 0..ROUND {
            if !receive::discard(&mut *self.backend)? {
                break;
            }
            counter.count();
        }
        Ok(EventSet::IN)
    }
}

/// The memory of GPADL `gpadl`, looked up if it is not known yet.
fn lent<'a>(known: &'a mut Option<Lent>, channel: &Channel, gpadl: u32) -> &'a Option<Lent> {
    if known.is_none() {
        *known = channel.lent(gpadl);
    }
    known
}

impl Vsp for Network {
    fn offer(&self) -> OfferChannel {
        plain_offer(CLASS, self.config.instance)
    }

    fn opened(&mut self) {
        self.conversation = Conversation::default();
        self.batch = None;
        self.receive_memory = None;
        self.send_memory = None;
    }

    fn service(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        self.cable.clear_event();
        let plugged = self.is_plugged();
        let mut room = true;
        let mut drained = false;
        let mut net_is_full = self.backend.wants_room();
        for _ in 0..ROUND {
            self.conversation.tell_plugged(plugged);
            room = self.send_waiting(channel)?;
            if !room || net_is_full {
                break;
            }
            if !self.take_packet(channel)? {
                drained = true;
                break;
            }
            net_is_full = self.backend.wants_room();
        }
        room = room && self.send_waiting(channel)?;
        if self.partial_checksums != self.conversation.rx_checksum {
            self.partial_checksums = self.conversation.rx_checksum;
            self.backend.take_partial_checksums(self.partial_checksums);
        }
        let mut events = if room {
            self.take_frames(channel, net_is_full)?
        } else {
            EventSet::empty()
        };
        if net_is_full {
            events |= EventSet::IN;
        } else if room && !drained {
            // There may be more packets: come back when the guest has been told of these.
            self.cable.set_event();
        }
        self.watch(events);
        Ok(())
    }

    fn event(&self) -> Option<RawFd> {
        Some(self.epoll.as_raw_fd())
    }

    fn quiesce(&mut self) {
        // No call leaves anything to be done on the guest's memory; it may get it back.
        self.receive_memory = None;
        self.send_memory = None;
    }

    fn save(&self) -> Vec<u8> {
        let saved = Saved {
            conversation: self.conversation.clone(),
            batch: self.batch.clone(),
        };
        // Numbers and bytes cannot fail to serialize into memory.
        postcard::to_stdvec(&saved).unwrap_or_default()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let bad = |reason: String| StateError {
            device: "the network adapter",
            reason,
        };
        let saved: Saved = postcard::from_bytes(state).map_err(|error| bad(error.to_string()))?;
        let receive = saved.conversation.receive.as_ref();
        if receive.is_some_and(|buffer| !buffer.sections.is_sound()) {
            return Err(bad("its receive buffer makes no sense".into()));
        }
        self.opened();
        self.conversation = saved.conversation;
        self.batch = saved.batch;
        Ok(())
    }
}
