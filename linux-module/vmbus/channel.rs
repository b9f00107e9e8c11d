// SPDX-License-Identifier: GPL-2.0

//! Channels: two rings that this side and the host share, and a signal each way.

use kernel::{
    device,
    devres::Devres,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        rcu,
        Arc, //
    }, //
};
use vmbus_proto::{
    gpa::{
        GpaRangeHeader,
        GpaRangeWriter, //
    },
    packet::{
        Descriptor,
        Packet,
        DESCRIPTOR_SIZE, //
    },
};

use crate::{
    ffi::{
        Claim,
        Opened,
        Port, //
    },
    sub_channels::SubChannels,
    Device, //
};

/// Bytes that a packet takes in a ring beside its payload and memory list: descriptor and trailer.
pub const PACKET_OVERHEAD: usize = DESCRIPTOR_SIZE + 8;

/// When the host's signals reach the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callback {
    /// The handler takes all packets each time. While it is at it, the host does not signal; it is
    /// called again as long as there are packets.
    Batched,
    /// The handler is told of each signal and may leave packets in the ring for somebody who reads
    /// them later. A ring that fills up is the flow control.
    Direct,
}

/// Who is told of a channel's signals.
pub trait Handler: Send + Sync + 'static {
    /// When it is called.
    const CALLBACK: Callback;

    /// The host has signalled: there are packets, or there is room again for one that had to wait
    /// ([`Access::want_room`]). Called from the time the channel opens until it has closed, never twice
    /// at once, in a context that must not sleep.
    fn signalled(&self, channel: &Access<'_>);
}

/// How a channel is opened.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes of the ring to the host, a multiple of the page size. One page of it is the header.
    pub to_host: u32,
    /// Bytes of the ring to the guest.
    pub to_guest: u32,
    /// Bytes of the largest packet that the host may send, with its descriptor; of a larger one
    /// only the beginning arrives, and what was sent after it may be lost.
    pub max_packet: u32,
}

impl Options {
    /// Whether a channel can be opened so; the kernel does not look at all of it.
    pub(crate) fn check(&self) -> Result {
        let page = PAGE_SIZE as u32;
        let is_ring = |bytes: u32| bytes % page == 0 && bytes >= 2 * page;
        let is_sound = is_ring(self.to_host)
            && is_ring(self.to_guest)
            && self.to_host.checked_add(self.to_guest).is_some()
            && (DESCRIPTOR_SIZE as u32..=self.to_guest - page).contains(&self.max_packet);
        is_sound.then_some(()).ok_or(EINVAL)
    }
}

/// A device's channel, open until the driver loses the device or the last clone is dropped, of the
/// device's other channels too.
pub struct Channel<H: Handler> {
    /// The device's first channel, with which all of them close.
    opened: Arc<Devres<Opened<H>>>,
    end: Arc<End<H>>,
}

/// This side's end of a channel: what the kernel's callback is given.
#[pin_data]
pub(crate) struct End<H: Handler> {
    pub(crate) port: Port,
    #[pin]
    sub_channels: SubChannels<H>,
    #[pin]
    handler: H,
}

impl<H: Handler> Channel<H> {
    /// Opens the channel of `dev`. `handler` may be called before this returns.
    ///
    /// May sleep.
    ///
    /// # Errors
    /// `EINVAL` for a ring that is not whole pages, two at least, and for a largest packet that is smaller
    /// than a descriptor or has no room in its ring; `EBUSY` where the channel has been opened already,
    /// `ENODEV` where the host has taken the device back, `EAGAIN` where the host has refused,
    /// `ENOMEM`.
    pub fn open(
        dev: &Device<device::Bound>,
        options: &Options,
        handler: impl PinInit<H, Error>,
    ) -> Result<Self> {
        options.check()?;
        let end = Arc::pin_init(
            End::new(Port::of(dev)?, handler),
            GFP_KERNEL, //
        )?;
        // With the device goes the channel, whoever holds it still.
        let opened = Devres::new(dev.as_ref(), Opened::new(end.clone(), options))?;
        let opened = Arc::new(opened, GFP_KERNEL)?;
        Ok(Self { opened, end })
    }

    /// The sub-channel with that end, of this device.
    pub(crate) fn sub_channel(&self, end: Arc<End<H>>) -> Self {
        Self {
            opened: self.opened.clone(),
            end,
        }
    }

    pub(crate) fn end(&self) -> &End<H> {
        &self.end
    }

    /// The handler.
    pub fn handler(&self) -> &H {
        &self.end.handler
    }

    /// The channel while it is open; nothing as soon as the driver has lost the device. Who holds the
    /// result must not sleep.
    pub fn access(&self) -> Option<Access<'_>> {
        let guard = rcu::read_lock();
        self.opened.try_access_with_guard(&guard)?;
        Some(Access {
            port: &self.end.port,
            _rcu: Some(guard),
        })
    }
}

impl<H: Handler> Clone for Channel<H> {
    fn clone(&self) -> Self {
        Self {
            opened: self.opened.clone(),
            end: self.end.clone(),
        }
    }
}

impl<H: Handler> End<H> {
    pub(crate) fn new(port: Port, handler: impl PinInit<H, Error>) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            port,
            sub_channels <- SubChannels::new(),
            handler <- handler,
        })
    }

    pub(crate) fn sub_channels(&self) -> &SubChannels<H> {
        &self.sub_channels
    }

    /// What the kernel's callback does. The channel does not close meanwhile: that waits for callbacks.
    pub(crate) fn signalled(&self) {
        let access = Access {
            port: &self.port,
            _rcu: None,
        };
        self.handler.signalled(&access);
    }
}

/// An open channel, which does not close as long as this is held. Nobody may sleep so long.
///
/// # Invariants
/// Either `_rcu` holds off the end of the channel, which waits for all RCU readers, or this is part of a
/// callback, for which the end of the channel waits, too.
pub struct Access<'a> {
    port: &'a Port,
    _rcu: Option<rcu::Guard>,
}

impl Access<'_> {
    /// Sends a packet with nothing but `payload`; `completion` asks the host for an answer with the
    /// same `transaction_id`.
    ///
    /// # Errors
    /// `EAGAIN` where the ring has no room, `ENODEV` where the host has taken the device back,
    /// `EMSGSIZE` for a payload that no packet can carry.
    pub fn send(&self, payload: &[u8], transaction_id: u64, completion: bool) -> Result {
        self.port.send(payload, transaction_id, completion)
    }

    /// Sends a packet with `payload` that gives the host the use of guest memory until it answers.
    ///
    /// # Errors
    /// Those of [`Self::send`]; the host has not got the memory then.
    ///
    /// # Safety
    /// The host may read and write all of `memory` until it has sent the completion with
    /// `transaction_id`, or the channel has closed: nobody may use that memory for anything else, nor
    /// may there be a Rust reference to it.
    pub unsafe fn send_gpa_direct(
        &self,
        memory: &mut GpaDirect<'_>,
        payload: &[u8],
        transaction_id: u64,
    ) -> Result {
        // SAFETY: The caller's promise.
        unsafe {
            self.port
                .send_gpa_direct(memory.packet, payload, transaction_id)
        }
    }

    /// Has the kernel tell the channel's end of sub-channels that are offered from now on.
    pub(crate) fn take_sub_channels<H: Handler>(&self) {
        Opened::<H>::take_sub_channels(self.port);
    }

    /// Bytes for which the ring to the host has room. A packet takes [`PACKET_OVERHEAD`] more than its
    /// payload and its memory list, rounded up to 8, and must stay below.
    pub fn room(&self) -> usize {
        self.port.room()
    }

    /// Asks the host to signal when the ring to it has room for more than `bytes`; 0 takes that back.
    /// Whoever asks has to look for room once more before waiting for the signal.
    pub fn want_room(&self, bytes: u32) {
        self.port.want_room(bytes);
    }

    /// Whether there is something in the ring to the host that it has not taken yet.
    pub fn has_untaken(&self) -> bool {
        self.port.has_untaken()
    }

    /// Whether there is something to read.
    pub fn has_packets(&self) -> bool {
        self.port.has_packets()
    }

    /// Whether the host has taken the device back: nobody reads the ring to it any more.
    pub fn is_rescinded(&self) -> bool {
        self.port.is_rescinded()
    }

    /// The packets in the ring, for one reader at a time; nothing while there is another one.
    pub fn packets(&self) -> Option<Packets<'_>> {
        self.port.claim().map(|claim| Packets { claim })
    }
}

/// The packets in the ring to the guest. What was looked at is out of the ring when this is dropped.
pub struct Packets<'a> {
    claim: Claim<'a>,
}

impl Packets<'_> {
    /// The next packet, a copy that the host cannot change any more; an error for bytes that are no
    /// packet, which are skipped.
    pub fn read(&mut self) -> Option<Result<Packet<'_>>> {
        let bytes = self.claim.next_packet()?;
        let packet = Descriptor::read_from_prefix(bytes)
            .map_err(|_| EPROTO)
            .and_then(|(descriptor, body)| Packet::parse(&descriptor, body).map_err(|_| EPROTO));
        Some(packet)
    }
}

/// One range of guest memory, and the beginning of the packet that gives its use to the host.
pub struct GpaDirect<'a> {
    /// Room for the packet's descriptor, then the list.
    packet: &'a mut [u8],
}

impl<'a> GpaDirect<'a> {
    /// Bytes of a buffer for a range that touches `pages` pages.
    pub const fn buffer_len(pages: usize) -> usize {
        // Descriptor, number of ranges, the range's length and offset.
        DESCRIPTOR_SIZE + 8 + 8 + pages * 8
    }

    /// Lists `byte_count` bytes that begin `byte_offset` bytes into the first page of `pfns`, in
    /// `buffer`. A page's frame number is its physical address divided by 4096, whatever size pages
    /// have here.
    ///
    /// # Errors
    /// `EINVAL` where `pfns` are more or less pages than the range touches, or more than `buffer` has
    /// room for.
    pub fn new(
        buffer: &'a mut [u8],
        byte_count: u32,
        byte_offset: u32,
        pfns: impl Iterator<Item = u64>,
    ) -> Result<Self> {
        let header = GpaRangeHeader {
            byte_count: byte_count.into(),
            byte_offset: byte_offset.into(),
        };
        let pages = header.page_count().ok_or(EINVAL)?;
        let list = buffer.get_mut(DESCRIPTOR_SIZE..).ok_or(EINVAL)?;
        let mut writer = GpaRangeWriter::gpa_direct(list, 1).ok_or(EINVAL)?;
        writer.range(byte_count, byte_offset).ok_or(EINVAL)?;
        let mut listed = 0;
        for pfn in pfns {
            writer.pfn(pfn).ok_or(EINVAL)?;
            listed += 1;
        }
        if listed != pages {
            return Err(EINVAL);
        }
        let length = DESCRIPTOR_SIZE + writer.finish().len();
        let packet = buffer.get_mut(..length).ok_or(EINVAL)?;
        Ok(Self { packet })
    }
}
