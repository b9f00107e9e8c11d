//! A guest played by hand: both rings and both buffers over plain memory, no driver.

use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmbus_proto::gpa::GpaRangeWriter;
use vmbus_proto::guid::Guid;
use vmbus_proto::netvsp::{
    Buffer, Message, NO_SECTION, NdisConfig, RECEIVE_BUFFER_ID, SendRndisPacket, SendTable, Sender,
    Version, rndis_channel, status,
};
use vmbus_proto::packet::{Outgoing, PacketKind};
use vmbus_proto::ring::{Consumer, Producer};
use vmbus_proto::rndis::packet::{Packet, PacketInfo, Prefix};
use vmbus_proto::rndis::{self, Completion, Request, oid};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::memory::GuestMemory;
use crate::network::backend::{Backend, Loopback};
use crate::network::{Cable, Config, Mac, Network, QueueCounters};
use crate::vmbus::channel::{Channel, ChannelError};
use crate::vmbus::lent::LentTable;
use crate::vmbus::ring_memory::GuestRing;
use crate::vsp::Vsp;

pub(super) use super::wire::{Ended, Wire, wire};

/// Where frames and lies may be: RAM from here to the end.
pub(super) const SCRATCH: u64 = 12 << 20;
const RAM_END: u64 = 16 << 20;

/// The receive buffer: handle, first page, pages.
pub(super) const RECEIVE: (u32, u64, u64) = (0x10, 1024, 128);
/// The send buffer.
pub(super) const SEND: (u32, u64, u64) = (0x11, 2048, 32);

pub(super) const MAC: Mac = [2, 0x15, 0x5d, 0, 0, 7];

/// The guest, the channel, and the VSP behind it.
pub(super) struct Guest {
    pub(super) vsp: Box<dyn Vsp>,
    pub(super) memory: Arc<dyn GuestMemory>,
    pub(super) cable: Cable,
    pub(super) table: Arc<LentTable>,
    pub(super) counters: QueueCounters,
    version: Option<Version>,
    channel: Channel,
    to_host: Producer<GuestRing>,
    to_guest: Consumer<GuestRing>,
    rings: [Arc<[u64]>; 2],
    next_id: u64,
    /// Bytes of a section, once the host has said so.
    pub(super) section: u32,
    /// Packets of the host that were passed over when an answer was waited for.
    early: Vec<Incoming>,
}

/// Messages of RNDIS, each with the offset of its section.
pub(super) type Messages = Vec<(u32, Vec<u8>)>;

/// A packet of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    /// An answer: transaction id and message.
    Answer(u64, Vec<u8>),
    /// On which channels it may send.
    Table(SendTable),
    /// Messages of RNDIS: transaction id, channel, where each is and its bytes.
    Rndis(u64, u32, Messages),
}

pub(super) fn config(mtu: u32) -> Config {
    Config {
        instance: Guid::new(1, 2, 3, 4, 5),
        mac: MAC,
        mtu,
        queues: 1,
    }
}

impl Guest {
    /// A guest that has opened the channel and nothing more.
    pub(super) fn new(backend: Box<dyn Backend>) -> Self {
        Self::with_rings(backend, config(1500), 16)
    }

    pub(super) fn with_rings(backend: Box<dyn Backend>, config: Config, to_guest: u64) -> Self {
        Self::with_queues(vec![backend], config, to_guest)
    }

    /// A guest of an adapter with several queues, all with the same counters.
    pub(super) fn with_queues(
        queues: Vec<Box<dyn Backend>>,
        config: Config,
        to_guest: u64,
    ) -> Self {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), RAM_END as usize)]);
        let memory: Arc<dyn GuestMemory> = Arc::new(memory.unwrap());
        let pages = |first: u64, data: u64| (first..=first + data).map(|page| page * 4096);
        let rings: [Arc<[u64]>; 2] = [pages(1, 64).collect(), pages(512, to_guest).collect()];
        let ring = |n: usize| GuestRing::new(Arc::clone(&memory), &rings[n]).unwrap();
        let table = Arc::new(LentTable::default());
        for (handle, first, count) in [RECEIVE, SEND] {
            let pages: Arc<[u64]> = (first..first + count).map(|page| page * 4096).collect();
            table.lend(handle, count as usize * 4096, &pages);
        }
        let channel = Channel::new(
            Consumer::attach(ring(0)).unwrap(),
            Producer::attach(ring(1)).unwrap(),
            Arc::clone(&memory),
        );
        let cable = Cable::new().unwrap();
        let counters = QueueCounters::default();
        let queues = queues.into_iter().map(|queue| (queue, counters.clone()));
        let mut vsp = Network::new(config, queues.collect(), cable.clone()).unwrap();
        vsp.opened();
        Self {
            vsp: Box::new(vsp),
            cable,
            counters,
            version: None,
            channel: channel.with_lent(&table),
            table,
            to_host: Producer::attach(ring(0)).unwrap(),
            to_guest: Consumer::attach(ring(1)).unwrap(),
            memory,
            rings,
            next_id: 0x1000,
            section: 0,
            early: Vec::new(),
        }
    }

    /// The same guest at a sub-channel, with rings of its own.
    pub(super) fn open_sub_channel(&mut self, index: u16) -> Self {
        let first = 4096 - 256 * u64::from(index);
        let pages = |first: u64| (first..=first + 64).map(|page| page * 4096);
        let rings: [Arc<[u64]>; 2] = [pages(first).collect(), pages(first + 128).collect()];
        let ring = |n: usize| GuestRing::new(Arc::clone(&self.memory), &rings[n]).unwrap();
        let channel = Channel::new(
            Consumer::attach(ring(0)).unwrap(),
            Producer::attach(ring(1)).unwrap(),
            Arc::clone(&self.memory),
        );
        let mut vsp = self.vsp.sub_channel(index).unwrap();
        vsp.opened();
        Self {
            vsp,
            cable: self.cable.clone(),
            counters: self.counters.clone(),
            version: self.version,
            channel: channel.with_lent(&self.table),
            table: Arc::clone(&self.table),
            to_host: Producer::attach(ring(0)).unwrap(),
            to_guest: Consumer::attach(ring(1)).unwrap(),
            memory: Arc::clone(&self.memory),
            rings,
            next_id: 0x2000,
            section: self.section,
            early: Vec::new(),
        }
    }

    /// A guest that has agreed on everything and takes frames.
    pub(super) fn ready(backend: Box<dyn Backend>) -> Self {
        let mut guest = Self::new(backend);
        guest.negotiate(Version::V6_1);
        guest.begin();
        guest
    }

    /// Version and buffers.
    pub(super) fn negotiate(&mut self, version: Version) {
        self.negotiate_with(version, 0);
    }

    /// The same of a guest that says what it can do.
    pub(super) fn negotiate_with(&mut self, version: Version, capabilities: u64) {
        let init = Message::Init(version as u32, version as u32);
        assert_eq!(self.ask(init), Message::InitComplete(status::SUCCESS));
        self.version = Some(version);
        self.tell(Message::SendNdisConfig(NdisConfig {
            mtu: 1514.into(),
            reserved: 0.into(),
            capabilities: capabilities.into(),
        }));
        self.tell(Message::SendNdisVersion(6, 30));
        match self.ask(Message::SendReceiveBuffer(receive_buffer())) {
            Message::SendReceiveBufferComplete(status::SUCCESS, groups) => {
                assert_eq!(groups.offset.get(), 0);
                self.section = groups.size.get();
                let all = groups.size.get() * groups.count.get();
                assert_eq!(groups.end_offset.get(), all);
                assert!(u64::from(all) <= RECEIVE.2 * 4096);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(
            self.ask(Message::SendSendBuffer(send_buffer())),
            Message::SendSendBufferComplete(status::SUCCESS, 6144)
        );
    }

    /// RNDIS, and all frames to this station and to everybody.
    pub(super) fn begin(&mut self) {
        let answer = self.control(&Request::Initialize {
            id: 1,
            version: (1, 0),
            max_transfer: 0x4000,
        });
        assert_eq!(answer[8..16], [1, 0, 0, 0, 0, 0, 0, 0]);
        self.set(oid::GEN_CURRENT_PACKET_FILTER, &9_u32.to_le_bytes());
    }

    /// Sets an object, and it is set.
    pub(super) fn set(&mut self, oid: u32, value: &[u8]) {
        assert_eq!(self.try_to_set(oid, value), 0, "{oid:#x}");
    }

    /// Sets an object; the status.
    pub(super) fn try_to_set(&mut self, oid: u32, value: &[u8]) -> u32 {
        let answer = self.control(&Request::Set { id: 7, oid, value });
        match parse(&answer) {
            Completion::Set { id: 7, status } => status,
            other => panic!("{other:?}"),
        }
    }

    /// Asks for an object; its value, or the status.
    pub(super) fn query(&mut self, oid: u32, of: &[u8]) -> Result<Vec<u8>, u32> {
        let answer = self.control(&Request::Query {
            id: 9,
            oid,
            value: of,
        });
        match parse(&answer) {
            Completion::Query {
                id: 9,
                status: 0,
                value,
            } => Ok(value.to_vec()),
            Completion::Query { id: 9, status, .. } => Err(status),
            other => panic!("{other:?}"),
        }
    }

    /// Sends a request of RNDIS and takes its answer, which must come.
    pub(super) fn control(&mut self, request: &Request<'_>) -> Vec<u8> {
        let mut bytes = [0; 2048];
        let message = request.encode(&mut bytes).unwrap();
        assert_eq!(self.rndis(rndis_channel::CONTROL, message), status::SUCCESS);
        loop {
            match self.take_rndis() {
                Some((id, rndis_channel::CONTROL, messages)) => {
                    self.complete(id);
                    let (_, message) = messages.into_iter().next().unwrap();
                    // Of the cable we are told unasked.
                    if message[0] != 7 {
                        return message;
                    }
                }
                Some(_) => {}
                None => panic!("no answer"),
            }
        }
    }

    /// Sends RNDIS in guest memory; the status of its completion.
    pub(super) fn rndis(&mut self, channel: u32, message: &[u8]) -> u32 {
        self.memory.write(SCRATCH + 100, message).unwrap();
        let length = message.len() as u32;
        let pages = (100 + u64::from(length)).div_ceil(4096);
        let pfns: Vec<u64> = (0..pages).map(|page| SCRATCH / 4096 + page).collect();
        let packet = SendRndisPacket::without_section(channel);
        self.rndis_in(packet, &[(length, 100, pfns)])
    }

    /// Sends RNDIS as `packet` and ranges describe it; the status of its completion.
    pub(super) fn rndis_in(
        &mut self,
        packet: SendRndisPacket,
        ranges: &[(u32, u32, Vec<u64>)],
    ) -> u32 {
        let id = self.put_rndis(packet, ranges);
        match self.answer_to(id) {
            Message::SendRndisPacketComplete(status) => status,
            other => panic!("{other:?}"),
        }
    }

    /// Puts RNDIS into the ring as `packet` and ranges describe it, and does not serve.
    pub(super) fn put_rndis(
        &mut self,
        packet: SendRndisPacket,
        ranges: &[(u32, u32, Vec<u64>)],
    ) -> u64 {
        let mut buffer = vec![0; 64 * 1024];
        let payload = Message::SendRndisPacket(packet).encode(self.version);
        let id = self.id();
        let outgoing = if ranges.is_empty() {
            Outgoing::in_band(id, &payload, true)
        } else {
            let count = ranges.len() as u32;
            let mut writer = GpaRangeWriter::gpa_direct(&mut buffer, count).unwrap();
            for (length, offset, pfns) in ranges {
                writer.range(*length, *offset).unwrap();
                for &pfn in pfns {
                    writer.pfn(pfn).unwrap();
                }
            }
            Outgoing::gpa_direct(id, writer.finish(), &payload)
        };
        self.put(&outgoing);
        id
    }

    /// Sends a frame by a section of the send buffer; the status.
    pub(super) fn send(&mut self, frame: &[u8], info: &PacketInfo) -> u32 {
        let prefix = Prefix::new(frame.len() as u32, info, 0);
        let message = [prefix.bytes(), frame].concat();
        self.memory.write(SEND.1 * 4096 + 6144, &message).unwrap();
        self.rndis_in(in_section(1, message.len() as u32), &[])
    }

    /// Puts a frame into the ring, and does not serve.
    pub(super) fn put_frame(&mut self, frame: &[u8]) {
        self.put_frames(&[frame.to_vec()]);
    }

    /// Puts a chain of frames into the ring, and does not serve.
    pub(super) fn put_frames(&mut self, frames: &[Vec<u8>]) {
        let message = chain(frames);
        self.memory.write(SEND.1 * 4096 + 6144, &message).unwrap();
        self.put_rndis(in_section(1, message.len() as u32), &[]);
    }

    /// Takes the answer to [`put_frame`](Self::put_frame), if it is there.
    pub(super) fn take_answer(&mut self) -> bool {
        loop {
            match self.take() {
                Some(Incoming::Answer(..)) => return true,
                Some(Incoming::Rndis(id, ..)) => self.complete(id),
                Some(Incoming::Table(_)) => {}
                None => return false,
            }
        }
    }

    /// Sends a message and takes its answer.
    pub(super) fn ask(&mut self, message: Message) -> Message {
        let id = self.id();
        let payload = message.encode(self.version);
        self.put(&Outgoing::in_band(id, &payload, true));
        self.answer_to(id)
    }

    /// Sends a message that asks for no answer.
    pub(super) fn tell(&mut self, message: Message) {
        let payload = message.encode(self.version);
        let id = self.id();
        self.put(&Outgoing::in_band(id, &payload, false));
        self.serve();
    }

    pub(super) fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(super) fn put(&mut self, packet: &Outgoing<'_>) {
        let _ = self.to_host.send(packet).unwrap();
    }

    fn answer_to(&mut self, id: u64) -> Message {
        self.serve();
        loop {
            match self.take().expect("an answer") {
                Incoming::Answer(of, payload) if of == id => {
                    return Message::parse(Sender::Host, &payload).unwrap();
                }
                other => self.early.push(other),
            }
        }
    }

    /// Whether the worker is called by something besides the ring.
    pub(super) fn is_called(&self) -> bool {
        let Some(fd) = self.vsp.event() else {
            return false;
        };
        let epoll = Epoll::new().unwrap();
        let event = EpollEvent::new(EventSet::IN, 0);
        epoll.ctl(ControlOperation::Add, fd, event).unwrap();
        epoll.wait(0, &mut [EpollEvent::default()]).unwrap() == 1
    }

    /// What a worker does once: serve, and give the ring's room back.
    pub(super) fn serve(&mut self) {
        self.try_to_serve().unwrap();
    }

    pub(super) fn try_to_serve(&mut self) -> Result<(), ChannelError> {
        self.channel.mask();
        let outcome = self.vsp.service(&mut self.channel);
        self.channel.commit().unwrap();
        outcome
    }

    /// Takes one packet that is already in the ring.
    fn take(&mut self) -> Option<Incoming> {
        let mut buffer = [0; 8192];
        let packet = self.to_guest.receive(&mut buffer).unwrap()?;
        let incoming = match packet.kind {
            PacketKind::Completion => {
                Incoming::Answer(packet.transaction_id, packet.payload.to_vec())
            }
            PacketKind::InBand => Incoming::Table(SendTable::parse(packet.payload).unwrap()),
            PacketKind::TransferPages { pageset_id, ranges } => {
                assert_eq!(pageset_id, RECEIVE_BUFFER_ID);
                assert!(packet.completion_requested);
                let message = Message::parse(Sender::Host, packet.payload).unwrap();
                let Message::SendRndisPacket(message) = message else {
                    panic!("{message:?}");
                };
                assert_eq!(message.section_index.get(), NO_SECTION);
                let messages = ranges.iter().map(|range| {
                    let (length, offset) = (range.byte_count.get(), range.byte_offset.get());
                    assert!(length <= self.section && offset % self.section == 0);
                    let mut bytes = vec![0; length as usize];
                    let at = RECEIVE.1 * 4096 + u64::from(offset);
                    self.memory.read(at, &mut bytes).unwrap();
                    (offset, bytes)
                });
                let messages = messages.collect();
                Incoming::Rndis(packet.transaction_id, message.channel.get(), messages)
            }
            other => panic!("{other:?}"),
        };
        let _ = self.to_guest.commit().unwrap();
        Some(incoming)
    }

    /// Takes everything there is, and gives no section back.
    pub(super) fn drain(&mut self) {
        while self.take().is_some() {}
        self.early.clear();
    }

    /// Takes the table of channels to send on, which must be the next packet.
    pub(super) fn take_table(&mut self) -> [u32; 16] {
        match self.take() {
            Some(Incoming::Table(table)) => table.channels,
            other => panic!("{other:?}"),
        }
    }

    /// Takes one packet with messages of RNDIS.
    pub(super) fn take_rndis(&mut self) -> Option<(u64, u32, Messages)> {
        let is_rndis = |incoming: &Incoming| matches!(incoming, Incoming::Rndis(..));
        if let Some(at) = self.early.iter().position(is_rndis) {
            match self.early.remove(at) {
                Incoming::Rndis(id, channel, messages) => return Some((id, channel, messages)),
                Incoming::Answer(..) | Incoming::Table(_) => unreachable!(),
            }
        }
        match self.take()? {
            Incoming::Rndis(id, channel, messages) => Some((id, channel, messages)),
            other => panic!("{other:?}"),
        }
    }

    /// Takes all frames there are, with what is said of each, and gives their sections back.
    pub(super) fn take_frames(&mut self) -> Vec<(Vec<u8>, PacketInfo)> {
        let mut frames = Vec::new();
        while let Some((id, channel, messages)) = self.take_rndis() {
            if channel == rndis_channel::DATA {
                frames.extend(messages.iter().map(|(_, message)| frame(message)));
            }
            self.complete(id);
        }
        self.serve();
        frames
    }

    /// Gives the sections of a packet back.
    pub(super) fn complete(&mut self, id: u64) {
        let payload = Message::SendRndisPacketComplete(status::SUCCESS).encode(None);
        self.put(&Outgoing::completion(id, &payload[..8]));
    }

    /// Puts another VSP, restored from what this one saves, in its place.
    pub(super) fn move_to(&mut self, backend: Box<dyn Backend>) {
        self.vsp.quiesce();
        let state = self.vsp.save();
        let cable = Cable::new().unwrap();
        let mut fresh = Network::new(
            config(1500),
            vec![(backend, self.counters.clone())],
            cable.clone(),
        )
        .unwrap();
        fresh.restore(&state).unwrap();
        let (read, write) = self.channel.indices();
        let ring = |n: usize| GuestRing::new(Arc::clone(&self.memory), &self.rings[n]);
        self.channel = Channel::new(
            Consumer::resume(ring(0).unwrap(), read).unwrap(),
            Producer::resume(ring(1).unwrap(), write).unwrap(),
            Arc::clone(&self.memory),
        )
        .with_lent(&self.table);
        self.vsp = Box::new(fresh);
        self.cable = cable;
    }
}

pub(super) fn loopback(offload: bool) -> (Box<dyn Backend>, Loopback) {
    let net = Loopback::new(offload).unwrap();
    (Box::new(net.clone()), net)
}

pub(super) fn receive_buffer() -> Buffer {
    Buffer {
        gpadl: RECEIVE.0.into(),
        id: RECEIVE_BUFFER_ID.into(),
        reserved: 0.into(),
    }
}

pub(super) fn send_buffer() -> Buffer {
    Buffer {
        gpadl: SEND.0.into(),
        id: 0.into(),
        reserved: 0.into(),
    }
}

pub(super) fn in_section(index: u32, size: u32) -> SendRndisPacket {
    SendRndisPacket {
        channel: rndis_channel::DATA.into(),
        section_index: index.into(),
        section_size: size.into(),
    }
}

/// A message of several frames.
pub(super) fn chain(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut message = Vec::new();
    for frame in frames {
        let prefix = Prefix::new(frame.len() as u32, &PacketInfo::default(), 0);
        message.extend(prefix.bytes());
        message.extend(frame);
    }
    message
}

/// The frame in a message.
pub(super) fn frame(message: &[u8]) -> (Vec<u8>, PacketInfo) {
    let (kind, body, rest) = rndis::split(message).unwrap();
    assert_eq!((kind, rest.len()), (1, 0));
    let packet = Packet::parse(body, body.len()).unwrap();
    let frame = &body[packet.data_offset..][..packet.data_length];
    (frame.to_vec(), packet.info)
}

/// The answer in a message.
fn parse(message: &[u8]) -> Completion<'_> {
    let (kind, body, rest) = rndis::split(message).unwrap();
    assert!(rest.is_empty());
    Completion::parse(kind, body).unwrap().unwrap()
}

/// A frame to `to` of `length` bytes, with `seed` in its payload.
pub(super) fn ethernet(to: Mac, length: usize, seed: u8) -> Vec<u8> {
    let mut frame = [&to[..], &[2, 0, 0, 0, 0, 9, 0x88, 0xb5]].concat();
    frame.resize(length, seed);
    frame
}
