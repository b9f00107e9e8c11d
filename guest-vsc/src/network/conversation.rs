//! Questions to the host, and its answers: netvsp's own, and those of RNDIS.
//!
//! All of it is on the first channel. One question is asked at a time. Whoever takes packets out of
//! the ring, on any processor, finds its answer and puts it into the [`Exchange`], where the one that
//! waits looks for it. An answer that nobody waits for changes nothing.

use core::sync::atomic::Ordering;

use vmbus_proto::gpa::GpaRangeWriter;
use vmbus_proto::netvsp::{
    Message, RECEIVE_BUFFER_ID, SEND_BUFFER_ID, SendRndisPacket, rndis_channel,
    status as netvsp_status,
};
use vmbus_proto::packet::Outgoing;
use vmbus_proto::rndis::oid::{self, packet_filter};
use vmbus_proto::rndis::{Completion, Request, status};

use super::receive::Until;
use super::{Buffer, Network};
use crate::PAGE;
use crate::bus::Claim;
use crate::error::{Error, Waited};
use crate::hal::Hal;

/// Most bytes of a message of RNDIS that is no frame.
pub(super) const MAX_MESSAGE: usize = 1024;

/// Most bytes of an object's value that is asked for.
const MAX_VALUE: usize = 256;

/// Set in the transaction ids of questions, and in none of a [`Token`](super::Token)'s.
const QUESTION: u64 = 1 << 31;

/// What a processor waits for, and what has come of it.
#[derive(Default)]
pub(super) struct Exchange {
    /// The transaction id of the question.
    transaction_id: Option<u64>,
    /// The host's completion of that packet.
    completion: Option<Message>,
    /// RNDIS's id of the question.
    request_id: Option<u32>,
    answer: Option<Answer>,
}

/// An answer of RNDIS.
#[derive(Clone, Copy)]
pub(super) struct Answer {
    /// A value of [`status`].
    pub(super) status: u32,
    /// Bytes of the value that there were.
    length: usize,
    value: [u8; MAX_VALUE],
}

impl Answer {
    fn new(status: u32, value: &[u8]) -> Self {
        let mut answer = Self {
            status,
            length: value.len().min(MAX_VALUE),
            value: [0; MAX_VALUE],
        };
        for (to, from) in answer.value.iter_mut().zip(value) {
            *to = *from;
        }
        answer
    }

    /// The value.
    pub(super) fn value(&self) -> &[u8] {
        self.value.get(..self.length).unwrap_or_default()
    }
}

impl Exchange {
    /// Completes the packet of this id, if it is waited for.
    pub(super) fn complete(&mut self, id: u64, message: Message) -> bool {
        let known = self.transaction_id == Some(id);
        if known {
            self.transaction_id = None;
            self.completion = Some(message);
        }
        known
    }

    /// Takes an answer of RNDIS, if it is waited for.
    pub(super) fn answer(&mut self, completion: &Completion<'_>) -> bool {
        let (id, answer) = match *completion {
            Completion::Initialize { id, status, .. } => (id, Answer::new(status, &[])),
            Completion::Query { id, status, value } => (id, Answer::new(status, value)),
            Completion::Set { id, status } => (id, Answer::new(status, &[])),
            // Nobody has asked for these.
            Completion::Reset { .. } | Completion::Keepalive { .. } => return false,
        };
        let known = self.request_id == Some(id);
        if known {
            self.request_id = None;
            self.answer = Some(answer);
        }
        known
    }
}

impl<H: Hal, B: Buffer> Network<'_, H, B> {
    /// Sends a message of netvsp and waits for its completion.
    pub(super) fn ask(&self, message: Message) -> Result<Message, Error> {
        let (_turn, number) = self.ask_alone()?;
        let id = QUESTION | u64::from(number) << 32;
        self.expect(id, None);
        let message = message.encode(self.version);
        self.channel.send(&Outgoing::in_band(id, &message, true))?;
        self.answered(|exchange| exchange.completion.take())
    }

    /// Asks for the value of an object; `None` where there is none.
    pub(super) fn query(&self, oid: u32, about: &[u8]) -> Result<Option<Answer>, Error> {
        let ask = |id| Request::Query {
            id,
            oid,
            value: about,
        };
        let answer = self.ask_adapter(ask)?;
        Ok((answer.status == status::SUCCESS).then_some(answer))
    }

    /// Sets the value of an object.
    pub(super) fn set(&self, oid: u32, value: &[u8]) -> Result<(), Error> {
        let answer = self.ask_adapter(|id| Request::Set { id, oid, value })?;
        success(&answer)
    }

    /// Has the adapter take frames to everybody, or only those to us. Waits for the host.
    ///
    /// # Errors
    /// The channel has come to an end; the host refuses, or is silent.
    pub fn set_promiscuous(&self, promiscuous: bool) -> Result<(), Error> {
        let usual =
            packet_filter::DIRECTED | packet_filter::BROADCAST | packet_filter::ALL_MULTICAST;
        let filter = match promiscuous {
            true => usual | packet_filter::PROMISCUOUS,
            false => usual,
        };
        self.set(oid::GEN_CURRENT_PACKET_FILTER, &filter.to_le_bytes())
    }

    /// Asks the adapter by RNDIS and waits for its answer.
    pub(super) fn ask_adapter<'a>(
        &self,
        request: impl FnOnce(u32) -> Request<'a>,
    ) -> Result<Answer, Error> {
        let (_turn, number) = self.ask_alone()?;
        let id = QUESTION | u64::from(number) << 32;
        self.expect(id, Some(number));
        self.send_control(id, &request(number))?;
        self.answered(|exchange| {
            // What the adapter was not even given it will not answer.
            if let Some(Message::SendRndisPacketComplete(status)) = exchange.completion
                && status != netvsp_status::SUCCESS
            {
                return Some(Err(Error::Refused(Waited::Completion, status)));
            }
            exchange.answer.take().map(Ok)
        })?
    }

    /// Sends a message to the adapter that is no frame.
    fn send_control(&self, id: u64, request: &Request<'_>) -> Result<(), Error> {
        let mut bytes = [0; MAX_MESSAGE];
        let bytes = request.encode(&mut bytes).ok_or(Error::TooLong)?;
        self.control_page.write(0, bytes);
        let mut ranges = [0; 32];
        let mut writer = GpaRangeWriter::gpa_direct(&mut ranges, 1).ok_or(Error::TooLong)?;
        writer
            .range(bytes.len() as u32, 0)
            .and_then(|()| writer.pfn(self.control_page.paddr() / PAGE))
            .ok_or(Error::TooLong)?;
        let message = SendRndisPacket::without_section(rndis_channel::CONTROL);
        let message = Message::SendRndisPacket(message).encode(self.version);
        let packet = Outgoing::gpa_direct(id, writer.finish(), &message);
        self.channel.send(&packet)
    }

    /// Waits until nobody else asks; with the number of the next question.
    fn ask_alone(&self) -> Result<(Claim<'_>, u32), Error> {
        let deadline = self.channel.bus().deadline();
        let turn = self.channel.wait(Waited::Turn, deadline, || {
            self.channel.check()?;
            Ok(Claim::new(&self.asking))
        })?;
        Ok((turn, self.next_request.fetch_add(1, Ordering::Relaxed)))
    }

    fn expect(&self, transaction_id: u64, request_id: Option<u32>) {
        self.exchange.with(|exchange| {
            *exchange = Exchange {
                transaction_id: Some(transaction_id),
                request_id,
                ..Exchange::default()
            };
        });
    }

    fn answered<T>(&self, take: impl Fn(&mut Exchange) -> Option<T>) -> Result<T, Error> {
        let deadline = self.channel.bus().deadline();
        self.every_channel().wait(Waited::Completion, deadline, || {
            self.pump(Until::Empty)?;
            let taken = self.exchange.with(|exchange| take(exchange));
            if taken.is_none() {
                self.check()?;
            }
            Ok(taken)
        })
    }

    /// Tells the host that its buffers will be taken away. It finds that out by itself, too, so
    /// nobody waits for it to listen.
    pub(super) fn say_good_bye(&self) {
        let Some(version) = self.version else {
            return;
        };
        // A channel that has come to an end takes none of these.
        let _ = self.send_control(0, &Request::Halt);
        for message in [
            Message::RevokeReceiveBuffer(RECEIVE_BUFFER_ID),
            Message::RevokeSendBuffer(SEND_BUFFER_ID),
        ] {
            let message = message.encode(Some(version));
            let _ = self.channel.send(&Outgoing::in_band(0, &message, false));
        }
    }
}

/// That the adapter did what it was asked for.
pub(super) fn success(answer: &Answer) -> Result<(), Error> {
    match answer.status {
        status::SUCCESS => Ok(()),
        status => Err(Error::Refused(Waited::Completion, status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_nobody_waits_for_change_nothing() {
        let mut exchange = Exchange::default();
        let done = Message::SendRndisPacketComplete(netvsp_status::SUCCESS);
        let answer = |id| Completion::Query {
            id,
            status: status::SUCCESS,
            value: &[7; MAX_VALUE + 1],
        };
        assert!(!exchange.complete(0, done));
        assert!(!exchange.answer(&answer(0)));
        exchange.transaction_id = Some(5);
        exchange.request_id = Some(6);
        assert!(!exchange.complete(4, done));
        assert!(!exchange.answer(&answer(5)));
        assert!(!exchange.answer(&Completion::Keepalive { id: 6, status: 0 }));
        assert!(exchange.complete(5, done));
        assert!(exchange.answer(&answer(6)));
        assert!(!exchange.complete(5, done), "twice");
        assert!(!exchange.answer(&answer(6)), "twice");
        // What is longer than anything that is asked for is cut.
        assert_eq!(exchange.answer.unwrap().value(), [7; MAX_VALUE]);
    }
}
