//! A DVD drive: what it says of itself and its medium, and how that comes and goes.

use std::fs;

use proptest::prelude::*;
use vmbus_proto::scsi::{Cdb, MediaEvent, MmcCommand, Sense, mmc_opcode};
use vmbus_proto::storvsp::{DATA_IN, DATA_NONE, DATA_OUT, Srb, srb_status};

use super::guest::{DATA, Guest, assert_good, assert_sense, contiguous};
use super::{INSTANCE, Image};
use crate::storage::{ChangeError, Controller, ControllerHandle, Medium, RawFile};

/// Blocks of the medium, which has half a block more.
const BLOCKS: u64 = 300;

fn image() -> Image {
    Image::new(BLOCKS * 2048 + 1024)
}

/// A guest of a controller with just a drive.
fn guest(medium: Option<&Image>) -> (Guest, ControllerHandle) {
    let controller = Controller::new(INSTANCE).unwrap();
    let disks = controller.disks();
    disks.attach_drive(0, medium.map(open)).unwrap();
    (Guest::ready(controller), disks)
}

fn open(image: &Image) -> Medium {
    Medium::open(&image.path).unwrap()
}

/// A command with data for the guest, and what came.
fn data(guest: &mut Guest, command: MmcCommand, length: u32) -> (Srb, Vec<u8>) {
    let cdb = command.to_bytes();
    let srb = Srb::request(0, cdb.as_slice(), DATA_IN, length);
    let answer = guest.srb(&srb, &[contiguous(DATA, length)]);
    let mut data = vec![0; answer.data_transfer_length.get() as usize];
    guest.memory.read(DATA, &mut data).unwrap();
    (answer, data)
}

#[track_caller]
fn good(guest: &mut Guest, command: MmcCommand) -> Vec<u8> {
    let (answer, data) = data(guest, command, 4096);
    assert_good(&answer, data.len() as u32);
    data
}

fn mmc(guest: &mut Guest, command: MmcCommand) -> Srb {
    let cdb = command.to_bytes();
    guest.srb(&Srb::request(0, cdb.as_slice(), DATA_NONE, 0), &[])
}

const EVENT: MmcCommand = MmcCommand::GetEventStatusNotification {
    polled: true,
    classes: 0x10,
    allocation_length: 8,
};

/// Code and status of the next media event.
#[track_caller]
fn event(guest: &mut Guest) -> (u8, u8) {
    let data = good(guest, EVENT);
    assert_eq!(data[..4], [0, 6, 4, 0x10]);
    (data[4], data[5])
}

fn prevent(guest: &mut Guest, prevent: bool) {
    let command = MmcCommand::PreventAllowMediumRemoval { prevent };
    assert_good(&mmc(guest, command), 0);
}

const EJECT: Cdb = Cdb::StartStopUnit {
    start: false,
    load_eject: true,
    power_condition: 0,
};

#[track_caller]
fn assert_empty(guest: &mut Guest) {
    for cdb in [Cdb::TestUnitReady, Cdb::ReadCapacity10] {
        let answer = guest.command(cdb);
        assert_sense(&answer, srb_status::ERROR, Sense::MEDIUM_NOT_PRESENT);
    }
    let (answer, _) = guest.data_in(
        Cdb::Read {
            lba: 0,
            blocks: 1,
            fua: false,
        },
        2048,
    );
    assert_sense(&answer, srb_status::ERROR, Sense::MEDIUM_NOT_PRESENT);
}

#[test]
fn it_says_what_it_is() {
    let image = image();
    let (mut guest, _) = guest(Some(&image));
    let inquiry = Cdb::Inquiry {
        page: None,
        allocation_length: 36,
    };
    let (_, told) = guest.data_in(inquiry, 36);
    // An optical drive whose medium is removable.
    assert_eq!(told[..2], [5, 0x80]);
    assert_eq!(&told[8..36], b"Msft    Virtual CD/ROM  1.0 ");
    let (_, told) = guest.data_in(Cdb::ReadCapacity10, 8);
    assert_eq!(told, [0, 0, 1, 43, 0, 0, 8, 0]);
    let capabilities = Cdb::ModeSense {
        long: true,
        no_block_descriptor: false,
        values: 0,
        page: 0x2a,
        subpage: 0,
        allocation_length: 128,
    };
    let (_, told) = guest.data_in(capabilities, 128);
    assert_eq!(
        (told.len(), &told[..10]),
        (30, &[0, 28, 0, 0, 0, 0, 0, 0, 0x2a, 20][..])
    );
    // Reads DVDs, writes nothing; a tray that ejects and locks.
    assert_eq!((told[10] & 8, told[11], told[14]), (8, 0, 0x29));

    let configuration = MmcCommand::GetConfiguration {
        which: 0,
        first: 0,
        allocation_length: 4096,
    };
    let told = good(&mut guest, configuration);
    let length = u32::from_be_bytes(told[..4].try_into().unwrap());
    assert_eq!(length as usize + 4, told.len());
    assert_eq!(told[6..8], [0, 0x10], "the profile of a DVD-ROM");
    // Every feature ends where the next begins.
    let (mut at, mut codes) = (8, Vec::new());
    while at < told.len() {
        codes.push(u16::from_be_bytes([told[at], told[at + 1]]));
        assert_eq!(told[at + 3] % 4, 0);
        at += 4 + usize::from(told[at + 3]);
    }
    assert_eq!(at, told.len());
    assert!(codes.is_sorted() && codes[..3] == [0, 1, 3], "{codes:x?}");
}

#[test]
fn it_has_one_session_of_one_data_track() {
    let image = image();
    let (mut guest, _) = guest(Some(&image));
    let toc = |msf, format, first| MmcCommand::ReadToc {
        msf,
        format,
        first,
        allocation_length: 804,
    };
    let track = [0, 0x14, 1, 0, 0, 0, 0, 0];
    let lead_out = [0, 0x14, 0xaa, 0, 0, 0, 1, 44];
    let whole = [&[0, 18, 1, 1][..], &track, &lead_out].concat();
    assert_eq!(good(&mut guest, toc(false, 0, 0)), whole);
    // 300 blocks and the 150 before them are six seconds.
    let told = good(&mut guest, toc(true, 0, 0xaa));
    assert_eq!(told, [0, 10, 1, 1, 0, 0x14, 0xaa, 0, 0, 0, 6, 0]);
    let told = good(&mut guest, toc(false, 1, 0));
    assert_eq!(told, [&[0, 10, 1, 1][..], &track].concat());
    assert_eq!(good(&mut guest, toc(false, 2, 0)).len(), 4 + 4 * 11);
    for odd in [toc(false, 0, 2), toc(false, 5, 0)] {
        let (answer, _) = data(&mut guest, odd, 804);
        assert_sense(&answer, srb_status::ERROR, Sense::INVALID_FIELD_IN_CDB);
    }
    let disc = MmcCommand::ReadDiscInformation {
        kind: 0,
        allocation_length: 34,
    };
    assert_eq!(good(&mut guest, disc)[..7], [0, 32, 0x0e, 1, 1, 1, 1]);
    let of_track = MmcCommand::ReadTrackInformation {
        kind: 1,
        address: 1,
        allocation_length: 36,
    };
    let told = good(&mut guest, of_track);
    assert_eq!((told.len(), &told[24..28]), (36, &[0, 0, 1, 44][..]));
    let structure = MmcCommand::ReadDiscStructure {
        media: 0,
        layer: 0,
        format: 0,
        allocation_length: 2052,
    };
    assert_eq!(good(&mut guest, structure).len(), 2052);
}

#[test]
fn whole_blocks_are_read_and_nothing_is_written() {
    let image = image();
    let content = image.bytes();
    let (mut guest, _) = guest(Some(&image));
    let read = Cdb::Read {
        lba: 7,
        blocks: 3,
        fua: false,
    };
    let (answer, told) = guest.data_in(read, 3 * 2048);
    assert_good(&answer, 3 * 2048);
    assert_eq!(told, content[7 * 2048..10 * 2048]);
    let read = MmcCommand::Read12 {
        lba: BLOCKS as u32 - 1,
        blocks: 1,
    };
    let (answer, told) = data(&mut guest, read, 2048);
    assert_good(&answer, 2048);
    let last = (BLOCKS as usize - 1) * 2048;
    assert_eq!(told, content[last..last + 2048]);
    for (lba, blocks) in [(BLOCKS, 1), (BLOCKS - 1, 2), (u64::from(u32::MAX), 1)] {
        let (answer, _) = data(
            &mut guest,
            MmcCommand::Read12 {
                lba: lba as u32,
                blocks,
            },
            4096,
        );
        assert_sense(&answer, srb_status::ERROR, Sense::LBA_OUT_OF_RANGE);
    }
    let write = Cdb::Write {
        lba: 0,
        blocks: 1,
        fua: false,
    };
    let answer = guest.data_out(write, &[1; 2048]);
    assert_sense(&answer, srb_status::ERROR, Sense::INVALID_OPCODE);
    assert_eq!(image.bytes(), content);
    // More than the guest's buffer has, and the wrong way.
    let (answer, _) = guest.data_in(
        Cdb::Read {
            lba: 0,
            blocks: 2,
            fua: false,
        },
        2048,
    );
    assert_eq!(answer.srb_status & 0x3f, srb_status::INVALID_REQUEST);
    let answer = guest.data_out(
        Cdb::Read {
            lba: 0,
            blocks: 1,
            fua: false,
        },
        &[0; 2048],
    );
    assert_eq!(answer.srb_status & 0x3f, srb_status::INVALID_REQUEST);
}

#[test]
fn a_medium_comes_into_an_empty_drive_and_is_told_of_once() {
    let image = image();
    let (mut guest, disks) = guest(None);
    assert_empty(&mut guest);
    assert_eq!(event(&mut guest), (MediaEvent::NO_CHANGE, 0));
    disks.change_medium(0, Some(open(&image)), false).unwrap();
    // These work before it is told, and do not tell it as the others do.
    assert_eq!(event(&mut guest), (MediaEvent::NEW_MEDIUM, 2));
    assert_eq!(event(&mut guest), (MediaEvent::NO_CHANGE, 2));
    let answer = guest.command(Cdb::TestUnitReady);
    assert_sense(&answer, srb_status::ERROR, Sense::MEDIUM_MAY_HAVE_CHANGED);
    assert_good(&guest.command(Cdb::TestUnitReady), 0);
    assert_eq!(disks.medium(0).unwrap().unwrap().0, image.path);
}

#[test]
fn a_guest_ejects_unless_it_has_locked() {
    let image = image();
    let (mut guest, disks) = guest(Some(&image));
    prevent(&mut guest, true);
    let answer = guest.command(EJECT);
    assert_sense(&answer, srb_status::ERROR, Sense::MEDIUM_REMOVAL_PREVENTED);
    assert_good(&guest.command(Cdb::TestUnitReady), 0);
    prevent(&mut guest, false);
    assert_good(&guest.command(EJECT), 0);
    assert_eq!(event(&mut guest), (MediaEvent::MEDIUM_REMOVAL, 0));
    assert_empty(&mut guest);
    assert_eq!(disks.medium(0).unwrap(), None);
    RawFile::open(&image.path, false).expect("the image is free");
    assert_good(&guest.command(EJECT), 0);
}

#[test]
fn the_host_asks_for_a_locked_medium_and_takes_it_by_force() {
    let (first, second) = (image(), image());
    let (mut guest, disks) = guest(Some(&first));
    prevent(&mut guest, true);
    for medium in [None, Some(open(&second))] {
        let error = disks.change_medium(0, medium, false).unwrap_err();
        assert!(matches!(error, ChangeError::Locked), "{error}");
        assert_eq!(event(&mut guest), (MediaEvent::EJECT_REQUEST, 2));
    }
    assert_good(&guest.command(Cdb::TestUnitReady), 0);
    disks.change_medium(0, Some(open(&second)), true).unwrap();
    RawFile::open(&first.path, false).expect("the image is free");
    let answer = guest.command(Cdb::TestUnitReady);
    assert_sense(&answer, srb_status::ERROR, Sense::MEDIUM_MAY_HAVE_CHANGED);
    disks
        .change_medium(0, None, false)
        .expect("the lock went with the medium");
    assert_empty(&mut guest);
    disks.detach_drive(0).unwrap();
    guest.serve();
    assert!(guest.take_news().is_some(), "the guest is not told");
    let answer = guest.command(Cdb::TestUnitReady);
    assert_sense(&answer, srb_status::INVALID_LUN, Sense::LU_NOT_SUPPORTED);
    assert!(matches!(disks.medium(0), Err(ChangeError::NoDrive(0))));
}

#[test]
fn what_a_drive_remembers_goes_with_a_saved_controller() {
    let image = image();
    let (mut guest, disks) = guest(None);
    prevent(&mut guest, true);
    disks.change_medium(0, Some(open(&image)), false).unwrap();
    prevent_after_change(&mut guest);
    let fresh = Controller::new(INSTANCE).unwrap();
    fresh.disks().attach_drive(0, Some(open(&image))).unwrap();
    let disks = fresh.disks();
    guest.move_to(fresh);
    assert_eq!(event(&mut guest), (MediaEvent::NEW_MEDIUM, 2));
    let error = disks.change_medium(0, None, false).unwrap_err();
    assert!(matches!(error, ChangeError::Locked), "{error}");
}

/// The first command is told of the change, the second locks.
fn prevent_after_change(guest: &mut Guest) {
    let command = MmcCommand::PreventAllowMediumRemoval { prevent: true };
    let answer = mmc(guest, command);
    assert_sense(&answer, srb_status::ERROR, Sense::MEDIUM_MAY_HAVE_CHANGED);
    assert_good(&mmc(guest, command), 0);
}

#[test]
fn an_image_without_a_block_is_no_medium() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("small.iso");
    fs::write(&path, [0; 2047]).unwrap();
    let text = Medium::open(&path).err().unwrap().to_string();
    assert!(text.contains("2048-byte sector"), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any command of any length and direction gets one answer, and the drive works after it.
    #[test]
    fn any_command_gets_one_answer(
        commands in prop::collection::vec(
            (
                prop_oneof![
                    prop::sample::select(vec![
                        mmc_opcode::READ_TOC, mmc_opcode::GET_CONFIGURATION,
                        mmc_opcode::GET_EVENT_STATUS_NOTIFICATION, mmc_opcode::READ_12,
                        mmc_opcode::READ_DISC_INFORMATION, mmc_opcode::READ_TRACK_INFORMATION,
                        mmc_opcode::READ_DISC_STRUCTURE, mmc_opcode::MECHANISM_STATUS, 0x1b, 0x1e,
                    ]),
                    any::<u8>(),
                ],
                prop::collection::vec(any::<u8>(), 0..16),
                prop::sample::select(vec![DATA_IN, DATA_OUT, DATA_NONE]),
                0u32..5000,
            ),
            1..40,
        ),
        with_medium in any::<bool>(),
    ) {
        let image = image();
        let content = image.bytes();
        let (mut guest, disks) = guest(with_medium.then_some(&image));
        for (code, rest, direction, length) in commands {
            let cdb = [&[code][..], &rest].concat();
            let length = if direction == DATA_NONE { 0 } else { length };
            let srb = Srb::request(0, &cdb, direction, length);
            let ranges = if length == 0 { vec![] } else { vec![contiguous(DATA, length)] };
            let answer = guest.srb(&srb, &ranges);
            prop_assert!(answer.data_transfer_length.get() <= length);
        }
        disks.change_medium(0, Some(open(&image)), true).unwrap();
        let _ = guest.command(Cdb::TestUnitReady);
        assert_good(&guest.command(Cdb::TestUnitReady), 0);
        prop_assert_eq!(image.bytes(), content);
    }
}
