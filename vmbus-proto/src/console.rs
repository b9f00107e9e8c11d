//! The console: a byte pipe over a channel.
//!
//! Hyper-V offers no console to its guests over VMBus, so this class is the project's own. What it
//! is made of is not: the offer is a pipe in byte mode, and each packet is in-band with the pipe
//! header that Hyper-V's own pipes use (Linux `struct vmpipe_proto_header`), so that any driver
//! for VMBus pipes can carry it.
//!
//! Either side sends [`DATA`](PACKET_DATA) packets of 1 to [`MAX_DATA`] bytes, in order, without
//! completion. A ring that is full is the flow control: the sender waits for room. Packet
//! borders mean nothing. Packets of other types are ignored. There is no negotiation: the channel
//! carries bytes from the moment it is open.

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes as _, IntoBytes as _};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::guid::Guid;

/// Class of the console.
pub const CLASS: Guid = Guid::new(0x6f0e_6d2c, 0x1b44, 0x4b0f, 0x9c53, 0x0d8e_52a7_f6c1);

/// Most bytes of data in one packet.
pub const MAX_DATA: usize = 4096;

/// [`PipeHeader::packet_type`] of a packet that carries data.
pub const PACKET_DATA: u32 = 1;

/// Start of each packet of a pipe.
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
