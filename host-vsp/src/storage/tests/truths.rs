//! Storage truths: what a guest may rely on.

use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use vmbus_proto::scsi::{Capacity, Cdb, Sense, UnmapDescriptor};
use vmbus_proto::storvsp::{DATA_IN, DATA_OUT, Srb, srb_status};

use super::guest::{DATA, Guest, Range, assert_good, assert_sense, contiguous};
use super::{Image, controller, pattern};
use crate::storage::MAX_TRANSFER_BYTES;
use crate::storage::backend::{FaultyBackend, Operation};

#[test]
fn blocks_read_are_those_of_the_file() {
    let image = Image::new(1 << 20);
    let mut guest = Guest::ready(controller(image.open()));
    let (srb, data) = guest.read(3, 5);
    assert_good(&srb, 5 * 512);
    assert!(data.into_iter().eq((3 * 512..8 * 512).map(pattern)));
}

#[test]
fn blocks_written_are_in_the_file_and_nowhere_else() {
    let image = Image::new(1 << 20);
    let mut guest = Guest::ready(controller(image.open()));
    let data: Vec<u8> = (0..4096u32).map(|i| (i % 241) as u8).collect();
    let cdb = Cdb::Write {
        lba: 9,
        blocks: 8,
        fua: false,
    };
    assert_good(&guest.data_out(cdb, &data), 4096);
    let file = image.bytes();
    let at = 9 * 512;
    assert_eq!(file[at..at + 4096], data);
    assert!(file[..at].iter().copied().eq((0..at as u64).map(pattern)));
    let end = at + 4096;
    assert!(
        file[end..]
            .iter()
            .copied()
            .eq((end as u64..1 << 20).map(pattern))
    );
}

#[test]
fn beyond_the_end() {
    let image = Image::new(1 << 20);
    let mut guest = Guest::ready(controller(image.open()));
    for (lba, blocks) in [
        (2048, 1),
        (2047, 2),
        (u64::MAX, 1),
        (u64::MAX, 2),
        (1 << 32, 1),
    ] {
        let (srb, _) = guest.read(lba, blocks);
        assert_sense(&srb, srb_status::ERROR, Sense::LBA_OUT_OF_RANGE);
        let cdb = Cdb::Write {
            lba,
            blocks,
            fua: false,
        };
        let srb = guest.data_out(cdb, &vec![1; blocks as usize * 512]);
        assert_sense(&srb, srb_status::ERROR, Sense::LBA_OUT_OF_RANGE);
        let srb = guest.command(Cdb::SynchronizeCache { lba, blocks });
        assert_sense(&srb, srb_status::ERROR, Sense::LBA_OUT_OF_RANGE);
        let srb = guest.command(Cdb::Verify {
            lba,
            blocks,
            compare: false,
        });
        assert_sense(&srb, srb_status::ERROR, Sense::LBA_OUT_OF_RANGE);
    }
    let (srb, _) = guest.read(2047, 1);
    assert_good(&srb, 512);
    assert_eq!(
        image.bytes().len(),
        1 << 20,
        "a refused write made the file longer"
    );
}

#[test]
fn a_read_only_disk() {
    let image = Image::new(1 << 20);
    let mut guest = Guest::ready(controller(image.open_read_only()));
    let srb = guest.data_out(
        Cdb::Write {
            lba: 0,
            blocks: 1,
            fua: false,
        },
        &[0xff; 512],
    );
    assert_sense(&srb, srb_status::ERROR, Sense::WRITE_PROTECTED);
    let list = UnmapDescriptor::single(0, 8);
    let srb = guest.data_out(
        Cdb::Unmap {
            anchor: false,
            parameter_list_length: 24,
        },
        &list,
    );
    assert_sense(&srb, srb_status::ERROR, Sense::WRITE_PROTECTED);
    let (srb, data) = guest.read(0, 1);
    assert_good(&srb, 512);
    assert!(data.into_iter().eq((0..512).map(pattern)));
    assert_good(
        &guest.command(Cdb::SynchronizeCache { lba: 0, blocks: 0 }),
        0,
    );
    assert!(image.bytes().into_iter().eq((0..1 << 20).map(pattern)));
}

#[test]
fn a_failing_backend_is_a_medium_error_and_life_goes_on() {
    let image = Image::new(1 << 20);
    let (vsp, backend) = image.faulty();
    let mut guest = Guest::ready(vsp);
    backend.fail(Operation::Read, 512..1024, 2, libc::EIO);
    backend.fail(Operation::Write, 512..1024, 1, libc::EIO);
    backend.fail(Operation::Flush, 0..1, 1, libc::EIO);
    for _ in 0..2 {
        let (srb, _) = guest.read(0, 4);
        assert_sense(&srb, srb_status::ERROR, Sense::UNRECOVERED_READ_ERROR);
    }
    let write = Cdb::Write {
        lba: 1,
        blocks: 1,
        fua: false,
    };
    assert_sense(
        &guest.data_out(write, &[5; 512]),
        srb_status::ERROR,
        Sense::WRITE_ERROR,
    );
    let flush = Cdb::SynchronizeCache { lba: 0, blocks: 0 };
    assert_sense(&guest.command(flush), srb_status::ERROR, Sense::WRITE_ERROR);

    assert_good(&guest.read(0, 4).0, 2048);
    assert_good(&guest.data_out(write, &[5; 512]), 512);
    assert_good(&guest.command(flush), 0);
    assert_eq!(image.bytes()[512..1024], [5; 512]);
}

#[test]
fn no_space_is_told_apart() {
    let image = Image::new(1 << 20);
    let (vsp, backend) = image.faulty();
    let mut guest = Guest::ready(vsp);
    backend.fail(Operation::Write, 0..512, 1, libc::ENOSPC);
    let srb = guest.data_out(
        Cdb::Write {
            lba: 0,
            blocks: 1,
            fua: false,
        },
        &[5; 512],
    );
    assert_sense(&srb, srb_status::ERROR, Sense::SPACE_ALLOCATION_FAILED);
}

#[test]
fn a_file_cut_short_below_the_disk_is_a_medium_error() {
    let image = Image::new(1 << 20);
    let mut guest = Guest::ready(controller(image.open()));
    std::fs::File::options()
        .write(true)
        .open(&image.path)
        .unwrap()
        .set_len(1000)
        .unwrap();
    let (srb, _) = guest.read(1, 1);
    assert_sense(&srb, srb_status::ERROR, Sense::UNRECOVERED_READ_ERROR);
    assert_good(&guest.read(0, 1).0, 512);
}

#[test]
fn sixty_four_in_flight_complete_each_exactly_once() {
    let image = Image::new(1 << 20);
    let (vsp, backend) = image.faulty();
    let mut guest = Guest::ready(vsp);
    let held = backend.hold();
    for n in 0..64u64 {
        let cdb = Cdb::Read {
            lba: n * 8,
            blocks: 8,
            fua: false,
        };
        let srb = Srb::request(0, cdb.to_bytes().as_slice(), DATA_IN, 4096);
        assert!(guest.put_srb(n, &srb, &[contiguous(DATA + n * 4096, 4096)]));
    }
    guest.serve();
    assert!(guest.take().is_none());
    drop(held);
    let mut ids: Vec<u64> = guest
        .answers(64)
        .into_iter()
        .map(|(id, packet)| {
            assert_good(&packet.srb(), 4096);
            id
        })
        .collect();
    ids.sort_unstable();
    assert!(ids.into_iter().eq(0..64));
    assert_eq!(backend.count(Operation::Read), 64);
    let mut data = vec![0; 64 * 4096];
    guest.memory.read(DATA, &mut data).unwrap();
    assert!(data.into_iter().eq((0..64 * 4096).map(pattern)));
}

/// Buffers that begin at odd bytes, in pages that do not follow each other, in several ranges.
#[test]
fn odd_offsets_across_many_pages() {
    let image = Image::new(1 << 20);
    let mut guest = Guest::ready(controller(image.open()));
    let page = DATA / 4096;
    // 64 KiB in three ranges; pages backwards and with gaps, so that no two can be joined.
    let scattered = |first: u64, count: u64| (0..count).map(move |n| first + 100 - 3 * n).collect();
    let ranges: [Range; 3] = [
        (20_001, 4095, scattered(page, 6)),
        (1, 77, vec![page + 300]),
        (65_536 - 20_002, 1, scattered(page + 400, 12)),
    ];
    let places: Vec<(u64, usize)> = ranges
        .iter()
        .flat_map(|(length, offset, pfns)| {
            let (mut left, mut offset) = (*length as usize, *offset as usize);
            pfns.iter()
                .map(|pfn| {
                    let piece = (pfn * 4096 + offset as u64, left.min(4096 - offset));
                    left -= piece.1;
                    offset = 0;
                    piece
                })
                .collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(places.iter().map(|place| place.1).sum::<usize>(), 65_536);

    let read = Cdb::Read {
        lba: 33,
        blocks: 128,
        fua: false,
    };
    let srb = Srb::request(0, read.to_bytes().as_slice(), DATA_IN, 65_536);
    assert_good(&guest.srb(&srb, &ranges), 65_536);
    let mut data = Vec::new();
    for &(gpa, length) in &places {
        let mut piece = vec![0; length];
        guest.memory.read(gpa, &mut piece).unwrap();
        data.extend(piece);
    }
    assert!(
        data.iter()
            .copied()
            .eq((33 * 512..33 * 512 + 65_536).map(pattern))
    );

    // And back to another place.
    let write = Cdb::Write {
        lba: 1001,
        blocks: 128,
        fua: false,
    };
    let srb = Srb::request(0, write.to_bytes().as_slice(), DATA_OUT, 65_536);
    assert_good(&guest.srb(&srb, &ranges), 65_536);
    assert_eq!(image.bytes()[1001 * 512..][..65_536], data);
}

#[test]
fn the_largest_transfer() {
    let image = Image::new(4 << 20);
    let mut guest = Guest::ready(controller(image.open()));
    let blocks = MAX_TRANSFER_BYTES / 512;
    let (srb, data) = guest.read(1, blocks);
    assert_good(&srb, MAX_TRANSFER_BYTES);
    assert!(
        data.into_iter()
            .eq((512..512 + u64::from(MAX_TRANSFER_BYTES)).map(pattern))
    );
    let (srb, _) = guest.read(1, blocks + 1);
    assert_sense(
        &srb,
        srb_status::INVALID_REQUEST,
        Sense::INVALID_FIELD_IN_CDB,
    );
}

#[test]
fn a_sparse_disk_of_more_than_2_tib() {
    let size = (2 << 40) + (1 << 30);
    let image = Image::new(size);
    let mut guest = Guest::ready(controller(image.open()));
    let (srb, data) = guest.data_in(Cdb::ReadCapacity10, 8);
    assert_good(&srb, 8);
    assert_eq!(data[..4], [0xff; 4]);
    let (srb, data) = guest.data_in(
        Cdb::ReadCapacity16 {
            allocation_length: 32,
        },
        32,
    );
    assert_good(&srb, 32);
    let blocks = size / 512;
    assert_eq!(
        Capacity::parse_16(&data),
        Some(Capacity {
            blocks,
            block_length: 512
        })
    );

    let last = Cdb::Write {
        lba: blocks - 1,
        blocks: 1,
        fua: false,
    };
    assert_good(&guest.data_out(last, &[0xa5; 512]), 512);
    let (srb, data) = guest.read(blocks - 1, 1);
    assert_good(&srb, 512);
    assert_eq!(data, [0xa5; 512]);
    let (srb, _) = guest.read(blocks, 1);
    assert_sense(&srb, srb_status::ERROR, Sense::LBA_OUT_OF_RANGE);

    let file = std::fs::File::open(&image.path).unwrap();
    let mut sector = [0; 512];
    file.read_exact_at(&mut sector, size - 512).unwrap();
    assert_eq!(sector, [0xa5; 512]);
    assert_eq!(file.metadata().unwrap().len(), size);
    assert!(
        file.metadata().unwrap().blocks() * 512 < 1 << 30,
        "the file is not sparse any more"
    );
}

#[test]
fn flush_and_fua_reach_the_backend() {
    let image = Image::new(1 << 20);
    let (vsp, backend) = image.faulty();
    let mut guest = Guest::ready(vsp);
    let write = |fua| Cdb::Write {
        lba: 0,
        blocks: 1,
        fua,
    };
    assert_good(&guest.data_out(write(false), &[1; 512]), 512);
    assert_good(
        &guest.command(Cdb::SynchronizeCache { lba: 0, blocks: 0 }),
        0,
    );
    assert_good(&guest.data_out(write(true), &[2; 512]), 512);
    let stop = Cdb::StartStopUnit {
        start: false,
        load_eject: false,
        power_condition: 0,
    };
    assert_good(&guest.command(stop), 0);
    assert_eq!(
        backend.log(),
        [
            Operation::Write,
            Operation::Flush,
            Operation::DurableWrite,
            Operation::Flush
        ]
    );
    assert_eq!(image.bytes()[..512], [2; 512]);
}

#[test]
fn unmap_punches_holes() {
    let image = Image::new(1 << 20);
    let mut guest = Guest::ready(controller(image.open()));
    let before = std::fs::metadata(&image.path).unwrap().blocks();
    let cdb = Cdb::Unmap {
        anchor: false,
        parameter_list_length: 24,
    };
    let list = UnmapDescriptor::single(512, 1024);
    assert_good(&guest.data_out(cdb, &list), 24);
    let file = image.bytes();
    let hole = 512 * 512..(512 + 1024) * 512;
    assert!(file[hole.clone()].iter().all(|&byte| byte == 0));
    assert!(
        file[..hole.start]
            .iter()
            .copied()
            .eq((0..hole.start as u64).map(pattern))
    );
    assert!(
        std::fs::metadata(&image.path).unwrap().blocks() < before,
        "no room was given back"
    );

    let beyond = UnmapDescriptor::single(2047, 2);
    assert_sense(
        &guest.data_out(cdb, &beyond),
        srb_status::ERROR,
        Sense::LBA_OUT_OF_RANGE,
    );
    let mut broken = list;
    broken[3] = 48;
    assert_sense(
        &guest.data_out(cdb, &broken),
        srb_status::ERROR,
        Sense::PARAMETER_LIST_LENGTH,
    );
    let anchored = Cdb::Unmap {
        anchor: true,
        parameter_list_length: 24,
    };
    assert_sense(
        &guest.data_out(anchored, &list),
        srb_status::ERROR,
        Sense::INVALID_FIELD_IN_CDB,
    );
}

#[test]
fn verify_reads_the_medium() {
    let image = Image::new(1 << 20);
    let (vsp, backend) = image.faulty();
    let mut guest = Guest::ready(vsp);
    let verify = |lba, blocks| Cdb::Verify {
        lba,
        blocks,
        compare: false,
    };
    assert_good(&guest.command(verify(0, 2048)), 0);
    assert_eq!(backend.count(Operation::Read), 4, "a MiB in chunks");
    backend.fail(Operation::Read, 700 * 512..701 * 512, 1, libc::EIO);
    let srb = guest.command(verify(600, 200));
    assert_sense(&srb, srb_status::ERROR, Sense::UNRECOVERED_READ_ERROR);
    let srb = guest.command(Cdb::Verify {
        lba: 0,
        blocks: 1,
        compare: true,
    });
    assert_sense(&srb, srb_status::ERROR, Sense::INVALID_FIELD_IN_CDB);
}

#[test]
fn what_nobody_flushed_is_flushed_at_the_end() {
    let image = Image::new(1 << 20);
    let (vsp, backend) = image.faulty();
    drop(vsp);
    assert_eq!(backend.log(), [Operation::Flush]);
    drop(backend);
    let backend = FaultyBackend::new(image.open_read_only());
    drop(controller(backend.clone()));
    assert_eq!(backend.log(), []);
}
