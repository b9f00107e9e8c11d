// SPDX-License-Identifier: GPL-2.0

//! What a completed SCSI command has come to.

use kernel::prelude::*;
use vmbus_proto::scsi::{status as scsi_status, Sense, SenseKey};
use vmbus_proto::storvsp::{srb_status, VstorPacket};

/// What has come of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was carried out, and moved so many bytes.
    Done(u32),
    /// The unit has news: the same command may be sent again.
    Again,
    /// It cannot now: the same command may be sent again later.
    Busy,
    /// It failed.
    Failed(Error),
}

/// What the answer to a command says, whose data has `length` bytes.
pub(crate) fn outcome(answer: &VstorPacket, length: u32) -> Outcome {
    if answer.status.get() != 0 {
        return Outcome::Failed(EIO);
    }
    let srb = answer.srb();
    let sense = Sense::parse(srb.sense());
    match (srb.srb_status & srb_status::MASK, srb.scsi_status, sense) {
        // Windows counts what was moved where it calls another amount than asked for an overrun, too.
        (srb_status::SUCCESS | srb_status::DATA_OVERRUN, scsi_status::GOOD, _) => {
            match srb.data_transfer_length.get() {
                moved if moved <= length => Outcome::Done(moved),
                // More than there is room for: nothing of it can be believed.
                _ => Outcome::Failed(EIO),
            }
        }
        (_, scsi_status::BUSY | scsi_status::TASK_SET_FULL, _) => Outcome::Busy,
        (_, _, Some(sense)) => reason(sense),
        (srb_status::INVALID_LUN | srb_status::INVALID_TARGET_ID, _, None) => {
            Outcome::Failed(ENODEV)
        }
        _ => Outcome::Failed(EIO),
    }
}

/// What sense data means to the block layer.
fn reason(sense: Sense) -> Outcome {
    Outcome::Failed(match sense.key {
        SenseKey::UnitAttention | SenseKey::AbortedCommand => return Outcome::Again,
        SenseKey::MediumError => ENODATA,
        SenseKey::IllegalRequest if sense == Sense::INVALID_OPCODE => EOPNOTSUPP,
        SenseKey::IllegalRequest if sense == Sense::LU_NOT_SUPPORTED => ENODEV,
        SenseKey::IllegalRequest | SenseKey::HardwareError => EREMOTEIO,
        SenseKey::DataProtect if sense == Sense::SPACE_ALLOCATION_FAILED => ENOSPC,
        _ => EIO,
    })
}
