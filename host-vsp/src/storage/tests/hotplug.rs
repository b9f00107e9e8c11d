//! Disks that come, go and grow while a guest uses the controller.

use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use vmbus_proto::scsi::{Cdb, Sense};
use vmbus_proto::storvsp::{DATA_NONE, Operation, Srb, VstorPacket, srb_status};

use super::guest::{Guest, assert_good, assert_sense, contiguous};
use super::{Image, controller};
use crate::storage::handle::{LETTING_GO, QUIET};
use crate::storage::{AttachError, ChangeError, MAX_LUNS, RawFile};

const SIZE: u64 = 1 << 20;

fn command(lun: u8, cdb: Cdb) -> Srb {
    Srb::request(lun, cdb.to_bytes().as_slice(), DATA_NONE, 0)
}

/// Serves, and asserts that the guest is told once that its disks have changed.
#[track_caller]
fn assert_told(guest: &mut Guest) {
    guest.serve();
    let (id, packet) = guest.take_news().expect("the guest is not told");
    assert_eq!((id, packet.operation()), (0, Some(Operation::EnumerateBus)));
    assert_eq!(packet.flags.get(), 0, "nobody waits for an answer");
    assert_not_told(guest);
}

#[track_caller]
fn assert_not_told(guest: &mut Guest) {
    guest.serve();
    assert_eq!(guest.take_news(), None);
}

fn blocks(guest: &mut Guest) -> u64 {
    let (answer, data) = guest.data_in(
        Cdb::ReadCapacity16 {
            allocation_length: 32,
        },
        32,
    );
    assert_good(&answer, 32);
    u64::from_be_bytes(data[..8].try_into().unwrap()) + 1
}

#[test]
fn an_added_disk_is_announced_and_there() {
    let (first, second) = (Image::new(SIZE), Image::new(2 * SIZE));
    let mut guest = Guest::ready(controller(first.open()));
    let disks = guest.vsp.disks();
    assert_not_told(&mut guest);
    let lun = disks.free_lun().unwrap();
    assert_eq!(lun, 1);
    disks.attach(lun, second.open()).unwrap();
    assert!(guest.wait_event(0), "a sleeping worker would sleep on");
    assert_told(&mut guest);
    assert_good(&guest.srb(&command(lun, Cdb::TestUnitReady), &[]), 0);
    let read = Cdb::Read {
        lba: 4000,
        blocks: 1,
        fua: false,
    };
    let srb = Srb::request(lun, read.to_bytes().as_slice(), 1, 512);
    assert_good(
        &guest.srb(&srb, &[contiguous(super::guest::DATA, 512)]),
        512,
    );
}

#[test]
fn a_removed_disk_is_gone_and_what_was_written_is_in_its_image() {
    let (first, second) = (Image::new(SIZE), Image::new(SIZE));
    let mut guest = Guest::ready(controller(first.open()));
    let disks = guest.vsp.disks();
    disks.attach(5, second.open()).unwrap();
    assert_told(&mut guest);
    disks.detach(5).unwrap();
    RawFile::open(&second.path, false).expect("the image is free");
    assert!(matches!(disks.detach(5), Err(ChangeError::NoDisk(5))));
    assert_told(&mut guest);

    // An INQUIRY says nothing that a guest would take for the end of a disk.
    let inquiry = Cdb::Inquiry {
        page: None,
        allocation_length: 0,
    };
    assert_good(&guest.srb(&command(5, inquiry), &[]), 0);
    let again = disks.attach(5, second.open());
    assert!(
        matches!(again, Err(AttachError::InUse(5))),
        "the guest would take it for the old one: {again:?}"
    );
    let answer = guest.srb(&command(5, Cdb::TestUnitReady), &[]);
    assert_sense(&answer, srb_status::INVALID_LUN, Sense::LU_NOT_SUPPORTED);
    disks.attach(5, second.open()).unwrap();
    assert_told(&mut guest);
    assert_good(&guest.srb(&command(5, Cdb::TestUnitReady), &[]), 0);
}

#[test]
fn a_controller_waits_until_the_guest_has_let_go_of_its_disks() {
    let (first, second) = (Image::new(SIZE), Image::new(SIZE));
    let mut guest = Guest::ready(controller(first.open()));
    let disks = guest.vsp.disks();
    disks.attach(5, second.open()).unwrap();
    assert_told(&mut guest);
    let (gone, is_gone) = channel();
    let remover = std::thread::spawn(move || gone.send(disks.retire()).unwrap());
    let end = Instant::now() + Duration::from_secs(10);
    while guest.vsp.disks().disk(5).is_ok() {
        assert!(Instant::now() < end, "the disks stay");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_told(&mut guest);
    for lun in [0, 5] {
        let early = is_gone.recv_timeout(QUIET);
        assert!(
            early.is_err(),
            "the guest does not know of {lun}: {early:?}"
        );
        let answer = guest.srb(&command(lun, Cdb::TestUnitReady), &[]);
        assert_sense(&answer, srb_status::INVALID_LUN, Sense::LU_NOT_SUPPORTED);
    }
    // Its last flush may take a while to come.
    let early = is_gone.recv_timeout(QUIET / 2);
    assert!(early.is_err(), "the guest may still ask: {early:?}");
    is_gone.recv_timeout(LETTING_GO).unwrap().unwrap();
    remover.join().unwrap();
    RawFile::open(&first.path, false).expect("the image is free");
    RawFile::open(&second.path, false).expect("the image is free");
}

#[test]
fn a_controller_that_no_guest_uses_goes_at_once() {
    let image = Image::new(SIZE);
    let controller = controller(image.open());
    let begin = Instant::now();
    controller.disks().retire().unwrap();
    assert!(begin.elapsed() < QUIET, "it waited for nobody");
    RawFile::open(&image.path, false).expect("the image is free");
}

#[test]
fn a_disk_that_is_removed_finishes_what_was_asked_before() {
    let image = Image::new(SIZE);
    let (vsp, backend) = image.faulty();
    let mut guest = Guest::ready(vsp);
    let disks = guest.vsp.disks();
    let held = backend.hold();
    let write = Cdb::Write {
        lba: 7,
        blocks: 1,
        fua: false,
    };
    let data = [0xC3; 512];
    guest.memory.write(super::guest::DATA, &data).unwrap();
    let srb = Srb::request(0, write.to_bytes().as_slice(), 0, 512);
    let id = guest.id();
    assert!(guest.put_srb(id, &srb, &[contiguous(super::guest::DATA, 512)]));
    guest.serve();
    let (gone, is_gone) = channel();
    let remover = std::thread::spawn(move || gone.send(disks.detach(0)).unwrap());
    let early = is_gone.recv_timeout(Duration::from_millis(50));
    assert!(early.is_err(), "a write is on its way: {early:?}");
    drop(held);
    let end = Duration::from_secs(20);
    is_gone.recv_timeout(end).unwrap().unwrap();
    remover.join().unwrap();
    assert_eq!(image.bytes()[7 * 512..8 * 512], data);
    // Its answer is not lost, nor the news.
    guest.serve();
    let (answered, payload) = guest.take().expect("no answer");
    assert_eq!(answered, id);
    assert_good(&VstorPacket::parse(&payload).unwrap().srb(), 512);
    assert!(guest.take_news().is_some());
}

#[test]
fn a_larger_disk_says_so_once_and_has_the_room() {
    let image = Image::new(SIZE);
    let mut guest = Guest::ready(controller(image.open()));
    let disks = guest.vsp.disks();
    assert_eq!(blocks(&mut guest), 2048);
    disks.resize(0, 3 * SIZE).unwrap();
    assert_told(&mut guest);
    let inquiry = Cdb::Inquiry {
        page: None,
        allocation_length: 0,
    };
    assert_good(&guest.command(inquiry), 0);
    let answer = guest.command(Cdb::TestUnitReady);
    assert_sense(&answer, srb_status::ERROR, Sense::CAPACITY_CHANGED);
    assert_good(&guest.command(Cdb::TestUnitReady), 0);
    assert_eq!(blocks(&mut guest), 3 * 2048);
    let (answer, data) = guest.read(3 * 2048 - 1, 1);
    assert_good(&answer, 512);
    assert_eq!(data, [0; 512]);
    assert_eq!(disks.disk(0).unwrap(), (3 * SIZE, false));
}

#[test]
fn sizes_that_cannot_be_are_refused_in_a_sentence() {
    let image = Image::new(SIZE);
    let mut guest = Guest::ready(controller(image.open()));
    let disks = guest.vsp.disks();
    for (size, word) in [(SIZE - 512, "lost"), (SIZE + 1, "multiple"), (0, "lost")] {
        let error = disks.resize(0, size).unwrap_err();
        assert!(matches!(error, ChangeError::Size(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(word) && !text.contains('\n'), "{text}");
    }
    assert_eq!(image.bytes().len() as u64, SIZE);
    assert!(matches!(disks.resize(1, SIZE), Err(ChangeError::NoDisk(1))));
    assert_not_told(&mut guest);
    assert_good(&guest.command(Cdb::TestUnitReady), 0);

    let read_only = Guest::ready(controller(Image::new(SIZE).open_read_only()));
    let error = read_only.vsp.disks().resize(0, 2 * SIZE).unwrap_err();
    assert!(error.to_string().contains("read-only"), "{error}");
}

#[test]
fn a_guest_that_begins_is_told_nothing_old() {
    let (first, second) = (Image::new(SIZE), Image::new(SIZE));
    let vsp = controller(first.open());
    let disks = vsp.disks();
    disks.attach(1, second.open()).unwrap();
    disks.detach(1).unwrap();
    disks.resize(0, 2 * SIZE).unwrap();
    assert_eq!(disks.free_lun(), Some(2), "a guest may not know yet");
    let mut guest = Guest::ready(vsp);
    assert_not_told(&mut guest);
    assert_eq!(disks.free_lun(), Some(1));
    assert_good(&guest.command(Cdb::TestUnitReady), 0);
    assert_eq!(blocks(&mut guest), 2 * 2048);
}

#[test]
fn a_guest_that_never_looks_runs_out_of_luns_and_nothing_else() {
    let (first, second) = (Image::new(SIZE), Image::new(SIZE));
    let mut guest = Guest::ready(controller(first.open()));
    let disks = guest.vsp.disks();
    for expected in 1..MAX_LUNS {
        let lun = disks.free_lun();
        assert_eq!(lun, Some(expected));
        disks.attach(expected, second.open()).unwrap();
        disks.detach(expected).unwrap();
    }
    assert_eq!(disks.free_lun(), None);
    assert_told(&mut guest);
}

#[test]
fn news_wait_for_room_and_go_with_a_saved_conversation() {
    let (first, second) = (Image::new(SIZE), Image::new(SIZE));
    let (vsp, backend) = first.faulty();
    let mut guest = Guest::ready_with_rings(vsp, 64, 1);
    let asked = guest.fill(&command(0, Cdb::TestUnitReady));
    let disks = guest.vsp.disks();
    disks.attach(1, second.open()).unwrap();
    disks.resize(0, 2 * SIZE).unwrap();
    disks.detach(1).unwrap();
    guest.serve();
    guest.move_to(controller(backend.clone()));
    for _ in 0..asked {
        assert!(guest.take().is_some());
    }
    assert_told(&mut guest);
    let disks = guest.vsp.disks();
    assert_eq!(disks.free_lun(), Some(2), "LUN 1 is still a gap");
    let answer = guest.command(Cdb::TestUnitReady);
    assert_sense(&answer, srb_status::ERROR, Sense::CAPACITY_CHANGED);
}
