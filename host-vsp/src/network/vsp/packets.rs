//! Packets of the guest: completions, messages of netvsp and of RNDIS, frames.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::sync::Arc;

use vmbus_proto::netvsp::{Message, NO_SECTION, SendRndisPacket, Sender, rndis_channel, status};
use vmbus_proto::packet::{Packet, PacketKind};
use vmbus_proto::rndis::{self, Request};

use super::super::adapter::QueueCounters;
use super::super::conversation::MAX_TRANSFER;
use super::super::gather::Gather;
use super::super::objects::Objects;
use super::super::transmit::{self, Way};
use super::{Network, lent};
use crate::vmbus::channel::{Channel, ChannelError};
use crate::vmbus::lent::Lent;

/// Most bytes of a message of RNDIS that is no frame.
const MAX_CONTROL: usize = 8192;

impl Network {
    /// Takes one packet; false where there is none.
    pub(super) fn take_packet(&mut self, channel: &mut Channel) -> Result<bool, ChannelError> {
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
        let shared = Arc::clone(&self.shared);
        if matches!(packet.kind, PacketKind::Completion) {
            let mut conversation = shared.conversation();
            let buffer = conversation.receive.as_mut();
            let known =
                buffer.is_some_and(|buffer| buffer.sections.come_back(packet.transaction_id));
            drop(conversation);
            if known {
                shared.wake_starved(self.channel);
            } else {
                self.refuse();
            }
            return Ok(true);
        }
        let answer = match Message::parse(Sender::Guest, packet.payload) {
            Ok(Message::SendRndisPacket(message)) => {
                let outcome = self.rndis(channel, &packet, message)?;
                let version = shared.conversation().version();
                Message::SendRndisPacketComplete(outcome).encode(version)
            }
            // The first channel is for what else there is to be said.
            Ok(message) if self.channel == 0 => {
                let length = |gpadl| channel.lent(gpadl).map(|lent| lent.len());
                let config = &shared.config;
                shared.conversation().handle(message, config, length)
            }
            other => {
                tracing::debug!(?other, "a netvsp message makes no sense");
                self.refuse();
                let version = shared.conversation().version();
                Message::SendRndisPacketComplete(status::FAILURE).encode(version)
            }
        };
        if packet.completion_requested {
            let answer = (packet.transaction_id, answer.to_vec());
            self.completions.push_back(answer);
        }
        Ok(true)
    }

    /// Counts a message that cannot be.
    fn refuse(&self) {
        if let Some(port) = self.shared.port(self.channel) {
            port.counters.tx_refused.count();
        }
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
        let shared = Arc::clone(&self.shared);
        let Some(port) = shared.port(self.channel) else {
            return Ok(status::FAILURE);
        };
        let buffer = shared.conversation().send.filter(|_| index != NO_SECTION);
        let memory = match buffer {
            Some(buffer) => lent(&mut self.send_memory, channel, buffer.gpadl).cloned(),
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
                port.counters.tx_refused.count();
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
            port.counters.tx_refused.count();
            return Ok(status::INVALID_RNDIS_PACKET);
        }
        let sent = if message.channel.get() == rndis_channel::DATA {
            self.taken = self.taken.saturating_add(gather.len());
            let way = Way {
                backend: &mut **port.backend(),
                mtu: shared.config.mtu,
                plugged: self.is_plugged() && !self.losing,
                counters: &port.counters,
            };
            transmit::send(way, &gather).is_ok()
        } else {
            self.channel == 0 && self.control(&gather, &port.counters)?
        };
        Ok(if sent {
            status::SUCCESS
        } else {
            port.counters.tx_refused.count();
            status::INVALID_RNDIS_PACKET
        })
    }

    /// Handles a message of RNDIS that is no frame; false where it cannot be.
    fn control(
        &mut self,
        message: &Gather<'_>,
        counters: &QueueCounters,
    ) -> Result<bool, ChannelError> {
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
            config: &self.shared.config,
            features: self.shared.features,
            counters,
            plugged: self.is_plugged(),
        };
        self.shared
            .conversation()
            .control(request, |conversation, ask| {
                objects.answer(conversation, ask)
            })
            .map_err(|_| ChannelError::Protocol("the guest asks, and takes no answers"))?;
        Ok(true)
    }
}
