//! A DVD drive: a logical unit whose medium comes and goes, and is only read.
//!
//! The medium is locked in while the guest says so (it does while a file system is mounted). A
//! guest learns of another medium twice, as from a real drive: by UNIT ATTENTION at its next
//! command, and by a media event, which most ask for every few seconds.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vmbus_proto::scsi::{Cdb, MediaEvent, MmcCommand, SECTOR, Sense};
use vmbus_proto::storvsp::DATA_OUT;

use super::{MAX_VERIFY_BLOCKS, Outcome, Request, Step, Transfer, disc, done, fit};
use crate::storage::backend::Backend;
use crate::storage::identity::Identity;
use crate::storage::io::Io;
use crate::storage::medium::Medium;

/// Bytes of a block.
const BLOCK: u64 = SECTOR as u64;

/// A drive and its medium.
pub(in crate::storage) struct Drive {
    pub(super) identity: Identity,
    medium: Option<Medium>,
    state: DriveState,
}

/// What a drive remembers for its guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::storage) struct DriveState {
    /// The guest wants the medium to stay.
    locked: bool,
    /// There is another medium, which no command has told yet.
    changed: bool,
    /// A code of [`MediaEvent`] that the guest has not asked for yet.
    event: u8,
}

/// The guest wants the medium to stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::storage) struct Locked;

impl Drive {
    /// A drive with nothing to tell.
    pub(in crate::storage) fn new(medium: Option<Medium>, identity: Identity) -> Self {
        Self {
            identity,
            medium,
            state: DriveState::default(),
        }
    }

    /// What is in it.
    pub(in crate::storage) fn medium(&self) -> Option<&Medium> {
        self.medium.as_ref()
    }

    /// What was in it, at its end.
    pub(in crate::storage) fn into_medium(self) -> Option<Medium> {
        self.medium
    }

    /// Gives it another medium, or none; what was in it. Where the guest has locked that in, the
    /// guest is asked to let go of it, unless `force`.
    pub(in crate::storage) fn change(
        &mut self,
        medium: Option<Medium>,
        force: bool,
    ) -> Result<Option<Medium>, Locked> {
        if self.state.locked && self.medium.is_some() && !force {
            self.state.event = MediaEvent::EJECT_REQUEST;
            return Err(Locked);
        }
        self.state = DriveState {
            locked: false,
            changed: medium.is_some(),
            event: match (&medium, &self.medium) {
                (Some(_), _) => MediaEvent::NEW_MEDIUM,
                (None, Some(_)) => MediaEvent::MEDIUM_REMOVAL,
                (None, None) => self.state.event,
            },
        };
        Ok(std::mem::replace(&mut self.medium, medium))
    }

    /// There is a guest that knows nothing yet.
    pub(super) fn forget(&mut self) {
        self.state = DriveState::default();
    }

    pub(super) fn state(&self) -> DriveState {
        self.state
    }

    pub(super) fn restore(&mut self, state: DriveState) {
        self.state = state;
    }

    /// Begins the command `cdb`.
    pub(super) fn start(&mut self, cdb: &[u8], request: Request<'_>) -> Step {
        let mmc = match MmcCommand::parse(cdb) {
            Ok(mmc) => mmc,
            Err(error) => return done(Err(error.into())),
        };
        if let Some(command) = mmc {
            let tells = matches!(
                command,
                MmcCommand::GetConfiguration { .. } | MmcCommand::GetEventStatusNotification { .. }
            );
            if !tells && std::mem::take(&mut self.state.changed) {
                return done(Err(Sense::MEDIUM_MAY_HAVE_CHANGED));
            }
            return self.start_mmc(command, request);
        }
        let command = match Cdb::parse(cdb) {
            Ok(command) => command,
            Err(error) => return done(Err(error.into())),
        };
        let tells = matches!(command, Cdb::Inquiry { .. } | Cdb::RequestSense { .. });
        if !tells && std::mem::take(&mut self.state.changed) {
            return done(Err(Sense::MEDIUM_MAY_HAVE_CHANGED));
        }
        self.start_common(command, request)
    }

    fn start_mmc(&mut self, command: MmcCommand, request: Request<'_>) -> Step {
        match command {
            MmcCommand::PreventAllowMediumRemoval { prevent } => {
                self.state.locked = prevent;
                done(Ok(()))
            }
            MmcCommand::GetConfiguration {
                which,
                first,
                allocation_length,
            } => {
                let data = disc::configuration(self.medium.is_some(), which, first);
                request.data_in(data, allocation_length.into())
            }
            // There is nothing that could tell it later.
            MmcCommand::GetEventStatusNotification { polled: false, .. } => {
                done(Err(Sense::INVALID_FIELD_IN_CDB))
            }
            MmcCommand::GetEventStatusNotification {
                classes,
                allocation_length,
                ..
            } => {
                let data = disc::event(self.medium.is_some(), self.state.event, classes);
                // With room for just the header, the event is still to be asked for.
                if data.len() > 4 && usize::from(allocation_length) >= data.len() {
                    self.state.event = MediaEvent::NO_CHANGE;
                }
                request.data_in(Ok(data), allocation_length.into())
            }
            MmcCommand::MechanismStatus { allocation_length } => {
                request.data_in(Ok(disc::mechanism()), allocation_length.into())
            }
            MmcCommand::ReadToc {
                msf,
                format,
                first,
                allocation_length,
            } => {
                let data = self.blocks();
                let data = data.and_then(|blocks| disc::toc(blocks, msf, format, first));
                request.data_in(data, allocation_length.into())
            }
            MmcCommand::ReadDiscInformation {
                kind,
                allocation_length,
            } => {
                let data = self.blocks().and_then(|_| disc::information(kind));
                request.data_in(data, allocation_length.into())
            }
            MmcCommand::ReadTrackInformation {
                kind,
                address,
                allocation_length,
            } => {
                let data = self.blocks();
                let data = data.and_then(|blocks| disc::track(blocks, kind, address));
                request.data_in(data, allocation_length.into())
            }
            MmcCommand::ReadDiscStructure {
                media,
                layer,
                format,
                allocation_length,
            } => {
                let data = self.blocks();
                let data = data.and_then(|blocks| disc::structure(blocks, media, layer, format));
                request.data_in(data, allocation_length.into())
            }
            MmcCommand::Read12 { lba, blocks } => self.read(lba.into(), blocks, request),
        }
    }

    fn start_common(&mut self, command: Cdb, request: Request<'_>) -> Step {
        match command {
            Cdb::TestUnitReady => done(self.blocks().map(drop)),
            Cdb::RequestSense {
                descriptor,
                allocation_length,
            } => {
                let sense = if std::mem::take(&mut self.state.changed) {
                    Sense::MEDIUM_MAY_HAVE_CHANGED
                } else {
                    Sense::NONE
                };
                let data = if descriptor {
                    sense.to_descriptor().to_vec()
                } else {
                    sense.to_fixed().to_vec()
                };
                request.data_in(Ok(data), allocation_length.into())
            }
            Cdb::Inquiry {
                page,
                allocation_length,
            } => request.data_in(
                disc::inquiry(&self.identity, page),
                allocation_length.into(),
            ),
            Cdb::ModeSense {
                allocation_length, ..
            } => {
                let data = disc::mode_sense(self.state.locked, command);
                request.data_in(data, allocation_length.into())
            }
            Cdb::ReadCapacity10 => request.data_in(self.blocks().map(disc::capacity_10), u32::MAX),
            Cdb::ReadCapacity16 { allocation_length } => {
                request.data_in(self.blocks().map(disc::capacity_16), allocation_length)
            }
            Cdb::Read { lba, blocks, .. } => self.read(lba, blocks, request),
            Cdb::Verify { compare: true, .. } => done(Err(Sense::INVALID_FIELD_IN_CDB)),
            Cdb::Verify { blocks, .. } if blocks > MAX_VERIFY_BLOCKS => {
                done(Err(Sense::INVALID_FIELD_IN_CDB))
            }
            Cdb::Verify { lba, blocks, .. } => match self.place(lba, blocks) {
                Ok((medium, offset, length)) => Step::Transfer {
                    backend: Arc::clone(medium),
                    io: Io::Verify { offset, length },
                    transfer: Transfer {
                        length: 0,
                        failure: Sense::UNRECOVERED_READ_ERROR,
                    },
                },
                Err(sense) => done(Err(sense)),
            },
            // There is no cache that a guest could have written to.
            Cdb::SynchronizeCache { .. } => done(Ok(())),
            Cdb::StartStopUnit {
                start: false,
                load_eject: true,
                ..
            } => {
                if self.state.locked {
                    return done(Err(Sense::MEDIUM_REMOVAL_PREVENTED));
                }
                // The guest knows that it is gone, and those who look on are told by the event.
                done(
                    self.change(None, false)
                        .map(drop)
                        .map_err(|Locked| Sense::MEDIUM_REMOVAL_PREVENTED),
                )
            }
            // What was ejected is with the host, so that a tray that goes in is empty.
            Cdb::StartStopUnit {
                load_eject: true, ..
            } => done(self.blocks().map(drop)),
            Cdb::StartStopUnit { .. } => done(Ok(())),
            // The first is the target's to answer, the second is parsed as MMC's; no drive does
            // the others.
            Cdb::ReportLuns { .. }
            | Cdb::PreventAllowMediumRemoval
            | Cdb::Write { .. }
            | Cdb::Unmap { .. } => done(Err(Sense::INVALID_OPCODE)),
        }
    }

    /// Blocks of the medium.
    fn blocks(&self) -> Result<u32, Sense> {
        let medium = self.medium.as_ref().ok_or(Sense::MEDIUM_NOT_PRESENT)?;
        // Addresses have 32 bits; that is more than any disc has.
        Ok(u32::try_from(medium.backend.size() / BLOCK).unwrap_or(u32::MAX))
    }

    /// The medium, and offset and length in bytes of `blocks` from `lba` on.
    fn place(&self, lba: u64, blocks: u32) -> Result<(&Arc<dyn Backend>, u64, u64), Sense> {
        let medium = self.medium.as_ref().ok_or(Sense::MEDIUM_NOT_PRESENT)?;
        let end = lba.checked_add(blocks.into());
        let medium = &medium.backend;
        if end.is_none_or(|end| end > medium.size() / BLOCK) {
            return Err(Sense::LBA_OUT_OF_RANGE);
        }
        // Both are at most the medium's size in blocks, whose bytes fit.
        let bytes = |blocks: u64| blocks.saturating_mul(BLOCK);
        Ok((medium, bytes(lba), bytes(blocks.into())))
    }

    fn read(&self, lba: u64, blocks: u32, request: Request<'_>) -> Step {
        let (medium, offset, length) = match self.place(lba, blocks) {
            Ok(place) => place,
            Err(sense) => return done(Err(sense)),
        };
        let Request { srb, mut buffer } = request;
        let Some(length) = fit(length, &buffer, srb.data_in != DATA_OUT) else {
            return Step::Done(Outcome::invalid());
        };
        if length == 0 {
            return done(Ok(()));
        }
        buffer.truncate(usize::try_from(length).unwrap_or(usize::MAX));
        Step::Transfer {
            backend: Arc::clone(medium),
            io: Io::Read { offset, buffer },
            transfer: Transfer {
                length,
                failure: Sense::UNRECOVERED_READ_ERROR,
            },
        }
    }
}
