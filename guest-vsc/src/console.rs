//! The console: bytes in and out over a pipe channel.
//!
//! [`Console::write`] puts bytes into pipe packets ([`vmbus_proto::console`]) and waits only for
//! room in the ring; [`Console::try_read`] takes what has come. Both work on `&self`, so that a
//! kernel can print from one place and read in another. [`core::fmt::Write`] and the traits of
//! `embedded-io` are there for the rest.

use core::fmt;

use vmbus_proto::console::{MAX_DATA, PipeHeader, data};
use vmbus_proto::packet::{Outgoing, PacketKind};

use crate::bus::{Offer, VmBus, count};
use crate::channel::{Channel, OpenOptions};
use crate::error::{Error, Waited};
use crate::hal::Hal;
use crate::sync::IrqMutex;

/// Class of the console, for [`VmBus::find`].
pub use vmbus_proto::console::CLASS;

/// Bytes after the descriptor in the longest packet: the pipe's header, data, padding.
const MAX_PACKET: usize = MAX_DATA + 8;

/// Packets without data skipped in one go.
const PACKETS_AT_ONCE: u32 = 64;

/// The packet that was received last, and how much of its data was not read yet.
struct Received {
    packet: [u8; MAX_PACKET],
    start: usize,
    end: usize,
}

impl Received {
    fn take(&mut self, to: &mut [u8]) -> usize {
        let data = self.packet.get(self.start..self.end).unwrap_or_default();
        let length = data.len().min(to.len());
        for (to, from) in to.iter_mut().zip(data) {
            *to = *from;
        }
        self.start = self.start.saturating_add(length);
        length
    }
}

/// A console. Dropped, it is flushed and closed, which waits for the host.
pub struct Console<'b, H: Hal> {
    channel: Channel<'b, H>,
    received: IrqMutex<H, Received>,
}

impl<'b, H: Hal> Console<'b, H> {
    /// Opens the console that `offer` names. Waits for the host.
    ///
    /// # Errors
    /// The channel cannot be opened.
    pub fn open(
        bus: &'b VmBus<'b, H>,
        offer: &Offer,
        options: &OpenOptions,
    ) -> Result<Self, Error> {
        Ok(Self {
            channel: Channel::open(bus, offer, options)?,
            received: IrqMutex::new(Received {
                packet: [0; MAX_PACKET],
                start: 0,
                end: 0,
            }),
        })
    }

    /// The channel.
    pub fn channel(&self) -> &Channel<'b, H> {
        &self.channel
    }

    /// Writes as many bytes as there is room for now, which may be none. Never waits; may be
    /// called in interrupt context.
    ///
    /// # Errors
    /// The channel has come to an end.
    pub fn try_write(&self, bytes: &[u8]) -> Result<usize, Error> {
        let mut written = 0usize;
        for part in bytes.chunks(MAX_DATA) {
            let header = PipeHeader::data(part.len() as u32);
            let packet = Outgoing::in_band(0, header.bytes(), false).with_tail(part);
            match self.channel.send(&packet) {
                Ok(()) => written = written.saturating_add(part.len()),
                Err(Error::Full) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }

    /// Writes all bytes. Waits for the host to make room.
    ///
    /// # Errors
    /// The channel has come to an end; [`Error::Timeout`] where there was no room in time. Some
    /// bytes may have been written.
    pub fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let deadline = self.channel.bus().deadline();
            let written = self.channel.wait(Waited::Room, deadline, || {
                let written = self.try_write(rest)?;
                Ok((written != 0).then_some(written))
            })?;
            rest = rest.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    /// Waits until the host has taken all that was written. Closing the console discards what it
    /// has not.
    ///
    /// # Errors
    /// The channel has come to an end; [`Error::Timeout`] where the host was not in time.
    pub fn flush(&self) -> Result<(), Error> {
        let deadline = self.channel.bus().deadline();
        let taken = || Ok(self.channel.all_taken()?.then_some(()));
        self.channel.wait(Waited::Room, deadline, taken)
    }

    /// Reads what has come, as far as it fits `buffer`; 0 where nothing has. Never waits; may be
    /// called in interrupt context.
    ///
    /// # Errors
    /// The channel has come to an end and all that came was read.
    pub fn try_read(&self, buffer: &mut [u8]) -> Result<usize, Error> {
        if buffer.is_empty() {
            return Ok(0);
        }
        self.received.with(|received| {
            for _ in 0..PACKETS_AT_ONCE {
                let length = received.take(buffer);
                if length != 0 {
                    return Ok(length);
                }
                if !self.receive(received)? {
                    self.channel.check()?;
                    return Ok(0);
                }
            }
            Ok(0)
        })
    }

    /// Reads at least one byte. Waits until one has come.
    ///
    /// # Errors
    /// The channel has come to an end; [`Error::Timeout`] where nothing came in time.
    pub fn read(&self, buffer: &mut [u8]) -> Result<usize, Error> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let deadline = self.channel.bus().deadline();
        self.channel.wait(Waited::Packet, deadline, || {
            let length = self.try_read(buffer)?;
            Ok((length != 0).then_some(length))
        })
    }

    /// Takes the next packet; says whether there was one.
    fn receive(&self, received: &mut Received) -> Result<bool, Error> {
        let Received { packet, start, end } = received;
        let base = packet.as_ptr().addr();
        let Some(next) = self.channel.receive(packet)? else {
            return Ok(false);
        };
        let bytes = match (next.kind, data(next.payload)) {
            (PacketKind::InBand, Ok(bytes)) => bytes,
            _ => {
                count(&self.channel.bus().counters.bad_packets);
                &[]
            }
        };
        // Where the data lies in our own buffer.
        *start = bytes.as_ptr().addr().saturating_sub(base);
        *end = start.saturating_add(bytes.len());
        Ok(true)
    }

    /// Whether a read would find something.
    fn can_read(&self) -> bool {
        self.received.with(|r| r.start < r.end) || self.channel.has_news()
    }
}

impl<H: Hal> fmt::Write for Console<'_, H> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write(text.as_bytes()).map_err(|_| fmt::Error)
    }
}

impl<H: Hal> fmt::Write for &Console<'_, H> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write(text.as_bytes()).map_err(|_| fmt::Error)
    }
}

impl embedded_io::Error for Error {
    fn kind(&self) -> embedded_io::ErrorKind {
        use embedded_io::ErrorKind as Kind;
        match self {
            Self::Timeout(_) => Kind::TimedOut,
            Self::Rescinded | Self::Closed => Kind::BrokenPipe,
            Self::NotConnected => Kind::NotConnected,
            Self::OutOfMemory => Kind::OutOfMemory,
            Self::Corrupt(_) | Self::Protocol(_) => Kind::InvalidData,
            _ => Kind::Other,
        }
    }
}

impl<H: Hal> embedded_io::ErrorType for Console<'_, H> {
    type Error = Error;
}

impl<H: Hal> embedded_io::Read for Console<'_, H> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        Console::read(self, buffer)
    }
}

impl<H: Hal> embedded_io::ReadReady for Console<'_, H> {
    fn read_ready(&mut self) -> Result<bool, Error> {
        Ok(self.can_read())
    }
}

impl<H: Hal> embedded_io::Write for Console<'_, H> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        Console::write(self, bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<(), Error> {
        Console::flush(self)
    }
}

impl<H: Hal> Drop for Console<'_, H> {
    fn drop(&mut self) {
        // Nobody is left to be told that the last words were lost.
        let _ = self.flush();
    }
}
