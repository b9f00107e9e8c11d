//! What the channels of one adapter share: the conversation, and frames for one another.
//!
//! Each channel has a queue of the net, of which its worker takes frames. A frame whose channel is
//! another one, by the guest's own table, goes to that channel's inbox in the section where it is.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::adapter::{Cable, Config, QueueCounters};
use super::backend::{Backend, Features};
use super::batch::Arrived;
use super::conversation::Conversation;

/// Sections of frames that may wait in an inbox: more are lost, so that no slow channel keeps all.
const MAX_INBOX: usize = 512;

/// What the channels of an adapter share.
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) cable: Cable,
    /// What all queues of the net can do.
    pub(super) features: Features,
    conversation: Mutex<Conversation>,
    /// By number of channel.
    ports: Vec<Port>,
}

/// What is there for one channel, whether it is open or not.
pub(super) struct Port {
    /// Held by the channel's worker for as long as it is at work.
    backend: Mutex<Box<dyn Backend>>,
    pub(super) counters: QueueCounters,
    inbox: Mutex<Inbox>,
    /// The channel waits for sections. Written with the conversation locked.
    starved: AtomicBool,
    /// Has the channel's worker called.
    event: EventFd,
}

/// Frames that other channels' workers have taken for one.
#[derive(Default)]
struct Inbox {
    /// Somebody takes them out.
    open: bool,
    frames: VecDeque<Arrived>,
    /// How many sections they have.
    sections: usize,
}

/// What came of a frame that was given to a channel.
pub(super) enum Given {
    /// The channel's worker will send it.
    Taken,
    /// The channel takes none: here it is.
    Closed(Arrived),
    /// The channel has too many, and it is lost.
    TooMany,
}

impl Shared {
    /// Of an adapter with a queue of the net for each channel.
    pub(super) fn new(
        config: Config,
        cable: Cable,
        queues: Vec<(Box<dyn Backend>, QueueCounters)>,
    ) -> io::Result<Self> {
        let features = queues.first().map(|(backend, _)| backend.features());
        let port = |(backend, counters)| {
            Ok(Port {
                backend: Mutex::new(backend),
                counters,
                inbox: Mutex::default(),
                starved: AtomicBool::new(false),
                event: EventFd::new(EFD_NONBLOCK)?,
            })
        };
        Ok(Self {
            config,
            cable,
            features: features.unwrap_or_default(),
            conversation: Mutex::default(),
            ports: queues.into_iter().map(port).collect::<io::Result<_>>()?,
        })
    }

    /// The conversation. Held for moments, and not while frames are moved. Whoever needs lent memory
    /// as well locks that first: it may be waited for as long as somebody else's work takes.
    pub(super) fn conversation(&self) -> MutexGuard<'_, Conversation> {
        lock(&self.conversation)
    }

    /// What is there for a channel.
    pub(super) fn port(&self, channel: u16) -> Option<&Port> {
        self.ports.get(usize::from(channel))
    }

    /// Puts sections back that channel `from` had taken of buffer `generation`, and calls those that
    /// found none meanwhile.
    pub(super) fn put_back(
        &self,
        from: u16,
        generation: u32,
        sections: impl IntoIterator<Item = u32>,
    ) {
        let mut conversation = self.conversation();
        let Some(buffer) = &mut conversation.receive else {
            return;
        };
        if buffer.sections.generation() != generation {
            return;
        }
        let mut any = false;
        for index in sections {
            buffer.sections.put_back(index);
            any = true;
        }
        drop(conversation);
        if any {
            self.wake_starved(from);
        }
    }

    /// Calls channels that wait for sections, but not the one that has brought them.
    pub(super) fn wake_starved(&self, from: u16) {
        for (channel, port) in (0..).zip(&self.ports) {
            // Ordered by the conversation's lock, under which sections come back.
            if channel != from && port.starved.swap(false, Ordering::Relaxed) {
                port.call();
            }
        }
    }

    /// Gives a frame to a channel.
    pub(super) fn give(&self, channel: u16, frame: Arrived) -> Given {
        let Some(port) = self.port(channel) else {
            return Given::Closed(frame);
        };
        let mut inbox = lock(&port.inbox);
        if !inbox.open {
            return Given::Closed(frame);
        }
        if inbox.sections >= MAX_INBOX {
            return Given::TooMany;
        }
        inbox.sections = inbox.sections.saturating_add(frame.pieces.len());
        inbox.frames.push_back(frame);
        let first = inbox.frames.len() == 1;
        drop(inbox);
        if first {
            port.call();
        }
        Given::Taken
    }

    /// Whether others may give frames to a channel. Where they may not any more, those that wait
    /// are lost.
    pub(super) fn set_open(&self, channel: u16, open: bool) {
        let Some(port) = self.port(channel) else {
            return;
        };
        let mut inbox = lock(&port.inbox);
        inbox.open = open;
        let lost = if open {
            VecDeque::new()
        } else {
            inbox.sections = 0;
            std::mem::take(&mut inbox.frames)
        };
        drop(inbox);
        for frame in lost {
            port.counters.rx_lost.count();
            self.put_back(channel, frame.generation, frame.sections());
        }
    }
}

impl Port {
    /// Whether the channel waits for sections; to be said with the conversation locked.
    pub(super) fn set_starved(&self, starved: bool) {
        self.starved.store(starved, Ordering::Relaxed);
    }

    /// The channel's queue of the net.
    pub(super) fn backend(&self) -> MutexGuard<'_, Box<dyn Backend>> {
        lock(&self.backend)
    }

    /// Has the channel's worker called once more.
    pub(super) fn call(&self) {
        // An eventfd that is full is readable, which is all we want of it.
        let _ = self.event.write(1);
    }

    /// Makes the event unreadable; look at the inbox after it.
    pub(super) fn clear_event(&self) {
        // Not blocking; an event that was not set is no error.
        let _ = self.event.read();
    }

    /// Readable when there may be frames, or the worker shall be called.
    pub(super) fn event(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// Takes frames out of the inbox, at most `most`.
    pub(super) fn take(&self, most: usize) -> Vec<Arrived> {
        let mut inbox = lock(&self.inbox);
        let count = inbox.frames.len().min(most);
        let frames: Vec<Arrived> = inbox.frames.drain(..count).collect();
        let sections = frames.iter().map(|frame| frame.pieces.len()).sum();
        inbox.sections = inbox.sections.saturating_sub(sections);
        frames
    }
}

/// Nobody who holds a lock of these leaves something half done where it could panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use vmbus_proto::guid::Guid;
    use vmbus_proto::netvsp::{Buffer, Message, Version};

    use super::*;
    use crate::network::backend::Loopback;

    /// A channel that has found no section, because another one had them for a moment, is called.
    #[test]
    fn sections_that_come_back_unused() {
        let config = Config {
            instance: Guid::new(1, 2, 3, 4, 5),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            queues: 2,
        };
        let queue = || -> (Box<dyn Backend>, _) {
            (
                Box::new(Loopback::new(false).unwrap()),
                QueueCounters::default(),
            )
        };
        let queues = vec![queue(), queue()];
        let shared = Shared::new(config, Cable::new().unwrap(), queues).unwrap();
        let mut conversation = shared.conversation();
        let version = Version::V6_1 as u32;
        let buffer = Buffer {
            gpadl: 1.into(),
            id: 0xcafe.into(),
            reserved: 0.into(),
        };
        for message in [
            Message::Init(version, version),
            Message::SendReceiveBuffer(buffer),
        ] {
            let _ = conversation.handle(message, &shared.config, |_| Some(1 << 20));
        }
        let sections = &mut conversation.receive.as_mut().unwrap().sections;
        let generation = sections.generation();
        let taken: Vec<u32> = std::iter::from_fn(|| sections.take_for_frame()).collect();
        let port = shared.port(1).unwrap();
        port.set_starved(true);
        drop(conversation);
        let is_called = || port.event.read().is_ok();
        shared.put_back(0, generation, []);
        shared.put_back(0, generation.wrapping_add(1), [taken[0]]);
        assert!(!is_called());
        shared.put_back(0, generation, taken);
        assert!(is_called());
    }
}
