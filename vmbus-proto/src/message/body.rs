//! The bodies of channel messages, after the 8-byte header, all but offers and GPADLs.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::guid::Guid;
use crate::version::Version;

/// Body of the messages that name a channel and no more.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ChannelId {
    /// The channel's relid.
    pub relid: U32,
}
const _: () = assert!(size_of::<ChannelId>() == 4);

impl ChannelId {
    /// The body that names channel `relid`.
    pub const fn new(relid: u32) -> Self {
        Self {
            relid: U32::new(relid),
        }
    }
}

/// Body of OPENCHANNEL.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct OpenChannel {
    /// The channel's relid.
    pub relid: U32,
    /// Chosen by the guest, repeated in the result.
    pub open_id: U32,
    /// The GPADL with both rings, `to_host` first.
    pub ring_gpadl: U32,
    /// VP index to interrupt.
    pub target_vp: U32,
    /// Pages from the GPADL's start to the `to_guest` ring.
    pub downstream_page_offset: U32,
    /// For the device, by its own protocol.
    pub user_data: [u8; 120],
}
const _: () = assert!(size_of::<OpenChannel>() == 140);

/// Body of OPENCHANNEL_RESULT.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct OpenResult {
    /// The channel's relid.
    pub relid: U32,
    /// From the request.
    pub open_id: U32,
    /// An NTSTATUS, 0 for success.
    pub status: U32,
}
const _: () = assert!(size_of::<OpenResult>() == 12);

/// Body of GPADL_CREATED.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct GpadlCreated {
    /// The channel's relid.
    pub relid: U32,
    /// The guest's handle of the GPADL.
    pub gpadl: U32,
    /// An NTSTATUS, 0 for success.
    pub status: U32,
}
const _: () = assert!(size_of::<GpadlCreated>() == 12);

/// Body of GPADL_TEARDOWN.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct GpadlTeardown {
    /// The channel's relid.
    pub relid: U32,
    /// The guest's handle of the GPADL.
    pub gpadl: U32,
}
const _: () = assert!(size_of::<GpadlTeardown>() == 8);

/// Body of GPADL_TORNDOWN.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct GpadlId {
    /// The guest's handle of the GPADL.
    pub gpadl: U32,
}
const _: () = assert!(size_of::<GpadlId>() == 4);

/// Body of INITIATE_CONTACT.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct InitiateContact {
    /// The version wanted.
    pub version: U32,
    /// VP index to which the host sends messages.
    pub target_vp: U32,
    /// Below 5.0: guest physical address of the legacy interrupt page. From 5.0 on: byte 0 is
    /// the SINT, byte 1 the VTL; from 6.0 on the upper half holds feature flags.
    pub interrupt_page_or_target: U64,
    /// Guest physical address of the first monitor page, or 0.
    pub monitor_page1: U64,
    /// Guest physical address of the second monitor page, or 0.
    pub monitor_page2: U64,
}
const _: () = assert!(size_of::<InitiateContact>() == 32);

impl InitiateContact {
    /// Contact for `version` with messages to SINT 2 of `target_vp`, without monitor pages.
    pub fn new(version: Version, target_vp: u32) -> Self {
        let sint = u64::from(crate::hv::synic::VMBUS_SINT);
        let target = if version >= Version::V5_0 { sint } else { 0 };
        Self {
            version: version.0.into(),
            target_vp: target_vp.into(),
            interrupt_page_or_target: target.into(),
            monitor_page1: 0.into(),
            monitor_page2: 0.into(),
        }
    }

    /// The version wanted.
    pub fn version(&self) -> Version {
        Version(self.version.get())
    }

    /// The SINT for messages, where the version lets the guest choose one.
    pub fn sint(&self) -> Option<u8> {
        let [sint, ..] = self.interrupt_page_or_target.get().to_le_bytes();
        (self.version() >= Version::V5_0).then_some(sint)
    }

    /// The virtual trust level for messages, where the version has one.
    pub fn vtl(&self) -> Option<u8> {
        let [_, vtl, ..] = self.interrupt_page_or_target.get().to_le_bytes();
        (self.version() >= Version::V5_0).then_some(vtl)
    }
}

/// Body of VERSION_RESPONSE.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct VersionResponse {
    /// Non-zero where the version is accepted.
    pub supported: u8,
    /// 0 for success, else why the connection failed.
    pub connection_state: u8,
    /// Zero.
    pub padding: U16,
    /// From 5.0 on: connection id for all further messages.
    pub message_connection_id: U32,
}
const _: () = assert!(size_of::<VersionResponse>() == 8);

/// Body of OPEN_RESERVED_CHANNEL.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct OpenReservedChannel {
    /// Number of the reserved channel.
    pub channel_id: U32,
    /// VP index to interrupt.
    pub target_vp: U32,
    /// SINT to interrupt.
    pub target_sint: U32,
    /// The GPADL with both rings.
    pub ring_gpadl: U32,
    /// Pages from the GPADL's start to the `to_guest` ring.
    pub downstream_page_offset: U32,
}
const _: () = assert!(size_of::<OpenReservedChannel>() == 20);

/// Body of CLOSE_RESERVED_CHANNEL.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CloseReservedChannel {
    /// Number of the reserved channel.
    pub channel_id: U32,
    /// VP index for the response.
    pub target_vp: U32,
    /// SINT for the response.
    pub target_sint: U32,
}
const _: () = assert!(size_of::<CloseReservedChannel>() == 12);

/// Body of TL_CONNECT_REQUEST, in its shortest form; later versions add a silo id.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct TlConnect {
    /// The guest's endpoint.
    pub endpoint: Guid,
    /// The host's service.
    pub service: Guid,
}
const _: () = assert!(size_of::<TlConnect>() == 32);

/// Body of TL_CONNECT_RESULT.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct TlConnectResult {
    /// From the request.
    pub endpoint: Guid,
    /// From the request.
    pub service: Guid,
    /// An NTSTATUS, 0 for success.
    pub status: U32,
}
const _: () = assert!(size_of::<TlConnectResult>() == 36);

/// Body of MODIFYCHANNEL.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ModifyChannel {
    /// The channel's relid.
    pub relid: U32,
    /// VP index to interrupt from now on.
    pub target_vp: U32,
}
const _: () = assert!(size_of::<ModifyChannel>() == 8);

/// Body of MODIFYCHANNEL_RESPONSE.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ModifyChannelResponse {
    /// The channel's relid.
    pub relid: U32,
    /// An NTSTATUS, 0 for success.
    pub status: U32,
}
const _: () = assert!(size_of::<ModifyChannelResponse>() == 8);
