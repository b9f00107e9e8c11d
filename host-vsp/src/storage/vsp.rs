//! The storvsp conversation: from packets to SCSI requests, and from results to answers.
//!
//! Every request is answered exactly once, with its own transaction id, by COMPLETE_IO. The ids
//! are the guest's: they are kept with their request and never looked up, so that an id used twice
//! at a time gets two answers.
//!
//! A request is taken from the ring only while the number of those in flight, finished and
//! unanswered included, is below [`MAX_IN_FLIGHT`], and only when no answer waits for room: a
//! guest that takes no answers stops itself.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vmbus_proto::guid::Guid;
use vmbus_proto::message::OfferChannel;
use vmbus_proto::packet::{Outgoing, Packet, PacketKind};
use vmbus_proto::ring::SendError;
use vmbus_proto::scsi::Sense;
use vmbus_proto::storvsp::{
    ChannelProperties, Operation, PACKET_SIZE, PACKET_SIZE_BEFORE_5_1, ProtocolVersion, SCSI_CLASS,
    VstorPacket, status,
};
use zerocopy::FromZeros as _;

use super::backend::Backend;
use super::buffer::GuestBuffer;
use super::engine::{Engine, Finished, Job};
use super::identity::Identity;
use super::scsi::{Outcome, Step, Target, Transfer, Unit};
use crate::memory::GuestMemory;
use crate::vmbus::channel::{Channel, ChannelError};
use crate::vsp::{StateError, Vsp, plain_offer};

/// Most requests of a controller that are not answered yet.
pub const MAX_IN_FLIGHT: usize = 256;

/// Most data of one request in bytes.
pub const MAX_TRANSFER_BYTES: u32 = 512 * 1024;

/// Disks on a controller: LUNs 0 to 63.
pub const MAX_LUNS: u8 = 64;

/// Packets taken before the worker gets a chance to raise the interrupt for their answers.
const BATCH: usize = 64;

/// The longest packet a descriptor can describe, so that none is too long to be refused.
const LONGEST_PACKET: usize = u16::MAX as usize * 8;

/// Name of the device in errors.
const DEVICE: &str = "the storage controller";

/// A disk to attach to a controller.
pub struct Disk {
    backend: Arc<dyn Backend>,
}

impl Disk {
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
    #[error("LUN {0} already has a disk: use another one")]
    InUse(u8),
}

/// A SCSI controller with its disks.
pub struct Controller {
    instance: Guid,
    target: Target,
    engine: Engine<Request>,
    /// Where packets are copied to.
    packet: Vec<u8>,
    conversation: Conversation,
}

/// What the guest and we have said so far.
#[derive(Default)]
struct Conversation {
    phase: Phase,
    version: Option<ProtocolVersion>,
    /// To send, the oldest first.
    answers: VecDeque<Answer>,
    /// Answers of resets, to send when nothing is in flight.
    resets: Vec<Answer>,
}

/// How far the initialization has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    /// BEGIN_INITIALIZATION has to come.
    #[default]
    Begin,
    /// QUERY_PROTOCOL_VERSION has to come, again until we know the version.
    Version,
    /// QUERY_PROPERTIES has to come.
    Properties,
    /// END_INITIALIZATION has to come.
    End,
    /// Commands may come.
    Ready,
}

/// Where an answer goes, and what it repeats of the request.
struct Request {
    transaction_id: u64,
    packet: VstorPacket,
    /// Bytes of the guest's packets.
    size: usize,
    /// What is under way for it.
    transfer: Transfer,
}

#[derive(Clone)]
struct Answer {
    transaction_id: u64,
    packet: VstorPacket,
    size: usize,
}

/// A conversation as bytes.
#[derive(Serialize, Deserialize)]
struct SavedConversation {
    phase: Phase,
    version: Option<u16>,
    /// Transaction ids and packets.
    answers: Vec<(u64, Vec<u8>)>,
}

impl Controller {
    /// A controller without disks. `instance` names it, to the guest and in the names of its
    /// disks: the same one at each boot.
    ///
    /// # Errors
    /// The system has no threads or eventfd for it.
    pub fn new(instance: Guid) -> io::Result<Self> {
        Ok(Self {
            instance,
            target: Target::default(),
            engine: Engine::new()?,
            packet: vec![0; LONGEST_PACKET],
            conversation: Conversation::default(),
        })
    }

    /// Puts a disk at `lun`. Guests look for disks when they open the channel.
    ///
    /// # Errors
    /// There is no such LUN, or it has a disk.
    pub fn attach(&mut self, lun: u8, disk: impl Into<Disk>) -> Result<(), AttachError> {
        if lun >= MAX_LUNS {
            return Err(AttachError::NoSuchLun(lun));
        }
        let backend = disk.into().backend;
        let identity = Identity::new(self.instance, lun);
        if !self.target.insert(lun, Unit { backend, identity }) {
            return Err(AttachError::InUse(lun));
        }
        Ok(())
    }

    /// Turns results into answers; says how many requests are still in flight.
    fn collect(&mut self) -> usize {
        let (finished, in_flight) = self.engine.take_finished();
        for Finished { request, outcome } in finished {
            if let Err(error) = &outcome {
                let (id, lun) = (request.transaction_id, request.packet.srb().lun);
                tracing::warn!(transaction_id = id, lun, %error, "a disk's transfer failed");
            }
            let outcome = request.transfer.outcome(&outcome);
            let Request {
                transaction_id,
                packet,
                size,
                ..
            } = request;
            self.conversation
                .answer_srb(transaction_id, &packet, size, outcome);
        }
        if in_flight == 0 {
            self.conversation
                .answers
                .extend(self.conversation.resets.drain(..));
        }
        in_flight
    }

    /// Handles a packet from the guest.
    fn handle(&mut self, memory: &Arc<dyn GuestMemory>, incoming: Incoming) {
        let Incoming {
            transaction_id,
            packet,
            size,
            buffer,
        } = incoming;
        let size = self
            .conversation
            .version
            .map_or(size, ProtocolVersion::packet_size);
        let conversation = &mut self.conversation;
        let mut answer = |status| {
            conversation.answers.push_back(Answer {
                transaction_id,
                packet: packet.answer(status),
                size,
            });
        };
        let operation = packet.operation();
        match (operation, conversation.phase) {
            (Some(Operation::BeginInitialization), Phase::Begin) => {
                answer(status::SUCCESS);
                conversation.phase = Phase::Version;
            }
            (Some(Operation::QueryProtocolVersion), Phase::Version) => {
                match ProtocolVersion::from_wire(packet.protocol_version()) {
                    Some(version) => {
                        answer(status::SUCCESS);
                        tracing::debug!(?version, "storvsp version");
                        conversation.version = Some(version);
                        conversation.phase = Phase::Properties;
                    }
                    None => answer(status::REVISION_MISMATCH),
                }
            }
            (Some(Operation::QueryProperties), Phase::Properties) => {
                let properties = ChannelProperties {
                    max_transfer_bytes: MAX_TRANSFER_BYTES.into(),
                    ..ChannelProperties::default()
                };
                conversation.answers.push_back(Answer {
                    transaction_id,
                    packet: packet.answer(status::SUCCESS).with_properties(&properties),
                    size,
                });
                conversation.phase = Phase::End;
            }
            (Some(Operation::EndInitialization), Phase::End) => {
                answer(status::SUCCESS);
                conversation.phase = Phase::Ready;
            }
            (Some(Operation::ExecuteSrb), Phase::Ready) => {
                let buffer = match buffer {
                    Ok(buffer) => buffer.unwrap_or_else(|| GuestBuffer::empty(Arc::clone(memory))),
                    Err(outcome) => {
                        return conversation.answer_srb(transaction_id, &packet, size, outcome);
                    }
                };
                self.execute(transaction_id, packet, size, buffer);
            }
            (
                Some(Operation::ResetLun | Operation::ResetAdapter | Operation::ResetBus),
                Phase::Ready,
            ) => {
                // Every request before it has to be finished and answered first.
                conversation.resets.push(Answer {
                    transaction_id,
                    packet: packet.answer(status::SUCCESS),
                    size,
                });
            }
            // There are no sub-channels to be had: the properties say 0.
            (Some(Operation::CreateSubChannels), Phase::Ready) => {
                answer(status::INVALID_PARAMETER);
            }
            // The rest is not for this device, not for the host, or for nobody.
            (
                None
                | Some(
                    Operation::FcHbaData
                    | Operation::CompleteIo
                    | Operation::RemoveDevice
                    | Operation::EnumerateBus,
                ),
                _,
            ) => answer(status::INVALID_DEVICE_REQUEST),
            (Some(operation), phase) => {
                tracing::debug!(?operation, ?phase, "storvsp request out of order");
                answer(status::INVALID_DEVICE_STATE);
            }
        }
    }

    /// Begins a SCSI request.
    fn execute(
        &mut self,
        transaction_id: u64,
        packet: VstorPacket,
        size: usize,
        buffer: GuestBuffer,
    ) {
        let srb = packet.srb();
        match self.target.start(&srb, buffer) {
            Step::Done(outcome) => {
                self.conversation
                    .answer_srb(transaction_id, &packet, size, outcome);
            }
            Step::Transfer {
                backend,
                io,
                transfer,
            } => {
                if let Some(result) = io.run_if_ready(&*backend) {
                    let outcome = transfer.outcome(&result);
                    self.conversation
                        .answer_srb(transaction_id, &packet, size, outcome);
                    return;
                }
                let request = Request {
                    transaction_id,
                    packet,
                    size,
                    transfer,
                };
                self.engine.submit(Job {
                    request,
                    backend,
                    io,
                });
            }
        }
    }

    /// Sends what can be sent; says whether all of it was.
    fn send_answers(&mut self, channel: &mut Channel) -> Result<bool, ChannelError> {
        while let Some(answer) = self.conversation.answers.front() {
            let bytes = answer.packet.wire_bytes(answer.size);
            match channel.send(&Outgoing::completion(answer.transaction_id, bytes)) {
                Ok(()) => {
                    tracing::trace!(transaction_id = answer.transaction_id, "SRB answered");
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
        Ok(true)
    }
}

impl Conversation {
    fn answer_srb(
        &mut self,
        transaction_id: u64,
        packet: &VstorPacket,
        size: usize,
        outcome: Outcome,
    ) {
        let Outcome {
            srb_status,
            scsi_status,
            moved,
            sense,
        } = outcome;
        let sense = sense.map(Sense::to_fixed);
        let sense = sense.as_ref().map_or(&[][..], |sense| sense);
        let srb = packet.srb().answer(srb_status, scsi_status, moved, sense);
        self.answers.push_back(Answer {
            transaction_id,
            packet: packet.answer(status::SUCCESS).with_srb(&srb),
            size,
        });
    }
}

/// A packet of the guest, checked as far as its envelope goes.
struct Incoming {
    transaction_id: u64,
    packet: VstorPacket,
    /// Bytes of the answer, unless a version has been negotiated: as many as the guest sent.
    size: usize,
    /// The buffer of its ranges, where it has any; or why it is none.
    buffer: Result<Option<GuestBuffer>, Outcome>,
}

impl Incoming {
    /// `None` for what must not be answered: an answer.
    fn new(memory: &Arc<dyn GuestMemory>, incoming: &Packet<'_>) -> Option<Self> {
        let ranges = match incoming.kind {
            PacketKind::Completion => return None,
            PacketKind::InBand => None,
            PacketKind::GpaDirect(ranges) => Some(Ok(ranges)),
            // There are no agreed pages in this protocol.
            PacketKind::TransferPages { .. } => Some(Err(Outcome::invalid())),
        };
        let sent = incoming.payload.len();
        let size = if sent < PACKET_SIZE {
            PACKET_SIZE_BEFORE_5_1
        } else {
            PACKET_SIZE
        };
        // A payload without even a header is answered as operation 0, which nobody knows.
        let packet = VstorPacket::parse(incoming.payload).unwrap_or_else(VstorPacket::new_zeroed);
        let length = packet.srb().data_transfer_length.get();
        let is_srb = packet.operation() == Some(Operation::ExecuteSrb);
        let buffer = match ranges {
            _ if !is_srb => Ok(None),
            _ if sent < PACKET_SIZE_BEFORE_5_1 => Err(Outcome::invalid()),
            Some(Err(outcome)) => Err(outcome),
            _ if length > MAX_TRANSFER_BYTES => Err(Outcome::invalid()),
            Some(Ok(ranges)) => {
                match GuestBuffer::new(Arc::clone(memory), ranges, length as usize) {
                    Ok(buffer) => Ok(Some(buffer)),
                    Err(error) => {
                        tracing::debug!(%error, "an SRB's buffer cannot be");
                        Err(Outcome::invalid())
                    }
                }
            }
            // Data and nowhere to put it.
            None if length != 0 => Err(Outcome::invalid()),
            None => Ok(None),
        };
        Some(Self {
            transaction_id: incoming.transaction_id,
            packet,
            size,
            buffer,
        })
    }
}

impl Vsp for Controller {
    fn offer(&self) -> OfferChannel {
        plain_offer(SCSI_CLASS, self.instance)
    }

    fn opened(&mut self) {
        self.engine.wait_idle();
        drop(self.engine.take_finished());
        self.conversation = Conversation::default();
    }

    fn service(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        self.engine.clear_event();
        let memory = Arc::clone(channel.memory());
        for _ in 0..BATCH {
            let in_flight = self.collect();
            if !self.send_answers(channel)? {
                // The guest signals when there is room.
                return Ok(());
            }
            if in_flight >= MAX_IN_FLIGHT || !self.conversation.resets.is_empty() {
                // The next result sets the event.
                return Ok(());
            }
            let Some(packet) = channel.receive(&mut self.packet)? else {
                return Ok(());
            };
            tracing::trace!(transaction_id = packet.transaction_id, "SRB taken");
            if let Some(incoming) = Incoming::new(&memory, &packet) {
                self.handle(&memory, incoming);
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
    }

    fn save(&self) -> Vec<u8> {
        let answers = self.conversation.answers.iter();
        let saved = SavedConversation {
            phase: self.conversation.phase,
            version: self.conversation.version.map(|version| version as u16),
            answers: answers
                .map(|a| (a.transaction_id, a.packet.wire_bytes(a.size).to_vec()))
                .collect(),
        };
        // Numbers and bytes cannot fail to serialize into memory.
        postcard::to_stdvec(&saved).unwrap_or_default()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let bad = |reason: &str| StateError {
            device: DEVICE,
            reason: reason.to_owned(),
        };
        let saved: SavedConversation =
            postcard::from_bytes(state).map_err(|error| bad(&error.to_string()))?;
        let version = match saved.version.map(ProtocolVersion::from_wire) {
            Some(None) => return Err(bad("its protocol version is unknown")),
            Some(version) => version,
            None => None,
        };
        let answers = saved.answers.into_iter().map(|(transaction_id, bytes)| {
            let size = bytes.len();
            if size != PACKET_SIZE && size != PACKET_SIZE_BEFORE_5_1 {
                return Err(bad("an answer has a wrong length"));
            }
            let packet = VstorPacket::parse(&bytes).ok_or_else(|| bad("an answer is cut short"))?;
            Ok(Answer {
                transaction_id,
                packet,
                size,
            })
        });
        let answers = answers.collect::<Result<_, _>>()?;
        self.opened();
        self.conversation = Conversation {
            phase: saved.phase,
            version,
            answers,
            resets: Vec::new(),
        };
        Ok(())
    }
}
