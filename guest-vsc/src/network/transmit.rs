//! Frames to the net.
//!
//! Every packet takes a section of the send buffer: for all of the frame where it is copied and not
//! too long for one, or for what goes before it where the host takes it out of a buffer: the caller's
//! own, or pages of ours that a long frame was copied to.
//!
//! Frames leave a part of the ring to the completions of received ones. A host that has no room for
//! answers may take nothing before it gets some.
//!
//! With several queues, all frames of a flow go over the same channel, whatever processor sends them;
//! where that has no room, they wait for it, as on another one they might overtake each other.

use vmbus_proto::PAGE_SIZE;
use vmbus_proto::gpa::GpaRangeWriter;
use vmbus_proto::netvsp::{Message, SendRndisPacket, rndis_channel};
use vmbus_proto::packet::Outgoing;
use vmbus_proto::rndis::packet::{MAX_PREFIX, PacketInfo, Prefix};

use super::places::{MAX_PAGES, Pages, Sent, Taker};
use super::queues::{HEADERS, Queue};
use super::receive::Until;
use super::{Buffer, Network, Token, count};
use crate::PAGE;
use crate::buffer::beginning;
use crate::error::Error;
use crate::hal::Hal;
use crate::shared::Dma;

/// One part in so many of the ring is left to completions.
const SPARED: u32 = 4;

/// Pages of ours for copies of frames that are too long for a section, for each place as many.
pub(super) struct Copies<H: Hal> {
    memory: Dma<H>,
    /// Pages of each.
    pages: usize,
}

impl<H: Hal> Copies<H> {
    /// For frames of `longest` bytes in `places` places; `None` where there is no memory.
    pub(super) fn new(longest: usize, places: usize) -> Option<Self> {
        let pages = longest.div_ceil(PAGE_SIZE);
        Some(Self {
            memory: Dma::new(pages.checked_mul(places)?)?,
            pages,
        })
    }

    /// The memory.
    pub(super) fn memory(&self) -> &Dma<H> {
        &self.memory
    }

    /// Most bytes of a copy.
    fn longest(&self) -> usize {
        self.pages.saturating_mul(PAGE_SIZE)
    }

    /// Copies a frame to the pages of a place and returns their frame numbers.
    fn put(&self, token: Token, frame: &[u8]) -> impl ExactSizeIterator<Item = u64> + use<H> {
        let first = usize::from(token.index).saturating_mul(self.pages);
        self.memory.write(first.saturating_mul(PAGE_SIZE), frame);
        let pfn = (self.memory.paddr() / PAGE).saturating_add(first as u64);
        (0..frame.len().div_ceil(PAGE_SIZE)).map(move |page| pfn.saturating_add(page as u64))
    }
}

impl<H: Hal, B: Buffer> Network<'_, H, B> {
    /// Whether there is a place for a packet. Never waits; may be called in interrupt context.
    pub fn can_send(&self) -> bool {
        if self.places.with(|places| places.has_free()) {
            return true;
        }
        // The end of a channel is told by `check`.
        let _ = self.pump(Until::HalfFull);
        self.places.with(|places| places.has_free())
    }

    /// Packets that are on their way, or done and not taken by [`poll_sent`](Self::poll_sent).
    pub fn in_flight(&self) -> usize {
        self.places.with(|places| places.busy())
    }

    /// Most bytes of a frame that [`try_send`](Self::try_send) takes: at least
    /// [`max_frame`](Self::max_frame).
    pub fn max_copied(&self) -> usize {
        let copied = self.copies.as_ref().map_or(0, Copies::longest);
        self.max_in_section().max(copied)
    }

    /// Most bytes of a frame that goes into a section.
    pub(super) fn max_in_section(&self) -> usize {
        self.section_size.saturating_sub(MAX_PREFIX)
    }

    /// Sends a frame, header first and without a checksum of its own at the end, by a copy. Never
    /// waits; may be called in interrupt context.
    ///
    /// # Errors
    /// [`Error::Full`] where too much is on its way, in all or on the channel of the frame's flow: an
    /// interrupt tells when that is over.
    /// Frames that came have to be taken meanwhile, as the host's word of it may be behind them.
    /// [`Error::TooLong`] where it is longer than [`max_copied`](Self::max_copied).
    pub fn try_send(&self, frame: &[u8]) -> Result<(), Error> {
        self.try_send_with(frame, &PacketInfo::default())
    }

    /// Sends a frame as [`try_send`](Self::try_send) does, with what `info` says: what the host is to
    /// do to it, of what it [can do](Self::offloads), and its tag. Checksums that the host is to
    /// complete hold the sum of the pseudo header.
    ///
    /// # Errors
    /// As for `try_send`.
    pub fn try_send_with(&self, frame: &[u8], info: &PacketInfo) -> Result<(), Error> {
        if frame.len() > self.max_copied() {
            return Err(Error::TooLong);
        }
        let queue = self.queue_of_flow(frame);
        let prefix = Prefix::new(frame.len() as u32, info, 0);
        let token = self.reserve()?;
        let at = self.section(token);
        let frame_at = at.saturating_add(prefix.bytes().len());
        self.send_buffer.write(at, prefix.bytes());
        let copies = self.copies.as_ref();
        match copies.filter(|_| frame.len() > self.max_in_section()) {
            Some(copies) => {
                let pfns = copies.put(token, frame);
                let message = self.message(token, prefix.bytes().len());
                let length = frame.len() as u32;
                let send = || self.send_pages(queue, token, pfns, 0, length, &message);
                self.places.with(|places| places.start(token, send))?;
            }
            None => {
                self.send_buffer.write(frame_at, frame);
                let length = prefix.bytes().len().saturating_add(frame.len());
                let message = self.message(token, length);
                let packet = Outgoing::in_band(token.transaction_id(), &message, true);
                let send = || queue.channel.send_sparing(SPARED, &packet);
                self.places.with(|places| places.start(token, send))?;
            }
        }
        count(&queue.state.sent, 1);
        Ok(())
    }

    /// Sends the frame in `buffer`, header first, without a copy: the host takes it from there, and
    /// [`poll_sent`](Self::poll_sent) gives the buffer back. Never waits; may be called in interrupt
    /// context.
    ///
    /// # Errors
    /// As for [`try_send`](Self::try_send), but that only frames of more than 64 KiB are too long;
    /// the buffer comes back.
    pub fn submit(&self, buffer: B, info: &PacketInfo) -> Result<Token, (Error, B)> {
        self.start_owned(buffer, info, Taker::Poll)
    }

    /// Takes a frame that was submitted and that the host is done with. Never waits.
    ///
    /// After the end of a channel ([`check`](Self::check)) nothing more comes until [`shutdown`](Self::shutdown) has taken the buffers back from the host.
    pub fn poll_sent(&self) -> Option<Sent<B>> {
        let sent = self.places.with(|places| places.take_done(Taker::Poll));
        if sent.is_some() {
            return sent;
        }
        // The end of a channel is told by `check`.
        let _ = self.pump(Until::HalfFull);
        self.places.with(|places| places.take_done(Taker::Poll))
    }

    /// Sends a frame out of `buffer`, which `taker` takes afterwards.
    pub(super) fn start_owned(
        &self,
        mut buffer: B,
        info: &PacketInfo,
        taker: Taker,
    ) -> Result<Token, (Error, B)> {
        let length = buffer.region().len();
        let Ok(length) = u32::try_from(length) else {
            return Err((Error::TooLong, buffer));
        };
        let queue = match self.queues() {
            1 => self.first_queue(),
            _ => self.queue_of_flow(beginning(&mut buffer, &mut [0; HEADERS])),
        };
        let token = match self.reserve() {
            Ok(token) => token,
            Err(error) => return Err((error, buffer)),
        };
        let prefix = Prefix::new(length, info, 0);
        self.send_buffer.write(self.section(token), prefix.bytes());
        let message = self.message(token, prefix.bytes().len());
        let send = |pages: &Pages| {
            let offset = pages.byte_offset();
            self.send_pages(queue, token, pages.pfns(), offset, length, &message)
        };
        self.places
            .with(|places| places.start_owned::<H>(token, taker, buffer, send))?;
        count(&queue.state.sent, 1);
        Ok(token)
    }

    /// Puts a packet into a queue's ring with the pages of a frame of `length` bytes, which begins at
    /// `offset` in the first one; each in a range of its own as all guests do.
    fn send_pages(
        &self,
        queue: Queue<'_, '_, H>,
        token: Token,
        pfns: impl ExactSizeIterator<Item = u64>,
        mut offset: u32,
        length: u32,
        message: &[u8],
    ) -> Result<(), Error> {
        let mut ranges = [0; 8 + 16 * MAX_PAGES];
        let writer = GpaRangeWriter::gpa_direct(&mut ranges, pfns.len() as u32);
        let mut writer = writer.ok_or(Error::TooLong)?;
        let mut left = length;
        for pfn in pfns {
            let here = left.min((PAGE as u32).saturating_sub(offset));
            writer.range(here, offset).ok_or(Error::TooLong)?;
            writer.pfn(pfn).ok_or(Error::TooLong)?;
            left = left.saturating_sub(here);
            offset = 0;
        }
        let packet = Outgoing::gpa_direct(token.transaction_id(), writer.finish(), message);
        queue.channel.send_sparing(SPARED, &packet)
    }

    /// A place, after a look for such as have become free.
    fn reserve(&self) -> Result<Token, Error> {
        let reserve = || self.places.with(|places| places.reserve());
        if let Some(token) = reserve() {
            return Ok(token);
        }
        self.check()?;
        self.pump(Until::HalfFull)?;
        reserve().ok_or(Error::Full)
    }

    /// Where the section of a place begins in the send buffer.
    fn section(&self, token: Token) -> usize {
        usize::from(token.index).saturating_mul(self.section_size)
    }

    /// The message about `length` bytes in the section of a place.
    fn message(&self, token: Token, length: usize) -> vmbus_proto::netvsp::Encoded {
        let message = SendRndisPacket {
            channel: rndis_channel::DATA.into(),
            section_index: u32::from(token.index).into(),
            section_size: (length as u32).into(),
        };
        Message::SendRndisPacket(message).encode(self.version)
    }
}
