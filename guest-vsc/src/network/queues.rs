//! Several queues: a channel each, with an inbox of its own, so that processors need not share one.
//!
//! The first queue has the adapter's first channel, on which all is agreed; the others have
//! sub-channels, which carry frames only. All frames of a flow take the same way, so that they stay in
//! order: the host picks the queue of those it has received by the key and the table that we set, the
//! driver the channel of those it sends by the table that the host has told of, and both by the same
//! hash. A packet is completed on the channel that it came on.

use core::iter;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use vmbus_proto::netvsp::{SEND_TABLE_ENTRIES, SendTable};
use vmbus_proto::rndis::flow::Flow;

use super::inbox::{Inbox, Owed, Waiting};
use super::scaling::symmetric_hash;
use super::{Buffer, Network};
use crate::channel::Channel;
use crate::channels::Channels;
use crate::error::Error;
use crate::hal::Hal;
use crate::sub_channels::MAX_SUB_CHANNELS;
use crate::sync::IrqMutex;

/// Most queues of an adapter.
pub const MAX_QUEUES: usize = 1 + MAX_SUB_CHANNELS;

/// Bytes of a frame that are looked at to tell its flow: enough for Ethernet's header with two tags,
/// IPv4's with all options, and ports.
pub(super) const HEADERS: usize = 96;

/// One look for a frame in so many begins with another queue than the processor's own.
const TURNS: u32 = 16;

/// What an adapter has counted on one of its queues since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueStats {
    /// Frames received and taken.
    pub received: u64,
    /// Frames given to the host.
    pub sent: u64,
}

/// What a queue has beside its channel. Processors that use different ones do not meet in a line of
/// the cache.
#[repr(align(64))]
pub(super) struct State<'b, H: Hal> {
    pub(super) inbox: &'b IrqMutex<H, Inbox<H, [Waiting]>>,
    pub(super) received: AtomicU64,
    pub(super) sent: AtomicU64,
    /// Looks for a frame by processors whose own it is.
    looks: AtomicU32,
}

impl<'b, H: Hal> State<'b, H> {
    fn new(inbox: &'b IrqMutex<H, Inbox<H, [Waiting]>>) -> Self {
        Self {
            inbox,
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            looks: AtomicU32::new(0),
        }
    }

    /// Makes room for as many completions as may be owed of `sections`. What was owed before the host
    /// had any is forgotten.
    pub(super) fn make_room_to_owe(&self, sections: usize) -> Result<(), Error> {
        let owed = Owed::new(sections).ok_or(Error::OutOfMemory)?;
        // The memory of one is given back when the lock is released.
        let _before = self.inbox.with(|inbox| inbox.owed.replace(owed));
        Ok(())
    }
}

/// An adapter's queues, and which flow takes which.
pub(super) struct Queues<'b, H: Hal> {
    first: State<'b, H>,
    /// As many as there is memory for.
    further: [Option<State<'b, H>>; MAX_SUB_CHANNELS],
    /// How many have a channel.
    pub(super) open: usize,
    /// What the host has said, by the hash of a flow; taken modulo the queues that there are.
    table: [AtomicU8; SEND_TABLE_ENTRIES],
}

impl<'b, H: Hal> Queues<'b, H> {
    /// Over these inboxes; only the first one has a channel.
    pub(super) fn new<const FRAMES: usize>(
        first: &'b IrqMutex<H, Inbox<H, [Waiting; FRAMES]>>,
        further: &'b [IrqMutex<H, Inbox<H, [Waiting; FRAMES]>>],
    ) -> Self {
        let mut inboxes = further.iter();
        Self {
            first: State::new(first),
            further: core::array::from_fn(|_| {
                let inbox: &'b IrqMutex<H, Inbox<H, [Waiting]>> = inboxes.next()?;
                Some(State::new(inbox))
            }),
            open: 1,
            // Until the host says otherwise.
            table: core::array::from_fn(|entry| AtomicU8::new(entry as u8)),
        }
    }

    /// All that there is memory for.
    pub(super) fn states(&self) -> impl Iterator<Item = &State<'b, H>> {
        iter::once(&self.first).chain(self.further.iter().flatten())
    }

    /// Takes over the host's table.
    pub(super) fn take_table(&self, table: &SendTable) {
        for (place, channel) in self.table.iter().zip(table.channels) {
            // Whatever it says, there is such a queue when it is looked up.
            place.store(channel as u8, Ordering::Relaxed);
        }
    }

    /// The number of the queue for a frame that begins with `headers`.
    fn by_flow(&self, headers: &[u8]) -> usize {
        let Some(flow) = Flow::of(headers) else {
            return 0;
        };
        let entry = (symmetric_hash(&flow) as usize).checked_rem(SEND_TABLE_ENTRIES);
        let channel = entry.and_then(|entry| self.table.get(entry));
        let channel = channel.map_or(0, |channel| channel.load(Ordering::Relaxed));
        usize::from(channel)
            .checked_rem(self.open)
            .unwrap_or_default()
    }

    /// What frames were received and sent in all.
    pub(super) fn stats(&self) -> QueueStats {
        let mut sum = QueueStats::default();
        for state in self.states() {
            let QueueStats { received, sent } = state.stats();
            sum.received = sum.received.saturating_add(received);
            sum.sent = sum.sent.saturating_add(sent);
        }
        sum
    }

    /// Forgets all frames that nobody has taken, and all completions that are owed.
    pub(super) fn reset(&self) {
        for state in self.states() {
            // Its memory is given back when the lock is released.
            let _owed = state.inbox.with(|inbox| {
                inbox.frames.reset();
                inbox.owed.take()
            });
        }
    }
}

impl<H: Hal> State<'_, H> {
    fn stats(&self) -> QueueStats {
        QueueStats {
            received: self.received.load(Ordering::Relaxed),
            sent: self.sent.load(Ordering::Relaxed),
        }
    }
}

/// A queue that is open.
pub(super) struct Queue<'n, 'b, H: Hal> {
    /// Its place among the queues.
    pub(super) number: usize,
    pub(super) channel: &'n Channel<'b, H>,
    pub(super) state: &'n State<'b, H>,
}

impl<H: Hal> Clone for Queue<'_, '_, H> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<H: Hal> Copy for Queue<'_, '_, H> {}

impl<'b, H: Hal, B: Buffer> Network<'b, H, B> {
    /// Queues that are open: at least one, and each has a channel.
    pub fn queues(&self) -> usize {
        self.queues.open
    }

    /// All channels, that of the first queue first.
    pub fn channels(&self) -> impl Iterator<Item = &Channel<'b, H>> + Clone {
        self.every_channel()
    }

    pub(super) fn every_channel(&self) -> Channels<'_, 'b, H> {
        self.sub_channels.after(&self.channel)
    }

    /// That frames may go, or why not: the end of any channel is that of the adapter.
    ///
    /// # Errors
    /// As for [`Channel::check`].
    pub fn check(&self) -> Result<(), Error> {
        self.channels().try_for_each(Channel::check)
    }

    /// What was counted on queue `queue` so far; `None` where there is no such queue.
    pub fn queue_stats(&self, queue: usize) -> Option<QueueStats> {
        Some(self.queue(queue)?.state.stats())
    }

    /// The first queue, which there always is.
    pub(super) fn first_queue(&self) -> Queue<'_, 'b, H> {
        Queue {
            number: 0,
            channel: &self.channel,
            state: &self.queues.first,
        }
    }

    /// Queue `number`, where it is open.
    pub(super) fn queue(&self, number: usize) -> Option<Queue<'_, 'b, H>> {
        let Some(place) = number.checked_sub(1) else {
            return Some(self.first_queue());
        };
        Some(Queue {
            number,
            channel: self.sub_channels.get(place)?,
            state: self.queues.further.get(place)?.as_ref()?,
        })
    }

    /// The queue for a frame to send that begins with `headers`.
    pub(super) fn queue_of_flow(&self, headers: &[u8]) -> Queue<'_, 'b, H> {
        let number = match self.queues.open {
            1 => 0,
            _ => self
                .queues
                .by_flow(headers.get(..HEADERS).unwrap_or(headers)),
        };
        self.queue(number).unwrap_or(self.first_queue())
    }

    /// All queues, round about from `first` on.
    pub(super) fn queues_from(&self, first: usize) -> impl Iterator<Item = Queue<'_, 'b, H>> {
        let numbers = (first..self.queues.open).chain(0..first);
        numbers.filter_map(|number| self.queue(number))
    }

    /// The number of the queue whose channel interrupts this processor, or else of any.
    pub(super) fn own_queue(&self) -> usize {
        let open = self.queues.open;
        if open == 1 {
            return 0;
        }
        // By the time that it is known it may be another one, which does no harm.
        let cpu = H::current_cpu();
        let own = self.channels().position(|channel| channel.cpu() == cpu);
        own.unwrap_or(cpu.checked_rem(open).unwrap_or_default())
    }

    /// The number of the queue to look into first for a frame. That is the processor's own, but for
    /// one time in some: with nobody else to take them, those of the others have to come, too.
    pub(super) fn queue_to_look_into(&self) -> usize {
        let own = self.own_queue();
        let Some(queue) = self.queue(own).filter(|_| self.queues.open > 1) else {
            return own;
        };
        let looks = queue.state.looks.fetch_add(1, Ordering::Relaxed);
        match looks.checked_rem(TURNS) {
            Some(0) => {
                let turn = (looks / TURNS) as usize;
                turn.checked_rem(self.queues.open).unwrap_or_default()
            }
            _ => own,
        }
    }

    /// Makes room for as many completions as may be owed of `sections`, on the first queue.
    pub(super) fn make_room_to_owe(&self, sections: usize) -> Result<(), Error> {
        self.queues.first.make_room_to_owe(sections)
    }
}
