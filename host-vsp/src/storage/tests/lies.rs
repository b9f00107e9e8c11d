//! What a hostile or broken guest may send: each gets an answer, and the disk goes on.

use proptest::prelude::*;
use vmbus_proto::packet::Outgoing;
use vmbus_proto::scsi::{Cdb, Sense};
use vmbus_proto::storvsp::{DATA_IN, DATA_NONE, DATA_OUT, Operation, Srb, VstorPacket, srb_status};

use super::guest::{DATA, Guest, RAM_END, Range, assert_good, assert_sense, contiguous, encode};
use super::{Image, controller};

fn read(blocks: u32, data_in: u8, length: u32) -> Srb {
    let cdb = Cdb::Read {
        lba: 0,
        blocks,
        fua: false,
    };
    Srb::request(0, cdb.to_bytes().as_slice(), data_in, length)
}

fn write(blocks: u32, data_in: u8, length: u32) -> Srb {
    let cdb = Cdb::Write {
        lba: 0,
        blocks,
        fua: false,
    };
    Srb::request(0, cdb.to_bytes().as_slice(), data_in, length)
}

#[test]
fn lies_about_the_buffer() {
    let image = Image::new(1 << 20);
    let mut guest = Guest::ready(controller(image.open()));
    let page = DATA / 4096;
    let outside = RAM_END / 4096;
    let cases: [(&str, Srb, Vec<Range>); 12] = [
        (
            "ranges shorter than the transfer",
            read(8, DATA_IN, 4096),
            vec![(4095, 0, vec![page])],
        ),
        ("no ranges", read(1, DATA_IN, 512), vec![]),
        (
            "a range of nothing",
            read(1, DATA_IN, 512),
            vec![(0, 0, vec![])],
        ),
        (
            "not RAM",
            read(1, DATA_IN, 512),
            vec![(512, 0, vec![outside])],
        ),
        (
            "half RAM",
            read(16, DATA_IN, 8192),
            vec![(8192, 0, vec![outside - 1, outside])],
        ),
        (
            "an absurd page",
            read(1, DATA_IN, 512),
            vec![(512, 0, vec![u64::MAX])],
        ),
        (
            "less buffer than blocks",
            read(2, DATA_IN, 512),
            vec![contiguous(DATA, 512)],
        ),
        (
            "less data than blocks",
            write(2, DATA_OUT, 512),
            vec![contiguous(DATA, 512)],
        ),
        (
            "a read that sends",
            read(1, DATA_OUT, 512),
            vec![contiguous(DATA, 512)],
        ),
        (
            "a write that receives",
            write(1, DATA_IN, 512),
            vec![contiguous(DATA, 512)],
        ),
        (
            "more than allowed",
            read(1, DATA_IN, u32::MAX),
            vec![contiguous(DATA, 512)],
        ),
        (
            "too many pieces",
            read(8, DATA_IN, 4096),
            (0..4096).map(|n| (1, 0, vec![page + n % 512])).collect(),
        ),
    ];
    for (what, srb, ranges) in cases {
        let answer = guest.srb(&srb, &ranges);
        assert_eq!(
            answer.srb_status,
            srb_status::INVALID_REQUEST | 0x80,
            "{what}"
        );
        assert_sense(
            &answer,
            srb_status::INVALID_REQUEST,
            Sense::INVALID_FIELD_IN_CDB,
        );
    }
    assert_good(&guest.read(0, 1).0, 512);
}

#[test]
fn more_buffer_than_data_is_a_short_transfer() {
    let image = Image::new(1 << 20);
    let mut guest = Guest::ready(controller(image.open()));
    assert_good(
        &guest.srb(&read(1, DATA_IN, 4096), &[contiguous(DATA, 4096)]),
        512,
    );
    assert_good(
        &guest.srb(&read(0, DATA_IN, 4096), &[contiguous(DATA, 4096)]),
        0,
    );
    assert_good(&guest.srb(&write(0, DATA_NONE, 0), &[]), 0);
    // And ranges may be longer than the transfer, even into what is no RAM.
    let long = (8192, 0, vec![DATA / 4096, RAM_END / 4096]);
    assert_good(&guest.srb(&read(1, DATA_IN, 512), &[long]), 512);
}

#[test]
fn lies_about_the_command() {
    let image = Image::new(1 << 20);
    let mut guest = Guest::ready(controller(image.open()));
    let mut long = Srb::request(0, &[0; 16], DATA_NONE, 0);
    for length in [17, 20, 255] {
        long.cdb_length = length;
        let answer = guest.srb(&long, &[]);
        assert_sense(
            &answer,
            srb_status::INVALID_REQUEST,
            Sense::INVALID_FIELD_IN_CDB,
        );
    }
    for (cdb, sense) in [
        (&[][..], Sense::INVALID_FIELD_IN_CDB),
        (&[0x28, 0, 0], Sense::INVALID_FIELD_IN_CDB),
        (&[0xc1, 0, 0, 0, 0, 0], Sense::INVALID_OPCODE),
        (
            &[0x93, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0],
            Sense::INVALID_OPCODE,
        ),
    ] {
        let answer = guest.srb(&Srb::request(0, cdb, DATA_NONE, 0), &[]);
        assert_sense(&answer, srb_status::ERROR, sense);
    }
    // Sense is cut at what the guest has room for.
    for (room, given) in [(0, 0), (5, 5), (18, 18), (255, 18)] {
        let mut srb = Srb::request(0, &[0xc1], DATA_NONE, 0);
        srb.sense_length = room;
        let answer = guest.srb(&srb, &[]);
        assert_eq!((answer.scsi_status, answer.sense().len()), (2, given));
        assert_eq!(answer.srb_status & 0x80 != 0, given != 0);
    }
}

#[test]
fn payloads_cut_short_are_answered() {
    let image = Image::new(1 << 20);
    let mut guest = Guest::ready(controller(image.open()));
    let packet = VstorPacket::execute_srb(&read(1, DATA_IN, 512));
    let mut bytes = [0; 4096];
    let ranges = encode(&mut bytes, &[contiguous(DATA, 512)]).to_vec();
    for length in 0..48 {
        let payload = packet.wire_bytes(length);
        let id = guest.id();
        assert!(guest.put(&Outgoing::gpa_direct(id, &ranges, payload)));
        let answers = guest.answers(1);
        assert_eq!(answers[0].0, id);
        // The ring pads to 8 bytes, so a few bytes more than sent may have come.
        let refused = answers[0].1.status.get() != 0 || answers[0].1.srb().srb_status != 1;
        assert!(
            refused || length > 40,
            "{length} bytes were enough for a read"
        );
    }
    // More than a packet is cut.
    let mut long = packet.wire_bytes(64).to_vec();
    long.resize(4000, 0xff);
    assert!(guest.put(&Outgoing::gpa_direct(1, &ranges, &long)));
    assert_good(&guest.answers(1)[0].1.srb(), 512);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any SRB bytes with any ranges: one answer each, and the disk works afterwards.
    #[test]
    fn any_srb_gets_one_answer(
        requests in prop::collection::vec(
            (
                prop::collection::vec(any::<u8>(), 52),
                // Commands that mean something, more often than chance would have them.
                prop::option::of(prop::sample::select(vec![
                    0x00u8, 0x03, 0x08, 0x0a, 0x12, 0x1a, 0x1b, 0x25, 0x28, 0x2a, 0x2f, 0x35,
                    0x42, 0x5a, 0x88, 0x8a, 0x8f, 0x91, 0x9e, 0xa0,
                ])),
                prop::collection::vec(
                    (0u32..0x5000, 0u32..4096, 0u64..2 * RAM_END / 4096),
                    0..4,
                ),
                0u32..0x8000,
            ),
            1..20,
        )
    ) {
        let image = Image::new(1 << 20);
        let mut guest = Guest::ready(controller(image.open()));
        for (id, (bytes, opcode, ranges, length)) in requests.iter().enumerate() {
            let mut packet = VstorPacket::request(Operation::ExecuteSrb);
            packet.body.copy_from_slice(bytes);
            let mut srb = packet.srb();
            if let Some(opcode) = opcode {
                // A command to the disk, with small numbers in it.
                srb = Srb::request(0, &[*opcode, 0, 0, 0, 0, bytes[0], 0, 0, bytes[1] % 8, 0,
                    0, 0, 0, 1, 0, 0], bytes[2] % 3, *length);
            }
            let ranges: Vec<Range> = ranges
                .iter()
                // Rings and the pages around them are not for transfers of this guest.
                .map(|(length, offset, pfn)| contiguous(
                    (pfn + 1024) * 4096 + u64::from(*offset), *length))
                .collect();
            prop_assert!(guest.put_srb(id as u64, &srb, &ranges));
        }
        let mut ids: Vec<u64> =
            guest.answers(requests.len()).into_iter().map(|(id, _)| id).collect();
        ids.sort_unstable();
        prop_assert!(ids.into_iter().eq(0..requests.len() as u64));
        assert_good(&guest.command(Cdb::TestUnitReady), 0);
        assert_good(&guest.read(0, 1).0, 512);
    }
}
