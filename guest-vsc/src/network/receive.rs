//! Packets from the host, and the frames that they tell of.

use core::sync::atomic::Ordering;

use vmbus_proto::netvsp::{
    Message, RECEIVE_BUFFER_ID, SendTable, Sender, rndis_channel, status as netvsp_status,
};
use vmbus_proto::packet::{Outgoing, Packet as RingPacket, PacketKind, TransferPageRange};
use vmbus_proto::rndis::packet::{Packet, PacketInfo, rx_checksum};
use vmbus_proto::rndis::{
    Completion, HEADER_SIZE, Header, Indication, message_type, split, status as rndis_status,
};
use zerocopy::FromBytes as _;

use super::conversation::{Exchange, MAX_MESSAGE};
use super::inbox::{Frames, Inbox, Owed, Waiting};
use super::queues::Queue;
use super::{Buffer, ETHERNET_HEADER, Network, count};
use crate::bus::count as count_on_bus;
use crate::error::Error;
use crate::hal::Hal;

/// Packets taken in one go, so that a storm of them cannot keep a processor for ever.
const PACKETS_AT_ONCE: u32 = 1024;

/// Bytes of a message that are copied to read what is before its frame.
const BEGINNING: usize = 512;

/// How far to take packets from the ring. Frames and all else come in the same one, so that whoever
/// waits for something else has to do something about the frames before it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// Until a frame waits.
    Frame,
    /// Until so many wait that more might find no place.
    HalfFull,
    /// Until there are no more packets; frames that find no place are lost.
    Empty,
}

/// A frame that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its bytes.
    pub length: usize,
    /// What the host says of its checksum. Whoever does not trust the host looks itself.
    pub checksum: RxChecksum,
    /// Its VLAN tag, where that is not in the frame.
    pub vlan: Option<u16>,
}

/// What the host says of a checksum of TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RxChecksum {
    /// Nothing.
    Unknown,
    /// It is right.
    Good,
    /// It is wrong, or that of IPv4's header is.
    Bad,
}

impl RxChecksum {
    fn new(info: &PacketInfo) -> Self {
        let failed = rx_checksum::TCP_FAILED | rx_checksum::UDP_FAILED | rx_checksum::IP_FAILED;
        let succeeded = rx_checksum::TCP_SUCCEEDED | rx_checksum::UDP_SUCCEEDED;
        match info.checksum {
            Some(bits) if bits & failed != 0 => Self::Bad,
            Some(bits) if bits & succeeded != 0 => Self::Good,
            _ => Self::Unknown,
        }
    }
}

impl<H: Hal, B: Buffer> Network<'_, H, B> {
    /// Whether a frame can be received. Never waits; may be called in interrupt context.
    pub fn can_recv(&self) -> bool {
        let mut queues = self.queues_from(self.own_queue());
        queues.any(|queue| {
            self.with_inbox(queue, |inbox| {
                // The end of a channel is told by `check`.
                let _ = self.take_packets(queue, inbox, Until::Frame);
                !inbox.frames.is_empty() && !inbox.is_stopped()
            })
        })
    }

    /// Takes the next frame, copied into `buffer`; `None` where there is none. One that is longer
    /// than `buffer` is lost. Never waits; may be called in interrupt context.
    ///
    /// With several queues the one whose channel interrupts this processor comes first, and the others
    /// where it is empty, or once in a while.
    ///
    /// # Errors
    /// A channel has come to an end.
    pub fn try_receive(&self, buffer: &mut [u8]) -> Result<Option<Received>, Error> {
        for queue in self.queues_from(self.queue_to_look_into()) {
            let received = self.receive_from(queue, buffer)?;
            if received.is_some() {
                return Ok(received);
            }
        }
        Ok(None)
    }

    /// Takes the next frame of queue `queue`, as [`try_receive`](Self::try_receive) does; for kernels
    /// whose processors each have a queue of their own. `None` also where there is no such queue.
    ///
    /// # Errors
    /// As for `try_receive`.
    pub fn try_receive_from(
        &self,
        queue: usize,
        buffer: &mut [u8],
    ) -> Result<Option<Received>, Error> {
        match self.queue(queue) {
            Some(queue) => self.receive_from(queue, buffer),
            None => Ok(None),
        }
    }

    fn receive_from(
        &self,
        queue: Queue<'_, '_, H>,
        buffer: &mut [u8],
    ) -> Result<Option<Received>, Error> {
        self.with_inbox(queue, |inbox| {
            // Not for ever, where all that comes cannot be.
            for _ in 0..PACKETS_AT_ONCE {
                self.take_packets(queue, inbox, Until::Frame)?;
                if inbox.is_stopped() {
                    return Ok(None);
                }
                let Some(waiting) = inbox.frames.pop() else {
                    self.check()?;
                    return Ok(None);
                };
                let taken = self.take_frame(waiting, buffer);
                if let Some(id) = waiting.last_of {
                    inbox.owe(id);
                    // The end of the channel is told by the next call.
                    let _ = self.pay(queue, &mut inbox.owed);
                }
                if taken.is_some() {
                    count(&queue.state.received, 1);
                    return Ok(taken);
                }
            }
            Ok(None)
        })
    }

    /// Runs `f` on the inbox of a queue, and wakes whoever waits for what it took.
    fn with_inbox<R>(
        &self,
        queue: Queue<'_, '_, H>,
        f: impl FnOnce(&mut Inbox<H, [Waiting]>) -> R,
    ) -> R {
        let result = queue.state.inbox.with(f);
        #[cfg(feature = "async")]
        if self.taken.load(Ordering::Acquire) && self.taken.swap(false, Ordering::AcqRel) {
            self.wake();
        }
        result
    }

    /// Takes what the host has sent, as far as `until`, on every queue.
    pub(super) fn pump(&self, until: Until) -> Result<(), Error> {
        let mut result = Ok(());
        for queue in self.queues_from(self.own_queue()) {
            result = result.and(self.pump_queue(queue, until));
        }
        result
    }

    /// The same on one queue.
    pub(super) fn pump_queue(&self, queue: Queue<'_, '_, H>, until: Until) -> Result<(), Error> {
        self.with_inbox(queue, |inbox| self.take_packets(queue, inbox, until))
    }

    /// Takes packets from the ring until there are none, or as many frames wait as `until` says.
    fn take_packets(
        &self,
        queue: Queue<'_, '_, H>,
        inbox: &mut Inbox<H, [Waiting]>,
        until: Until,
    ) -> Result<(), Error> {
        let mut told = false;
        let mut result = Ok(());
        for _ in 0..PACKETS_AT_ONCE {
            // First, as nothing else may come before there is room for more in the host's ring.
            if let Err(error) = self.pay(queue, &mut inbox.owed) {
                result = Err(error);
                break;
            }
            let enough = match until {
                Until::Frame => !inbox.frames.is_empty(),
                Until::HalfFull => inbox.frames.is_half_full(),
                Until::Empty => false,
            };
            if enough || inbox.is_stopped() {
                break;
            }
            match queue.channel.receive(&mut inbox.packet) {
                Ok(Some(packet)) => {
                    let id = packet.transaction_id;
                    if self.take_packet(queue, &packet, &mut inbox.frames) {
                        inbox.owe(id);
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
            told = true;
        }
        if told {
            // Perhaps another processor is about to sleep on what has come.
            queue.channel.tell();
            #[cfg(feature = "async")]
            self.taken.store(true, Ordering::Release);
        }
        result
    }

    /// Completes the packets that are done with, as far as there is room for it now: where there is
    /// not, the host rings when there is.
    fn pay(&self, queue: Queue<'_, '_, H>, owed: &mut Option<Owed<H>>) -> Result<(), Error> {
        let Some(owed) = owed else {
            return Ok(());
        };
        while let Some(id) = owed.first() {
            let message = Message::SendRndisPacketComplete(netvsp_status::SUCCESS);
            let message = message.encode(self.version);
            match queue.channel.send(&Outgoing::completion(id, &message)) {
                Ok(()) => owed.pop(),
                Err(Error::Full) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes a packet; says whether it is to be completed at once.
    fn take_packet(
        &self,
        queue: Queue<'_, '_, H>,
        packet: &RingPacket<'_>,
        frames: &mut Frames<[Waiting]>,
    ) -> bool {
        // Sub-channels carry frames and nothing else.
        let is_first = queue.number == 0;
        let bus = &self.channel.bus().counters;
        let message = Message::parse(Sender::Host, packet.payload);
        match (packet.kind, message) {
            (PacketKind::Completion, Ok(message)) => {
                if !self.completed(is_first, packet.transaction_id, message) {
                    count_on_bus(&bus.bad_completions);
                }
            }
            (PacketKind::Completion, Err(_)) => count_on_bus(&bus.bad_completions),
            (PacketKind::TransferPages { pageset_id, ranges }, message) => {
                let channel = match message {
                    Ok(Message::SendRndisPacket(message)) if pageset_id == RECEIVE_BUFFER_ID => {
                        Some(message.channel.get())
                    }
                    _ => None,
                };
                let channel = channel.filter(|channel| is_first || *channel == rndis_channel::DATA);
                return self.take_ranges(packet.transaction_id, channel, ranges, frames);
            }
            // There is a way past the host that we do not take.
            (PacketKind::InBand, Ok(Message::SendVfAssociation(..))) if is_first => {}
            (PacketKind::InBand, _) if is_first => match self.send_table(packet.payload) {
                Some(table) => self.queues.take_table(&table),
                None => count_on_bus(&bus.bad_packets),
            },
            _ => count_on_bus(&bus.bad_packets),
        }
        false
    }

    /// The host's table, where that is what a message is.
    fn send_table(&self, payload: &[u8]) -> Option<SendTable> {
        SendTable::parse_as(self.version?, payload)
    }

    /// A packet of ours is done with; says whether it was. Questions are asked on the first channel.
    fn completed(&self, is_first: bool, id: u64, message: Message) -> bool {
        let answers = |exchange: &mut Exchange| exchange.complete(id, message);
        if is_first && self.exchange.with(answers) {
            return true;
        }
        let Message::SendRndisPacketComplete(status) = message else {
            return false;
        };
        let result = match status {
            netvsp_status::SUCCESS => Ok(()),
            status => Err(status),
        };
        let known = self.places.with(|places| places.complete::<H>(id, result));
        if known && result.is_err() {
            count(&self.counters.refused, 1);
        }
        known
    }

    /// Takes a packet about the receive buffer, of the `channel` of RNDIS where there is one; says
    /// whether it is to be completed at once.
    fn take_ranges(
        &self,
        id: u64,
        channel: Option<u32>,
        ranges: &[TransferPageRange],
        frames: &mut Frames<[Waiting]>,
    ) -> bool {
        let bad = |ranges: usize| count(&self.counters.bad, ranges as u64);
        let within = |range: &TransferPageRange| {
            let (offset, length) = (range.byte_offset.get(), range.byte_count.get());
            let end = u64::from(offset).saturating_add(u64::from(length));
            let within = end <= self.receive_buffer.len() as u64;
            if !within {
                bad(1);
            }
            within.then_some((offset, length))
        };
        match channel {
            Some(rndis_channel::DATA) => {
                let (lost, none) = frames.push_packet(id, ranges.iter().filter_map(within));
                count(&self.counters.lost, u64::from(lost));
                return none;
            }
            Some(rndis_channel::CONTROL) => {
                for (offset, length) in ranges.iter().filter_map(within) {
                    if self.take_control(offset, length).is_none() {
                        bad(1);
                    }
                }
            }
            _ => bad(ranges.len().max(1)),
        }
        true
    }

    /// Takes a message of RNDIS that is no frame; `None` where it cannot be.
    fn take_control(&self, offset: u32, length: u32) -> Option<()> {
        let mut copy = [0; MAX_MESSAGE];
        let message = copy.get_mut(..length as usize)?;
        self.receive_buffer.read(offset as usize, message);
        let (kind, body, _) = split(message).ok()?;
        if kind == message_type::INDICATE_STATUS {
            let indication = Indication::parse(body).ok()?;
            match indication.status {
                rndis_status::MEDIA_CONNECT => self.link_is(true),
                rndis_status::MEDIA_DISCONNECT => self.link_is(false),
                // The cable was pulled and plugged in again, sooner than anybody could tell.
                rndis_status::NETWORK_CHANGE => self.link_changed.store(true, Ordering::Release),
                _ => {}
            }
            return Some(());
        }
        let completion = Completion::parse(kind, body).ok()??;
        let known = self.exchange.with(|exchange| exchange.answer(&completion));
        known.then_some(())
    }

    /// The host has said so.
    pub(super) fn link_is(&self, up: bool) {
        if self.connected.swap(up, Ordering::AcqRel) != up {
            self.link_changed.store(true, Ordering::Release);
        }
    }

    /// Copies a frame out of the receive buffer; `None` where it cannot be, or is too long.
    fn take_frame(&self, waiting: Waiting, buffer: &mut [u8]) -> Option<Received> {
        let Some((at, packet)) = self.find_frame(waiting) else {
            count(&self.counters.bad, 1);
            return None;
        };
        let Some(frame) = buffer.get_mut(..packet.data_length) else {
            count(&self.counters.lost, 1);
            return None;
        };
        self.receive_buffer.read(at, frame);
        Some(Received {
            length: packet.data_length,
            checksum: RxChecksum::new(&packet.info),
            vlan: packet.info.vlan.map(|vlan| vlan.tag()),
        })
    }

    /// Where the frame of a message is in the receive buffer: within the message, which is within
    /// the buffer.
    fn find_frame(&self, waiting: Waiting) -> Option<(usize, Packet)> {
        let (offset, length) = (waiting.offset as usize, waiting.length as usize);
        let mut copy = [0; BEGINNING];
        let beginning = copy.get_mut(..length.min(BEGINNING))?;
        self.receive_buffer.read(offset, beginning);
        let (header, beginning) = Header::read_from_prefix(beginning).ok()?;
        let message_length = header.length.get() as usize;
        if header.message_type.get() != message_type::PACKET || message_length > length {
            return None;
        }
        let body_length = message_length.checked_sub(HEADER_SIZE)?;
        let beginning = beginning.get(..body_length.min(beginning.len()))?;
        let packet = Packet::parse(beginning, body_length).ok()?;
        // Nobody has agreed to frames in pieces.
        if packet.data_length < ETHERNET_HEADER || packet.info.id.is_some_and(|id| id.is_piece()) {
            return None;
        }
        let body = offset.checked_add(HEADER_SIZE)?;
        Some((body.checked_add(packet.data_offset)?, packet))
    }
}
