//! Services of question and answer: one request at a time, in order, for callers that wait.
//!
//! Callers put requests on a [`Desk`]; the VSP takes them off while the guest's driver is there
//! and owes no answer. A caller that gave up is not waited for: its request is dropped where it
//! was not sent yet, and the answer is where it was.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmbus_proto::ic::status;
use vmbus_proto::message::OfferChannel;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::link::{Answer, Link, Service};
use crate::vmbus::channel::{Channel, ChannelError};
use crate::vsp::{StateError, Vsp};

/// Most requests that wait for the guest.
const LIMIT: usize = 16;

/// Why the guest did not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing in the guest serves it: no driver, not yet, not any more, or the machine is paused.
    #[error("the guest has no driver for it at the moment")]
    NotReady,
    /// Others wait already, and too many.
    #[error("too many requests wait for the guest")]
    Busy,
    /// Time ran out.
    #[error("the guest did not answer in time")]
    NoAnswer,
    /// The guest closed the channel or was reset.
    #[error("the guest's driver went away")]
    Gone,
    /// The guest said no, with this status.
    #[error("the guest refused with status {0:#010x}")]
    Refused(u32),
    /// The guest answered something that means nothing.
    #[error("the guest's answer makes no sense")]
    Malformed,
    /// The request cannot be said in the service's protocol.
    #[error("the text is too long, or no key of the keyboard types it")]
    Unsuitable,
}

/// A request and who waits for its answer.
struct Request {
    body: Vec<u8>,
    deadline: Instant,
    reply: Sender<Answer>,
}

/// Where callers and VSP meet.
struct Desk {
    state: Mutex<DeskState>,
    event: EventFd,
}

#[derive(Default)]
struct DeskState {
    /// The guest's driver is there and the channel runs.
    ready: bool,
    requests: VecDeque<Request>,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, DeskState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The callers' end.
#[derive(Clone)]
pub(super) struct Client(Arc<Desk>);

impl Client {
    pub fn is_ready(&self) -> bool {
        self.0.lock().ready
    }

    /// Asks, and waits at most `patience` for the body of a good answer.
    pub fn ask(&self, body: &[u8], patience: Duration) -> Result<Vec<u8>, Error> {
        let (reply, answer) = channel();
        {
            let mut desk = self.0.lock();
            if !desk.ready {
                return Err(Error::NotReady);
            }
            if desk.requests.len() >= LIMIT {
                return Err(Error::Busy);
            }
            let now = Instant::now();
            desk.requests.push_back(Request {
                body: body.to_vec(),
                deadline: now.checked_add(patience).unwrap_or(now),
                reply,
            });
        }
        // An eventfd that is full is readable, which is all we want of it.
        let _ = self.0.event.write(1);
        match answer.recv_timeout(patience) {
            Ok(answer) if answer.status == status::OK => Ok(answer.body),
            Ok(answer) => Err(Error::Refused(answer.status)),
            Err(RecvTimeoutError::Timeout) => Err(Error::NoAnswer),
            Err(RecvTimeoutError::Disconnected) => Err(Error::Gone),
        }
    }
}

/// The host's end of such a service.
struct Exchange {
    link: Link,
    desk: Arc<Desk>,
    /// The request that the guest owes an answer to.
    asked: Option<(u8, Sender<Answer>)>,
}

/// A service: its VSP, and its callers' end.
pub(super) fn new(service: &'static Service) -> io::Result<(Box<dyn Vsp>, Client)> {
    let desk = Arc::new(Desk {
        state: Mutex::default(),
        event: EventFd::new(EFD_NONBLOCK)?,
    });
    let exchange = Exchange {
        link: Link::new(service),
        desk: Arc::clone(&desk),
        asked: None,
    };
    Ok((Box::new(exchange), Client(desk)))
}

impl Exchange {
    /// Sends the next request that somebody still waits for.
    fn send_next(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        let mut desk = self.desk.lock();
        let now = Instant::now();
        desk.requests.retain(|request| request.deadline > now);
        let Some(request) = desk.requests.front() else {
            return Ok(());
        };
        if let Some(id) = self.link.send(channel, &request.body)? {
            self.asked = desk.requests.pop_front().map(|request| (id, request.reply));
        }
        Ok(())
    }
}

impl Vsp for Exchange {
    fn offer(&self) -> OfferChannel {
        self.link.service().offer()
    }

    fn opened(&mut self) {
        self.link.opened();
        self.asked = None;
        *self.desk.lock() = DeskState::default();
    }

    fn service(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        // Not blocking; an event that was not set is no error.
        let _ = self.desk.event.read();
        self.link.negotiate(channel)?;
        while let Some(answer) = self.link.receive(channel)? {
            match self.asked.take() {
                // Who asked may have given up.
                Some((id, reply)) if id == answer.id => drop(reply.send(answer)),
                // The answer to a question from before a pause, or to none.
                other => self.asked = other,
            }
        }
        self.desk.lock().ready = self.link.version().is_some();
        if self.asked.is_none() {
            self.send_next(channel)?;
        }
        Ok(())
    }

    fn event(&self) -> Option<RawFd> {
        Some(self.desk.event.as_raw_fd())
    }

    fn quiesce(&mut self) {
        // The channel stops, for a while or for good: who asks now need not wait to find out.
        self.desk.lock().ready = false;
    }

    fn save(&self) -> Vec<u8> {
        self.link.save()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        self.link.restore(state)
    }
}
