//! One question at a time: what the guest waits for, and the host's answer.
//!
//! A processor takes the [`Turn`], says what it expects, posts its message and waits. The handler
//! stores the answer that was expected; any other is counted and dropped. Answers about channels
//! and GPADLs repeat a number of the question, so that one that comes too late never passes for the
//! answer to a later question. Those to contact, to the request for offers and to UNLOAD have
//! nothing to tell them by: after a timeout there, the next answer of the kind counts.

use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;

use vmbus_proto::message::{
    GpadlCreated, GpadlId, Message, ModifyChannelResponse, OpenResult, VersionResponse,
};

use super::{Slot, VmBus};
use crate::clock::Deadline;
use crate::error::{Error, Waited};
use crate::hal::Hal;

/// What is expected, with what tells its answer from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) what: Waited,
    key: (u32, u32),
}

impl Expected {
    /// An answer of which there is only one.
    pub(crate) const fn plain(what: Waited) -> Self {
        Self { what, key: (0, 0) }
    }

    /// An answer that repeats two numbers.
    pub(crate) const fn keyed(what: Waited, first: u32, second: u32) -> Self {
        Self {
            what,
            key: (first, second),
        }
    }
}

/// An answer: what it answers, and two numbers that say how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    answers: Expected,
    /// The status; for VERSION_RESPONSE whether it is supported, and the connection state.
    pub(crate) status: u32,
    /// For VERSION_RESPONSE the connection id for messages.
    pub(crate) value: u32,
}

impl Answer {
    const fn to(answers: Expected, status: u32) -> Self {
        Self {
            answers,
            status,
            value: 0,
        }
    }

    pub(crate) fn version(r: &VersionResponse) -> Self {
        let status = u32::from(u16::from_le_bytes([r.supported, r.connection_state]));
        Self {
            answers: Expected::plain(Waited::Version),
            status,
            value: r.message_connection_id.get(),
        }
    }

    pub(crate) fn offers() -> Self {
        Self::to(Expected::plain(Waited::Offers), 0)
    }

    pub(crate) fn unload() -> Self {
        Self::to(Expected::plain(Waited::Unload), 0)
    }

    pub(crate) fn open(r: &OpenResult) -> Self {
        let key = Expected::keyed(Waited::Open, r.relid.get(), r.open_id.get());
        Self::to(key, r.status.get())
    }

    pub(crate) fn gpadl_created(r: &GpadlCreated) -> Self {
        let key = Expected::keyed(Waited::GpadlCreated, r.relid.get(), r.gpadl.get());
        Self::to(key, r.status.get())
    }

    pub(crate) fn gpadl_torndown(r: &GpadlId) -> Self {
        Self::to(Expected::keyed(Waited::GpadlTorndown, r.gpadl.get(), 0), 0)
    }

    pub(crate) fn modify(r: &ModifyChannelResponse) -> Self {
        let key = Expected::keyed(Waited::Modify, r.relid.get(), 0);
        Self::to(key, r.status.get())
    }

    /// The answer's status as a result.
    pub(crate) fn success(self) -> Result<(), Error> {
        match self.status {
            0 => Ok(()),
            status => Err(Error::Refused(self.answers.what, status)),
        }
    }
}

/// The question that is open, and its answer.
#[derive(Default)]
pub(crate) struct Exchange {
    expected: Option<Expected>,
    answer: Option<Answer>,
}

impl Exchange {
    /// Stores an answer; says whether it was expected.
    pub(crate) fn take(&mut self, answer: Answer) -> bool {
        let fits = self.answer.is_none() && self.expected == Some(answer.answers);
        if fits {
            self.answer = Some(answer);
        }
        fits
    }
}

/// The right to ask; given back when dropped.
pub(crate) struct Turn<'b>(&'b AtomicBool);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl<H: Hal> VmBus<'_, H> {
    /// Takes the turn to talk to the host.
    pub(crate) fn turn(&self) -> Result<Turn<'_>, Error> {
        // Whoever has it holds it for a few answers at most, each with a deadline of its own.
        let mut deadline = self.hypervisor.deadline(self.timeout().saturating_mul(4));
        let turn = loop {
            if let Some(turn) = self.try_turn() {
                break turn;
            }
            if deadline.is_over() {
                return Err(Error::Timeout(Waited::Turn));
            }
            self.handle_interrupt();
            H::pause();
        };
        self.handle_interrupt();
        self.release_leaving(&turn);
        Ok(turn)
    }

    /// Takes the turn where nobody has it.
    pub(super) fn try_turn(&self) -> Option<Turn<'_>> {
        (!self.turn.swap(true, Ordering::Acquire)).then(|| Turn(&self.turn))
    }

    /// Says what the next message will be answered with. Has to come before the message.
    pub(crate) fn expect(&self, _turn: &Turn<'_>, expected: Expected) {
        self.exchange.with(|exchange| {
            *exchange = Exchange {
                expected: Some(expected),
                answer: None,
            };
        });
    }

    /// Posts a question, and waits for its answer as [`answer`](Self::answer) does.
    pub(crate) fn ask(
        &self,
        turn: &Turn<'_>,
        question: &Message<'_>,
        expected: Expected,
        channel: Option<&Slot<H>>,
        timeout: Duration,
    ) -> Result<Answer, Error> {
        self.expect(turn, expected);
        self.post(&question.encode())?;
        let deadline = self.hypervisor.deadline(timeout);
        self.answer(turn, expected.what, channel, deadline)
    }

    /// Waits for the answer that is expected.
    ///
    /// Where `channel` is given, the wait ends when that is rescinded.
    pub(crate) fn answer(
        &self,
        _turn: &Turn<'_>,
        what: Waited,
        channel: Option<&Slot<H>>,
        mut deadline: Deadline<'_, H>,
    ) -> Result<Answer, Error> {
        let result = loop {
            self.handle_interrupt();
            if let Some(answer) = self.exchange.with(|exchange| exchange.answer) {
                break Ok(answer);
            }
            if channel.is_some_and(Slot::is_rescinded) {
                break Err(Error::Rescinded);
            }
            if deadline.is_over() {
                break Err(Error::Timeout(what));
            }
            self.rest(|| {
                self.message_waits()
                    || self.exchange.with(|exchange| exchange.answer.is_some())
                    || channel.is_some_and(Slot::is_rescinded)
            });
        };
        self.exchange
            .with(|exchange| *exchange = Exchange::default());
        result
    }
}
