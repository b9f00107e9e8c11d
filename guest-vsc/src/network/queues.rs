//! Several queues: a channel each, with an inbox of its own, so that processors need not share one.
//!
//! The first queue has the adapter's first channel, on which all is agreed; the others have
//! sub-channels, which carry frames only. All frames of a flow take the same way, so that they stay in
//! order: the host picks the queue of those it has received by the key and the table that we set, the
//! driver the channel of those it sends by the table that the host has told of, and both by the same
//! hash. A packet is completed on the channel that it came on.

use core::iter;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use vmbus_proto::netvsp::{
    Message, SEND_TABLE_ENTRIES, SUB_CHANNEL_ALLOCATE, SendTable, Version, status,
};
use vmbus_proto::rndis::flow::{Flow, toeplitz};
use vmbus_proto::rndis::ndis::{
    RECEIVE_SCALE_SIZE, RSS_KEY_SIZE, RSS_TABLE_ENTRIES, ReceiveScale, ReceiveScaleCapabilities,
    hash,
};
use vmbus_proto::rndis::oid;
use zerocopy::IntoBytes as _;
use zerocopy::little_endian::U32;

use super::inbox::{Inbox, Owed, Waiting};
use super::{Buffer, Network};
use crate::bus::Offer;
use crate::channel::{Channel, OpenOptions};
use crate::channels::Channels;
use crate::error::Error;
use crate::hal::Hal;
use crate::sub_channels::MAX_SUB_CHANNELS;
use crate::sync::IrqMutex;

/// Most queues of an adapter.
pub const MAX_QUEUES: usize = 1 + MAX_SUB_CHANNELS;

/// The key of the hash: two bytes again and again, so that the hash of a flow is that of its answers,
/// too, and both come to the same queue.
const KEY: [u8; RSS_KEY_SIZE] = zerocopy::transmute!([[0x6d_u8, 0x5a]; RSS_KEY_SIZE / 2]);

/// Bytes of a frame that tell its flow: Ethernet's header with two tags, the longest of IPv4, ports.
pub(super) const HEADERS: usize = 96;

/// Frames that are taken out of a processor's own queue before another one has its turn.
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
    pub(super) fn new(inbox: &'b IrqMutex<H, Inbox<H, [Waiting]>>) -> Self {
        Self {
            inbox,
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            looks: AtomicU32::new(0),
        }
    }

    /// Makes room for as many completions as may be owed of `sections`. What was owed before the host
    /// had any is forgotten.
    fn make_room_to_owe(&self, sections: usize) -> Result<(), Error> {
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
    open: usize,
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
    fn states(&self) -> impl Iterator<Item = &State<'b, H>> {
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

/// The hash of a flow with [`KEY`]. As that comes again every two bytes, those of the input can be
/// added up before.
fn symmetric_hash(flow: &Flow<'_>) -> u32 {
    let ports = flow.ports.unwrap_or_default();
    let (words, _) = flow.addresses.as_chunks::<2>();
    let (ports, _) = ports.as_chunks::<2>();
    let words = words.iter().chain(ports);
    let sum = words.fold(0, |sum, word| sum ^ u16::from_be_bytes(*word));
    toeplitz(&KEY, sum.to_be_bytes())
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
            _ => self.queues.by_flow(headers),
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

    /// Opens up to `wanted` queues: as many as there is memory for, as processors have their SynIC
    /// enabled, and as the host gives. Then it is told how to spread what it receives. `sections` are
    /// those of the receive buffer. Waits for the host.
    pub(super) fn open_queues(
        &mut self,
        offer: &Offer,
        wanted: usize,
        sections: usize,
        options: &OpenOptions,
    ) -> Result<(), Error> {
        let most = wanted
            .min(self.queues.states().count())
            .min(self.started_cpus());
        if most < 2 || self.version < Some(Version::V5) {
            return Ok(());
        }
        let about = ReceiveScaleCapabilities::question();
        let answer = self.query(oid::GEN_RECEIVE_SCALE_CAPABILITIES, about.as_bytes());
        let capabilities = match answer {
            Ok(answer) => answer.and_then(|it| ReceiveScaleCapabilities::parse(it.value())),
            Err(Error::Refused(..)) => None,
            Err(error) => return Err(error),
        };
        let queues = capabilities.map_or(0, |it| it.queues.get() as usize);
        let further = most.min(queues).saturating_sub(1) as u32;
        if further == 0 {
            return Ok(());
        }
        let granted = match self.ask(Message::SubChannel(SUB_CHANNEL_ALLOCATE, further))? {
            Message::SubChannelComplete(status::SUCCESS, granted) => granted.min(further),
            // One channel does.
            _ => return Ok(()),
        };
        for state in self.queues.states().skip(1).take(granted as usize) {
            state.make_room_to_owe(sections)?;
        }
        self.sub_channels
            .open(&self.channel, offer, granted as u16, options);
        self.queues.open = self.channels().count();
        if self.queues.open == 1 {
            return Ok(());
        }
        let entries = capabilities.map_or(0, |it| it.table_entries.get().into());
        match entries {
            1..=RSS_TABLE_ENTRIES => self.set_receive_scale(entries),
            // It says nothing that can be, so it is the usual number.
            _ => self.set_receive_scale(RSS_TABLE_ENTRIES),
        }
    }

    /// How many processors have their SynIC enabled, as far as each can have a queue.
    fn started_cpus(&self) -> usize {
        let first = self.channel.cpu();
        let after = |cpu: &usize| Some(self.channel.bus().started_cpu_after(*cpu));
        let others = iter::successors(after(&first), after).take(MAX_SUB_CHANNELS);
        others
            .take_while(|cpu| *cpu != first)
            .count()
            .saturating_add(1)
    }

    /// Has the host spread what it receives over all queues, by a table of `entries` entries.
    fn set_receive_scale(&self, entries: usize) -> Result<(), Error> {
        let mut table = [U32::ZERO; RSS_TABLE_ENTRIES];
        let numbers = self.channels().map(Channel::sub_channel_index).cycle();
        for (entry, number) in table.iter_mut().zip(numbers) {
            *entry = u32::from(number).into();
        }
        let scale = ReceiveScale {
            flags: 0,
            hash: hash::TOEPLITZ | hash::IPV4 | hash::TCP_IPV4 | hash::IPV6 | hash::TCP_IPV6,
            table: table.get(..entries).unwrap_or(&table),
            key: &KEY,
        };
        let mut value = [0; RECEIVE_SCALE_SIZE];
        let value = scale.encode(&mut value).ok_or(Error::TooLong)?;
        match self.set(oid::GEN_RECEIVE_SCALE_PARAMETERS, value) {
            // Then all that comes is in the first queue, which does.
            Err(Error::Refused(..)) => Ok(()),
            result => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_and_its_answers_have_the_hash_that_the_host_has() {
        let mut random = 1_u32;
        for length in [8, 32, 8, 32, 8, 32] {
            let mut all = [0; 36];
            for byte in &mut all {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = (random >> 24) as u8;
            }
            let mut back = all;
            back[..length].rotate_left(length / 2);
            back[32..].rotate_left(2);
            for with_ports in [false, true] {
                let [there, back] = [&all, &back].map(|bytes| Flow {
                    ipv6: length == 32,
                    addresses: &bytes[..length],
                    ports: bytes.last_chunk().copied().filter(|_| with_ports),
                });
                assert_eq!(symmetric_hash(&there), there.hash(&KEY));
                assert_eq!(symmetric_hash(&there), back.hash(&KEY));
            }
        }
    }

    #[test]
    fn ports_that_follow_each_other_spread_evenly() {
        let mut entries = [0; SEND_TABLE_ENTRIES];
        for port in 0..1600u16 {
            let [high, low] = (40_000 + port).to_be_bytes();
            let flow = Flow {
                ipv6: false,
                addresses: &[10, 0, 0, 1, 10, 0, 0, 2],
                ports: Some([high, low, 0, 80]),
            };
            entries[symmetric_hash(&flow) as usize % SEND_TABLE_ENTRIES] += 1;
        }
        assert!(
            entries.iter().all(|count| (60..140).contains(count)),
            "{entries:?}"
        );
    }
}
