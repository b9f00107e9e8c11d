//! Why a storage request failed.

use core::fmt;

use vmbus_proto::scsi::{Sense, status as scsi_status};
use vmbus_proto::storvsp::{Operation, VstorPacket, srb_status};

use crate::error::Error;

/// Why a storage request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StorageError {
    /// The channel or the bus; [`Error::Full`] where as many requests are in flight as fit.
    Bus(Error),
    /// The device says why.
    Device(Sense),
    /// The device failed the request without sense data.
    Status {
        /// One of [`vmbus_proto::storvsp::srb_status`], without its flags.
        srb: u8,
        /// One of [`vmbus_proto::scsi::status`].
        scsi: u8,
    },
    /// The adapter refused a request of the initialization, with this NTSTATUS.
    Refused(Operation, u32),
    /// The length of the buffer, or the first sector, is not a multiple of the block size; or the
    /// buffer is empty.
    Unaligned,
    /// The buffer is longer than one request can move.
    TooLong,
    /// The device moved fewer bytes than the buffer has; the number moved.
    Short(u32),
}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bus(error) => error.fmt(f),
            Self::Device(sense) => write!(
                f,
                "the disk reports {:?} {:02x}/{:02x}",
                sense.key, sense.asc, sense.ascq
            ),
            Self::Status { srb, scsi } => {
                write!(f, "the request failed: SRB {srb:#x}, SCSI {scsi:#x}")
            }
            Self::Refused(operation, status) => {
                write!(f, "the adapter refused {operation:?}: {status:#x}")
            }
            Self::Unaligned => f.write_str("not whole blocks"),
            Self::TooLong => f.write_str("too long for one request"),
            Self::Short(moved) => write!(f, "only {moved} bytes were moved"),
        }
    }
}

impl core::error::Error for StorageError {}

impl From<Error> for StorageError {
    fn from(error: Error) -> Self {
        Self::Bus(error)
    }
}

/// The outcome of a SCSI command of which at most `length` bytes can have been moved: how many
/// were.
pub(super) fn outcome(answer: &VstorPacket, length: u32) -> Result<u32, StorageError> {
    let status = answer.status.get();
    if status != 0 {
        return Err(StorageError::Refused(Operation::ExecuteSrb, status));
    }
    let srb = answer.srb();
    let sense = Sense::parse(srb.sense());
    let kind = srb.srb_status & srb_status::MASK;
    match (kind, srb.scsi_status, sense) {
        // Windows counts what was moved where it calls another amount than asked for an overrun, too.
        (srb_status::SUCCESS | srb_status::DATA_OVERRUN, scsi_status::GOOD, _) => {
            let moved = srb.data_transfer_length.get();
            if moved > length {
                let what = "more bytes moved than the buffer has";
                return Err(Error::Protocol(what).into());
            }
            Ok(moved)
        }
        (_, _, Some(sense)) => Err(StorageError::Device(sense)),
        (srb, scsi, None) => Err(StorageError::Status { srb, scsi }),
    }
}

#[cfg(test)]
mod tests {
    use vmbus_proto::storvsp::{DATA_IN, Srb};

    use super::*;

    #[test]
    fn less_data_than_asked_for_is_no_error_whatever_it_is_called() {
        let asked = Srb::request(0, &[0x12], DATA_IN, 100);
        let moved = |srb_status, moved| {
            let srb = asked.answer(srb_status, scsi_status::GOOD, moved, &[]);
            let answer = VstorPacket::execute_srb(&asked).answer(0).with_srb(&srb);
            outcome(&answer, 100).ok()
        };
        for status in [srb_status::SUCCESS, srb_status::DATA_OVERRUN] {
            assert_eq!(moved(status, 36), Some(36));
            assert_eq!(moved(status, 101), None);
        }
        assert_eq!(moved(srb_status::ERROR, 36), None);
    }
}
