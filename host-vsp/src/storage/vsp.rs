//! The controller: packets to SCSI requests, results to answers.
//!
//! Every request is answered exactly once, with its own transaction id, by COMPLETE_IO. The ids
//! are the guest's: they are kept with their request and never looked up, so that an id used twice
//! at a time gets two answers.
//!
//! A request is taken from the ring only while the number of those in flight is below
//! [`MAX_IN_FLIGHT`], and only when no answer waits for room: a guest that takes no answers stops
//! itself.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::io;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vmbus_proto::guid::Guid;
use vmbus_proto::message::OfferChannel;
use vmbus_proto::packet::Outgoing;
use vmbus_proto::ring::SendError;
use vmbus_proto::storvsp::SCSI_CLASS;

use super::backend::{Backend, Format, OpenError, Qcow2File, RawFile, ServedFile};
use super::conversation::{Conversation, Request};
use super::engine::{Engine, Finished, Job};
use super::handle::{ControllerHandle, Shared};
use super::incoming::Incoming;
use super::scsi::{Outcome, Step, Transfer};
use crate::vmbus::channel::{Channel, ChannelError};
use crate::vsp::{StateError, Vsp, plain_offer};

/// Most requests of a controller that are in flight.
pub const MAX_IN_FLIGHT: usize = 256;

/// Disks on a controller: LUNs 0 to 63.
pub const MAX_LUNS: u8 = 64;

/// Packets taken before the worker gets a chance to raise the interrupt for their answers.
const BATCH: usize = 64;

/// The longest packet a descriptor can describe, so that none is too long to be refused.
const LONGEST_PACKET: usize = u16::MAX as usize * 8;

/// A disk to attach to a controller.
pub struct Disk {
    pub(super) backend: Arc<dyn Backend>,
}

impl Disk {
    /// A disk whose blocks are in the image at `path`, which is opened and locked; where it stands
    /// on others, these are only opened with `backing_files`.
    ///
    /// # Errors
    /// Why not; the image is untouched.
    pub fn open(
        path: &Path,
        format: Format,
        read_only: bool,
        backing_files: bool,
    ) -> Result<Self, OpenError> {
        Ok(match format {
            Format::Raw => RawFile::open(path, read_only)?.into(),
            Format::Qcow2 => Qcow2File::open(path, read_only, backing_files)?.into(),
            Format::Vhd | Format::Vhdx => ServedFile::open(path, format, read_only)?.into(),
        })
    }

    /// A disk whose blocks are in `backend`.
    pub fn new(backend: impl Backend + 'static) -> Self {
        Self {
            backend: Arc::new(backend),
        }
    }
}

impl<B: Backend + 'static> From<B> for Disk {
    fn from(backend: B) -> Self {
        Self::new(backend)
    }
}

/// Why a disk was not attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// There is no such LUN.
    #[error("a controller has no LUN {0}: use one from 0 to 63")]
    NoSuchLun(u8),
    /// The LUN has a disk.
    #[error("LUN {0} already has a disk, or a guest still believes so: use another one")]
    InUse(u8),
}

/// A SCSI controller with its disks.
pub struct Controller {
    shared: Arc<Shared>,
    engine: Engine<(Request, Transfer)>,
    /// Where packets are copied to.
    packet: Vec<u8>,
    conversation: Conversation,
}

/// A controller's state as bytes.
#[derive(Serialize, Deserialize)]
struct Saved {
    conversation: Vec<u8>,
    /// What the guest has not been told of its disks.
    news: (Vec<u8>, Vec<u8>),
}

impl Controller {
    /// A controller without disks. `instance` names it, to the guest and in the names of its
    /// disks: the same one at each boot.
    ///
    /// # Errors
    /// The system has no threads or eventfd for it.
    pub fn new(instance: Guid) -> io::Result<Self> {
        let engine = Engine::new()?;
        Ok(Self {
            shared: Arc::new(Shared::new(instance, engine.waker()?)),
            engine,
            packet: vec![0; LONGEST_PACKET],
            conversation: Conversation::default(),
        })
    }

    /// Puts a disk at `lun`.
    ///
    /// # Errors
    /// There is no such LUN, or it is not free.
    pub fn attach(&mut self, lun: u8, disk: impl Into<Disk>) -> Result<(), AttachError> {
        self.disks().attach(lun, disk)
    }

    /// The controller's disks, to be changed while it serves a guest.
    pub fn disks(&self) -> ControllerHandle {
        ControllerHandle(Arc::clone(&self.shared))
    }

    /// Turns results into answers; says how many requests are still in flight.
    fn collect(&mut self) -> usize {
        let (finished, in_flight) = self.engine.take_finished();
        for Finished { request, outcome } in finished {
            let (request, transfer) = request;
            if let Err(error) = &outcome {
                let lun = request.packet.srb().lun;
                let transaction_id = request.transaction_id;
                tracing::warn!(transaction_id, lun, %error, "a disk's transfer failed");
            }
            self.finish(request, transfer.outcome(&outcome));
        }
        if in_flight == 0 {
            self.conversation.idle();
        }
        in_flight
    }

    fn finish(&mut self, request: Request, outcome: Outcome) {
        let answer = request.finish(outcome);
        self.conversation.answers.push_back(answer);
    }

    fn handle(&mut self, incoming: Incoming) {
        let Incoming { request, buffer } = incoming;
        let Some(request) = self.conversation.handle(request) else {
            return;
        };
        let srb = request.packet.srb();
        let step = match buffer {
            Ok(buffer) => self.shared.target().start(&srb, buffer),
            Err(outcome) => Step::Done(outcome),
        };
        match step {
            Step::Done(outcome) => self.finish(request, outcome),
            Step::Transfer {
                backend,
                io,
                transfer,
            } => match io.run_if_ready(&*backend) {
                Some(result) => self.finish(request, transfer.outcome(&result)),
                None => self.engine.submit(Job {
                    request: (request, transfer),
                    backend,
                    io,
                }),
            },
        }
    }

    /// Sends what can be sent; says whether that was all.
    fn send_answers(&mut self, channel: &mut Channel) -> Result<bool, ChannelError> {
        while let Some(answer) = self.conversation.answers.front() {
            let transaction_id = answer.transaction_id;
            match channel.send(&Outgoing::completion(transaction_id, answer.payload())) {
                Ok(()) => {
                    tracing::trace!(transaction_id, "storvsp request answered");
                    self.conversation.answers.pop_front();
                }
                Err(SendError::Full) => return Ok(false),
                Err(SendError::TooLong) => {
                    return Err(ChannelError::Protocol(
                        "the ring is too small for an answer",
                    ));
                }
                Err(SendError::Corrupt(corrupt)) => return Err(corrupt.into()),
            }
        }
        if let Some(news) = self.conversation.news() {
            // Transaction id 0: the guest asked nothing, and does not answer.
            match channel.send(&Outgoing::in_band(0, &news, false)) {
                Ok(()) => self.conversation.news_sent(),
                Err(SendError::Full) => return Ok(false),
                Err(SendError::TooLong) => {
                    return Err(ChannelError::Protocol("the ring is too small for a packet"));
                }
                Err(SendError::Corrupt(corrupt)) => return Err(corrupt.into()),
            }
        }
        Ok(true)
    }
}

impl Drop for Controller {
    /// What guests wrote and did not flush survives the end of the machine, also where the host
    /// fails after it.
    fn drop(&mut self) {
        self.engine.wait_idle();
        self.shared.target().flush_all();
    }
}

impl Vsp for Controller {
    fn offer(&self) -> OfferChannel {
        plain_offer(SCSI_CLASS, self.shared.instance())
    }

    fn opened(&mut self) {
        self.engine.wait_idle();
        drop(self.engine.take_finished());
        self.conversation = Conversation::default();
        self.shared.forget();
    }

    fn service(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        self.engine.clear_event();
        if self.shared.take_changed() {
            self.conversation.disks_changed();
        }
        let memory = Arc::clone(channel.memory());
        for _ in 0..BATCH {
            let in_flight = self.collect();
            if !self.send_answers(channel)? {
                // The guest signals when there is room.
                return Ok(());
            }
            if in_flight >= MAX_IN_FLIGHT || self.conversation.is_resetting() {
                // The next result sets the event.
                return Ok(());
            }
            let Some(packet) = channel.receive(&mut self.packet)? else {
                return Ok(());
            };
            tracing::trace!(
                transaction_id = packet.transaction_id,
                "storvsp request taken"
            );
            if let Some(incoming) = Incoming::new(&memory, &packet) {
                self.handle(incoming);
            }
        }
        self.collect();
        if self.send_answers(channel)? {
            // There may be more packets: come back when the guest has been told of these.
            self.engine.set_event();
        }
        Ok(())
    }

    fn event(&self) -> Option<RawFd> {
        Some(self.engine.event())
    }

    fn quiesce(&mut self) {
        self.engine.wait_idle();
        self.collect();
        // Part of the state, from here on.
        if self.shared.take_changed() {
            self.conversation.disks_changed();
        }
    }

    fn save(&self) -> Vec<u8> {
        let saved = Saved {
            conversation: self.conversation.save(),
            news: self.shared.target().news(),
        };
        // Numbers and bytes cannot fail to serialize into memory.
        postcard::to_stdvec(&saved).unwrap_or_default()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let bad = |reason| StateError {
            device: "the storage controller",
            reason,
        };
        let saved: Saved = postcard::from_bytes(state).map_err(|error| bad(error.to_string()))?;
        let conversation = Conversation::load(&saved.conversation).map_err(bad)?;
        self.opened();
        self.conversation = conversation;
        self.shared.target().restore_news(saved.news);
        Ok(())
    }
}
