//! The framework's part of a service's conversation: versions, headers, answers.
//!
//! The guest answers each request with the host's own message, status and flags changed. The next
//! request stays in the ring until the last one is answered, so one buffer is enough: it holds a
//! request that its service has not decided on, or an answer that waits for room.

use vmbus_proto::ic::{
    CHOICE_SIZE, Choice, FLAG_REQUEST, FLAG_RESPONSE, FLAG_TRANSACTION, Header, Message, Version,
    message_type, status,
};
use vmbus_proto::packet::{Outgoing, PacketKind};
use vmbus_proto::pipe::{self, PipeHeader};
use zerocopy::{FromBytes as _, IntoBytes as _};

use crate::bus::{Offer, VmBus, count};
use crate::channel::{Channel, OpenOptions};
use crate::error::Error;
use crate::hal::Hal;
use crate::sync::IrqMutex;

/// Longest packet of these services, descriptor not counted, in bytes: a shutdown request has 2088.
const MAX_PACKET: usize = 4096;

/// Messages taken in one go, so that a storm of them cannot keep a processor for ever.
const MESSAGES_AT_ONCE: u32 = 64;

/// What a service is on the wire.
pub(super) struct Service {
    /// One of [`message_type`].
    pub(super) message_type: u16,
    /// Those it speaks.
    pub(super) versions: &'static [Version],
}

/// What a service does with a request.
pub(super) enum Verdict<R> {
    /// Answers it.
    Answer(Option<R>),
    /// Decides later, by [`Link::answer`].
    Later(R),
    /// Nothing, as it means nothing: the host hears that it failed.
    Meaningless,
}

/// What the buffer holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    Nothing,
    /// A request.
    Request,
    /// An answer that waits for room.
    Answer,
}

struct Conversation {
    packet: [u8; MAX_PACKET],
    /// Where the message lies in the packet.
    message: (usize, usize),
    held: Held,
    /// Version of the service, when agreed on.
    version: Option<Version>,
}

/// A service's conversation with the host.
pub(super) struct Link<'b, H: Hal> {
    channel: Channel<'b, H>,
    service: &'static Service,
    conversation: IrqMutex<H, Conversation>,
}

impl<'b, H: Hal> Link<'b, H> {
    pub(super) fn open(
        bus: &'b VmBus<'b, H>,
        offer: &Offer,
        options: &OpenOptions,
        service: &'static Service,
    ) -> Result<Self, Error> {
        Ok(Self {
            channel: Channel::open(bus, offer, options)?,
            service,
            conversation: IrqMutex::new(Conversation {
                packet: [0; MAX_PACKET],
                message: (0, 0),
                held: Held::Nothing,
                version: None,
            }),
        })
    }

    pub(super) fn channel(&self) -> &Channel<'b, H> {
        &self.channel
    }

    /// Takes messages until `decide` has something to tell about a request, or there are none.
    /// `decide` gets the version and the request's body, which it may change into the answer's.
    pub(super) fn poll<R>(
        &self,
        mut decide: impl FnMut(Version, &mut [u8]) -> Verdict<R>,
    ) -> Result<Option<R>, Error> {
        self.conversation.with(|conversation| {
            for _ in 0..MESSAGES_AT_ONCE {
                let free = match conversation.held {
                    Held::Nothing => true,
                    Held::Request => false,
                    Held::Answer => self.send(conversation)?,
                };
                if !free {
                    return Ok(None);
                }
                if !self.receive(conversation)? {
                    return self.channel.check().map(|()| None);
                }
                if conversation.held != Held::Request {
                    continue;
                }
                let verdict = self.handle(conversation, &mut decide);
                if let Verdict::Later(told) = verdict {
                    return Ok(Some(told));
                }
                let (status, told) = match verdict {
                    Verdict::Answer(told) => (status::OK, told),
                    _ => {
                        count(&self.channel.bus().counters.bad_packets);
                        (status::FAIL, None)
                    }
                };
                conversation.become_answer(status);
                self.send(conversation)?;
                if told.is_some() {
                    return Ok(told);
                }
            }
            Ok(None)
        })
    }

    /// Answers the request that [`Verdict::Later`] was said of. Where there is no room now, the
    /// next [`poll`](Self::poll) sends it.
    pub(super) fn answer(&self, status: u32) -> Result<(), Error> {
        self.conversation.with(|conversation| {
            if conversation.held == Held::Request {
                conversation.become_answer(status);
                self.send(conversation)?;
            }
            Ok(())
        })
    }

    /// What becomes of the request in the buffer.
    fn handle<R>(
        &self,
        conversation: &mut Conversation,
        decide: &mut impl FnMut(Version, &mut [u8]) -> Verdict<R>,
    ) -> Verdict<R> {
        let version = conversation.version;
        let Some((header, body)) = conversation.parts() else {
            return Verdict::Meaningless;
        };
        let kind = header.message_type.get();
        if kind == message_type::NEGOTIATE {
            let (Ok(choice), Some(answer)) = (
                Choice::of(body, self.service.versions),
                body.first_chunk_mut::<CHOICE_SIZE>(),
            ) else {
                return Verdict::Meaningless;
            };
            *answer = choice.to_body();
            header.size = (CHOICE_SIZE as u16).into();
            let (start, _) = conversation.message;
            let end = start
                .saturating_add(size_of::<Header>())
                .saturating_add(CHOICE_SIZE);
            conversation.message = (start, end);
            conversation.version = match choice {
                Choice::Versions { version, .. } => Some(version),
                Choice::Nothing => None,
            };
            return Verdict::Answer(None);
        }
        match version {
            Some(version) if kind == self.service.message_type => decide(version, body),
            _ => Verdict::Meaningless,
        }
    }

    /// Takes the next packet; says whether there was one. A request is held after that.
    fn receive(&self, conversation: &mut Conversation) -> Result<bool, Error> {
        let base = conversation.packet.as_ptr().addr();
        let Some(packet) = self.channel.receive(&mut conversation.packet)? else {
            return Ok(false);
        };
        let message = match packet.kind {
            PacketKind::InBand => pipe::data(packet.payload)
                .ok()
                .and_then(|data| Message::parse(data).ok()),
            _ => None,
        };
        // As long as its header says: what follows is none of the message's.
        let place = message
            .filter(|m| m.header.flags & FLAG_REQUEST != 0)
            .map(|m| {
                let end = m.body.as_ptr().addr().saturating_sub(base);
                let start = end.saturating_sub(size_of::<Header>());
                (start, end.saturating_add(m.body.len()))
            });
        match place {
            Some(place) => {
                conversation.message = place;
                conversation.held = Held::Request;
            }
            None => count(&self.channel.bus().counters.bad_packets),
        }
        Ok(true)
    }

    /// Sends the answer that is held; says whether there was room.
    fn send(&self, conversation: &mut Conversation) -> Result<bool, Error> {
        let (start, end) = conversation.message;
        let message = conversation.packet.get(start..end).unwrap_or_default();
        let header = PipeHeader::data(message.len() as u32);
        let packet = Outgoing::in_band(0, header.bytes(), false).with_tail(message);
        match self.channel.send(&packet) {
            Ok(()) => {
                conversation.held = Held::Nothing;
                Ok(true)
            }
            Err(Error::Full) => Ok(false),
            Err(error) => {
                conversation.held = Held::Nothing;
                Err(error)
            }
        }
    }
}

impl Conversation {
    /// Header and body of the message.
    fn parts(&mut self) -> Option<(&mut Header, &mut [u8])> {
        let (start, end) = self.message;
        Header::mut_from_prefix(self.packet.get_mut(start..end)?).ok()
    }

    /// Makes the request that is held its answer.
    fn become_answer(&mut self, status: u32) {
        self.held = Held::Answer;
        if let Some((header, _)) = self.parts() {
            header.status = status.into();
            header.flags = FLAG_TRANSACTION | FLAG_RESPONSE;
        }
    }
}

/// Writes `value` over the beginning of `body`; says whether it fits.
pub(super) fn overwrite<T: zerocopy::IntoBytes + zerocopy::Immutable>(
    body: &mut [u8],
    value: &T,
) -> bool {
    value.as_bytes().write_to_prefix(body).is_ok()
}
