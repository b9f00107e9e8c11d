//! Pipes: the framing of channels that are offered with
//! [`NAMED_PIPE_MODE`](crate::message::offer_flags::NAMED_PIPE_MODE).
//!
//! Each packet is in-band and begins with a [`PipeHeader`], which says how many of the packet's
//! bytes are data: the packet itself is padded to a multiple of 8.

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes as _, IntoBytes as _};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// [`PipeHeader::packet_type`] of a packet that carries data.
pub const PACKET_DATA: u32 = 1;

/// Start of each packet of a pipe (Linux `struct vmpipe_proto_header`, `struct vmbuspipe_hdr`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct PipeHeader {
    /// [`PACKET_DATA`].
    pub packet_type: U32,
    /// Bytes of data that follow; the packet's padding is not data.
    pub data_size: U32,
}
const _: () = assert!(size_of::<PipeHeader>() == 8);

impl PipeHeader {
    /// The header of a packet with `data_size` bytes of data.
    pub const fn data(data_size: u32) -> Self {
        Self {
            packet_type: U32::new(PACKET_DATA),
            data_size: U32::new(data_size),
        }
    }

    /// The header's bytes.
    pub fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}

/// A payload that is not a pipe's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadPipePacket;

impl core::fmt::Display for BadPipePacket {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("a pipe packet's data size exceeds the packet")
    }
}

impl core::error::Error for BadPipePacket {}

/// The data in a packet's `payload`; nothing in a packet of another type.
///
/// # Errors
/// The payload is shorter than its header says.
pub fn data(payload: &[u8]) -> Result<&[u8], BadPipePacket> {
    let (header, rest) = PipeHeader::read_from_prefix(payload).map_err(|_| BadPipePacket)?;
    if header.packet_type.get() != PACKET_DATA {
        return Ok(&[]);
    }
    rest.get(..header.data_size.get() as usize)
        .ok_or(BadPipePacket)
}
