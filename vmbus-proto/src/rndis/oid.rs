//! Object identifiers: what can be asked of an adapter and set.

/// Query: all identifiers that the adapter knows, as a list.
pub const GEN_SUPPORTED_LIST: u32 = 0x0001_0101;
/// Query: 0, ready.
pub const GEN_HARDWARE_STATUS: u32 = 0x0001_0102;
/// Query: kinds of media, a list of [`MEDIUM_802_3`](super::MEDIUM_802_3).
pub const GEN_MEDIA_SUPPORTED: u32 = 0x0001_0103;
/// Query: the same.
pub const GEN_MEDIA_IN_USE: u32 = 0x0001_0104;
/// Query: most bytes of a frame that are indicated.
pub const GEN_MAXIMUM_LOOKAHEAD: u32 = 0x0001_0105;
/// Query: most bytes of a frame without its Ethernet header: the MTU.
pub const GEN_MAXIMUM_FRAME_SIZE: u32 = 0x0001_0106;
/// Query: speed in units of 100 bits per second.
pub const GEN_LINK_SPEED: u32 = 0x0001_0107;
/// Query: bytes for frames to be sent.
pub const GEN_TRANSMIT_BUFFER_SPACE: u32 = 0x0001_0108;
/// Query: bytes for frames received.
pub const GEN_RECEIVE_BUFFER_SPACE: u32 = 0x0001_0109;
/// Query: bytes that a frame to be sent takes at least.
pub const GEN_TRANSMIT_BLOCK_SIZE: u32 = 0x0001_010a;
/// Query: bytes that a received frame takes at least.
pub const GEN_RECEIVE_BLOCK_SIZE: u32 = 0x0001_010b;
/// Query: three bytes of the vendor's addresses, and one more.
pub const GEN_VENDOR_ID: u32 = 0x0001_010c;
/// Query: text that ends by a zero byte.
pub const GEN_VENDOR_DESCRIPTION: u32 = 0x0001_010d;
/// Query and set: which frames the guest wants, a combination of [`packet_filter`].
pub const GEN_CURRENT_PACKET_FILTER: u32 = 0x0001_010e;
/// Query and set: bytes of a frame that are indicated.
pub const GEN_CURRENT_LOOKAHEAD: u32 = 0x0001_010f;
/// Query: version of the driver's interface, two bytes.
pub const GEN_DRIVER_VERSION: u32 = 0x0001_0110;
/// Query: most bytes of a frame.
pub const GEN_MAXIMUM_TOTAL_SIZE: u32 = 0x0001_0111;
/// Query: a combination of [`mac_option`].
pub const GEN_MAC_OPTIONS: u32 = 0x0001_0113;
/// Query: [`MEDIA_CONNECTED`] or [`MEDIA_DISCONNECTED`].
pub const GEN_MEDIA_CONNECT_STATUS: u32 = 0x0001_0114;
/// Query: most frames in one packet.
pub const GEN_MAXIMUM_SEND_PACKETS: u32 = 0x0001_0115;
/// Query: version of the driver.
pub const GEN_VENDOR_DRIVER_VERSION: u32 = 0x0001_0116;
/// Set: addresses of the guest's network layers. There is nothing to do about them.
pub const GEN_NETWORK_LAYER_ADDRESSES: u32 = 0x0001_0118;
/// Query: [`ReceiveScaleCapabilities`](super::ndis::ReceiveScaleCapabilities).
pub const GEN_RECEIVE_SCALE_CAPABILITIES: u32 = 0x0001_0203;
/// Set: [`ReceiveScaleParameters`](super::ndis::ReceiveScaleParameters).
pub const GEN_RECEIVE_SCALE_PARAMETERS: u32 = 0x0001_0204;
/// Query: [`LinkSpeed`](super::ndis::LinkSpeed).
pub const GEN_MAX_LINK_SPEED: u32 = 0x0001_0206;
/// Query: [`LinkState`](super::ndis::LinkState).
pub const GEN_LINK_STATE: u32 = 0x0001_0207;
/// Set: a parameter by name, such as another address; see
/// [`ConfigParameter`](super::ndis::ConfigParameter).
pub const GEN_RNDIS_CONFIG_PARAMETER: u32 = 0x0001_021b;
/// Query: frames sent.
pub const GEN_XMIT_OK: u32 = 0x0002_0101;
/// Query: frames received.
pub const GEN_RCV_OK: u32 = 0x0002_0102;
/// Query: frames not sent.
pub const GEN_XMIT_ERROR: u32 = 0x0002_0103;
/// Query: frames not received.
pub const GEN_RCV_ERROR: u32 = 0x0002_0104;
/// Query: frames for which the guest had no buffer.
pub const GEN_RCV_NO_BUFFER: u32 = 0x0002_0105;
/// Query: the adapter's name for people, [`FRIENDLY_NAME_SIZE`] bytes of UTF-16.
pub const GEN_FRIENDLY_NAME: u32 = 0x0002_0216;
/// Query: the address it was made with, six bytes.
pub const ETHERNET_PERMANENT_ADDRESS: u32 = 0x0101_0101;
/// Query: the address it has, six bytes.
pub const ETHERNET_CURRENT_ADDRESS: u32 = 0x0101_0102;
/// Query and set: multicast addresses that the guest wants, six bytes each.
pub const ETHERNET_MULTICAST_LIST: u32 = 0x0101_0103;
/// Query: how many there may be.
pub const ETHERNET_MAXIMUM_LIST_SIZE: u32 = 0x0101_0104;
/// Query: of the three counters of errors on a wire, there are none.
pub const ETHERNET_RCV_ERROR_ALIGNMENT: u32 = 0x0102_0101;
/// Query: as before.
pub const ETHERNET_XMIT_ONE_COLLISION: u32 = 0x0102_0102;
/// Query: as before.
pub const ETHERNET_XMIT_MORE_COLLISIONS: u32 = 0x0102_0103;
/// Query: offloads that are on, an [`Offload`](super::ndis::Offload).
pub const TCP_OFFLOAD_CURRENT_CONFIG: u32 = 0xfc01_020b;
/// Set: offloads that shall be on, [`OffloadParameters`](super::ndis::OffloadParameters).
pub const TCP_OFFLOAD_PARAMETERS: u32 = 0xfc01_020c;
/// Query: offloads that can be on, an [`Offload`](super::ndis::Offload).
pub const TCP_OFFLOAD_HARDWARE_CAPABILITIES: u32 = 0xfc01_020d;
/// Set: [`OffloadEncapsulation`](super::ndis::OffloadEncapsulation): a Windows guest lets offloads
/// begin.
pub const OFFLOAD_ENCAPSULATION: u32 = 0x0101_010a;

/// Bytes of [`GEN_FRIENDLY_NAME`]: 255 units and a zero.
pub const FRIENDLY_NAME_SIZE: usize = 512;

/// [`GEN_MEDIA_CONNECT_STATUS`]: the cable is plugged in.
pub const MEDIA_CONNECTED: u32 = 0;
/// [`GEN_MEDIA_CONNECT_STATUS`]: it is not.
pub const MEDIA_DISCONNECTED: u32 = 1;

/// Bits of [`GEN_CURRENT_PACKET_FILTER`].
pub mod packet_filter {
    /// To the adapter's address.
    pub const DIRECTED: u32 = 0x01;
    /// To addresses of the multicast list.
    pub const MULTICAST: u32 = 0x02;
    /// To all multicast addresses.
    pub const ALL_MULTICAST: u32 = 0x04;
    /// To everybody.
    pub const BROADCAST: u32 = 0x08;
    /// All there are.
    pub const PROMISCUOUS: u32 = 0x20;
}

/// Bits of [`GEN_MAC_OPTIONS`].
pub mod mac_option {
    /// Frames may be looked at in place.
    pub const COPY_LOOKAHEAD_DATA: u32 = 0x01;
    /// Frames are indicated one at a time.
    pub const RECEIVE_SERIALIZED: u32 = 0x02;
    /// Transfers are done when they return.
    pub const TRANSFERS_NOT_PEND: u32 = 0x04;
    /// A frame to oneself is not received.
    pub const NO_LOOPBACK: u32 = 0x08;
    /// Both directions at once.
    pub const FULL_DUPLEX: u32 = 0x10;
}
