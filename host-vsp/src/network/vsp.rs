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

mod frames;
mod packets;
mod patience;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vmbus_proto::message::OfferChannel;
use vmbus_proto::netvsp::{CLASS, SEND_TABLE_SIZE, SendTable};
use vmbus_proto::packet::Outgoing;
use vmbus_proto::ring::SendError;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use self::patience::Patience;
use super::adapter::{Cable, Config, QueueCounters};
use super::backend::{Backend, MAX_JOINED};
use super::batch::{self, Batch};
use super::conversation::Conversation;
use super::shared::Shared;
use crate::vmbus::channel::{Channel, ChannelError};
use crate::vmbus::lent::Lent;
use crate::vsp::{StateError, Vsp, plain_offer};

/// The longest packet a descriptor can describe, so that none is too long to be refused.
const LONGEST_PACKET: usize = u16::MAX as usize * 8;

/// Packets, and batches of frames, before the guest is told of them.
const ROUND: usize = 64;

/// Bytes of frames of the guest before it is told of them, about: as much as takes a moment.
const ROUND_BYTES: usize = 1 << 20;

/// One channel of a network adapter: the first, or a sub-channel, which carries frames only.
pub struct Network {
    shared: Arc<Shared>,
    /// Its number.
    channel: u16,
    /// The cable's event, other channels', that of `patience` and, where something is wanted of it,
    /// the net's.
    epoll: Epoll,
    net: Option<RawFd>,
    /// What of the net the epoll waits for. Where that is nothing, it is not in there: an error would
    /// be an event all the time.
    watched: EventSet,
    /// Frames may come: off the net, and from other channels.
    active: bool,
    /// The net is gone: it is as if the cable were pulled.
    gone: bool,
    patience: Patience,
    /// The net has been full for too long: frames for it are lost.
    losing: bool,
    /// Where packets are copied to.
    packet: Vec<u8>,
    /// Bytes of frames that were taken in this round.
    taken: usize,
    /// Completions that wait for room in the ring, with their transaction ids.
    completions: VecDeque<(u64, Vec<u8>)>,
    /// Packets with frames or messages that wait for room in the ring.
    batches: VecDeque<Batch>,
    /// The guest's buffers, looked up when they are needed.
    receive_memory: Option<(u32, Lent)>,
    send_memory: Option<(u32, Lent)>,
    /// Where frames are put together that are to be cut.
    scratch: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    /// The first channel's only.
    conversation: Option<Conversation>,
    completions: VecDeque<(u64, Vec<u8>)>,
    batches: VecDeque<Batch>,
}

impl Network {
    /// An adapter whose cable leads to the queues of a net, one for each channel that the guest may
    /// have. All but the first stand still until the guest opens their channel.
    ///
    /// # Errors
    /// The system gives no file descriptor, or a queue cannot stand still.
    pub fn new(
        config: Config,
        queues: Vec<(Box<dyn Backend>, QueueCounters)>,
        cable: Cable,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(config, cable, queues)?);
        for channel in 1..shared.config.queues {
            if let Some(port) = shared.port(channel) {
                port.backend().set_active(false)?;
            }
        }
        let network = Self::channel(Arc::clone(&shared), 0)?;
        let event = EpollEvent::new(EventSet::IN, 0);
        network
            .epoll
            .ctl(ControlOperation::Add, shared.cable.event(), event)?;
        Ok(network)
    }

    fn channel(shared: Arc<Shared>, channel: u16) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let port = shared.port(channel).ok_or(io::ErrorKind::Unsupported)?;
        let event = EpollEvent::new(EventSet::IN, 0);
        epoll.ctl(ControlOperation::Add, port.event(), event)?;
        let patience = Patience::new()?;
        epoll.ctl(ControlOperation::Add, patience.event(), event)?;
        let net = port.backend().event();
        Ok(Self {
            channel,
            epoll,
            net,
            watched: EventSet::empty(),
            active: false,
            gone: false,
            patience,
            losing: false,
            packet: vec![0; LONGEST_PACKET],
            taken: 0,
            completions: VecDeque::new(),
            batches: VecDeque::new(),
            receive_memory: None,
            send_memory: None,
            scratch: if shared.features.joins {
                vec![0; MAX_JOINED]
            } else {
                Vec::new()
            },
            shared,
        })
    }

    fn is_plugged(&self) -> bool {
        self.shared.cable.is_plugged() && !self.gone
    }

    /// Whether all channels of a saved conversation can be here.
    fn has_channels(&self, conversation: &Conversation) -> bool {
        conversation.granted < self.shared.config.queues
    }

    /// Lets frames come, or not any more.
    fn set_active(&mut self, active: bool) {
        if self.active == active {
            return;
        }
        self.active = active;
        self.shared.set_open(self.channel, active);
        if self.channel == 0 {
            // There is always one that frames come out of.
            return;
        }
        if let Err(error) = self.move_queue(active) {
            tracing::warn!(%error, channel = self.channel, "a queue of the net stays as it was");
        }
    }

    /// Has frames come out of a sub-channel's queue, or of others. One that stands still is not
    /// waited for: a tap would say nothing, then and later.
    fn move_queue(&mut self, active: bool) -> io::Result<()> {
        self.watch(EventSet::empty());
        match self.shared.port(self.channel) {
            Some(port) => port.backend().set_active(active),
            None => Ok(()),
        }
    }

    /// Waits for `events` of the net.
    fn watch(&mut self, events: EventSet) {
        if self.watched == events || self.gone {
            return;
        }
        let Some(fd) = self.net else {
            return;
        };
        let operation = if events.is_empty() {
            ControlOperation::Delete
        } else if self.watched.is_empty() {
            ControlOperation::Add
        } else {
            ControlOperation::Modify
        };
        let event = EpollEvent::new(events, 1);
        match self.epoll.ctl(operation, fd, event) {
            Ok(()) => self.watched = events,
            Err(error) => tracing::warn!(%error, "the net cannot be waited for"),
        }
    }

    /// The net is gone.
    fn lose_net(&mut self) {
        self.gone = true;
        if let Some(fd) = self.net {
            // An error of its own would be an event for ever. It may be out already.
            let event = EpollEvent::default();
            let _ = self.epoll.ctl(ControlOperation::Delete, fd, event);
        }
        // The guest is to be told.
        self.call();
    }

    /// Has the worker called once more.
    fn call(&self) {
        if let Some(port) = self.shared.port(self.channel) {
            port.call();
        }
    }

    /// Sends what waits; false where that has to wait on.
    fn send_waiting(&mut self, channel: &mut Channel) -> Result<bool, ChannelError> {
        while let Some((transaction_id, payload)) = self.completions.front() {
            let completion = Outgoing::completion(*transaction_id, payload);
            if !sent(channel.send(&completion))? {
                return Ok(false);
            }
            self.completions.pop_front();
        }
        let shared = Arc::clone(&self.shared);
        let mut conversation = shared.conversation();
        let version = conversation.version();
        while let Some(batch) = self.batches.front() {
            let buffer = conversation.receive.as_ref();
            // The guest may have taken the buffer back meanwhile.
            if buffer.is_some_and(|buffer| batch.is_of(&buffer.sections))
                && !batch.send(channel, version)?
            {
                return Ok(false);
            }
            self.batches.pop_front();
        }
        if self.channel != 0 {
            return Ok(true);
        }
        if let Some(version) = version.filter(|_| conversation.table_is_due) {
            let channels = u32::from(conversation.granted).saturating_add(1);
            let table = SendTable {
                channels: std::array::from_fn(|at| {
                    (at as u32).checked_rem(channels).unwrap_or_default()
                }),
            };
            let mut bytes = [0; SEND_TABLE_SIZE];
            let message = table.encode(version, &mut bytes);
            if !sent(channel.send(&Outgoing::in_band(0, message, false)))? {
                return Ok(false);
            }
            conversation.table_is_due = false;
        }
        drop(conversation);
        self.send_messages(channel)
    }

    /// Sends messages of RNDIS that are no frames; false where that has to wait.
    fn send_messages(&mut self, channel: &mut Channel) -> Result<bool, ChannelError> {
        let shared = Arc::clone(&self.shared);
        loop {
            let mut conversation = shared.conversation();
            if conversation.messages.is_empty() {
                return Ok(true);
            }
            let Some(gpadl) = conversation.receive.as_ref().map(|buffer| buffer.gpadl) else {
                // The guest has asked before it could be answered, or does not want to be any more.
                conversation.messages.clear();
                return Ok(true);
            };
            drop(conversation);
            let memory = lent(&mut self.receive_memory, channel, gpadl);
            let locked = memory.and_then(Lent::lock);
            let mut conversation = shared.conversation();
            let version = conversation.version();
            let conversation = &mut *conversation;
            let (Some(buffer), Some(message), Some(locked)) = (
                &mut conversation.receive,
                conversation.messages.front(),
                locked,
            ) else {
                conversation.messages.clear();
                return Ok(true);
            };
            let Some(batch) = batch::control(&mut buffer.sections, &locked, message) else {
                // Completions, which bring sections back, are taken all the same.
                return Ok(true);
            };
            conversation.messages.pop_front();
            if !batch.send(channel, version)? {
                self.batches.push_back(batch);
                return Ok(false);
            }
        }
    }
}

/// Whether a packet was sent; false where the ring has no room now.
fn sent(outcome: Result<(), SendError>) -> Result<bool, ChannelError> {
    match outcome {
        Ok(()) => Ok(true),
        Err(SendError::Full) => Ok(false),
        Err(SendError::TooLong) => Err(ChannelError::Protocol(
            "the network adapter's ring is too small",
        )),
        Err(SendError::Corrupt(corrupt)) => Err(corrupt.into()),
    }
}

/// The memory of GPADL `gpadl`, looked up where it is not known yet or was taken back.
fn lent<'a>(known: &'a mut Option<(u32, Lent)>, channel: &Channel, gpadl: u32) -> Option<&'a Lent> {
    let is_good = |(handle, lent): &mut (u32, Lent)| *handle == gpadl && !lent.was_taken_back();
    if !known.as_mut().is_some_and(is_good) {
        *known = channel.lent(gpadl).map(|lent| (gpadl, lent));
    }
    known.as_ref().map(|(_, lent)| lent)
}

impl Vsp for Network {
    fn offer(&self) -> OfferChannel {
        plain_offer(CLASS, self.shared.config.instance)
    }

    fn opened(&mut self) {
        if self.channel == 0 {
            let mut conversation = self.shared.conversation();
            *conversation = conversation.next();
        }
        self.completions.clear();
        self.batches.clear();
        self.receive_memory = None;
        self.send_memory = None;
    }

    fn service(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        let shared = Arc::clone(&self.shared);
        let Some(port) = shared.port(self.channel) else {
            return Ok(());
        };
        self.set_active(true);
        port.clear_event();
        if self.channel == 0 {
            shared.cable.clear_event();
        }
        let plugged = self.is_plugged();
        let mut room = true;
        let mut drained = false;
        self.taken = 0;
        let mut net_is_full = port.backend().wants_room();
        self.losing = self.patience.is_over(net_is_full);
        for _ in 0..ROUND {
            if self.channel == 0 {
                shared.conversation().tell_plugged(plugged);
            }
            room = self.send_waiting(channel)?;
            let waits = net_is_full && !self.losing;
            if !room || waits || self.taken >= ROUND_BYTES {
                break;
            }
            if !self.take_packet(channel)? {
                drained = true;
                break;
            }
            net_is_full = port.backend().wants_room();
            self.losing = self.patience.is_over(net_is_full);
        }
        room = room && self.send_waiting(channel)? && self.send_inbox(channel)?;
        let mut events = if room {
            self.take_frames(channel, net_is_full)?
        } else {
            EventSet::empty()
        };
        if net_is_full {
            events |= EventSet::IN;
        }
        if room && !drained && (!net_is_full || self.losing) {
            // There may be more packets: come back when the guest has been told of these.
            port.call();
        }
        self.watch(events);
        Ok(())
    }

    fn event(&self) -> Option<RawFd> {
        Some(self.epoll.as_raw_fd())
    }

    fn sub_channels(&self) -> u16 {
        match self.channel {
            0 => self.shared.conversation().granted,
            _ => 0,
        }
    }

    fn sub_channel(&mut self, index: u16) -> io::Result<Box<dyn Vsp>> {
        if index == 0 || self.channel != 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Box::new(Self::channel(Arc::clone(&self.shared), index)?))
    }

    fn quiesce(&mut self) {
        // No call leaves anything to be done on the guest's memory; it may get it back.
        self.receive_memory = None;
        self.send_memory = None;
        self.set_active(false);
    }

    fn save(&self) -> Vec<u8> {
        let conversation = self.shared.conversation();
        let saved = Saved {
            conversation: (self.channel == 0).then(|| conversation.clone()),
            completions: self.completions.clone(),
            batches: self.batches.clone(),
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
        let receive = saved
            .conversation
            .as_ref()
            .and_then(|it| it.receive.as_ref());
        if receive.is_some_and(|buffer| !buffer.sections.is_sound()) {
            return Err(bad("its receive buffer makes no sense".into()));
        }
        self.opened();
        match saved.conversation {
            Some(mut conversation) if self.channel == 0 && self.has_channels(&conversation) => {
                if let Some(buffer) = &mut conversation.receive {
                    buffer.sections.free_the_lost();
                }
                *self.shared.conversation() = conversation;
            }
            None if self.channel != 0 => {}
            _ => return Err(bad("it has other channels".into())),
        }
        self.completions = saved.completions;
        self.batches = saved.batches;
        Ok(())
    }
}

impl Drop for Network {
    /// Nobody takes frames of this channel any more.
    fn drop(&mut self) {
        self.set_active(false);
    }
}
