//! The adapter that lies: an honest one, and what a story makes of its replies.

use std::io;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use host_vsp::vmbus::channel::{Channel, ChannelError};
use host_vsp::vsp::{StateError, Vsp, plain_offer};
use vm_memory::Bytes as _;
use vmbus_proto::guid::Guid;
use vmbus_proto::netvsp::{
    self, Message, RECEIVE_BUFFER_ID, SEND_TABLE_SIZE, Sections, SendRndisPacket, SendTable,
    Sender, Version, rndis_channel, status,
};
use vmbus_proto::packet::{Outgoing, PacketKind, TransferPageRange, TransferPagesHeader};
use vmbus_proto::ring::SendError;
use vmbus_proto::rndis::ndis::ReceiveScaleCapabilities;
use vmbus_proto::rndis::packet::{PacketInfo as Info, Prefix};
use vmbus_proto::rndis::{self, Adapter, Completion, Request, oid, status as rndis_status};
use zerocopy::{FromZeros as _, IntoBytes as _};

/// Bytes of a section of the receive buffer, as an honest adapter cuts it.
pub(crate) const SECTION: u32 = 2048;
/// How many there are.
pub(crate) const SECTIONS: u32 = (2 << 20) / SECTION;
pub(crate) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Queues that it has.
pub(crate) const QUEUES: u32 = 4;

/// A packet to send.
#[derive(Clone, Debug)]
pub(crate) enum Sent {
    Completion(u64, Vec<u8>),
    InBand(u64, Vec<u8>),
    /// Transaction id, page set, lengths and offsets, payload.
    Transfer(u64, u16, Vec<(u32, u32)>, Vec<u8>),
}

/// What an honest adapter would do about a packet of the guest's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reply {
    /// Which channel it goes to, 0 for the first.
    pub(crate) channel: u16,
    /// What to write into the receive buffer, and where.
    pub(crate) writes: Vec<(u32, Vec<u8>)>,
    pub(crate) packets: Vec<Sent>,
    /// How many sub-channels to offer from now on.
    pub(crate) offers: Option<u16>,
}

impl Reply {
    /// A message of RNDIS in section `index`.
    pub(crate) fn rndis(&mut self, channel: u32, index: u32, message: &[u8]) {
        let offset = index % SECTIONS * SECTION;
        self.writes.push((offset, message.to_vec()));
        let payload = Message::SendRndisPacket(SendRndisPacket::without_section(channel));
        self.packets.push(Sent::Transfer(
            u64::from(index),
            RECEIVE_BUFFER_ID,
            vec![(message.len() as u32, offset)],
            payload.encode(None).to_vec(),
        ));
    }

    pub(crate) fn frame(&mut self, index: u32, frame: &[u8], info: &Info) {
        let prefix = Prefix::new(frame.len() as u32, info, 0);
        self.rndis(
            rndis_channel::DATA,
            index,
            &[prefix.bytes(), frame].concat(),
        );
    }

    /// The table that says on which channel to send.
    pub(crate) fn send_table(&mut self, channels: impl Fn(u32) -> u32) {
        let table = SendTable {
            channels: std::array::from_fn(|entry| channels(entry as u32)),
        };
        let mut bytes = [0; SEND_TABLE_SIZE];
        let bytes = table.encode(Version::V6_1, &mut bytes).to_vec();
        self.packets.push(Sent::InBand(0, bytes));
    }

    fn complete(&mut self, id: u64, message: Message) {
        let bytes = message.encode(None).to_vec();
        self.packets.push(Sent::Completion(id, bytes));
    }
}

/// What becomes of a reply to a message of the guest's.
type Lie = Box<dyn FnMut(&Message, &mut Reply) + Send>;

/// What the adapter's channels share.
struct Shared {
    lie: Mutex<Lie>,
    receive: Mutex<Option<u32>>,
    /// The next section.
    next: AtomicU32,
    granted: AtomicU16,
}

/// A channel of an adapter that answers each frame by a frame, and makes a lie of it.
pub(crate) struct Lying {
    shared: Arc<Shared>,
    channel: u16,
}

impl Lying {
    pub(crate) fn new(lie: impl FnMut(&Message, &mut Reply) + Send + 'static) -> Box<Self> {
        Box::new(Self {
            shared: Arc::new(Shared {
                lie: Mutex::new(Box::new(lie)),
                receive: Mutex::new(None),
                next: AtomicU32::new(1),
                granted: AtomicU16::new(0),
            }),
            channel: 0,
        })
    }

    /// Another channel of the same adapter.
    pub(crate) fn sub_channel(&self, channel: u16) -> Box<Self> {
        Box::new(Self {
            shared: Arc::clone(&self.shared),
            channel,
        })
    }

    /// Offers the sub-channels that go with a reply.
    pub(crate) fn offer_channels(&self, reply: &Reply) {
        if let Some(granted) = reply.offers {
            self.shared.granted.store(granted, Ordering::Relaxed);
        }
    }

    fn section(&self) -> u32 {
        self.shared.next.fetch_add(1, Ordering::Relaxed)
    }

    fn truth(&mut self, id: u64, message: Message, control: &[u8]) -> Reply {
        let mut reply = Reply {
            channel: self.channel,
            ..Reply::default()
        };
        let done = Message::SendRndisPacketComplete(status::SUCCESS);
        match message {
            Message::Init(..) => reply.complete(id, Message::InitComplete(status::SUCCESS)),
            Message::SendReceiveBuffer(_) => {
                let sections = Sections {
                    offset: 0.into(),
                    size: SECTION.into(),
                    count: SECTIONS.into(),
                    end_offset: (SECTION * SECTIONS).into(),
                };
                let answer = Message::SendReceiveBufferComplete(status::SUCCESS, sections);
                reply.complete(id, answer);
            }
            Message::SendSendBuffer(_) => {
                reply.complete(id, Message::SendSendBufferComplete(status::SUCCESS, 6144));
            }
            Message::SubChannel(_, count) => {
                let granted = count.min(QUEUES - 1);
                reply.offers = Some(granted as u16);
                reply.complete(id, Message::SubChannelComplete(status::SUCCESS, granted));
                reply.send_table(|entry| entry % (granted + 1));
            }
            Message::SendRndisPacket(packet) if packet.channel.get() == rndis_channel::DATA => {
                reply.complete(id, done);
                reply.frame(self.section(), &[7; 100], &Info::default());
            }
            Message::SendRndisPacket(_) => {
                reply.complete(id, done);
                let (kind, body, _) = rndis::split(control).expect("guests send good messages");
                let request = Request::parse(kind, body).expect("guests send good messages");
                let mut bytes = [0; 1024];
                if let Some(answer) = request.and_then(|request| answer(&request, &mut bytes)) {
                    reply.rndis(rndis_channel::CONTROL, self.section(), answer);
                }
            }
            _ => {}
        }
        reply
    }
}

/// The honest answer to a request.
fn answer<'b>(request: &Request<'_>, to: &'b mut [u8]) -> Option<&'b [u8]> {
    let done = rndis_status::SUCCESS;
    match *request {
        Request::Initialize { id, .. } => {
            let adapter = Adapter::new_zeroed();
            let status = done;
            Completion::Initialize {
                id,
                status,
                adapter,
            }
            .encode(to)
        }
        Request::Query { id, oid, .. } => {
            let mtu = 1500u32.to_le_bytes();
            let mut scaling = ReceiveScaleCapabilities::question();
            scaling.queues = QUEUES.into();
            scaling.table_entries = 128.into();
            let (status, value) = match oid {
                oid::ETHERNET_PERMANENT_ADDRESS => (done, &MAC[..]),
                oid::GEN_MAXIMUM_FRAME_SIZE => (done, &mtu[..]),
                oid::GEN_MEDIA_CONNECT_STATUS => (done, &[0; 4][..]),
                oid::GEN_RECEIVE_SCALE_CAPABILITIES => (done, scaling.as_bytes()),
                _ => (rndis_status::NOT_SUPPORTED, &[][..]),
            };
            Completion::Query { id, status, value }.encode(to)
        }
        Request::Set { id, .. } => Completion::Set { id, status: done }.encode(to),
        Request::Halt | Request::Reset | Request::Keepalive { .. } => None,
    }
}

impl Vsp for Lying {
    fn offer(&self) -> vmbus_proto::message::OfferChannel {
        plain_offer(netvsp::CLASS, Guid::new(1, 2, 3, 4, 5))
    }

    fn opened(&mut self) {
        if self.channel == 0 {
            *self.shared.receive.lock().unwrap() = None;
            self.shared.granted.store(0, Ordering::Relaxed);
        }
    }

    fn service(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        while let Some((message, mut reply)) = self.next(channel)? {
            self.shared.lie.lock().unwrap()(&message, &mut reply);
            self.offer_channels(&reply);
            self.say(channel, &reply);
        }
        Ok(())
    }

    fn sub_channels(&self) -> u16 {
        match self.channel {
            0 => self.shared.granted.load(Ordering::Relaxed),
            _ => 0,
        }
    }

    fn sub_channel(&mut self, index: u16) -> io::Result<Box<dyn Vsp>> {
        Ok(Self::sub_channel(self, index))
    }

    fn quiesce(&mut self) {}

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&mut self, _state: &[u8]) -> Result<(), StateError> {
        Ok(())
    }
}

impl Lying {
    /// The guest's next message, and the honest reply.
    pub(crate) fn next(
        &mut self,
        channel: &mut Channel,
    ) -> Result<Option<(Message, Reply)>, ChannelError> {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let Some(packet) = channel.receive(&mut buffer)? else {
                return Ok(None);
            };
            if matches!(packet.kind, PacketKind::Completion) {
                continue;
            }
            let id = packet.transaction_id;
            let message = Message::parse(Sender::Guest, packet.payload);
            let message = message.expect("guests send good messages");
            let mut control = Vec::new();
            if let PacketKind::GpaDirect(ranges) = packet.kind {
                for (gpa, length) in ranges.iter().flat_map(|range| range.pieces()).flatten() {
                    let at = control.len();
                    control.resize(at + length, 0);
                    channel
                        .memory()
                        .read(gpa, &mut control[at..])
                        .expect("guests name RAM");
                }
            }
            if let Message::SendReceiveBuffer(buffer) = message {
                *self.shared.receive.lock().unwrap() = Some(buffer.gpadl.get());
            }
            let reply = self.truth(id, message, &control);
            return Ok(Some((message, reply)));
        }
    }

    /// Writes what belongs to a reply into the receive buffer.
    pub(crate) fn write(&self, channel: &mut Channel, reply: &Reply) {
        let receive = *self.shared.receive.lock().unwrap();
        let lent = receive.and_then(|gpadl| channel.lent(gpadl));
        if let Some(locked) = lent.as_ref().and_then(|lent| lent.lock()) {
            for (offset, bytes) in &reply.writes {
                let mut slices = Vec::new();
                if locked
                    .slices(*offset as usize, bytes.len(), &mut slices)
                    .is_none()
                {
                    continue;
                }
                let mut rest = &bytes[..];
                for slice in slices {
                    let (now, later) = rest.split_at(slice.len().min(rest.len()));
                    slice.write_slice(now, 0).expect("RAM");
                    rest = later;
                }
            }
        }
    }

    fn say(&self, channel: &mut Channel, reply: &Reply) {
        self.write(channel, reply);
        for sent in &reply.packets {
            // A full ring swallows what does not fit: this adapter has nothing to lose.
            let _ = sent.send(channel);
        }
    }
}

impl Sent {
    /// Puts the packet into the ring.
    pub(crate) fn send(&self, channel: &mut Channel) -> Result<(), SendError> {
        match self {
            Self::Completion(id, bytes) => channel.send(&Outgoing::completion(*id, bytes)),
            Self::InBand(id, bytes) => channel.send(&Outgoing::in_band(*id, bytes, true)),
            Self::Transfer(id, pageset, ranges, bytes) => {
                let header = TransferPagesHeader {
                    pageset_id: (*pageset).into(),
                    sender_owns_set: 0,
                    reserved: 0,
                    range_count: (ranges.len() as u32).into(),
                };
                let mut list = header.as_bytes().to_vec();
                for &(length, offset) in ranges {
                    let range = TransferPageRange {
                        byte_count: length.into(),
                        byte_offset: offset.into(),
                    };
                    list.extend(range.as_bytes());
                }
                channel.send(&Outgoing::transfer_pages(*id, &list, bytes))
            }
        }
    }
}
