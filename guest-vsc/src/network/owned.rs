//! Frames in buffers from the heap, in the shape of `virtio-drivers`' `VirtIONet`.

use alloc::vec::Vec;

use super::places::Taker;
use super::receive::Until;
use super::{Network, PacketInfo};
use crate::error::{Error, Waited};
use crate::hal::Hal;

/// Most buffers that are kept to be used again.
const SPARE: usize = 32;

/// Buffers to be used again.
pub(super) struct Spare([Option<Vec<u8>>; SPARE]);

impl Spare {
    pub(super) const fn new() -> Self {
        Self([const { None }; SPARE])
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        self.0.iter_mut().find_map(Option::take)
    }

    /// Keeps a buffer; gives it back where there are enough.
    fn put(&mut self, buffer: Vec<u8>) -> Option<Vec<u8>> {
        let Some(place) = self.0.iter_mut().find(|place| place.is_none()) else {
            return Some(buffer);
        };
        *place = Some(buffer);
        None
    }
}

/// A frame that was received.
#[derive(Debug)]
pub struct RxBuffer {
    buffer: Vec<u8>,
    received: super::Received,
}

impl RxBuffer {
    /// Its bytes, header first.
    pub fn packet(&self) -> &[u8] {
        self.buffer.get(..self.received.length).unwrap_or_default()
    }

    /// Its bytes, to be changed in place.
    pub fn packet_mut(&mut self) -> &mut [u8] {
        self.buffer
            .get_mut(..self.received.length)
            .unwrap_or_default()
    }

    /// How many they are.
    pub fn packet_len(&self) -> usize {
        self.received.length
    }

    /// What the host says of it.
    pub fn received(&self) -> super::Received {
        self.received
    }
}

/// A frame to send.
#[derive(Debug)]
pub struct TxBuffer(Vec<u8>);

impl TxBuffer {
    /// Its bytes, header first.
    pub fn packet(&self) -> &[u8] {
        &self.0
    }

    /// Its bytes, to be written.
    pub fn packet_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// How many they are.
    pub fn packet_len(&self) -> usize {
        self.0.len()
    }
}

impl<H: Hal> Network<'_, H, Vec<u8>> {
    /// Takes the next frame in a buffer of its own; `None` where there is none. Never waits, but
    /// allocates.
    ///
    /// # Errors
    /// A channel has come to an end.
    pub fn receive(&self) -> Result<Option<RxBuffer>, Error> {
        if !self.can_recv() {
            return self.check().map(|()| None);
        }
        let mut buffer = self.spare(self.max_frame());
        match self.try_receive(&mut buffer) {
            Ok(Some(received)) => Ok(Some(RxBuffer { buffer, received })),
            none => {
                self.recycle(buffer);
                none.map(|_| None)
            }
        }
    }

    /// Gives a buffer back to be used again. One that is dropped instead is freed.
    pub fn recycle_rx_buffer(&self, buffer: RxBuffer) {
        self.recycle(buffer.buffer);
    }

    /// A buffer of `length` bytes for a frame to send; what is in it is not said.
    pub fn new_tx_buffer(&self, length: usize) -> TxBuffer {
        let mut buffer = self.spare(length);
        buffer.truncate(length);
        TxBuffer(buffer)
    }

    /// Sends a frame: by a copy where it fits a section of the send buffer, else straight out of its
    /// buffer. Waits for a place, but not for the frame to be sent.
    ///
    /// # Errors
    /// A channel has come to an end; [`Error::Timeout`] where there was no place in time;
    /// [`Error::TooLong`] where it is longer than any frame.
    pub fn send(&self, buffer: TxBuffer) -> Result<(), Error> {
        self.send_with(buffer, &PacketInfo::default())
    }

    /// The same with what `info` says; see [`try_send_with`](Self::try_send_with).
    ///
    /// # Errors
    /// As for `send`.
    pub fn send_with(&self, buffer: TxBuffer, info: &PacketInfo) -> Result<(), Error> {
        let deadline = self.channel.bus().deadline();
        let mut frame = Some(buffer.0);
        self.every_channel().wait(Waited::Room, deadline, || {
            // Nothing else is taken meanwhile, and what makes room may be behind frames.
            if !self.can_send() {
                self.pump(Until::Empty)?;
            }
            self.recycle_sent();
            let Some(buffer) = frame.take() else {
                return Ok(Some(()));
            };
            let (result, buffer) = if buffer.len() <= self.max_in_section() {
                (self.try_send_with(&buffer, info), Some(buffer))
            } else {
                match self.start_owned(buffer, info, Taker::Driver) {
                    Ok(_) => (Ok(()), None),
                    Err((error, buffer)) => (Err(error), Some(buffer)),
                }
            };
            match result {
                Err(Error::Full) => {
                    frame = buffer;
                    // The host may make room in our ring only when it has some in its own.
                    self.pump(Until::Empty)?;
                    Ok(None)
                }
                result => {
                    buffer.into_iter().for_each(|buffer| self.recycle(buffer));
                    result.map(Some)
                }
            }
        })
    }

    /// Takes back the buffers of frames that the host is done with.
    fn recycle_sent(&self) {
        while let Some(sent) = self.places.with(|places| places.take_done(Taker::Driver)) {
            self.recycle(sent.buffer);
        }
    }

    /// A buffer of at least `length` bytes.
    fn spare(&self, length: usize) -> Vec<u8> {
        let mut buffer = self.spare.with(Spare::take).unwrap_or_default();
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        buffer
    }

    fn recycle(&self, buffer: Vec<u8>) {
        // One too many is freed when the lock is released.
        let _freed = self.spare.with(|spare| spare.put(buffer));
    }
}

impl<H: Hal, B: super::Buffer> Network<'_, H, B> {
    /// Drops the buffers of frames that were sent out of buffers of ours.
    pub(super) fn drop_sent(&self) {
        while let Some(sent) = self.places.with(|places| places.take_done(Taker::Driver)) {
            drop(sent);
        }
    }
}
