//! Disks of both block sizes, and disks with names that somebody chose.

use vmbus_proto::scsi::{Cdb, Sense, UnmapDescriptor};
use vmbus_proto::storvsp::srb_status;

use super::guest::{Guest, assert_good, assert_sense};
use super::{INSTANCE, Image, pattern};
use crate::storage::{AttachError, BlockSize, ChangeError, Controller, Disk};

/// A controller with a disk of 4096-byte blocks over `image`.
fn controller(image: &Image) -> Controller {
    let mut controller = Controller::new(INSTANCE).unwrap();
    let disk = Disk::new(image.open()).with_block_size(BlockSize::B4096);
    controller.attach(0, disk).unwrap();
    controller
}

fn page(guest: &mut Guest, code: u8) -> Vec<u8> {
    let inquiry = Cdb::Inquiry {
        page: Some(code),
        allocation_length: 255,
    };
    guest.data_in(inquiry, 255).1[4..].to_vec()
}

#[test]
fn blocks_of_4096_bytes() {
    // Seven sectors more than a whole block: they are not the guest's.
    let image = Image::new((1 << 20) + 7 * 512);
    let mut guest = Guest::ready(controller(&image));
    let (_, capacity) = guest.data_in(Cdb::ReadCapacity10, 8);
    assert_eq!(capacity, [0, 0, 0, 255, 0, 0, 0x10, 0]);
    let allocation_length = 32;
    let (_, capacity) = guest.data_in(Cdb::ReadCapacity16 { allocation_length }, 32);
    assert_eq!(capacity[7..14], [255, 0, 0, 0x10, 0, 0, 0]);
    let limits = page(&mut guest, 0xb0);
    assert_eq!(limits[2..4], [0, 1], "the best granularity");
    assert_eq!(limits[4..8], 128_u32.to_be_bytes(), "the longest transfer");
    assert_eq!(limits[24..28], 1_u32.to_be_bytes(), "unmap granularity");

    let read = |lba, blocks| Cdb::Read {
        lba,
        blocks,
        fua: false,
    };
    let (srb, data) = guest.data_in(read(3, 2), 8192);
    assert_good(&srb, 8192);
    assert!(data.into_iter().eq((3 * 4096..5 * 4096).map(pattern)));
    let (srb, _) = guest.data_in(read(255, 2), 8192);
    assert_sense(&srb, srb_status::ERROR, Sense::LBA_OUT_OF_RANGE);
    // A buffer for blocks of 512 bytes holds no block.
    let (srb, _) = guest.data_in(read(0, 1), 512);
    assert_sense(
        &srb,
        srb_status::INVALID_REQUEST,
        Sense::INVALID_FIELD_IN_CDB,
    );

    let write = Cdb::Write {
        lba: 255,
        blocks: 1,
        fua: true,
    };
    assert_good(&guest.data_out(write, &[9; 4096]), 4096);
    let unmap = Cdb::Unmap {
        anchor: false,
        parameter_list_length: 24,
    };
    assert_good(&guest.data_out(unmap, &UnmapDescriptor::single(1, 2)), 24);
    let bytes = image.bytes();
    assert_eq!(bytes.len(), (1 << 20) + 7 * 512);
    let expected = |offset: u64| match offset / 4096 {
        1 | 2 => 0,
        255 => 9,
        256 => 0,
        _ => pattern(offset),
    };
    let wrong = (0..).zip(&bytes).find(|(at, byte)| expected(*at) != **byte);
    assert_eq!(wrong, None);
}

#[test]
fn what_cannot_be_a_disk_of_4096_byte_blocks() {
    let image = Image::new(3584);
    let mut controller = Controller::new(INSTANCE).unwrap();
    let disk = Disk::new(image.open()).with_block_size(BlockSize::B4096);
    let refused = controller.attach(0, disk).unwrap_err();
    let (size, block) = (3584, 4096);
    assert_eq!(refused, AttachError::TooSmall { size, block });

    let image = Image::new(1 << 20);
    let controller = self::controller(&image);
    let disks = controller.disks();
    let refused = disks.resize(0, (1 << 20) + 512);
    assert!(matches!(refused, Err(ChangeError::Size(_))), "{refused:?}");
    assert_eq!(disks.disk(0).unwrap(), (1 << 20, false));
    disks.resize(0, (1 << 20) + 4096).unwrap();
}

#[test]
fn a_chosen_serial_number_goes_where_the_disk_goes() {
    let mut names = Vec::new();
    for (instance, lun) in [(INSTANCE, 0), (vmbus_proto::guid::Guid::ZERO, 0)] {
        let image = Image::new(1 << 20);
        let mut controller = Controller::new(instance).unwrap();
        let disk = Disk::new(image.open()).with_serial("WD 42");
        controller.attach(lun, disk).unwrap();
        assert_eq!(controller.disks().serial(lun).unwrap(), "WD 42");
        let mut guest = Guest::ready(controller);
        assert_eq!(page(&mut guest, 0x80), b"WD 42");
        names.push(page(&mut guest, 0x83));
    }
    assert_eq!(names[0], names[1]);
    let image = Image::new(1 << 20);
    let mut controller = Controller::new(INSTANCE).unwrap();
    for bad in ["", "no\nline", "\u{fc}"] {
        let disk = Disk::new(image.open()).with_serial(bad);
        let refused = controller.attach(0, disk).unwrap_err();
        assert_eq!(refused, AttachError::Serial(bad.into()));
    }
}
