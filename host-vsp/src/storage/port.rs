//! One channel's end of a controller: packets to SCSI requests, results to answers.
//!
//! Every request is answered exactly once, with its own transaction id, by COMPLETE_IO. The ids
//! are the guest's: they are kept with their request and never looked up, so that an id used twice
//! at a time gets two answers.
//!
//! A request is taken from the ring only while the number of those in flight is below
//! [`MAX_IN_FLIGHT`], and only when no answer waits for room: a guest that takes no answers stops
//! itself.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::sync::Arc;

use vmbus_proto::packet::Outgoing;
use vmbus_proto::ring::SendError;

use super::conversation::{Conversation, Request};
use super::engine::{Collected, Finished, Job, Lane};
use super::handle::Shared;
use super::incoming::Incoming;
use super::scsi::{Outcome, Step, Transfer};
use crate::vmbus::channel::{Channel, ChannelError};

/// Most requests of a channel that are in flight.
pub const MAX_IN_FLIGHT: usize = 256;

/// Packets taken before the worker gets a chance to raise the interrupt for their answers.
const BATCH: usize = 64;

/// The longest packet a descriptor can describe, so that none is too long to be refused.
const LONGEST_PACKET: usize = u16::MAX as usize * 8;

/// Failed transfers of a channel that the log tells of.
const FAILURES_TOLD: u64 = 100;

/// One channel's end of a controller.
pub(super) struct Port {
    pub(super) shared: Arc<Shared>,
    pub(super) lane: Lane<(Request, Transfer)>,
    pub(super) conversation: Conversation,
    /// Where packets are copied to.
    packet: Vec<u8>,
    /// Transfers that failed, over all conversations.
    failures: u64,
}

impl Port {
    pub(super) fn new(
        shared: Arc<Shared>,
        lane: Lane<(Request, Transfer)>,
        conversation: Conversation,
    ) -> Self {
        Self {
            shared,
            lane,
            conversation,
            packet: vec![0; LONGEST_PACKET],
            failures: 0,
        }
    }

    /// Begins another conversation, whatever the one before came to.
    pub(super) fn begin(&mut self, conversation: Conversation) {
        self.lane.wait_idle();
        drop(self.lane.collect(false));
        self.conversation = conversation;
        self.lane.hold(self.conversation.holds_others());
    }

    /// Ends all work on guest memory.
    pub(super) fn quiesce(&mut self) {
        self.lane.wait_idle();
        self.collect();
        self.lane.rest();
        self.lane.hold(false);
    }

    /// As [`Vsp::service`](crate::vsp::Vsp::service), for one whose event is cleared.
    pub(super) fn service(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        self.lane.hold(self.conversation.holds_others());
        let outcome = self.serve_batch(channel);
        self.lane.rest();
        outcome
    }

    fn serve_batch(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        let memory = Arc::clone(channel.memory());
        for _ in 0..BATCH {
            let may_take = self.collect();
            if !self.send_answers(channel)? {
                // The guest signals when there is room.
                return Ok(());
            }
            if !may_take {
                // The next result sets the event, or whoever holds this channel up.
                return Ok(());
            }
            let Some(packet) = channel.receive(&mut self.packet)? else {
                return Ok(());
            };
            tracing::trace!(
                transaction_id = packet.transaction_id,
                "storvsp request taken"
            );
            if let Some(incoming) = Incoming::new(&memory, &packet) {
                self.handle(incoming);
            }
        }
        self.collect();
        if self.send_answers(channel)? {
            // There may be more packets: come back when the guest has been told of these.
            self.lane.set_event();
        }
        Ok(())
    }

    /// Turns results into answers; says whether another request may be taken.
    fn collect(&mut self) -> bool {
        loop {
            let wanted = !self.conversation.is_resetting();
            let Collected {
                finished,
                in_flight,
                all_idle,
                may_take,
            } = self.lane.collect(wanted);
            for Finished { request, outcome } in finished {
                let (request, transfer) = request;
                if let Err(error) = &outcome
                    && self.failed()
                {
                    let lun = request.packet.srb().lun;
                    let transaction_id = request.transaction_id;
                    tracing::warn!(transaction_id, lun, %error, "a disk's transfer failed");
                }
                self.finish(request, transfer.outcome(&outcome));
            }
            if wanted || !all_idle {
                return may_take && in_flight < MAX_IN_FLIGHT;
            }
            // Whatever was asked before the reset is done, on all channels.
            self.conversation.reset_done();
            self.lane.hold(self.conversation.holds_others());
        }
    }

    /// Counts a transfer that failed; whether to tell of it. A guest can bring about as many as it
    /// likes, on a disk that has no room.
    fn failed(&mut self) -> bool {
        self.failures = self.failures.saturating_add(1);
        self.failures <= FAILURES_TOLD
    }

    fn finish(&mut self, request: Request, outcome: Outcome) {
        let answer = request.finish(outcome);
        self.conversation.answers.push_back(answer);
    }

    fn handle(&mut self, incoming: Incoming) {
        let Incoming { request, buffer } = incoming;
        let request = self.conversation.handle(request);
        self.lane.hold(self.conversation.holds_others());
        let Some(request) = request else {
            return;
        };
        let srb = request.packet.srb();
        let step = match buffer {
            Ok(buffer) => self.shared.target().start(&srb, buffer),
            Err(outcome) => Step::Done(outcome),
        };
        match step {
            Step::Done(outcome) => self.finish(request, outcome),
            Step::Transfer {
                backend,
                io,
                transfer,
            } => match io.run_if_ready(&*backend) {
                Some(result) => self.finish(request, transfer.outcome(&result)),
                None => self.lane.submit(Job {
                    request: (request, transfer),
                    backend,
                    io,
                }),
            },
        }
    }

    /// Sends what can be sent; says whether that was all.
    fn send_answers(&mut self, channel: &mut Channel) -> Result<bool, ChannelError> {
        while let Some(answer) = self.conversation.answers.front() {
            let transaction_id = answer.transaction_id;
            match channel.send(&Outgoing::completion(transaction_id, answer.payload())) {
                Ok(()) => {
                    tracing::trace!(transaction_id, "storvsp request answered");
                    self.conversation.answers.pop_front();
                }
                Err(SendError::Full) => return Ok(false),
                Err(SendError::TooLong) => {
                    return Err(ChannelError::Protocol(
                        "the ring is too small for an answer",
                    ));
                }
                Err(SendError::Corrupt(corrupt)) => return Err(corrupt.into()),
            }
        }
        self.conversation.all_answered();
        if let Some(news) = self.conversation.news() {
            // Transaction id 0: the guest asked nothing, and does not answer.
            match channel.send(&Outgoing::in_band(0, &news, false)) {
                Ok(()) => self.conversation.news_sent(),
                Err(SendError::Full) => return Ok(false),
                Err(SendError::TooLong) => {
                    return Err(ChannelError::Protocol("the ring is too small for a packet"));
                }
                Err(SendError::Corrupt(corrupt)) => return Err(corrupt.into()),
            }
        }
        Ok(true)
    }
}
