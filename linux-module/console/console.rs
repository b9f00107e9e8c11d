// SPDX-License-Identifier: GPL-2.0

//! The console: packets of a channel as a stream of bytes.

use kernel::{
    bindings,
    device::Bound,
    fs::File,
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    new_mutex,
    prelude::*,
    sync::{
        poll::PollTable,
        Arc,
        Mutex, //
    },
    time::{
        delay::fsleep,
        Delta, //
    }, //
};
use vmbus::{
    Access,
    Channel,
    Options,
    PACKET_OVERHEAD, //
};
use vmbus_proto::{
    console::{
        data,
        PipeHeader,
        MAX_DATA, //
    },
    packet::PacketKind, //
};

use crate::{
    char_device::{
        CharDevice,
        Mode, //
    },
    signals::Signals, //
};

/// Bytes of each ring.
const RING: u32 = 64 << 10;

/// Bytes of a packet's own header.
const HEADER: usize = size_of::<PipeHeader>();

/// Room that the largest packet takes, with its padding and the 8 bytes that stay free.
const LARGEST: usize = PACKET_OVERHEAD + HEADER + MAX_DATA + 8;

const OPTIONS: Options = Options {
    to_host: RING,
    to_guest: RING,
    max_packet: LARGEST as u32,
};

/// How long the last words may take to reach the host, in steps.
const LAST_WORDS: (u32, Delta) = (100, Delta::from_millis(10));

/// A console.
#[pin_data]
pub(crate) struct Console {
    channel: Channel<Signals>,
    #[pin]
    input: Mutex<Input>,
    /// What is being read.
    #[pin]
    piece: Mutex<KVec<u8>>,
    /// The packet that is being sent.
    #[pin]
    output: Mutex<KVec<u8>>,
}

/// From the host, not read yet: what is out of the ring already.
struct Input {
    bytes: KVVec<u8>,
    /// How many of them have been read.
    read: usize,
}

impl Console {
    /// The console over the channel of `dev`, which this opens.
    pub(crate) fn new(dev: &vmbus::Device<Bound>) -> Result<Arc<Self>> {
        let input = Input {
            bytes: KVVec::with_capacity(MAX_DATA, GFP_KERNEL)?,
            read: 0,
        };
        let piece = KVec::from_elem(0, MAX_DATA, GFP_KERNEL)?;
        let output = KVec::from_elem(0, HEADER + MAX_DATA, GFP_KERNEL)?;
        let channel = Channel::open(dev, &OPTIONS, Signals::new())?;
        Arc::pin_init(
            try_pin_init!(Self {
                channel,
                input <- new_mutex!(input),
                piece <- new_mutex!(piece),
                output <- new_mutex!(output),
            }),
            GFP_KERNEL,
        )
    }

    fn signals(&self) -> &Signals {
        self.channel.handler()
    }

    /// The device goes: whoever waits stops, and what the host has sent can be read still. The host
    /// gets what was written, if it is quick.
    pub(crate) fn hang_up(&self) {
        self.signals().end();
        let mut input = self.input.lock();
        if input.bytes.reserve(RING as usize, GFP_KERNEL).is_ok() {
            if let Some(access) = self.channel.access() {
                input.fill(&access, RING as usize);
            }
        }
        let (steps, step) = LAST_WORDS;
        for _ in 0..steps {
            let is_untaken = |access: Access<'_>| access.has_untaken() && !access.is_rescinded();
            if !self.channel.access().is_some_and(is_untaken) {
                break;
            }
            fsleep(step);
        }
    }

    /// Copies what there is to be read now, no more than a packet's data.
    fn take(&self, to: &mut IovIterDest<'_>) -> Result<usize> {
        // One reader at a time. The reader's memory may keep it waiting for as long as somebody likes, but
        // not who needs the input to let the device go.
        let mut piece = self.piece.lock();
        let length = {
            let mut input = self.input.lock();
            if input.unread().is_empty() {
                if let Some(access) = self.channel.access() {
                    input.fill(&access, 1);
                }
            }
            input.peek(&mut piece)
        };
        let copied = to.copy_to_iter(piece.get(..length).unwrap_or_default());
        if copied == 0 && length > 0 {
            return Err(EFAULT);
        }
        self.input.lock().read += copied;
        Ok(copied)
    }

    fn has_packets(&self) -> bool {
        let access = self.channel.access();
        access.is_some_and(|access| access.has_packets())
    }

    /// Sends one packet of what is to be written, if it has room: all that is left, or the largest.
    fn send(&self, from: &mut IovIterSource<'_>) -> Result<usize> {
        // One writer at a time, so that what has room now has room later.
        let mut packet = self.output.lock();
        let length = from.len().min(MAX_DATA);
        if !self.has_room(length)? {
            return Ok(0);
        }
        let packet = packet.get_mut(..HEADER + length).ok_or(EINVAL)?;
        let (header, bytes) = packet.split_at_mut(HEADER);
        header.copy_from_slice(PipeHeader::data(length as u32).bytes());
        if from.copy_from_iter(bytes) != length {
            return Err(EFAULT);
        }
        let access = self.channel.access().ok_or(EIO)?;
        access.send(packet, 0, false)?;
        Ok(length)
    }

    /// Whether a packet with `length` bytes of data has room; if not, the host is asked to say when
    /// the largest has.
    fn has_room(&self, length: usize) -> Result<bool> {
        let access = self.channel.access().ok_or(EIO)?;
        let needed = LARGEST - MAX_DATA + length;
        if access.room() > needed {
            return Ok(true);
        }
        access.want_room(LARGEST as u32);
        // The host may have made room just before it could see the wish. That stays even so: somebody else
        // may be waiting for it.
        Ok(access.room() > needed)
    }
}

impl Input {
    fn unread(&self) -> &[u8] {
        self.bytes.get(self.read..).unwrap_or_default()
    }

    /// Copies the beginning of what is unread to `piece`; returns how many bytes.
    fn peek(&self, piece: &mut [u8]) -> usize {
        let length = self.unread().len().min(piece.len());
        if let (Some(to), Some(from)) = (piece.get_mut(..length), self.unread().get(..length)) {
            to.copy_from_slice(from);
        }
        length
    }

    /// Takes packets until at least `wanted` bytes are unread, or the ring is empty. What is no data
    /// is left out.
    fn fill(&mut self, channel: &Access<'_>, wanted: usize) {
        if self.unread().is_empty() {
            self.bytes.clear();
            self.read = 0;
        }
        let Some(mut packets) = channel.packets() else {
            return;
        };
        while self.unread().len() < wanted {
            let Some(packet) = packets.read() else {
                return;
            };
            let bytes = match packet {
                Ok(packet) if matches!(packet.kind, PacketKind::InBand) => {
                    data(packet.payload).unwrap_or_default()
                }
                _ => &[],
            };
            // There is room: a packet's was made when the console was, a ring's in `hang_up`.
            if self.bytes.extend_from_slice(bytes, GFP_ATOMIC).is_err() {
                return;
            }
        }
    }
}

impl CharDevice for Console {
    fn open(&self, mode: Mode) -> Result {
        self.signals().enter(mode.read, mode.write)
    }

    fn release(&self, mode: Mode) {
        self.signals().leave(mode.read, mode.write);
    }

    fn read(&self, to: &mut IovIterDest<'_>, may_wait: bool) -> Result<usize> {
        while !to.is_empty() {
            let seen = self.signals().count();
            let gone = self.signals().is_gone();
            let copied = self.take(to)?;
            if copied > 0 || gone {
                return Ok(copied);
            }
            if !may_wait {
                return Err(EAGAIN);
            }
            if self.has_packets() {
                // All there was until now was no data, and the host does not signal what it puts into a
                // ring that has something in it.
                self.signals().pause()?;
            } else {
                self.signals().wait(seen)?;
            }
        }
        Ok(0)
    }

    fn write(&self, from: &mut IovIterSource<'_>, may_wait: bool) -> Result<usize> {
        let mut written = 0;
        while !from.is_empty() {
            let seen = self.signals().count();
            let stopped = if self.signals().is_gone() {
                Err(EIO)
            } else {
                match self.send(from) {
                    Ok(0) if may_wait => self.signals().wait(seen),
                    Ok(0) => Err(EAGAIN),
                    sent => sent.map(|sent| written += sent),
                }
            };
            match stopped {
                Ok(()) => {}
                Err(_) if written > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }

    fn poll(&self, file: &File, table: &PollTable<'_>) -> u32 {
        table.register_wait(file, self.signals().changed());
        let mut ready = 0;
        let gone = self.signals().is_gone();
        let unread = !self.input.lock().unread().is_empty();
        if gone || unread || self.has_packets() {
            ready |= bindings::POLLIN | bindings::POLLRDNORM;
        }
        if gone {
            ready |= bindings::POLLHUP;
        } else if self.has_room(MAX_DATA).unwrap_or(false) {
            ready |= bindings::POLLOUT | bindings::POLLWRNORM;
        }
        ready
    }
}
