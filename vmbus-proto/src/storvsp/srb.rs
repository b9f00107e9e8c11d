//! SCSI requests inside storvsp packets.

use zerocopy::FromZeros;
use zerocopy::little_endian::{U16, U32};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Longest CDB an SRB carries, in bytes.
pub const MAX_CDB: usize = 16;

/// Longest sense data an SRB carries, in bytes. Before version 5.1 it is 18.
pub const MAX_SENSE: usize = 20;

/// [`Srb::data_in`]: the data goes from guest to device.
pub const DATA_OUT: u8 = 0;
/// [`Srb::data_in`]: the data goes from device to guest.
pub const DATA_IN: u8 = 1;
/// [`Srb::data_in`]: no data (what Linux sends for it).
pub const DATA_NONE: u8 = 2;

/// Values of [`Srb::srb_status`].
pub mod srb_status {
    /// Done without error.
    pub const SUCCESS: u8 = 0x01;
    /// The request was aborted. With autosense 2A/09 Linux reads the LUN's capacity anew.
    pub const ABORTED: u8 = 0x02;
    /// The device reported an error, see the SCSI status.
    pub const ERROR: u8 = 0x04;
    /// The SRB itself cannot be.
    pub const INVALID_REQUEST: u8 = 0x06;
    /// There is no such path.
    pub const INVALID_PATH_ID: u8 = 0x07;
    /// The device moved another amount of data than the guest's buffer has.
    pub const DATA_OVERRUN: u8 = 0x12;
    /// There is no such LUN; Linux removes its device.
    pub const INVALID_LUN: u8 = 0x20;
    /// There is no such target.
    pub const INVALID_TARGET_ID: u8 = 0x21;
    /// Flag: the device's queue waits for the guest.
    pub const QUEUE_FROZEN: u8 = 0x40;
    /// Flag: the SRB carries sense data.
    pub const AUTOSENSE_VALID: u8 = 0x80;
    /// The status without its flags.
    pub const MASK: u8 = 0x3f;
}

/// Bits of [`SrbExtension::srb_flags`] that drivers set.
pub mod srb_flags {
    /// The queue action is meant.
    pub const QUEUE_ACTION_ENABLE: u32 = 0x02;
    /// No negotiation of synchronous transfers.
    pub const DISABLE_SYNCH_TRANSFER: u32 = 0x08;
    /// The guest wants no sense data.
    pub const DISABLE_AUTOSENSE: u32 = 0x20;
    /// Data to the guest.
    pub const DATA_IN: u32 = 0x40;
    /// Data from the guest.
    pub const DATA_OUT: u32 = 0x80;
}

/// What later versions added to an [`Srb`] (Linux `struct vmscsi_win8_extension`).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct SrbExtension {
    /// Zero.
    pub reserved: U16,
    /// Tag of a tagged command.
    pub queue_tag: u8,
    /// Kind of tag: 0x20 simple, 0x21 head of queue, 0x22 ordered.
    pub queue_action: u8,
    /// Bits of [`srb_flags`].
    pub srb_flags: U32,
    /// When the guest would like to give up, in seconds. Advice.
    pub time_out_seconds: U32,
    /// Sort hint. Advice.
    pub queue_sort_key: U32,
}
const _: () = assert!(size_of::<SrbExtension>() == 16);

/// A SCSI request and its answer (Linux `struct vmscsi_request`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Srb {
    /// Bytes of this structure: 52, or 36 before version 5.1.
    pub length: U16,
    /// To guest: a value of [`srb_status`].
    pub srb_status: u8,
    /// To guest: SCSI status, 0 GOOD, 2 CHECK CONDITION; see [`crate::scsi::status`].
    pub scsi_status: u8,
    /// The guest's number for the controller; the host ignores it.
    pub port_number: u8,
    /// Path (SCSI channel), 0.
    pub path_id: u8,
    /// Target, 0.
    pub target_id: u8,
    /// Logical unit.
    pub lun: u8,
    /// To host: bytes of the CDB, at most [`MAX_CDB`].
    pub cdb_length: u8,
    /// To host: bytes of sense data wanted. To guest: bytes of sense data given.
    pub sense_length: u8,
    /// [`DATA_OUT`], [`DATA_IN`] or [`DATA_NONE`].
    pub data_in: u8,
    /// Zero.
    pub reserved: u8,
    /// To host: bytes of the guest's buffer. To guest: bytes moved.
    pub data_transfer_length: U32,
    /// To host: the CDB. To guest: sense data.
    pub payload: [u8; MAX_SENSE],
    /// Not there before version 5.1.
    pub extension: SrbExtension,
}
const _: () = assert!(size_of::<Srb>() == 52);

impl Default for Srb {
    fn default() -> Self {
        Self::new_zeroed()
    }
}

impl Srb {
    /// A request to logical unit `lun`: the CDB (cut at [`MAX_CDB`]), the direction ([`DATA_OUT`],
    /// [`DATA_IN`] or [`DATA_NONE`]) and the length of the buffer in bytes.
    pub fn request(lun: u8, cdb: &[u8], data_in: u8, data_transfer_length: u32) -> Self {
        let cdb = cdb.get(..MAX_CDB).unwrap_or(cdb);
        let mut srb = Self {
            length: (size_of::<Self>() as u16).into(),
            lun,
            cdb_length: cdb.len() as u8,
            sense_length: MAX_SENSE as u8,
            data_in,
            data_transfer_length: data_transfer_length.into(),
            ..Self::default()
        };
        if let Some(payload) = srb.payload.get_mut(..cdb.len()) {
            payload.copy_from_slice(cdb);
        }
        let direction = match data_in {
            DATA_IN => srb_flags::DATA_IN,
            DATA_OUT => srb_flags::DATA_OUT,
            _ => 0,
        };
        srb.extension.srb_flags = (srb_flags::DISABLE_SYNCH_TRANSFER | direction).into();
        srb.extension.time_out_seconds = 60.into();
        srb
    }

    /// The CDB of a request; `None` where its length cannot be.
    pub fn cdb(&self) -> Option<&[u8]> {
        let length = usize::from(self.cdb_length);
        if length > MAX_CDB {
            return None;
        }
        self.payload.get(..length)
    }

    /// The answer to this request: same addressee, new outcome; `sense` (cut at the length the
    /// guest gave) makes [`srb_status::AUTOSENSE_VALID`].
    #[must_use]
    pub fn answer(&self, srb_status: u8, scsi_status: u8, moved: u32, sense: &[u8]) -> Self {
        let mut answer = *self;
        answer.srb_status = srb_status;
        answer.scsi_status = scsi_status;
        answer.data_transfer_length = moved.into();
        answer.payload = [0; MAX_SENSE];
        let wanted = usize::from(self.sense_length).min(MAX_SENSE);
        let sense = sense.get(..wanted).unwrap_or(sense);
        answer.sense_length = sense.len() as u8;
        if let Some(payload) = answer
            .payload
            .get_mut(..sense.len())
            .filter(|p| !p.is_empty())
        {
            payload.copy_from_slice(sense);
            answer.srb_status |= self::srb_status::AUTOSENSE_VALID;
        }
        answer
    }

    /// Sense data of an answer, empty where none is valid.
    pub fn sense(&self) -> &[u8] {
        if self.srb_status & srb_status::AUTOSENSE_VALID == 0 {
            return &[];
        }
        let length = usize::from(self.sense_length).min(MAX_SENSE);
        self.payload.get(..length).unwrap_or_default()
    }
}
