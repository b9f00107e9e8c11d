//! Opening an adapter: what it and the driver agree on, in the order of stock guests.

use core::sync::atomic::{AtomicBool, AtomicU32};

use vmbus_proto::PAGE_SIZE;
use vmbus_proto::netvsp::{
    self, MIN_SECTION_SIZE, Message, NdisConfig, RECEIVE_BUFFER_ID, SEND_BUFFER_ID, Version, status,
};
use vmbus_proto::packet::Outgoing;
use vmbus_proto::rndis::ndis::{
    ENCAPSULATION_ETHERNET, ObjectHeader, Offload, OffloadParameters, checksum, object_type,
    switched, wanted,
};
use vmbus_proto::rndis::packet::MAX_PREFIX;
use vmbus_proto::rndis::{Request, VERSION, oid};
use zerocopy::IntoBytes as _;

use super::conversation::{Exchange, success};
use super::queues::Queues;
use super::transmit::Copies;
use super::{Buffer, Counters, ETHERNET_HEADER, Network, NetworkMemory, NetworkOptions, Offloads};
use crate::bus::{Claim, Offer, VmBus};
use crate::channel::Channel;
use crate::error::{Error, Waited};
use crate::hal::Hal;
use crate::shared::Dma;
use crate::sub_channels::SubChannels;
use crate::sync::IrqMutex;

/// The shortest MTU: what IPv4 asks of every net.
const MIN_MTU: u32 = 68;

/// The longest: what an IPv4 packet can have.
const MAX_MTU: u32 = 65_535;

/// The shortest section of the send buffer that we can use: for the shortest frames of that MTU. No
/// host is known to make any but of 6144 bytes.
const MIN_SEND_SECTION: u32 = MAX_PREFIX as u32 + ETHERNET_HEADER as u32 + MIN_MTU;

/// Most bytes that the adapter shall put into one message.
const MAX_TRANSFER: u32 = 0x4000;

impl<'b, H: Hal, B: Buffer> Network<'b, H, B> {
    /// Opens the adapter that `offer` names. Waits for the host.
    ///
    /// # Errors
    /// There is no memory, the channel cannot be opened, the adapter refuses, or says of itself what
    /// cannot be.
    pub fn open<const SENDS: usize, const FRAMES: usize>(
        bus: &'b VmBus<'b, H>,
        offer: &Offer,
        memory: &'b NetworkMemory<H, B, SENDS, FRAMES>,
        options: &NetworkOptions,
    ) -> Result<Self, Error> {
        Self::open_with_queues(bus, offer, memory, options, 1)
    }

    /// The same with up to `queues` queues: as many as `memory` has, as processors have their SynIC
    /// enabled, and as the adapter gives; [`queues`](Self::queues) says how many. Each interrupts
    /// another processor, takes a place of [`BusMemory`](crate::bus::BusMemory)'s, and has rings as
    /// `options` say.
    ///
    /// # Errors
    /// As for `open`. Queues that the adapter does not give are done without.
    pub fn open_with_queues<const SENDS: usize, const FRAMES: usize, const QUEUES: usize>(
        bus: &'b VmBus<'b, H>,
        offer: &Offer,
        memory: &'b NetworkMemory<H, B, SENDS, FRAMES, QUEUES>,
        options: &NetworkOptions,
        queues: usize,
    ) -> Result<Self, Error> {
        let claim = Claim::new(&memory.claimed).ok_or(Error::MemoryInUse)?;
        let (first, further) = memory.inboxes.split_first().ok_or(Error::OutOfMemory)?;
        let pages = |bytes: u32| Dma::new((bytes as usize).div_ceil(PAGE_SIZE).max(1));
        let mut network = Self {
            receive_buffer: pages(options.receive_buffer).ok_or(Error::OutOfMemory)?,
            send_buffer: pages(options.send_buffer).ok_or(Error::OutOfMemory)?,
            control_page: pages(1).ok_or(Error::OutOfMemory)?,
            copies: None,
            channel: Channel::open(bus, offer, &options.channel)?,
            sub_channels: SubChannels::none(),
            queues: Queues::new(first, further),
            places: &memory.places,
            #[cfg(feature = "alloc")]
            spare: &memory.spare,
            #[cfg(feature = "async")]
            wakers: IrqMutex::new(super::future::Wakers::new()),
            #[cfg(feature = "async")]
            taken: AtomicBool::new(false),
            exchange: IrqMutex::new(Exchange::default()),
            asking: AtomicBool::new(false),
            next_request: AtomicU32::new(1),
            version: None,
            section_size: 0,
            mac: [0; 6],
            mtu: options.mtu.clamp(MIN_MTU, MAX_MTU),
            offloads: Offloads::default(),
            connected: AtomicBool::new(false),
            link_changed: AtomicBool::new(false),
            counters: Counters::default(),
            _claim: claim,
        };
        // Its address goes to the host in every question.
        network.control_page.lend();
        network.places.with(|places| places.reset(0));
        network.queues.reset();
        network.make_room_to_owe(1)?;
        network.agree()?;
        let sections = network.lend_buffers()?;
        network.initialize(options)?;
        network.open_queues(offer, queues, sections, &options.channel)?;
        network.make_copies()?;
        network.set_promiscuous(options.promiscuous)?;
        Ok(network)
    }

    /// Agrees on versions.
    fn agree(&mut self) -> Result<(), Error> {
        let mut agreed = None;
        for version in Version::NEWEST_FIRST {
            match self.ask(Message::Init(version as u32, version as u32))? {
                Message::InitComplete(status::SUCCESS) => {
                    agreed = Some(version);
                    break;
                }
                Message::InitComplete(_) => {}
                _ => return Err(Error::Protocol("another answer than to a version")),
            }
        }
        let version = agreed.ok_or(Error::Refused(Waited::ProtocolVersion, 0))?;
        self.version = Some(version);
        if version >= Version::V2 {
            let config = NdisConfig {
                mtu: (self.max_frame() as u32).into(),
                reserved: 0.into(),
                capabilities: 0.into(),
            };
            self.tell(Message::SendNdisConfig(config))?;
        }
        let minor = if version >= Version::V5 { 30 } else { 1 };
        self.tell(Message::SendNdisVersion(6, minor))
    }

    /// Sends a message that is not answered.
    fn tell(&self, message: Message) -> Result<(), Error> {
        let message = message.encode(self.version);
        self.channel.send(&Outgoing::in_band(0, &message, false))
    }

    /// Hands both buffers over; returns how many sections the receive buffer has.
    fn lend_buffers(&mut self) -> Result<usize, Error> {
        let buffer = |gpadl: u32, id: u16| netvsp::Buffer {
            gpadl: gpadl.into(),
            id: id.into(),
            reserved: 0.into(),
        };
        let gpadl = self.channel.lend(&self.receive_buffer)?;
        let message = Message::SendReceiveBuffer(buffer(gpadl, RECEIVE_BUFFER_ID));
        let Message::SendReceiveBufferComplete(status, received) = self.ask(message)? else {
            return Err(Error::Protocol("another answer than to a receive buffer"));
        };
        taken(status)?;
        // Where a frame is the host says each time, and that is checked each time.
        let size = u64::from(received.size.get());
        let end = u64::from(received.count.get()).saturating_mul(size);
        if size < u64::from(MIN_SECTION_SIZE) || end > self.receive_buffer.len() as u64 {
            return Err(Error::Protocol(
                "sections that do not fit the receive buffer",
            ));
        }
        let received = received.count.get() as usize;
        self.make_room_to_owe(received)?;

        let gpadl = self.channel.lend(&self.send_buffer)?;
        let message = Message::SendSendBuffer(buffer(gpadl, SEND_BUFFER_ID));
        let Message::SendSendBufferComplete(status, size) = self.ask(message)? else {
            return Err(Error::Protocol("another answer than to a send buffer"));
        };
        taken(status)?;
        let sections = self.send_buffer.len().checked_div(size as usize);
        let sections = sections.filter(|sections| size >= MIN_SEND_SECTION && *sections > 0);
        let sections =
            sections.ok_or(Error::Protocol("sections that do not fit the send buffer"))?;
        self.section_size = size as usize;
        self.places.with(|places| places.reset(sections));
        Ok(received)
    }

    /// Begins RNDIS, and asks the adapter what it is.
    fn initialize(&mut self, options: &NetworkOptions) -> Result<(), Error> {
        let begun = self.ask_adapter(|id| Request::Initialize {
            id,
            version: VERSION,
            max_transfer: MAX_TRANSFER,
        })?;
        success(&begun)?;

        let mac = self.query(oid::ETHERNET_PERMANENT_ADDRESS, &[])?;
        let mac = mac.as_ref().and_then(|mac| mac.value().first_chunk());
        self.mac = *mac.ok_or(Error::Protocol("an adapter without an address"))?;
        let [first, ..] = self.mac;
        if first & 1 != 0 || self.mac == [0; 6] {
            return Err(Error::Protocol("an address that no station can have"));
        }
        if let Some(limit) = self.query_word(oid::GEN_MAXIMUM_FRAME_SIZE)? {
            self.mtu = self.mtu.min(limit);
        }
        if self.mtu < MIN_MTU {
            return Err(Error::Protocol("an MTU too short for IPv4"));
        }
        if options.offload {
            self.offloads = self.switch_offloads()?;
        }
        let disconnected = self.query_word(oid::GEN_MEDIA_CONNECT_STATUS)?;
        *self.connected.get_mut() = disconnected != Some(oid::MEDIA_DISCONNECTED);
        *self.link_changed.get_mut() = false;
        Ok(())
    }

    /// Makes room for copies of frames that are too long for a section, where there can be such.
    fn make_copies(&mut self) -> Result<(), Error> {
        if self.max_frame() > self.max_in_section() {
            let places = self.places.with(|places| places.usable());
            let copies = Copies::new(self.max_frame(), places).ok_or(Error::OutOfMemory)?;
            copies.memory().lend();
            self.copies = Some(copies);
        }
        Ok(())
    }

    /// The value of an object that is a number.
    fn query_word(&self, oid: u32) -> Result<Option<u32>, Error> {
        let answer = self.query(oid, &[])?;
        let word = answer
            .as_ref()
            .and_then(|answer| answer.value().first_chunk());
        Ok(word.map(|word| u32::from_le_bytes(*word)))
    }

    /// Switches on what the adapter can do about checksums and large sends.
    fn switch_offloads(&self) -> Result<Offloads, Error> {
        // What we know of the structure; the adapter answers in kind.
        let about = ObjectHeader {
            object_type: object_type::OFFLOAD,
            revision: 3,
            size: (size_of::<Offload>() as u16).into(),
        };
        let oid = oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES;
        let answer = self.query(oid, about.as_bytes())?;
        let offload = answer
            .as_ref()
            .and_then(|answer| Offload::parse(answer.value()));
        let Some(offload) = offload else {
            return Ok(Offloads::default());
        };
        let offloads = offered(&offload);
        let parameters = parameters(&offloads);
        match self.set(oid::TCP_OFFLOAD_PARAMETERS, parameters.as_bytes()) {
            Ok(()) => Ok(offloads),
            Err(Error::Refused(..)) => Ok(Offloads::default()),
            Err(error) => Err(error),
        }
    }
}

/// That the host took a buffer.
fn taken(status: u32) -> Result<(), Error> {
    match status {
        status::SUCCESS => Ok(()),
        status => Err(Error::Refused(Waited::Completion, status)),
    }
}

/// What of an adapter's abilities we can use.
fn offered(offload: &Offload) -> Offloads {
    let framed = |encapsulation: u32| encapsulation & ENCAPSULATION_ETHERNET != 0;
    let flags = |encapsulation: u32, flags: u32| if framed(encapsulation) { flags } else { 0 };
    let tx4 = flags(
        offload.ipv4_tx_encapsulation.get(),
        offload.ipv4_tx_flags.get(),
    );
    let tx6 = flags(
        offload.ipv6_tx_encapsulation.get(),
        offload.ipv6_tx_flags.get(),
    );
    let rx4 = flags(
        offload.ipv4_rx_encapsulation.get(),
        offload.ipv4_rx_flags.get(),
    );
    let has = |flags: u32, bits: u32| flags & bits == bits;
    // Segments have options, timestamps above all.
    let tcp = checksum::TCP | checksum::TCP_OPTIONS;
    Offloads {
        tcp_ipv4: has(tx4, tcp),
        udp_ipv4: has(tx4, checksum::UDP),
        ipv4_header: has(tx4, checksum::IP),
        tcp_ipv6: has(tx6, tcp),
        udp_ipv6: has(tx6, checksum::UDP),
        large_send_ipv4: flags(
            offload.lso_ipv4_encapsulation.get(),
            offload.lso_ipv4_max_size.get(),
        ),
        large_send_ipv6: flags(
            offload.lso_ipv6_encapsulation.get(),
            offload.lso_ipv6_max_size.get(),
        ),
        receive: has(rx4, checksum::TCP | checksum::UDP),
    }
}

/// All of these on, and the rest off.
fn parameters(offloads: &Offloads) -> OffloadParameters {
    let checksum = |send: bool| match (send, offloads.receive) {
        (true, true) => wanted::BOTH,
        (true, false) => wanted::TX,
        (false, true) => wanted::RX,
        (false, false) => wanted::DISABLED,
    };
    let large = |max: u32| match max {
        0 => switched::OFF,
        _ => switched::ON,
    };
    let mut parameters = OffloadParameters::unchanged();
    parameters.ipv4_checksum = match offloads.ipv4_header {
        true => wanted::TX,
        false => wanted::DISABLED,
    };
    parameters.tcp_ipv4_checksum = checksum(offloads.tcp_ipv4);
    parameters.udp_ipv4_checksum = checksum(offloads.udp_ipv4);
    parameters.tcp_ipv6_checksum = checksum(offloads.tcp_ipv6);
    parameters.udp_ipv6_checksum = checksum(offloads.udp_ipv6);
    parameters.lso_ipv4 = large(offloads.large_send_ipv4);
    parameters.lso_ipv6 = large(offloads.large_send_ipv6);
    parameters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_offered_for_ethernet_is_switched_on() {
        let mut offload = Offload::none(156).unwrap();
        let none = offered(&offload);
        assert_eq!(none, Offloads::default());
        assert_eq!(parameters(&none).tcp_ipv4_checksum, wanted::DISABLED);
        assert_eq!(parameters(&none).lso_ipv4, switched::OFF);

        offload.ipv4_tx_flags = u32::MAX.into();
        offload.lso_ipv4_max_size = 9.into();
        assert_eq!(offered(&offload), none, "for something else than Ethernet");

        offload.ipv4_tx_encapsulation = ENCAPSULATION_ETHERNET.into();
        offload.lso_ipv4_encapsulation = ENCAPSULATION_ETHERNET.into();
        offload.ipv4_tx_flags = (checksum::TCP | checksum::TCP_OPTIONS).into();
        let some = offered(&offload);
        assert!(some.tcp_ipv4 && !some.udp_ipv4 && !some.tcp_ipv6 && !some.receive);
        assert_eq!(some.large_send_ipv4, 9);
        assert_eq!(parameters(&some).tcp_ipv4_checksum, wanted::TX);
        assert_eq!(parameters(&some).udp_ipv4_checksum, wanted::DISABLED);
        assert_eq!(parameters(&some).lso_ipv4, switched::ON);
    }
}
