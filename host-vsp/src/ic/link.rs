//! The framework's part of a service's conversation: versions, headers, transaction ids.

use serde::{Deserialize, Serialize};
use vmbus_proto::guid::Guid;
use vmbus_proto::ic::{
    Choice, FLAG_REQUEST, FLAG_RESPONSE, FLAG_TRANSACTION, FRAMEWORK_VERSIONS, Header, MAX_MESSAGE,
    Message, NegotiateHeader, Version, message_type,
};
use vmbus_proto::message::{OfferChannel, pipe_mode};
use vmbus_proto::packet::{Outgoing, PacketKind};
use vmbus_proto::pipe::{self, PipeHeader};
use vmbus_proto::ring::SendError;
use zerocopy::IntoBytes as _;

use crate::vmbus::channel::{Channel, ChannelError};
use crate::vsp::{StateError, plain_offer};

/// What a service is on the wire.
pub(super) struct Service {
    /// For people.
    pub name: &'static str,
    pub class: Guid,
    pub instance: Guid,
    /// One of [`message_type`].
    pub message_type: u16,
    /// Ascending.
    pub versions: &'static [Version],
}

impl Service {
    pub fn offer(&self) -> OfferChannel {
        plain_offer(self.class, self.instance).with_pipe(pipe_mode::MESSAGE)
    }
}

/// An answer of the guest.
pub(super) struct Answer {
    pub id: u8,
    pub status: u32,
    pub body: Vec<u8>,
}

/// A service's conversation with the guest.
pub(super) struct Link {
    service: &'static Service,
    packet: Vec<u8>,
    state: State,
}

/// What of it outlives a pause.
#[derive(Default, Serialize, Deserialize)]
struct State {
    stage: Stage,
    /// For the next request.
    id: u8,
}

#[derive(Clone, Copy, Default, Serialize, Deserialize)]
enum Stage {
    /// The guest has to be told our versions.
    #[default]
    Due,
    /// The guest chooses.
    Asked,
    /// It chose these, as major and minor number.
    Agreed {
        framework: (u16, u16),
        version: (u16, u16),
    },
    /// It likes none: there is nothing to say any more.
    Refused,
}

impl Link {
    pub fn new(service: &'static Service) -> Self {
        Self {
            service,
            // With the pipe's header, and padding.
            packet: vec![0; MAX_MESSAGE + 64],
            state: State::default(),
        }
    }

    pub fn service(&self) -> &'static Service {
        self.service
    }

    /// Forgets the last conversation.
    pub fn opened(&mut self) {
        self.state = State::default();
    }

    /// The version of the service, once it is agreed on.
    pub fn version(&self) -> Option<Version> {
        match self.state.stage {
            Stage::Agreed { version, .. } => Some(Version::new(version.0, version.1)),
            _ => None,
        }
    }

    /// Tells the guest our versions, where that is due.
    pub fn negotiate(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        if !matches!(self.state.stage, Stage::Due) {
            return Ok(());
        }
        let versions = self.service.versions;
        let counts = NegotiateHeader {
            framework_count: (FRAMEWORK_VERSIONS.len() as u16).into(),
            version_count: (versions.len() as u16).into(),
            reserved: 0.into(),
        };
        let body = [
            counts.as_bytes(),
            FRAMEWORK_VERSIONS.as_bytes(),
            versions.as_bytes(),
        ]
        .concat();
        let none = Version::default();
        if self
            .post(channel, none, none, message_type::NEGOTIATE, &body)?
            .is_some()
        {
            self.state.stage = Stage::Asked;
        }
        Ok(())
    }

    /// Sends a request, once versions are agreed on; its transaction id, or `None` where the ring
    /// has no room now.
    pub fn send(&mut self, channel: &mut Channel, body: &[u8]) -> Result<Option<u8>, ChannelError> {
        let Stage::Agreed { framework, version } = self.state.stage else {
            return Ok(None);
        };
        let framework = Version::new(framework.0, framework.1);
        let version = Version::new(version.0, version.1);
        self.post(channel, framework, version, self.service.message_type, body)
    }

    fn post(
        &mut self,
        channel: &mut Channel,
        framework: Version,
        version: Version,
        message_type: u16,
        body: &[u8],
    ) -> Result<Option<u8>, ChannelError> {
        let id = self.state.id;
        let header = Header {
            framework,
            message_type: message_type.into(),
            version,
            size: (body.len() as u16).into(),
            status: 0.into(),
            transaction_id: id,
            flags: FLAG_TRANSACTION | FLAG_REQUEST,
            reserved: [0; 2],
        };
        let pipe = PipeHeader::data((size_of::<Header>() + body.len()) as u32);
        let head = [pipe.bytes(), header.as_bytes()].concat();
        match channel.send(&Outgoing::in_band(0, &head, false).with_tail(body)) {
            Ok(()) => {
                self.state.id = id.wrapping_add(1);
                Ok(Some(id))
            }
            Err(SendError::Full) => Ok(None),
            Err(SendError::TooLong) => Err(ChannelError::Protocol(
                "the ring is too small for an integration service",
            )),
            Err(SendError::Corrupt(corrupt)) => Err(corrupt.into()),
        }
    }

    /// The next answer to one of the service's own requests. What comes before versions are
    /// agreed on, and what is no answer, means nothing and is dropped.
    pub fn receive(&mut self, channel: &mut Channel) -> Result<Option<Answer>, ChannelError> {
        while let Some(packet) = channel.receive(&mut self.packet)? {
            if !matches!(packet.kind, PacketKind::InBand) {
                return Err(ChannelError::Protocol(
                    "an integration service's packet is not in-band",
                ));
            }
            let message = pipe::data(packet.payload)
                .ok()
                .and_then(|data| Message::parse(data).ok())
                .ok_or(ChannelError::Protocol(
                    "an integration service's message is cut short",
                ))?;
            if message.header.flags & FLAG_RESPONSE == 0 {
                continue;
            }
            match (message.header.message_type.get(), self.state.stage) {
                (message_type::NEGOTIATE, Stage::Asked) => {
                    self.state.stage = choose(self.service, message.body)?;
                }
                (kind, Stage::Agreed { .. }) if kind == self.service.message_type => {
                    return Ok(Some(Answer {
                        id: message.header.transaction_id,
                        status: message.header.status.get(),
                        body: message.body.to_vec(),
                    }));
                }
                _ => {}
            }
        }
        Ok(None)
    }

    pub fn save(&self) -> Vec<u8> {
        // Numbers cannot fail to serialize.
        postcard::to_stdvec(&self.state).unwrap_or_default()
    }

    pub fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        self.state = postcard::from_bytes(state).map_err(|error| StateError {
            device: self.service.name,
            reason: error.to_string(),
        })?;
        Ok(())
    }
}

/// The stage after the guest's answer to our versions.
fn choose(service: &Service, body: &[u8]) -> Result<Stage, ChannelError> {
    let choice = Choice::parse(body)
        .map_err(|_| ChannelError::Protocol("a choice of versions makes no sense"))?;
    let Choice::Versions { framework, version } = choice else {
        tracing::info!(service = service.name, "the guest speaks no version of it");
        return Ok(Stage::Refused);
    };
    if !FRAMEWORK_VERSIONS.contains(&framework) || !service.versions.contains(&version) {
        return Err(ChannelError::Protocol(
            "a version was chosen that was not offered",
        ));
    }
    tracing::info!(service = service.name, %framework, %version, "versions agreed on");
    let numbers = |version: Version| (version.major.get(), version.minor.get());
    Ok(Stage::Agreed {
        framework: numbers(framework),
        version: numbers(version),
    })
}
