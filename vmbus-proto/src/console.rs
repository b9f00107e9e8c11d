//! The console: a byte pipe over a channel.
//!
//! Hyper-V offers no console to its guests over VMBus, so this class is the project's own. What it
//! is made of is not: the offer is a pipe in byte mode, and each packet is in-band with the pipe
//! header that Hyper-V's own pipes use ([`pipe`](crate::pipe)), so that any driver for VMBus pipes
//! can carry it.
//!
//! Either side sends [`DATA`](PACKET_DATA) packets of 1 to [`MAX_DATA`] bytes, in order, without
//! completion. A ring that is full is the flow control: the sender waits for room. Packet
//! borders mean nothing. Packets of other types are ignored. There is no negotiation: the channel
//! carries bytes from the moment it is open.

use crate::guid::Guid;

pub use crate::pipe::{BadPipePacket, PACKET_DATA, PipeHeader, data};

/// Class of the console.
pub const CLASS: Guid = Guid::new(0x6f0e_6d2c, 0x1b44, 0x4b0f, 0x9c53, 0x0d8e_52a7_f6c1);

/// Most bytes of data in one packet.
pub const MAX_DATA: usize = 4096;
