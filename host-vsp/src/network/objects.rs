//! The objects of RNDIS: what a guest can ask of the adapter and set.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use vmbus_proto::netvsp::Version;
use vmbus_proto::rndis::MEDIUM_802_3;
use vmbus_proto::rndis::ndis::{
    CONFIG_NETWORK_ADDRESS, CONFIG_STRING, ConfigParameter, ENCAPSULATION_ETHERNET, LinkSpeed,
    LinkState, ObjectHeader, Offload, OffloadParameters, RSS_HASH_TCP_IPV4, RSS_HASH_TCP_IPV6,
    RSS_TABLE_ENTRIES, ReceiveScale, ReceiveScaleCapabilities, checksum, hash, lso, object_type,
    switched, wanted,
};
use vmbus_proto::rndis::oid::{self, FRIENDLY_NAME_SIZE, mac_option, packet_filter};
use vmbus_proto::rndis::status;
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::adapter::{Config, Mac, QueueCounters};
use super::backend::Features;
use super::conversation::{Ask, Conversation, MAX_TRANSFER, Reception};
use super::headers::ETHERNET_HEADER;

/// Speed of the link in bits per second: what Hyper-V says, for a wire that is none.
const SPEED: u64 = 10_000_000_000;

/// Most bytes of a large frame, headers included, that the kernel of a host takes from a tap.
const MAX_LARGE_SEND: u32 = 62_780;

/// Most multicast addresses.
const MAX_MULTICAST: usize = 64;

/// What the guest sees as the adapter's name; Linux makes this one no alias.
const NAME: &str = "Network Adapter";

/// What answers are made of.
pub(super) struct Objects<'a> {
    pub(super) config: &'a Config,
    pub(super) features: Features,
    pub(super) counters: &'a QueueCounters,
    pub(super) plugged: bool,
}

/// All that can be asked or set.
const SUPPORTED: [u32; 44] = [
    oid::GEN_SUPPORTED_LIST,
    oid::GEN_HARDWARE_STATUS,
    oid::GEN_MEDIA_SUPPORTED,
    oid::GEN_MEDIA_IN_USE,
    oid::GEN_MAXIMUM_LOOKAHEAD,
    oid::GEN_MAXIMUM_FRAME_SIZE,
    oid::GEN_LINK_SPEED,
    oid::GEN_TRANSMIT_BUFFER_SPACE,
    oid::GEN_RECEIVE_BUFFER_SPACE,
    oid::GEN_TRANSMIT_BLOCK_SIZE,
    oid::GEN_RECEIVE_BLOCK_SIZE,
    oid::GEN_VENDOR_ID,
    oid::GEN_VENDOR_DESCRIPTION,
    oid::GEN_CURRENT_PACKET_FILTER,
    oid::GEN_CURRENT_LOOKAHEAD,
    oid::GEN_DRIVER_VERSION,
    oid::GEN_MAXIMUM_TOTAL_SIZE,
    oid::GEN_MAC_OPTIONS,
    oid::GEN_MEDIA_CONNECT_STATUS,
    oid::GEN_MAXIMUM_SEND_PACKETS,
    oid::GEN_VENDOR_DRIVER_VERSION,
    oid::GEN_NETWORK_LAYER_ADDRESSES,
    oid::GEN_RECEIVE_SCALE_CAPABILITIES,
    oid::GEN_RECEIVE_SCALE_PARAMETERS,
    oid::GEN_MAX_LINK_SPEED,
    oid::GEN_LINK_STATE,
    oid::GEN_RNDIS_CONFIG_PARAMETER,
    oid::GEN_XMIT_OK,
    oid::GEN_RCV_OK,
    oid::GEN_XMIT_ERROR,
    oid::GEN_RCV_ERROR,
    oid::GEN_RCV_NO_BUFFER,
    oid::GEN_FRIENDLY_NAME,
    oid::ETHERNET_PERMANENT_ADDRESS,
    oid::ETHERNET_CURRENT_ADDRESS,
    oid::ETHERNET_MULTICAST_LIST,
    oid::ETHERNET_MAXIMUM_LIST_SIZE,
    oid::ETHERNET_RCV_ERROR_ALIGNMENT,
    oid::ETHERNET_XMIT_ONE_COLLISION,
    oid::ETHERNET_XMIT_MORE_COLLISIONS,
    oid::TCP_OFFLOAD_CURRENT_CONFIG,
    oid::TCP_OFFLOAD_PARAMETERS,
    oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES,
    oid::OFFLOAD_ENCAPSULATION,
];

impl Objects<'_> {
    /// The value that is asked for, or nothing for one that is set; a value of [`status`] where it
    /// is not to be had.
    pub(super) fn answer(
        &self,
        conversation: &mut Conversation,
        ask: Ask<'_>,
    ) -> Result<Vec<u8>, u32> {
        match ask {
            Ask::Query(oid, of) => self.query(conversation, oid, of),
            Ask::Set(oid, value) => self.set(conversation, oid, value).map(|()| Vec::new()),
        }
    }

    fn query(&self, conversation: &Conversation, oid: u32, of: &[u8]) -> Result<Vec<u8>, u32> {
        let word = |value: u32| Ok(value.to_le_bytes().to_vec());
        // Counters are 32 bits to whoever asks for so many, and no error if they wrap.
        let counter = |value: u64| word(value as u32);
        let frame = self.config.mtu.saturating_add(ETHERNET_HEADER as u32);
        match oid {
            oid::GEN_SUPPORTED_LIST => {
                Ok(SUPPORTED.iter().flat_map(|oid| oid.to_le_bytes()).collect())
            }
            oid::GEN_HARDWARE_STATUS => word(0),
            oid::GEN_MEDIA_SUPPORTED | oid::GEN_MEDIA_IN_USE => word(MEDIUM_802_3),
            oid::GEN_MAXIMUM_FRAME_SIZE
            | oid::GEN_MAXIMUM_LOOKAHEAD
            | oid::GEN_CURRENT_LOOKAHEAD => word(self.config.mtu),
            oid::GEN_MAXIMUM_TOTAL_SIZE
            | oid::GEN_TRANSMIT_BLOCK_SIZE
            | oid::GEN_RECEIVE_BLOCK_SIZE => word(frame),
            oid::GEN_LINK_SPEED => word((SPEED / 100) as u32),
            oid::GEN_TRANSMIT_BUFFER_SPACE | oid::GEN_RECEIVE_BUFFER_SPACE => word(MAX_TRANSFER),
            oid::GEN_VENDOR_ID => word(u32::from_le_bytes([0x00, 0x15, 0x5d, 0])),
            oid::GEN_VENDOR_DESCRIPTION => Ok(b"VMBus network adapter\0".to_vec()),
            oid::GEN_CURRENT_PACKET_FILTER => word(conversation.reception.filter),
            // NDIS 6.30, in one byte each.
            oid::GEN_DRIVER_VERSION => Ok(vec![30, 6]),
            oid::GEN_VENDOR_DRIVER_VERSION => word(0x0001_0000),
            oid::GEN_MAC_OPTIONS => word(
                mac_option::COPY_LOOKAHEAD_DATA
                    | mac_option::TRANSFERS_NOT_PEND
                    | mac_option::NO_LOOPBACK
                    | mac_option::FULL_DUPLEX,
            ),
            oid::GEN_MEDIA_CONNECT_STATUS => word(if self.plugged {
                oid::MEDIA_CONNECTED
            } else {
                oid::MEDIA_DISCONNECTED
            }),
            oid::GEN_MAXIMUM_SEND_PACKETS => word(1),
            oid::GEN_MAX_LINK_SPEED => Ok(speed().as_bytes().to_vec()),
            oid::GEN_LINK_STATE => Ok(self.link_state().as_bytes().to_vec()),
            oid::GEN_XMIT_OK => counter(self.counters.tx_frames.get()),
            oid::GEN_RCV_OK => counter(self.counters.rx_frames.get()),
            oid::GEN_XMIT_ERROR => counter(self.counters.tx_lost.get()),
            oid::GEN_RCV_NO_BUFFER => counter(self.counters.rx_lost.get()),
            oid::GEN_RCV_ERROR
            | oid::ETHERNET_RCV_ERROR_ALIGNMENT
            | oid::ETHERNET_XMIT_ONE_COLLISION
            | oid::ETHERNET_XMIT_MORE_COLLISIONS => word(0),
            oid::GEN_FRIENDLY_NAME => {
                let mut name: Vec<u8> = NAME.encode_utf16().flat_map(u16::to_le_bytes).collect();
                name.resize(FRIENDLY_NAME_SIZE, 0);
                Ok(name)
            }
            oid::ETHERNET_PERMANENT_ADDRESS | oid::ETHERNET_CURRENT_ADDRESS => {
                Ok(self.config.mac.to_vec())
            }
            oid::ETHERNET_MULTICAST_LIST => Ok(conversation.reception.multicast.concat()),
            oid::ETHERNET_MAXIMUM_LIST_SIZE => word(MAX_MULTICAST as u32),
            oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES | oid::TCP_OFFLOAD_CURRENT_CONFIG => {
                let offload = self.offload(conversation, of);
                let mut offload = offload.ok_or(status::INVALID_LENGTH)?;
                if oid == oid::TCP_OFFLOAD_CURRENT_CONFIG {
                    let reception = &conversation.reception;
                    offload.rsc_ipv4 = reception.joined_ipv4.into();
                    offload.rsc_ipv6 = reception.joined_ipv6.into();
                }
                Ok(offload.wire_bytes().to_vec())
            }
            oid::GEN_RECEIVE_SCALE_CAPABILITIES => Ok(self.receive_scale().as_bytes().to_vec()),
            _ => Err(status::NOT_SUPPORTED),
        }
    }

    fn set(&self, conversation: &mut Conversation, oid: u32, value: &[u8]) -> Result<(), u32> {
        match oid {
            oid::GEN_CURRENT_PACKET_FILTER => {
                let filter = value.first_chunk().ok_or(status::INVALID_LENGTH)?;
                conversation.reception_mut().filter = u32::from_le_bytes(*filter);
                Ok(())
            }
            oid::ETHERNET_MULTICAST_LIST => {
                let (addresses, rest) = value.as_chunks::<6>();
                if !rest.is_empty() {
                    return Err(status::INVALID_LENGTH);
                }
                if addresses.len() > MAX_MULTICAST {
                    return Err(status::INVALID_DATA);
                }
                conversation.reception_mut().multicast = addresses.to_vec();
                Ok(())
            }
            oid::TCP_OFFLOAD_PARAMETERS => {
                let parameters = OffloadParameters::parse(value).ok_or(status::INVALID_LENGTH)?;
                self.set_offloads(conversation, &parameters)
            }
            oid::GEN_RECEIVE_SCALE_PARAMETERS => {
                let scale = ReceiveScale::parse(value).ok_or(status::INVALID_DATA)?;
                let reception = conversation.reception_mut();
                let set = reception.scaling.set(&scale, self.config.queues);
                set.ok_or(status::INVALID_DATA)
            }
            oid::GEN_RNDIS_CONFIG_PARAMETER => {
                let (name, kind, value) =
                    ConfigParameter::parse(value).ok_or(status::INVALID_LENGTH)?;
                self.set_parameter(&text(name), kind, &text(value))
            }
            // Nothing depends on them; Windows sets them all the same.
            oid::GEN_CURRENT_LOOKAHEAD
            | oid::GEN_NETWORK_LAYER_ADDRESSES
            | oid::OFFLOAD_ENCAPSULATION => Ok(()),
            _ => Err(status::NOT_SUPPORTED),
        }
    }

    /// What can be done for the guest, of the revision it knows.
    fn offload(&self, conversation: &Conversation, of: &[u8]) -> Option<Offload> {
        let by_version = match conversation.version() {
            Some(Version::V1 | Version::V2) | None => 112,
            Some(Version::V4) => 144,
            Some(Version::V5 | Version::V6 | Version::V6_1) => 156,
        };
        let room = match ObjectHeader::read_from_prefix(of) {
            Ok((header, _)) if header.object_type == object_type::OFFLOAD => {
                usize::from(header.size.get()).min(by_version)
            }
            _ => by_version,
        };
        let mut offload = Offload::none(room)?;
        if !self.features.offload {
            return Some(offload);
        }
        let framed = ENCAPSULATION_ETHERNET.into();
        let tcp = checksum::TCP | checksum::TCP_OPTIONS | checksum::IP_OPTIONS;
        let v4 = tcp | checksum::UDP | checksum::IP;
        offload.ipv4_tx_encapsulation = framed;
        offload.ipv4_tx_flags = v4.into();
        offload.ipv4_rx_encapsulation = framed;
        offload.ipv4_rx_flags = (tcp | checksum::UDP).into();
        offload.ipv6_tx_encapsulation = framed;
        offload.ipv6_tx_flags = (tcp | checksum::UDP).into();
        offload.ipv6_rx_encapsulation = framed;
        offload.ipv6_rx_flags = (tcp | checksum::UDP).into();
        offload.lso_ipv4_encapsulation = framed;
        offload.lso_ipv4_max_size = MAX_LARGE_SEND.into();
        offload.lso_ipv4_min_segments = 2.into();
        offload.lso_ipv6_encapsulation = framed;
        offload.lso_ipv6_max_size = MAX_LARGE_SEND.into();
        offload.lso_ipv6_min_segments = 2.into();
        offload.lso_ipv6_flags = (lso::IPV6_EXTENSIONS | lso::TCP_OPTIONS).into();
        let joins = self.joins(conversation);
        offload.rsc_ipv4 = joins.into();
        offload.rsc_ipv6 = joins.into();
        Some(offload)
    }

    /// Whether the guest can have segments joined.
    fn joins(&self, conversation: &Conversation) -> bool {
        self.features.joins && conversation.knows_pieces()
    }

    /// Of what the guest wants, only what it wants to hear of received frames makes a difference:
    /// each frame it sends says itself what is to be done.
    fn set_offloads(
        &self,
        conversation: &mut Conversation,
        parameters: &OffloadParameters,
    ) -> Result<(), u32> {
        let checksums = [
            parameters.tcp_ipv4_checksum,
            parameters.udp_ipv4_checksum,
            parameters.tcp_ipv6_checksum,
            parameters.udp_ipv6_checksum,
        ];
        let joined = [parameters.rsc_ipv4, parameters.rsc_ipv6];
        if checksums.iter().any(|&value| value > wanted::BOTH)
            || joined.iter().any(|&value| value > switched::ON)
        {
            return Err(status::INVALID_DATA);
        }
        let can = self.joins(conversation);
        let reception = conversation.reception_mut();
        for (now, value) in [
            (&mut reception.joined_ipv4, parameters.rsc_ipv4),
            (&mut reception.joined_ipv6, parameters.rsc_ipv6),
        ] {
            if value != switched::NO_CHANGE {
                *now = can && value == switched::ON;
            }
        }
        if checksums.iter().all(|&value| value == wanted::NO_CHANGE) {
            return Ok(());
        }
        // All of them, or we say nothing: a frame is not looked at for less.
        let hears = |value: &u8| matches!(*value, wanted::RX | wanted::BOTH);
        let unchanged = |value: &u8| *value == wanted::NO_CHANGE;
        conversation.reception_mut().checksum = self.features.offload
            && checksums.iter().any(hears)
            && checksums
                .iter()
                .all(|value| hears(value) || unchanged(value));
        Ok(())
    }

    /// Linux sets another address so. It has to be one that a station can have.
    fn set_parameter(&self, name: &str, kind: u32, value: &str) -> Result<(), u32> {
        if name != CONFIG_NETWORK_ADDRESS {
            return Err(status::NOT_SUPPORTED);
        }
        if kind != CONFIG_STRING || value.len() != 12 {
            return Err(status::INVALID_DATA);
        }
        // The filter that we are set keeps nobody's frames out; but who sends under another name
        // than it was given may be kept out by the net.
        match u64::from_str_radix(value, 16) {
            Ok(address) if address.to_be_bytes().ends_with(&self.config.mac) => Ok(()),
            _ => Err(status::NOT_SUPPORTED),
        }
    }

    fn receive_scale(&self) -> ReceiveScaleCapabilities {
        let queues = u32::from(self.config.queues);
        ReceiveScaleCapabilities {
            header: ObjectHeader {
                object_type: object_type::RSS_CAPABILITIES,
                revision: 2,
                size: (size_of::<ReceiveScaleCapabilities>() as u16).into(),
            },
            flags: (hash::TOEPLITZ | RSS_HASH_TCP_IPV4 | RSS_HASH_TCP_IPV6).into(),
            interrupts: queues.into(),
            queues: queues.into(),
            table_entries: (RSS_TABLE_ENTRIES as u16).into(),
        }
    }

    fn link_state(&self) -> LinkState {
        LinkState {
            header: ObjectHeader {
                object_type: object_type::DEFAULT,
                revision: 1,
                size: (size_of::<LinkState>() as u16).into(),
            },
            connected: if self.plugged { 1 } else { 2 }.into(),
            duplex: 2.into(),
            reserved: 0.into(),
            speed: speed(),
            pause: 0.into(),
            negotiated: 0.into(),
        }
    }
}

fn speed() -> LinkSpeed {
    LinkSpeed {
        transmit: SPEED.into(),
        receive: SPEED.into(),
    }
}

/// UTF-16 as text; what is none comes out as something that nothing is named.
fn text(bytes: &[u8]) -> String {
    let (units, _) = bytes.as_chunks::<2>();
    let units = units.iter().map(|unit| u16::from_le_bytes(*unit));
    char::decode_utf16(units)
        .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

/// Whether the guest wants a frame that goes to `to`.
pub(super) fn wants(reception: &Reception, mac: Mac, to: Mac) -> bool {
    let filter = |bits| reception.filter & bits != 0;
    if filter(packet_filter::PROMISCUOUS) {
        return true;
    }
    let [first, ..] = to;
    if to == [0xff; 6] {
        filter(packet_filter::BROADCAST)
    } else if first & 1 != 0 {
        filter(packet_filter::ALL_MULTICAST)
            || (filter(packet_filter::MULTICAST) && reception.multicast.contains(&to))
    } else {
        filter(packet_filter::DIRECTED) && to == mac
    }
}
