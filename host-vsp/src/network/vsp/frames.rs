//! Frames off the net: of this channel's queue, and what other channels' workers have taken for it.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::io;
use std::sync::Arc;

use vmm_sys_util::epoll::EventSet;

use super::super::batch::{self, Arrived, BATCH};
use super::super::receive::{self, Frames, Place};
use super::super::shared::{Given, Port};
use super::{Network, ROUND, lent};
use crate::counters::Counter;
use crate::vmbus::channel::{Channel, ChannelError};
use crate::vmbus::lent::Lent;

impl Network {
    /// Takes frames off the net for the guest; what of the net is to be waited for.
    pub(super) fn take_frames(
        &mut self,
        channel: &mut Channel,
        net_is_full: bool,
    ) -> Result<EventSet, ChannelError> {
        let shared = Arc::clone(&self.shared);
        let Some(port) = shared.port(self.channel).filter(|_| !self.gone) else {
            return Ok(EventSet::empty());
        };
        let running = shared.conversation().is_running();
        let outcome = if running && shared.cable.is_plugged() {
            self.give_frames(channel, port, net_is_full)?
        } else {
            drop_frames(port, &port.counters.rx_filtered)
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
        port: &Port,
        net_is_full: bool,
    ) -> Result<io::Result<EventSet>, ChannelError> {
        let shared = Arc::clone(&self.shared);
        let lost = || Ok(drop_frames(port, &port.counters.rx_lost));
        for _ in 0..ROUND {
            let mut conversation = shared.conversation();
            let reception = Arc::clone(&conversation.reception);
            let Some(buffer) = &mut conversation.receive else {
                drop(conversation);
                return lost();
            };
            let (generation, size) = (buffer.sections.generation(), buffer.sections.size());
            let gpadl = buffer.gpadl;
            let count = buffer.sections.for_frames();
            let joins = shared.features.joins;
            let pool = receive::pool(joins, buffer.sections.free_for_frames(), count);
            let none = pool.is_none();
            let free = std::iter::from_fn(|| buffer.sections.take_for_frame());
            let free: Vec<u32> = free.take(pool.unwrap_or_default()).collect();
            port.set_starved(none && !net_is_full);
            drop(conversation);
            if none {
                // Sections come back behind packets for which the net has no room. Two adapters
                // at one cable would wait for each other: frames are lost instead.
                if net_is_full {
                    return lost();
                }
                // The next completion wakes us.
                return Ok(Ok(EventSet::empty()));
            }
            let memory = lent(&mut self.receive_memory, channel, gpadl).cloned();
            let Some(locked) = memory.as_ref().and_then(Lent::lock) else {
                shared.put_back(self.channel, generation, free);
                return lost();
            };
            let place = Place {
                memory: &locked,
                generation,
                size,
                count,
                free,
                reception: &reception,
                mac: shared.config.mac,
                scratch: &mut self.scratch,
            };
            let mut frames = Frames::new(place, &port.counters);
            let mut mine = Vec::new();
            let mut backend = port.backend();
            let outcome = frames.take(&mut **backend, |of, frame| {
                if of == self.channel {
                    mine.push(frame);
                    return true;
                }
                match shared.give(of, frame) {
                    Given::Taken => true,
                    Given::Closed(frame) => {
                        mine.push(frame);
                        true
                    }
                    Given::TooMany => false,
                }
            });
            drop(backend);
            shared.put_back(self.channel, generation, frames.unused());
            if !self.send_frames(channel, &mine)? {
                return Ok(Ok(EventSet::empty()));
            }
            match outcome {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(EventSet::IN))
    }

    /// Sends frames to the guest; false where they have to wait for room in the ring.
    fn send_frames(
        &mut self,
        channel: &mut Channel,
        frames: &[Arrived],
    ) -> Result<bool, ChannelError> {
        let mut conversation = self.shared.conversation();
        let version = conversation.version();
        if let Some(buffer) = &mut conversation.receive {
            let batches = batch::batches(&mut buffer.sections, frames);
            self.batches.extend(batches);
        }
        drop(conversation);
        while let Some(batch) = self.batches.front() {
            if !batch.send(channel, version)? {
                return Ok(false);
            }
            self.batches.pop_front();
        }
        Ok(true)
    }

    /// Sends frames that other channels' workers have taken; false where the ring is full.
    pub(super) fn send_inbox(&mut self, channel: &mut Channel) -> Result<bool, ChannelError> {
        let shared = Arc::clone(&self.shared);
        let Some(port) = shared.port(self.channel) else {
            return Ok(true);
        };
        for _ in 0..ROUND {
            let frames = port.take(BATCH);
            if frames.is_empty() {
                return Ok(true);
            }
            if !self.send_frames(channel, &frames)? {
                return Ok(false);
            }
        }
        self.call();
        Ok(true)
    }
}

/// Takes frames off the net that nobody gets, so that none is old when somebody does.
fn drop_frames(port: &Port, counter: &Counter) -> io::Result<EventSet> {
    let mut backend = port.backend();
    for _ in 0..ROUND {
        if !receive::discard(&mut **backend)? {
            break;
        }
        counter.count();
    }
    Ok(EventSet::IN)
}
