//! The SCSI target without a channel: what it says of itself.

use std::cell::RefCell;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmbus_proto::gpa::{GpaRangeWriter, GpaRanges};
use vmbus_proto::scsi::{Cdb, ReportLuns, Sense, StandardInquiry, VpdHeader};
use vmbus_proto::storvsp::{DATA_IN, DATA_OUT, Srb, srb_status};

use super::{INSTANCE, Image};
use crate::memory::GuestMemory;
use crate::storage::backend::Backend;
use crate::storage::block::BlockSize;
use crate::storage::buffer::GuestBuffer;
use crate::storage::identity::Identity;
use crate::storage::scsi::{Outcome, Step, Target, Unit};

/// Disks at LUNs 0 and 5.
fn target(backend: impl Backend + 'static) -> RefCell<Target> {
    let backend: Arc<dyn Backend> = Arc::new(backend);
    let mut target = Target::default();
    for lun in [0, 5] {
        let identity = Identity::new(INSTANCE, lun);
        assert!(target.insert(
            lun,
            Unit::new(Arc::clone(&backend), BlockSize::default(), identity)
        ));
    }
    RefCell::new(target)
}

/// Runs a command that needs no transfer, with a buffer of `length` bytes, and returns the data
/// that came.
fn run_srb(target: &RefCell<Target>, srb: &Srb) -> (Outcome, Vec<u8>) {
    let memory: Arc<dyn GuestMemory> =
        Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 8192)]).unwrap());
    let length = srb.data_transfer_length.get();
    let mut bytes = [0; 64];
    let mut writer = GpaRangeWriter::ranges(&mut bytes);
    writer.range(length, 4000).unwrap();
    writer.pfn(0).unwrap();
    writer.pfn(1).unwrap();
    let ranges = GpaRanges::parse(1, writer.finish()).unwrap();
    let buffer = GuestBuffer::new(Arc::clone(&memory), ranges, length as usize).unwrap();
    let Step::Done(outcome) = target.borrow_mut().start(srb, buffer) else {
        panic!("it began a transfer");
    };
    let mut data = vec![0; outcome.moved as usize];
    memory.read(4000, &mut data).unwrap();
    (outcome, data)
}

fn run(target: &RefCell<Target>, lun: u8, cdb: Cdb, length: u32) -> (Outcome, Vec<u8>) {
    run_srb(
        target,
        &Srb::request(lun, cdb.to_bytes().as_slice(), DATA_IN, length),
    )
}

fn good(target: &RefCell<Target>, lun: u8, cdb: Cdb) -> Vec<u8> {
    let (outcome, data) = run(target, lun, cdb, 1000);
    assert_eq!(outcome, Outcome::good(data.len() as u32), "{cdb:?}");
    data
}

fn page(target: &RefCell<Target>, lun: u8, page: u8) -> Vec<u8> {
    let data = good(
        target,
        lun,
        Cdb::Inquiry {
            page: Some(page),
            allocation_length: 1000,
        },
    );
    let (code, body) = VpdHeader::parse(&data).unwrap();
    assert_eq!(
        (code, body.len()),
        (page, data.len() - 4),
        "the length in page {page:x}"
    );
    body.to_vec()
}

#[test]
fn inquiry() {
    let image = Image::new(1 << 20);
    let target = target(image.open());
    let data = good(
        &target,
        5,
        Cdb::Inquiry {
            page: None,
            allocation_length: 255,
        },
    );
    let inquiry = StandardInquiry::parse(&data).unwrap();
    assert!(inquiry.is_disk());
    assert_eq!((data.len(), inquiry.version, inquiry.flags7), (36, 6, 2));
    assert_eq!(
        (&inquiry.vendor, &inquiry.product),
        (b"Msft    ", b"Virtual Disk    ")
    );
    // Cut at the allocation length, and at the buffer.
    let short = Cdb::Inquiry {
        page: None,
        allocation_length: 5,
    };
    assert_eq!(good(&target, 0, short), data[..5]);
    let (outcome, cut) = run(
        &target,
        0,
        Cdb::Inquiry {
            page: None,
            allocation_length: 255,
        },
        7,
    );
    assert_eq!((outcome, &cut[..]), (Outcome::good(7), &data[..7]));
}

#[test]
fn vital_product_data() {
    let image = Image::new(1 << 20);
    let target = target(image.open());
    let pages = page(&target, 0, 0x00);
    assert_eq!(pages, [0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2]);
    for code in pages {
        page(&target, 0, code);
    }
    assert_eq!(
        page(&target, 5, 0x80),
        b"112233445566778899aabbccddeeff0005"
    );
    let name = page(&target, 5, 0x83);
    assert_eq!(
        (name.len(), &name[..4], name[4] >> 4),
        (12, &[1, 3, 0, 8][..], 3)
    );
    assert_ne!(name, page(&target, 0, 0x83));
    let limits = page(&target, 0, 0xb0);
    assert_eq!(limits.len(), 60);
    assert_eq!(
        limits[4..8],
        1024u32.to_be_bytes(),
        "the longest transfer in blocks"
    );
    assert_eq!(limits[16..20], [0xff; 4]);
    assert_eq!(limits[20..24], 256u32.to_be_bytes());
    assert_eq!(page(&target, 0, 0xb1)[..2], [0, 1]);
    assert_eq!(page(&target, 0, 0xb2), [0, 0x84, 2, 0]);

    let unknown = Cdb::Inquiry {
        page: Some(0x89),
        allocation_length: 255,
    };
    assert_eq!(
        run(&target, 0, unknown, 255).0,
        Outcome::check(Sense::INVALID_FIELD_IN_CDB)
    );
}

#[test]
fn capacity() {
    let image = Image::new(1 << 20);
    let disk = target(image.open());
    assert_eq!(
        good(&disk, 0, Cdb::ReadCapacity10),
        [0, 0, 7, 0xff, 0, 0, 2, 0]
    );
    let data = good(
        &disk,
        0,
        Cdb::ReadCapacity16 {
            allocation_length: 32,
        },
    );
    assert_eq!(
        data[..16],
        [0, 0, 0, 0, 0, 0, 7, 0xff, 0, 0, 2, 0, 0, 3, 0xc0, 0]
    );
    assert_eq!(data.len(), 32);
    drop(disk);
    let disk = target(image.open_read_only());
    let data = good(
        &disk,
        0,
        Cdb::ReadCapacity16 {
            allocation_length: 32,
        },
    );
    assert_eq!(
        data[14..16],
        [0, 0],
        "what cannot be written cannot be unmapped"
    );
}

fn mode(long: bool, no_block_descriptor: bool, values: u8, page: u8, subpage: u8) -> Cdb {
    let allocation_length = 255;
    Cdb::ModeSense {
        long,
        no_block_descriptor,
        values,
        page,
        subpage,
        allocation_length,
    }
}

#[test]
fn mode_pages() {
    let image = Image::new(1 << 20);
    let disk = target(image.open());
    let caching = [8, 18, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let data = good(&disk, 0, mode(false, true, 0, 0x08, 0));
    assert_eq!(
        (&data[..4], &data[4..]),
        (&[23, 0, 0x10, 0][..], &caching[..])
    );
    let data = good(&disk, 0, mode(true, true, 0, 0x08, 0));
    assert_eq!(
        (&data[..8], &data[8..]),
        (&[0, 26, 0, 0x10, 0, 0, 0, 0][..], &caching[..])
    );
    let data = good(&disk, 0, mode(false, false, 0, 0x3f, 0xff));
    assert_eq!(data[..12], [43, 0, 0x10, 8, 0, 0, 8, 0, 0, 0, 2, 0]);
    assert_eq!(data.len(), 4 + 8 + 20 + 12);
    let changeable = good(&disk, 0, mode(false, true, 1, 0x3f, 0));
    assert!(changeable[6..24].iter().all(|&byte| byte == 0));

    let refused = |cdb| run(&disk, 0, cdb, 255).0;
    assert_eq!(
        refused(mode(false, true, 3, 8, 0)),
        Outcome::check(Sense::SAVING_NOT_SUPPORTED)
    );
    for cdb in [mode(false, true, 0, 0x1c, 0), mode(false, true, 0, 8, 1)] {
        assert_eq!(refused(cdb), Outcome::check(Sense::INVALID_FIELD_IN_CDB));
    }
    drop(disk);
    let disk = target(image.open_read_only());
    assert_eq!(
        good(&disk, 0, mode(false, true, 0, 0x3f, 0))[2],
        0x90,
        "write protected"
    );
}

#[test]
fn request_sense_has_nothing_to_tell() {
    let image = Image::new(1 << 20);
    let target = target(image.open());
    for descriptor in [false, true] {
        let data = good(
            &target,
            0,
            Cdb::RequestSense {
                descriptor,
                allocation_length: 252,
            },
        );
        assert_eq!(Sense::parse(&data), Some(Sense::NONE));
        assert_eq!(data[0], if descriptor { 0x72 } else { 0x70 });
    }
}

#[test]
fn logical_units() {
    let image = Image::new(1 << 20);
    let target = target(image.open());
    let all = Cdb::ReportLuns {
        select: 0,
        allocation_length: 1000,
    };
    // Any LUN may be asked, also one without a disk.
    for lun in [0, 1, 5] {
        let data = good(&target, lun, all);
        assert_eq!(
            ReportLuns::parse(&data).unwrap().collect::<Vec<_>>(),
            [0, 5]
        );
    }
    let none = Cdb::ReportLuns {
        select: 1,
        allocation_length: 1000,
    };
    assert_eq!(good(&target, 0, none), [0; 8]);
    let odd = Cdb::ReportLuns {
        select: 9,
        allocation_length: 1000,
    };
    assert_eq!(
        run(&target, 0, odd, 1000).0,
        Outcome::check(Sense::INVALID_FIELD_IN_CDB)
    );

    // Where there is no disk, INQUIRY says so in its data and all else fails.
    let inquiry = Cdb::Inquiry {
        page: None,
        allocation_length: 36,
    };
    assert_eq!(good(&target, 1, inquiry)[0], 0x7f);
    for cdb in [
        Cdb::TestUnitReady,
        Cdb::ReadCapacity10,
        Cdb::Read {
            lba: 0,
            blocks: 1,
            fua: false,
        },
        Cdb::Inquiry {
            page: Some(0),
            allocation_length: 36,
        },
    ] {
        let (outcome, _) = run(&target, 1, cdb, 512);
        assert_eq!(outcome.srb_status, srb_status::INVALID_LUN);
        assert_eq!(
            (outcome.scsi_status, outcome.sense),
            (2, Some(Sense::LU_NOT_SUPPORTED))
        );
    }
    // On other paths and targets there is nothing at all.
    let mut srb = Srb::request(0, inquiry.to_bytes().as_slice(), DATA_IN, 36);
    srb.target_id = 1;
    assert_eq!(run_srb(&target, &srb).1[0], 0x7f);
    let mut srb = Srb::request(0, all.to_bytes().as_slice(), DATA_IN, 1000);
    srb.path_id = 1;
    assert_eq!(run_srb(&target, &srb).1, [0; 8]);
}

#[test]
fn a_command_with_an_answer_and_the_wrong_direction() {
    let image = Image::new(1 << 20);
    let target = target(image.open());
    let cdb = Cdb::Inquiry {
        page: None,
        allocation_length: 36,
    };
    let srb = Srb::request(0, cdb.to_bytes().as_slice(), DATA_OUT, 36);
    assert_eq!(run_srb(&target, &srb).0, Outcome::invalid());
}
