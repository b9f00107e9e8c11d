//! storvsp: SCSI over a VMBus channel.
//!
//! The guest opens the channel and asks, one after the other: BEGIN_INITIALIZATION,
//! QUERY_PROTOCOL_VERSION (until the host takes one), QUERY_PROPERTIES, END_INITIALIZATION. After
//! that it sends SCSI commands as EXECUTE_SRB, many at a time, the data described by the
//! GPA-direct ranges of the packet that carries the [`VstorPacket`]. The host answers each packet
//! by a completion with the same transaction id, whose operation is COMPLETE_IO.
//!
//! On its own account the host sends ENUMERATE_BUS or REMOVE_DEVICE, in-band, transaction id 0:
//! the guest then probes its LUNs anew.
//!
//! Sources: Linux `drivers/scsi/storvsc_drv.c` and OpenVMM `storvsp_protocol` for layouts and
//! values; SRB status values are those of Windows' `srb.h`.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes as _, FromZeros as _, IntoBytes as _};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::guid::Guid;

mod srb;

pub use srb::{
    DATA_IN, DATA_NONE, DATA_OUT, MAX_CDB, MAX_SENSE, Srb, SrbExtension, srb_flags, srb_status,
};

/// Class of the synthetic SCSI controller.
pub const SCSI_CLASS: Guid = Guid::new(0xba6163d9, 0x04a1, 0x4d29, 0xb605, 0x72e2ffb1dc7f);

/// Class of a controller that speaks this protocol, and that drivers for [`SCSI_CLASS`] leave alone.
/// It is this project's own: a host offers it where its user asks for that.
pub const DISK_CLASS: Guid = Guid::new(0x9a7f3c52, 0x1e84, 0x4b6d, 0xa3c0, 0x5d2e8f719b46);

/// Bytes of a [`VstorPacket`] from protocol version 5.1 on.
pub const PACKET_SIZE: usize = 64;

/// Bytes of a packet before protocol version 5.1: without [`SrbExtension`].
pub const PACKET_SIZE_BEFORE_5_1: usize = 48;

/// Bytes of a packet's operation, flags and status.
pub const PACKET_HEADER_SIZE: usize = 12;

/// Bit of [`VstorPacket::flags`]: the sender waits for COMPLETE_IO.
pub const FLAG_REQUEST_COMPLETION: u32 = 1;

/// What a packet asks for, or that it answers (Linux `enum vstor_packet_operation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Operation {
    /// To guest: the answer to any request.
    CompleteIo = 1,
    /// To guest: a LUN has gone, probe.
    RemoveDevice = 2,
    /// To host: a SCSI command.
    ExecuteSrb = 3,
    /// To host: reset one LUN.
    ResetLun = 4,
    /// To host: reset the adapter.
    ResetAdapter = 5,
    /// To host: reset the bus. All requests in flight are finished before the answer.
    ResetBus = 6,
    /// To host: first of the conversation.
    BeginInitialization = 7,
    /// To host: last of the initialization; commands follow.
    EndInitialization = 8,
    /// To host: may we speak this [`ProtocolVersion`]?
    QueryProtocolVersion = 9,
    /// To host: asks for [`ChannelProperties`].
    QueryProperties = 10,
    /// To guest: the set of LUNs has changed, probe.
    EnumerateBus = 11,
    /// To host: Fibre Channel names; only for Fibre Channel controllers.
    FcHbaData = 12,
    /// To host: offer that many further channels.
    CreateSubChannels = 13,
}

impl Operation {
    /// The operation of this number.
    pub const fn from_wire(value: u32) -> Option<Self> {
        Some(match value {
            1 => Self::CompleteIo,
            2 => Self::RemoveDevice,
            3 => Self::ExecuteSrb,
            4 => Self::ResetLun,
            5 => Self::ResetAdapter,
            6 => Self::ResetBus,
            7 => Self::BeginInitialization,
            8 => Self::EndInitialization,
            9 => Self::QueryProtocolVersion,
            10 => Self::QueryProperties,
            11 => Self::EnumerateBus,
            12 => Self::FcHbaData,
            13 => Self::CreateSubChannels,
            _ => return None,
        })
    }
}

/// Protocol versions, `major << 8 | minor` on the wire. Linux 7.x tries 6.2 and 6.0, earlier ones
/// 5.1 too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum ProtocolVersion {
    /// 2.0, Windows Server 2008.
    V2_0 = 0x0200,
    /// 4.2, Windows 7.
    V4_2 = 0x0402,
    /// 5.1, Windows 8: longer packets, sub-channels.
    V5_1 = 0x0501,
    /// 6.0, Windows 8.1.
    V6_0 = 0x0600,
    /// 6.2, Windows 10.
    V6_2 = 0x0602,
}

impl ProtocolVersion {
    /// All versions, the newest first: the order in which a guest asks.
    pub const NEWEST_FIRST: [Self; 5] =
        [Self::V6_2, Self::V6_0, Self::V5_1, Self::V4_2, Self::V2_0];

    /// The version of this number.
    pub const fn from_wire(value: u16) -> Option<Self> {
        Some(match value {
            0x0200 => Self::V2_0,
            0x0402 => Self::V4_2,
            0x0501 => Self::V5_1,
            0x0600 => Self::V6_0,
            0x0602 => Self::V6_2,
            _ => return None,
        })
    }

    /// Bytes of this version's packets.
    pub const fn packet_size(self) -> usize {
        match self {
            Self::V2_0 | Self::V4_2 => PACKET_SIZE_BEFORE_5_1,
            Self::V5_1 | Self::V6_0 | Self::V6_2 => PACKET_SIZE,
        }
    }
}

/// Values of [`VstorPacket::status`]: a few NTSTATUS codes.
pub mod status {
    /// Done.
    pub const SUCCESS: u32 = 0;
    /// Not a request this device knows.
    pub const INVALID_DEVICE_REQUEST: u32 = 0xc000_0010;
    /// The request's fields cannot be.
    pub const INVALID_PARAMETER: u32 = 0xc000_000d;
    /// The protocol version is not supported.
    pub const REVISION_MISMATCH: u32 = 0xc000_0059;
    /// Not in this state of the conversation.
    pub const INVALID_DEVICE_STATE: u32 = 0xc000_0184;
}

/// What the host says of a channel (Linux `struct vmstorage_channel_properties`).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct ChannelProperties {
    /// Zero.
    pub reserved: U32,
    /// Sub-channels the guest may ask for.
    pub max_channel_count: U16,
    /// Zero.
    pub reserved1: U16,
    /// Bit 0: [`PROPERTY_MULTI_CHANNEL`].
    pub flags: U32,
    /// Most data of one request in bytes, a multiple of 4096. Linux allows a request one page
    /// more of segments than that.
    pub max_transfer_bytes: U32,
    /// Zero.
    pub reserved2: U64,
}
const _: () = assert!(size_of::<ChannelProperties>() == 24);

impl ChannelProperties {
    /// Sub-channels that the guest may ask for by [`Operation::CreateSubChannels`].
    pub fn sub_channels(&self) -> u16 {
        match self.flags.get() & PROPERTY_MULTI_CHANNEL {
            0 => 0,
            _ => self.max_channel_count.get(),
        }
    }
}

/// Bit of [`ChannelProperties::flags`]: CREATE_SUB_CHANNELS may be asked.
pub const PROPERTY_MULTI_CHANNEL: u32 = 1;

/// A packet of either direction (Linux `struct vstor_packet`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct VstorPacket {
    /// An [`Operation`].
    pub operation: U32,
    /// Bit 0: [`FLAG_REQUEST_COMPLETION`].
    pub flags: U32,
    /// To guest: a value of [`status`].
    pub status: U32,
    /// What belongs to the operation, from its first byte on; see the methods.
    pub body: [u8; 52],
}
const _: () = assert!(size_of::<VstorPacket>() == PACKET_SIZE);
const _: () = assert!(PACKET_HEADER_SIZE + size_of::<Srb>() == PACKET_SIZE);

impl VstorPacket {
    /// A request without a body.
    #[inline(never)]
    pub fn request(operation: Operation) -> Self {
        Self {
            operation: (operation as u32).into(),
            flags: FLAG_REQUEST_COMPLETION.into(),
            status: 0.into(),
            body: [0; 52],
        }
    }

    /// EXECUTE_SRB.
    pub fn execute_srb(srb: &Srb) -> Self {
        Self::request(Operation::ExecuteSrb).with_body(srb.as_bytes())
    }

    /// QUERY_PROTOCOL_VERSION. `version` is [`ProtocolVersion`] as a number.
    pub fn query_protocol_version(version: u16) -> Self {
        Self::request(Operation::QueryProtocolVersion).with_body(&version.to_le_bytes())
    }

    /// CREATE_SUB_CHANNELS.
    pub fn create_sub_channels(count: u16) -> Self {
        Self::request(Operation::CreateSubChannels).with_body(&count.to_le_bytes())
    }

    /// The answer to this packet with a value of [`status`]; the body goes back as it came.
    #[must_use]
    pub fn answer(&self, status: u32) -> Self {
        Self {
            operation: (Operation::CompleteIo as u32).into(),
            flags: 0.into(),
            status: status.into(),
            body: self.body,
        }
    }

    /// The same packet with another SRB.
    #[must_use]
    pub fn with_srb(self, srb: &Srb) -> Self {
        self.with_body(srb.as_bytes())
    }

    /// The same packet with these properties.
    #[must_use]
    pub fn with_properties(self, properties: &ChannelProperties) -> Self {
        self.with_body(properties.as_bytes())
    }

    fn with_body(mut self, bytes: &[u8]) -> Self {
        self.body = [0; 52];
        if let Some(body) = self.body.get_mut(..bytes.len()) {
            body.copy_from_slice(bytes);
        }
        self
    }

    /// The packet in a payload of at least [`PACKET_HEADER_SIZE`] bytes. What is missing of the
    /// body is zero; what is beyond [`PACKET_SIZE`] is ignored.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        if payload.len() < PACKET_HEADER_SIZE {
            return None;
        }
        let mut packet = Self::new_zeroed();
        let length = payload.len().min(PACKET_SIZE);
        packet
            .as_mut_bytes()
            .get_mut(..length)?
            .copy_from_slice(payload.get(..length)?);
        Some(packet)
    }

    /// The operation, where it is a known one.
    pub fn operation(&self) -> Option<Operation> {
        Operation::from_wire(self.operation.get())
    }

    /// The body of EXECUTE_SRB and its answer.
    pub fn srb(&self) -> Srb {
        Srb::read_from_bytes(&self.body).unwrap_or_default()
    }

    /// The body of QUERY_PROTOCOL_VERSION; [`ProtocolVersion::from_wire`] knows what it means.
    pub fn protocol_version(&self) -> u16 {
        U16::read_from_prefix(&self.body).map_or(0, |(version, _)| version.get())
    }

    /// The body of the answer to QUERY_PROPERTIES.
    pub fn properties(&self) -> ChannelProperties {
        ChannelProperties::read_from_prefix(&self.body)
            .map(|(p, _)| p)
            .unwrap_or_default()
    }

    /// The body of CREATE_SUB_CHANNELS.
    pub fn sub_channel_count(&self) -> u16 {
        self.protocol_version()
    }

    /// The bytes to send where packets have `size` bytes ([`ProtocolVersion::packet_size`]).
    pub fn wire_bytes(&self, size: usize) -> &[u8] {
        let bytes = self.as_bytes();
        bytes.get(..size).unwrap_or(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn execute_srb_bytes() {
        let cdb = [0x28, 0, 0, 0, 0, 7, 0, 0, 1, 0];
        let packet = VstorPacket::execute_srb(&Srb::request(3, &cdb, DATA_IN, 512));
        #[rustfmt::skip]
        let golden: [u8; 64] = [
            3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, // operation, flags, status
            52, 0, 0, 0, // length, SRB status, SCSI status
            0, 0, 0, 3, // port, path, target, LUN
            10, 20, 1, 0, // CDB length, sense length, data in, reserved
            0, 2, 0, 0, // transfer length
            0x28, 0, 0, 0, 0, 7, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 0, 0x48, 0, 0, 0, 60, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(packet.as_bytes(), golden);
        assert_eq!(VstorPacket::parse(&golden), Some(packet));
        assert_eq!(packet.srb().cdb(), Some(&cdb[..]));
    }

    #[test]
    fn answers_carry_sense_only_when_there_is_some() {
        let srb = Srb::request(0, &[0], DATA_NONE, 0);
        let good = srb.answer(srb_status::SUCCESS, 0, 0, &[]);
        assert_eq!(
            (good.srb_status, good.sense_length, good.sense()),
            (1, 0, &[][..])
        );
        let bad = srb.answer(srb_status::ERROR, 2, 0, &[0x70; 18]);
        assert_eq!((bad.srb_status, bad.sense_length), (0x84, 18));
        assert_eq!(bad.sense(), [0x70; 18]);
        let mut short = srb;
        short.sense_length = 3;
        assert_eq!(
            short.answer(srb_status::ERROR, 2, 0, &[0x70; 18]).sense(),
            [0x70; 3]
        );
    }

    #[test]
    fn version_and_properties_bytes() {
        let packet = VstorPacket::query_protocol_version(ProtocolVersion::V6_2 as u16);
        assert_eq!(
            packet.as_bytes()[..16],
            [9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 6, 0, 0]
        );
        let properties = ChannelProperties {
            max_transfer_bytes: 0x40000.into(),
            ..Default::default()
        };
        let answer = VstorPacket::request(Operation::QueryProperties)
            .answer(status::SUCCESS)
            .with_properties(&properties);
        assert_eq!(answer.as_bytes()[..4], [1, 0, 0, 0]);
        assert_eq!(answer.as_bytes()[24..28], [0, 0, 4, 0]);
        assert_eq!(answer.properties(), properties);
        assert_eq!(
            answer.wire_bytes(ProtocolVersion::V4_2.packet_size()).len(),
            48
        );
    }

    #[test]
    fn numbers_and_names_agree() {
        for n in 0..20 {
            assert!(Operation::from_wire(n).is_none_or(|op| op as u32 == n));
        }
        for version in ProtocolVersion::NEWEST_FIRST {
            assert_eq!(ProtocolVersion::from_wire(version as u16), Some(version));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let Some(packet) = VstorPacket::parse(&bytes) else {
                prop_assert!(bytes.len() < PACKET_HEADER_SIZE);
                return Ok(());
            };
            let srb = packet.srb();
            prop_assert_eq!(srb.cdb().is_none(), srb.cdb_length > 16);
            let answer = srb.answer(srb_status::ERROR, 2, 0, &bytes);
            prop_assert!(answer.sense().len() <= MAX_SENSE);
            let _ = (packet.operation(), packet.properties(), srb.sense());
        }
    }
}
