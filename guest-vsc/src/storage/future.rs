//! Requests as futures.
//!
//! A [`Request`] owns its buffer until it is sent, then the table does, so a future may be dropped
//! at any time: the buffer comes back when the host is done with it ([`Storage::reclaim`]). A
//! future knows no executor; it is woken by whoever takes the host's completions, which is any
//! caller of the disk's methods, above all [`Storage::handle_interrupt`].

use core::borrow::Borrow;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use vmbus_proto::scsi::Cdb;
use vmbus_proto::storvsp::{DATA_NONE, Srb, VstorPacket};

use super::error::outcome;
use super::request::{Finished, Taker};
use super::{Controller, Storage, StorageError, Token};
use crate::buffer::Buffer;
use crate::error::Error;
use crate::hal::{BufferDirection, Hal};

/// A request as a future. It is sent when it is polled first.
///
/// It ends with its buffer, and where it failed with the reason. Without the buffer only where
/// the host has kept that beyond the end of the channel.
#[must_use = "a request does nothing unless it is polled"]
pub struct Request<'d, 'b, H: Hal, B: Buffer, P = B> {
    controller: &'d Controller<'b, H, B>,
    lun: u8,
    stage: Stage<B>,
    /// What of the buffer the future ends with: the buffer, or nothing of a request without one.
    payload: core::marker::PhantomData<fn() -> P>,
}

enum Stage<B> {
    /// Not sent yet; or why it never will be.
    Start(Result<VstorPacket, StorageError>, Payload<B>),
    Sent(Token),
    Over,
}

/// What a request moves.
enum Payload<B> {
    Nothing,
    Buffer(B, BufferDirection),
}

// Nothing in it refers to itself: the host is told of the buffer's bytes, which do not move.
impl<H: Hal, B: Buffer, P> Unpin for Request<'_, '_, H, B, P> {}

impl<'b, H: Hal, B: Buffer, C: Borrow<Controller<'b, H, B>>> Storage<'b, H, B, C> {
    /// Reads whole blocks from `sector` (of 512 bytes) on, as many as `buffer` holds.
    pub fn read_async(&self, sector: u64, buffer: B) -> Request<'_, 'b, H, B> {
        self.request(sector, buffer, BufferDirection::DeviceToDriver)
    }

    /// Writes whole blocks from `sector` (of 512 bytes) on, as many as `buffer` holds.
    pub fn write_async(&self, sector: u64, buffer: B) -> Request<'_, 'b, H, B> {
        self.request(sector, buffer, BufferDirection::DriverToDevice)
    }

    /// Makes all writes that have completed durable.
    pub fn flush_async(&self) -> Request<'_, 'b, H, B, ()> {
        let cdb = Cdb::SynchronizeCache { lba: 0, blocks: 0 };
        let srb = Srb::request(self.lun, cdb.to_bytes().as_slice(), DATA_NONE, 0);
        let packet = Ok(VstorPacket::execute_srb(&srb));
        Request::new(self.controller(), self.lun, packet, Payload::Nothing)
    }

    fn request(
        &self,
        sector: u64,
        mut buffer: B,
        direction: BufferDirection,
    ) -> Request<'_, 'b, H, B> {
        let packet = self.transfer(sector, buffer.region().len(), direction);
        let payload = Payload::Buffer(buffer, direction);
        Request::new(self.controller(), self.lun, packet, payload)
    }
}

impl<H: Hal, B: Buffer> Controller<'_, H, B> {
    /// Sends a request of a future; where there is no room, gives it back.
    fn start(
        &self,
        packet: &VstorPacket,
        lun: u8,
        payload: Payload<B>,
    ) -> Result<Token, (Error, Payload<B>)> {
        match payload {
            Payload::Nothing => {
                let send = |token, mapping: &_| self.send(packet, token, mapping);
                let started = self.table.with(|table| table.start(Taker::Future, send));
                started.map_err(|error| (error, Payload::Nothing))
            }
            Payload::Buffer(buffer, direction) => self
                .start_owned(Taker::Future, packet, lun, buffer, direction)
                .map_err(|(error, buffer)| (error, Payload::Buffer(buffer, direction))),
        }
    }
}

impl<'d, 'b, H: Hal, B: Buffer, P> Request<'d, 'b, H, B, P> {
    fn new(
        controller: &'d Controller<'b, H, B>,
        lun: u8,
        packet: Result<VstorPacket, StorageError>,
        payload: Payload<B>,
    ) -> Self {
        Self {
            controller,
            lun,
            stage: Stage::Start(packet, payload),
            payload: core::marker::PhantomData,
        }
    }

    /// Sends the request, if it can be; an outcome where it never will be.
    fn poll_start(
        &mut self,
        packet: VstorPacket,
        payload: Payload<B>,
        waker: &Waker,
    ) -> Option<Outcome<B>> {
        let controller = self.controller;
        // Task context: what dropped futures have left behind can go.
        while controller.reclaim().is_some() {}
        let payload = match controller.start(&packet, self.lun, payload) {
            Ok(token) => {
                self.stage = Stage::Sent(token);
                return None;
            }
            Err((Error::Full, payload)) => payload,
            Err((error, payload)) => return Some((Err(error.into()), payload.into_buffer())),
        };
        // Where the host has kept what is in flight, there never will be room.
        if let Err(ended) = controller.check() {
            return Some((Err(ended.into()), payload.into_buffer()));
        }
        if !controller.table.with(|table| table.wait_for_room(waker)) {
            waker.wake_by_ref();
        }
        // Room that came before anybody could tell us has to be seen now.
        let _ = controller.drain();
        match controller.start(&packet, self.lun, payload) {
            Ok(token) => self.stage = Stage::Sent(token),
            Err((Error::Full, payload)) => self.stage = Stage::Start(Ok(packet), payload),
            Err((error, payload)) => return Some((Err(error.into()), payload.into_buffer())),
        }
        None
    }

    /// Takes the request where it is done.
    fn poll_sent(&self, token: Token, waker: &Waker) -> Option<Outcome<B>> {
        let controller = self.controller;
        // The end of the channel is told by `Channel::check`.
        let _ = controller.drain();
        let (finished, before) = controller
            .table
            .with(|table| table.take_or_wait(token, waker));
        drop(before);
        if let Some(finished) = finished {
            return Some(over(controller, finished));
        }
        let ended = controller.check().err()?;
        // The buffer is to come back, so the host has to let go of it: closing makes it say so.
        let _ = controller.shutdown();
        let (finished, waker) = controller.table.with(|table| table.orphan(token));
        drop(waker);
        Some(match finished {
            Some(finished) => over(controller, finished),
            None => (Err(ended.into()), None),
        })
    }
}

/// What became of a request, and its buffer.
type Outcome<B> = (Result<(), StorageError>, Option<B>);

fn over<H: Hal, B: Buffer>(controller: &Controller<'_, H, B>, finished: Finished<B>) -> Outcome<B> {
    controller.wake_for_room();
    let length = finished.length;
    let result = finished.answer.map_err(StorageError::from);
    let result = result.and_then(|answer| match outcome(&answer, length)? {
        moved if moved == length => Ok(()),
        moved => Err(StorageError::Short(moved)),
    });
    (result, finished.owned)
}

impl<B> Payload<B> {
    fn into_buffer(self) -> Option<B> {
        match self {
            Self::Nothing => None,
            Self::Buffer(buffer, _) => Some(buffer),
        }
    }
}

impl<H: Hal, B: Buffer, P> Request<'_, '_, H, B, P> {
    fn poll_outcome(&mut self, waker: &Waker) -> Poll<Outcome<B>> {
        loop {
            let outcome = match core::mem::replace(&mut self.stage, Stage::Over) {
                Stage::Start(Err(error), payload) => Some((Err(error), payload.into_buffer())),
                Stage::Start(Ok(packet), payload) => {
                    match self.poll_start(packet, payload, waker) {
                        None if matches!(self.stage, Stage::Sent(_)) => continue,
                        outcome => outcome,
                    }
                }
                Stage::Sent(token) => match self.poll_sent(token, waker) {
                    None => {
                        self.stage = Stage::Sent(token);
                        None
                    }
                    outcome => outcome,
                },
                Stage::Over => Some((Err(Error::Closed.into()), None)),
            };
            return outcome.map_or(Poll::Pending, Poll::Ready);
        }
    }
}

impl<H: Hal, B: Buffer> Future for Request<'_, '_, H, B> {
    type Output = Result<B, (StorageError, Option<B>)>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.get_mut()
            .poll_outcome(context.waker())
            .map(|outcome| match outcome {
                (Ok(()), Some(buffer)) => Ok(buffer),
                (Ok(()), None) => Err((Error::Closed.into(), None)),
                (Err(error), buffer) => Err((error, buffer)),
            })
    }
}

impl<H: Hal, B: Buffer> Future for Request<'_, '_, H, B, ()> {
    type Output = Result<(), StorageError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = self.get_mut().poll_outcome(context.waker());
        outcome.map(|(result, _)| result)
    }
}

impl<H: Hal, B: Buffer, P> Drop for Request<'_, '_, H, B, P> {
    fn drop(&mut self) {
        if let Stage::Sent(token) = self.stage {
            let (finished, waker) = self.controller.table.with(|table| table.orphan(token));
            drop(waker);
            if finished.is_some() {
                self.controller.wake_for_room();
            }
        }
    }
}
