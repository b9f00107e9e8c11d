//! The console VSP: bytes between a channel and a pair of streams.
//!
//! The protocol is in [`vmbus_proto::console`]. Both ways are bounded: guest output that the
//! backend does not take yet stays here up to [`OUTPUT_LIMIT`], then in the ring, where it stops
//! the guest's writer; input waits in the backend until the ring has room.
#![warn(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod streams;

pub use streams::Streams;

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vmbus_proto::console::{CLASS, MAX_DATA, PipeHeader, data};
use vmbus_proto::guid::Guid;
use vmbus_proto::message::{OfferChannel, pipe_mode};
use vmbus_proto::packet::{Outgoing, PacketKind};
use vmbus_proto::ring::SendError;

use crate::vmbus::channel::{Channel, ChannelError};
use crate::vsp::{StateError, Vsp, plain_offer};

/// Most bytes of guest output kept while the backend takes none.
pub const OUTPUT_LIMIT: usize = 64 * 1024;

/// Instance of the first console; more of them would count the last group up.
pub const INSTANCE: Guid = Guid::new(0x6f0e_6d2c, 0x1b44, 0x4b0f, 0x9c53, 0x0000_0000_0001);

/// The host's end of the console.
pub struct Console {
    backend: Arc<Streams>,
    packet: Vec<u8>,
    conversation: Conversation,
}

/// What a conversation consists of besides the rings.
#[derive(Default, Serialize, Deserialize)]
struct Conversation {
    /// From the guest, not yet taken by the backend.
    output: VecDeque<u8>,
    /// From the backend, not yet in the ring.
    input: Vec<u8>,
}

impl Console {
    /// A console over `backend`, which may outlast it.
    pub fn new(backend: impl Into<Arc<Streams>>) -> Self {
        // The descriptor and ranges of a packet never reach the buffer; the header and padding do.
        let packet = vec![0; MAX_DATA + 64];
        Self {
            backend: backend.into(),
            packet,
            conversation: Conversation::default(),
        }
    }

    /// Takes packets while there is room for their bytes.
    fn take_packets(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        while self.conversation.output.len() < OUTPUT_LIMIT {
            let Some(packet) = channel.receive(&mut self.packet)? else {
                break;
            };
            if !matches!(packet.kind, PacketKind::InBand) {
                return Err(ChannelError::Protocol("a console packet is not in-band"));
            }
            let bytes = data(packet.payload)
                .map_err(|_| ChannelError::Protocol("a console packet is cut short"))?;
            self.conversation.output.extend(bytes);
        }
        Ok(())
    }

    /// Moves input into the ring while there is some and it has room.
    fn send_input(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        let input = &mut self.conversation.input;
        loop {
            if input.is_empty() {
                *input = self.backend.read(MAX_DATA);
            }
            if input.is_empty() {
                return Ok(());
            }
            // The largest packet may exceed a small ring: halve until it fits.
            let mut length = input.len();
            loop {
                let header = PipeHeader::data(length as u32);
                let chunk = input.get(..length).unwrap_or(&[]);
                let packet = Outgoing::in_band(0, header.bytes(), false).with_tail(chunk);
                match channel.send(&packet) {
                    Ok(()) => break drop(input.drain(..length)),
                    Err(SendError::Full) => return Ok(()),
                    Err(SendError::TooLong) if length > 1 => length /= 2,
                    Err(SendError::TooLong) => {
                        return Err(ChannelError::Protocol("the console's ring is too small"));
                    }
                    Err(SendError::Corrupt(corrupt)) => return Err(corrupt.into()),
                }
            }
        }
    }
}

impl Vsp for Console {
    fn offer(&self) -> OfferChannel {
        plain_offer(CLASS, INSTANCE).with_pipe(pipe_mode::BYTE)
    }

    fn opened(&mut self) {
        self.conversation = Conversation::default();
    }

    fn service(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        self.backend.clear_event();
        loop {
            self.take_packets(channel)?;
            let written = self.backend.write(&mut self.conversation.output);
            if !written || channel.is_drained() {
                break;
            }
        }
        self.send_input(channel)
    }

    fn event(&self) -> Option<RawFd> {
        Some(self.backend.event())
    }

    fn quiesce(&mut self) {
        // All bytes were copied out of guest memory when they were taken.
        self.backend.write_last(&mut self.conversation.output);
    }

    fn save(&self) -> Vec<u8> {
        // Byte queues cannot fail to serialize.
        postcard::to_stdvec(&self.conversation).unwrap_or_default()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        self.conversation = postcard::from_bytes(state).map_err(|error| StateError {
            device: "the console",
            reason: error.to_string(),
        })?;
        Ok(())
    }
}
