//! The data that a DVD drive returns, but for the medium's own.
//!
//! A medium is a DVD-ROM of one session with one data track, as Hyper-V's are.

use vmbus_proto::scsi::{
    CLASS_MEDIA, Capacity, Cdb, ConfigurationHeader, EventHeader, MediaEvent, ModeHeader6,
    ModeHeader10, NaaDesignation, PAGE_ALL, PAGE_CAPABILITIES, PROFILE_DVD_ROM, SECTOR, Sense,
    StandardInquiry, VpdHeader, capabilities_page, vpd,
};
use zerocopy::IntoBytes as _;

use crate::storage::identity::Identity;

/// The names by which Hyper-V's drive goes.
const VENDOR: &[u8; 8] = b"Msft    ";
const PRODUCT: &[u8; 16] = b"Virtual CD/ROM  ";
const REVISION: &[u8; 4] = b"1.0 ";

/// ADR and control of a track's descriptor: position, and a data track.
const DATA_TRACK: u8 = 0x14;
/// Track number of the lead-out.
const LEAD_OUT: u8 = 0xaa;
/// Frames before block 0, in addresses by minute, second and frame.
const PREGAP: u32 = 150;
/// Frames of a second.
const FRAMES: u32 = 75;

/// Where blocks of a DVD's data zone begin (physical sector number).
const DVD_DATA_START: u32 = 0x3_0000;

/// INQUIRY data.
pub(super) fn inquiry(identity: &Identity, page: Option<u8>) -> Result<Vec<u8>, Sense> {
    let Some(page) = page else {
        let data = StandardInquiry {
            removable: StandardInquiry::REMOVABLE,
            ..StandardInquiry::new(StandardInquiry::OPTICAL, VENDOR, PRODUCT, REVISION)
        };
        return Ok(data.as_bytes().to_vec());
    };
    let body = match page {
        vpd::SUPPORTED_PAGES => vec![
            vpd::SUPPORTED_PAGES,
            vpd::UNIT_SERIAL_NUMBER,
            vpd::DEVICE_IDENTIFICATION,
        ],
        vpd::UNIT_SERIAL_NUMBER => identity.serial.as_bytes().to_vec(),
        vpd::DEVICE_IDENTIFICATION => NaaDesignation::local(identity.name).as_bytes().to_vec(),
        _ => return Err(Sense::INVALID_FIELD_IN_CDB),
    };
    let header = VpdHeader {
        peripheral: StandardInquiry::OPTICAL,
        page,
        length: (body.len() as u16).into(),
    };
    Ok([header.as_bytes(), &body].concat())
}

/// MODE SENSE data, of either length.
pub(super) fn mode_sense(locked: bool, cdb: Cdb) -> Result<Vec<u8>, Sense> {
    let Cdb::ModeSense {
        long,
        values,
        page,
        subpage,
        ..
    } = cdb
    else {
        return Err(Sense::INVALID_OPCODE);
    };
    if values == 3 {
        return Err(Sense::SAVING_NOT_SUPPORTED);
    }
    let all_subpages = subpage == 0xff && page == PAGE_ALL;
    if !matches!(page, PAGE_CAPABILITIES | PAGE_ALL) || (subpage != 0 && !all_subpages) {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }
    let mut body = capabilities_page(locked);
    if values == 1 {
        // What could be changed: nothing.
        body.iter_mut().skip(2).for_each(|byte| *byte = 0);
    }
    // Optical drives have no block descriptors (MMC-6 7.2).
    let header = if long {
        ModeHeader10 {
            data_length: (body.len() as u16).saturating_add(6).into(),
            ..ModeHeader10::default()
        }
        .as_bytes()
        .to_vec()
    } else {
        ModeHeader6 {
            data_length: (body.len() as u8).saturating_add(3),
            ..ModeHeader6::default()
        }
        .as_bytes()
        .to_vec()
    };
    Ok([&header[..], &body].concat())
}

fn capacity(blocks: u32) -> Capacity {
    Capacity {
        blocks: blocks.into(),
        block_length: SECTOR,
    }
}

/// READ CAPACITY(10) data.
pub(super) fn capacity_10(blocks: u32) -> Vec<u8> {
    capacity(blocks).to_10().as_bytes().to_vec()
}

/// READ CAPACITY(16) data.
pub(super) fn capacity_16(blocks: u32) -> Vec<u8> {
    capacity(blocks).to_16(0, 0).as_bytes().to_vec()
}

/// GET EVENT STATUS NOTIFICATION data.
pub(super) fn event(present: bool, code: u8, classes: u8) -> Vec<u8> {
    let supported = 1 << CLASS_MEDIA;
    if classes & supported == 0 {
        let none = EventHeader {
            length: 2.into(),
            class: EventHeader::NONE,
            supported,
        };
        return none.as_bytes().to_vec();
    }
    let header = EventHeader {
        length: 6.into(),
        class: CLASS_MEDIA,
        supported,
    };
    let event = MediaEvent {
        code,
        status: if present { MediaEvent::PRESENT } else { 0 },
        start_slot: 0,
        end_slot: 0,
    };
    [header.as_bytes(), event.as_bytes()].concat()
}

/// GET CONFIGURATION data.
pub(super) fn configuration(present: bool, which: u8, first: u16) -> Result<Vec<u8>, Sense> {
    if which > 2 {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }
    let present = u8::from(present);
    let [profile1, profile0] = PROFILE_DVD_ROM.to_be_bytes();
    let [size1, size0] = (SECTOR as u16).to_be_bytes();
    // By code: whether it is current, version and persistence, and its data (MMC-6 5.3).
    let features: [(u16, u8, u8, &[u8]); 8] = [
        // Profiles.
        (0x0000, 1, 0x03, &[profile1, profile0, present, 0]),
        // Core, by SCSI; INQUIRY's pages and DBE.
        (0x0001, 1, 0x0b, &[0, 0, 0, 1, 0x03, 0, 0, 0]),
        // Removable medium in a tray, which locks, ejects, and is not locked at first.
        (0x0003, 1, 0x0b, &[0x29, 0, 0, 0]),
        // Random readable, one block at a time.
        (0x0010, present, 0x00, &[0, 0, size1, size0, 0, 1, 0, 0]),
        // CD read.
        (0x001e, 0, 0x08, &[0, 0, 0, 0]),
        // DVD read.
        (0x001f, present, 0x00, &[]),
        // Power management.
        (0x0100, 1, 0x03, &[]),
        // Timeouts.
        (0x0105, 1, 0x07, &[0, 0, 0, 0]),
    ];
    let wanted = features.iter().filter(|(code, current, ..)| match which {
        0 => *code >= first,
        1 => *code >= first && *current != 0,
        _ => *code == first,
    });
    let mut body = Vec::new();
    for (code, current, flags, data) in wanted {
        body.extend(code.to_be_bytes());
        body.extend([flags & 0xfe | current, data.len() as u8]);
        body.extend(*data);
    }
    let header = ConfigurationHeader {
        length: (body.len() as u32).saturating_add(4).into(),
        reserved: 0.into(),
        profile: if present == 0 { 0 } else { PROFILE_DVD_ROM }.into(),
    };
    Ok([header.as_bytes(), &body].concat())
}

/// MECHANISM STATUS data: idle, one slot.
pub(super) fn mechanism() -> Vec<u8> {
    vec![0, 0, 0, 0, 0, 1, 0, 0]
}

/// An address as tables of contents have it.
fn address(lba: u32, msf: bool) -> [u8; 4] {
    if !msf {
        return lba.to_be_bytes();
    }
    let frames = lba.saturating_add(PREGAP);
    let (seconds, frame) = (frames / FRAMES, frames % FRAMES);
    // A DVD has more minutes than the field; its users ask for blocks.
    let minute = u8::try_from(seconds / 60).unwrap_or(u8::MAX);
    [0, minute, (seconds % 60) as u8, frame as u8]
}

/// READ TOC data of a medium of `blocks` blocks.
pub(super) fn toc(blocks: u32, msf: bool, format: u8, first: u8) -> Result<Vec<u8>, Sense> {
    let track = |number: u8, lba: u32| {
        let head = [0, DATA_TRACK, number, 0];
        [head, address(lba, msf)].concat()
    };
    let body = match (format, first) {
        (0, 0 | 1) => [track(1, 0), track(LEAD_OUT, blocks)].concat(),
        (0, LEAD_OUT) => track(LEAD_OUT, blocks),
        (1, _) => track(1, 0),
        // As the lead-in has it: first and last track, then the lead-out and the track itself.
        (2, 0 | 1) => {
            let point = |point: u8, address: [u8; 4]| {
                let [_, minute, second, frame] = address;
                [1, DATA_TRACK, 0, point, 0, 0, 0, 0, minute, second, frame]
            };
            [
                point(0xa0, [0, 1, 0, 0]),
                point(0xa1, [0, 1, 0, 0]),
                point(0xa2, address(blocks, true)),
                point(1, address(0, true)),
            ]
            .concat()
        }
        _ => return Err(Sense::INVALID_FIELD_IN_CDB),
    };
    // First and last track, or session.
    let length = (body.len() as u16).saturating_add(2).to_be_bytes();
    Ok([&length[..], &[1, 1], &body].concat())
}

/// READ DISC INFORMATION data: one complete session of one track.
pub(super) fn information(kind: u8) -> Result<Vec<u8>, Sense> {
    if kind != 0 {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }
    let mut data = vec![0; 34];
    // Length; a complete disc whose last session is complete; first track, sessions, first and
    // last track of the last session; no unrestricted use, no bar code, no id.
    let head = [0, 32, 0x0e, 1, 1, 1, 1];
    data.splice(..head.len(), head);
    Ok(data)
}

/// READ TRACK INFORMATION data of a medium of `blocks` blocks.
pub(super) fn track(blocks: u32, kind: u8, address: u32) -> Result<Vec<u8>, Sense> {
    let is_it = match kind {
        0 => address < blocks,
        1 | 2 => address == 1,
        _ => false,
    };
    if !is_it {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }
    let mut data = vec![0; 36];
    // Length; track and session 1; a data track, mode 1.
    let head = [0, 34, 1, 1, 0, 4, 1];
    data.splice(..head.len(), head);
    data.splice(24..28, blocks.to_be_bytes());
    Ok(data)
}

/// READ DISC STRUCTURE data of a medium of `blocks` blocks.
pub(super) fn structure(blocks: u32, media: u8, layer: u8, format: u8) -> Result<Vec<u8>, Sense> {
    if media != 0 || layer != 0 {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }
    let body = match format {
        // Physical format: DVD-ROM of version 1, 120 mm, one layer, and where the data is.
        0 => {
            let last = DVD_DATA_START.saturating_add(blocks.saturating_sub(1));
            let mut body = vec![0; 2048];
            body.splice(..4, [0x01, 0x02, 0x01, 0x00]);
            body.splice(4..8, DVD_DATA_START.to_be_bytes());
            body.splice(8..12, last.to_be_bytes());
            body
        }
        // Copyright: not protected, for all regions.
        1 => vec![0; 4],
        _ => return Err(Sense::INVALID_FIELD_IN_CDB),
    };
    let length = (body.len() as u16).saturating_add(2).to_be_bytes();
    Ok([&length[..], &[0, 0], &body].concat())
}
