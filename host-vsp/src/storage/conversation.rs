//! The storvsp conversation without its channel: what may be asked when, and what is answered.
//!
//! The order is BEGIN_INITIALIZATION, QUERY_PROTOCOL_VERSION, QUERY_PROPERTIES,
//! END_INITIALIZATION, then SRBs and resets. Whatever comes instead is refused with a status; a
//! guest waits for every answer without a timeout. CREATE_SUB_CHANNELS comes once, before or after
//! END_INITIALIZATION; sub-channels carry SRBs and resets only, and those wait until the
//! initialization has ended.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use vmbus_proto::scsi::Sense;
use vmbus_proto::storvsp::{
    ChannelProperties, Operation, PACKET_SIZE, PACKET_SIZE_BEFORE_5_1, PROPERTY_MULTI_CHANNEL,
    ProtocolVersion, VstorPacket, status,
};

use super::MAX_TRANSFER_BYTES;
use super::scsi::Outcome;

/// A request: it ends as an [`Answer`].
pub(super) struct Request {
    /// The guest's, repeated in the answer and not interpreted.
    pub(super) transaction_id: u64,
    /// What was asked.
    pub(super) packet: VstorPacket,
    /// Bytes of its answer.
    pub(super) size: usize,
}

impl Request {
    /// The answer with a value of [`status`].
    fn answer(&self, status: u32) -> Answer {
        Answer {
            transaction_id: self.transaction_id,
            packet: self.packet.answer(status),
            size: self.size,
        }
    }

    /// The answer to an SRB.
    pub(super) fn finish(self, outcome: Outcome) -> Answer {
        let sense = outcome.sense.map(Sense::to_fixed);
        let sense = sense.as_ref().map_or(&[][..], |sense| sense);
        let srb = self.packet.srb().answer(
            outcome.srb_status,
            outcome.scsi_status,
            outcome.moved,
            sense,
        );
        let answer = self.answer(status::SUCCESS);
        Answer {
            packet: answer.packet.with_srb(&srb),
            ..answer
        }
    }
}

/// An answer to send.
pub(super) struct Answer {
    pub(super) transaction_id: u64,
    packet: VstorPacket,
    size: usize,
}

impl Answer {
    /// Its bytes.
    pub(super) fn payload(&self) -> &[u8] {
        self.packet.wire_bytes(self.size)
    }

    /// The answer of these bytes, where they can be one.
    fn load(transaction_id: u64, bytes: &[u8]) -> Option<Self> {
        let size = bytes.len();
        let packet = VstorPacket::parse(bytes)?;
        (size == PACKET_SIZE || size == PACKET_SIZE_BEFORE_5_1).then_some(Self {
            transaction_id,
            packet,
            size,
        })
    }
}

/// What the guest and we have said so far.
pub(super) struct Conversation {
    /// Sub-channels that may be asked for; `None` on a sub-channel.
    max_sub_channels: Option<u16>,
    phase: Phase,
    version: Option<ProtocolVersion>,
    /// To send, the oldest first.
    pub(super) answers: VecDeque<Answer>,
    /// Answers of resets, to send when nothing is in flight.
    resets: Vec<Answer>,
    /// The guest is to look for its disks.
    enumerate: bool,
    /// Sub-channels that were asked for, and those of them that the guest knows to be granted.
    sub_channels: u16,
    granted: u16,
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

/// A conversation as bytes.
#[derive(Serialize, Deserialize)]
struct Saved {
    phase: Phase,
    version: Option<u16>,
    enumerate: bool,
    sub_channels: u16,
    /// Transaction ids and packets.
    answers: Vec<(u64, Vec<u8>)>,
    resets: Vec<(u64, Vec<u8>)>,
}

impl Conversation {
    /// Nothing is said yet on a primary channel, on which so many sub-channels may be asked for.
    pub(super) fn primary(max_sub_channels: u16) -> Self {
        Self {
            max_sub_channels: Some(max_sub_channels),
            phase: Phase::Begin,
            version: None,
            answers: VecDeque::new(),
            resets: Vec::new(),
            enumerate: false,
            sub_channels: 0,
            granted: 0,
        }
    }

    /// Nothing is said yet on a sub-channel, where it need not be: `version` is the primary one's.
    pub(super) fn sub_channel(version: ProtocolVersion) -> Self {
        Self {
            max_sub_channels: None,
            phase: Phase::Ready,
            version: Some(version),
            ..Self::primary(0)
        }
    }

    /// The version agreed on.
    pub(super) fn version(&self) -> Option<ProtocolVersion> {
        self.version
    }

    /// Sub-channels to offer.
    pub(super) fn granted_sub_channels(&self) -> u16 {
        self.granted
    }

    /// Whether the other channels of the controller have to wait: before the initialization has
    /// ended, and in a reset.
    pub(super) fn holds_others(&self) -> bool {
        self.phase != Phase::Ready || self.is_resetting()
    }

    /// All answers are in the ring.
    pub(super) fn all_answered(&mut self) {
        self.granted = self.sub_channels;
    }

    /// Whether requests have to wait until those before them are finished.
    pub(super) fn is_resetting(&self) -> bool {
        !self.resets.is_empty()
    }

    /// There are other disks than before. A guest that is not yet ready looks for them anyway.
    pub(super) fn disks_changed(&mut self) {
        self.enumerate = self.phase == Phase::Ready;
    }

    /// A packet that tells the guest what it has not asked for.
    pub(super) fn news(&self) -> Option<Vec<u8>> {
        let size = self.version?.packet_size();
        let packet = VstorPacket {
            flags: 0.into(),
            ..VstorPacket::request(Operation::EnumerateBus)
        };
        self.enumerate.then(|| packet.wire_bytes(size).to_vec())
    }

    /// It is in the ring.
    pub(super) fn news_sent(&mut self) {
        self.enumerate = false;
    }

    /// Nothing is in flight on any channel any more: resets are done.
    pub(super) fn reset_done(&mut self) {
        self.answers.extend(self.resets.drain(..));
    }

    /// Handles a request; gives it back where it is an SRB to execute.
    pub(super) fn handle(&mut self, mut request: Request) -> Option<Request> {
        // Before there is a version, an answer is as long as its request.
        if let Some(version) = self.version {
            request.size = version.packet_size();
        }
        let operation = request.packet.operation();
        let status = match (operation, self.phase) {
            (Some(Operation::ExecuteSrb), Phase::Ready) => return Some(request),
            (Some(Operation::BeginInitialization), Phase::Begin) => {
                self.phase = Phase::Version;
                status::SUCCESS
            }
            (Some(Operation::QueryProtocolVersion), Phase::Version) => {
                self.version = ProtocolVersion::from_wire(request.packet.protocol_version());
                match self.version {
                    Some(version) => {
                        tracing::debug!(?version, "storvsp version");
                        self.phase = Phase::Properties;
                        status::SUCCESS
                    }
                    None => status::REVISION_MISMATCH,
                }
            }
            (Some(Operation::QueryProperties), Phase::Properties) => {
                request.packet = request.packet.with_properties(&self.properties());
                self.phase = Phase::End;
                status::SUCCESS
            }
            (Some(Operation::EndInitialization), Phase::End) => {
                self.phase = Phase::Ready;
                status::SUCCESS
            }
            (
                Some(Operation::ResetLun | Operation::ResetAdapter | Operation::ResetBus),
                Phase::Ready,
            ) => {
                // Every request before it has to be finished and answered first.
                self.resets.push(request.answer(status::SUCCESS));
                return None;
            }
            // Windows asks before the end of the initialization, Linux after it.
            (Some(Operation::CreateSubChannels), Phase::End | Phase::Ready) => {
                self.create_sub_channels(request.packet.sub_channel_count())
            }
            // These are not for this device, not for the host, or for nobody.
            (
                None
                | Some(
                    Operation::FcHbaData
                    | Operation::CompleteIo
                    | Operation::RemoveDevice
                    | Operation::EnumerateBus,
                ),
                _,
            ) => status::INVALID_DEVICE_REQUEST,
            (Some(operation), phase) => {
                tracing::debug!(?operation, ?phase, "storvsp request out of order");
                status::INVALID_DEVICE_STATE
            }
        };
        self.answers.push_back(request.answer(status));
        None
    }

    fn properties(&self) -> ChannelProperties {
        let properties = ChannelProperties {
            max_transfer_bytes: MAX_TRANSFER_BYTES.into(),
            ..ChannelProperties::default()
        };
        match self.most_sub_channels() {
            0 => properties,
            most => ChannelProperties {
                max_channel_count: most.into(),
                flags: PROPERTY_MULTI_CHANNEL.into(),
                ..properties
            },
        }
    }

    /// Sub-channels that the guest may ask for here and in this version.
    fn most_sub_channels(&self) -> u16 {
        let most = self.max_sub_channels.unwrap_or(0);
        let knows = self.version.is_some_and(|v| v >= ProtocolVersion::V5_1);
        if knows { most } else { 0 }
    }

    fn create_sub_channels(&mut self, count: u16) -> u32 {
        if count > self.most_sub_channels() {
            return status::INVALID_PARAMETER;
        }
        if self.sub_channels != 0 {
            return status::INVALID_DEVICE_STATE;
        }
        self.sub_channels = count;
        status::SUCCESS
    }

    /// The conversation as bytes. Nothing is in flight on its channel.
    pub(super) fn save(&self) -> Vec<u8> {
        fn bytes<'a>(answers: impl Iterator<Item = &'a Answer>) -> Vec<(u64, Vec<u8>)> {
            answers
                .map(|answer| (answer.transaction_id, answer.payload().to_vec()))
                .collect()
        }
        let saved = Saved {
            phase: self.phase,
            version: self.version.map(|version| version as u16),
            enumerate: self.enumerate,
            sub_channels: self.sub_channels,
            answers: bytes(self.answers.iter()),
            resets: bytes(self.resets.iter()),
        };
        // Numbers and bytes cannot fail to serialize into memory.
        postcard::to_stdvec(&saved).unwrap_or_default()
    }

    /// This conversation, as it was when [`save`](Self::save) gave `bytes`; or what is wrong with
    /// them.
    pub(super) fn load(self, bytes: &[u8]) -> Result<Self, String> {
        let saved: Saved = postcard::from_bytes(bytes).map_err(|error| error.to_string())?;
        let version = match saved.version.map(ProtocolVersion::from_wire) {
            Some(None) => return Err("its protocol version is unknown".to_owned()),
            Some(version) => version,
            None => None,
        };
        let answers = |all: Vec<(u64, Vec<u8>)>| {
            let answers = all.into_iter().map(|(transaction_id, bytes)| {
                Answer::load(transaction_id, &bytes).ok_or("an answer has a wrong length")
            });
            answers.collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            phase: saved.phase,
            version,
            answers: answers(saved.answers)?.into(),
            resets: answers(saved.resets)?,
            enumerate: saved.enumerate,
            sub_channels: saved.sub_channels,
            ..self
        })
    }
}
