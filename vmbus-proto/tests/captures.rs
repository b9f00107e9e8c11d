//! What a stock Linux guest put on the wire, parsed and built again.

use vmbus_proto::message::gpadl::{PFNS_IN_BODY, PFNS_IN_HEADER, announce};
use vmbus_proto::message::{Message, OpenChannel};
use vmbus_proto::scsi::Cdb;
use vmbus_proto::storvsp::{Operation, VstorPacket};
use vmbus_proto::version::Version;

const LINUX: &str = include_str!("captures/linux-6.12.txt");

/// The captured lines that begin with `kind`, as bytes.
fn captured(kind: &str) -> Vec<Vec<u8>> {
    let digit = |at: &[u8]| u8::from_str_radix(std::str::from_utf8(at).unwrap(), 16).unwrap();
    LINUX
        .lines()
        .filter_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))
        .map(|line| line.as_bytes().chunks(2).map(digit).collect())
        .collect()
}

#[test]
fn messages_parse_and_build_the_same_bytes() {
    let messages = captured("m");
    assert_eq!(messages.len(), 6);
    for bytes in &messages {
        let message = Message::parse(bytes).unwrap();
        assert_eq!(*message.encode(), bytes[..], "{message:?}");
    }
    let parsed: Vec<Message<'_>> = messages
        .iter()
        .map(|bytes| Message::parse(bytes).unwrap())
        .collect();
    let [
        Message::InitiateContact(contact),
        Message::RequestOffers,
        Message::GpadlHeader(header, first),
        Message::GpadlBody(body, second),
        Message::GpadlBody(_, third),
        Message::OpenChannel(OpenChannel {
            ring_gpadl,
            downstream_page_offset,
            ..
        }),
    ] = parsed.as_slice()
    else {
        panic!("{parsed:?}")
    };
    assert_eq!(
        (contact.version(), contact.sint(), contact.vtl()),
        (Version::V5_3, Some(2), Some(0))
    );
    assert_eq!(
        (header.gpadl.get(), header.gpadl, body.gpadl),
        (0xE1E10, *ring_gpadl, *ring_gpadl)
    );
    // Two rings of 128 KiB: 64 pages, the second ring in the middle.
    assert_eq!(downstream_page_offset.get(), 32);
    assert_eq!(first.len() - 8, 8 * PFNS_IN_HEADER);
    assert_eq!(second.len(), 8 * PFNS_IN_BODY);

    // What we announce for the same pages is what Linux announced.
    let list = [&first[8..], second, third].concat();
    let pfns: Vec<u64> = list
        .chunks(8)
        .map(|pfn| u64::from_le_bytes(pfn.try_into().unwrap()))
        .collect();
    let ours = announce(1, 0xE1E10, 64 * 4096, pfns.iter().copied()).unwrap();
    for (ours, theirs) in ours.zip(&messages[2..5]) {
        let mut ours = ours.to_vec();
        if ours[0] == 9 {
            // Linux numbers every body 0.
            ours[8..12].fill(0);
        }
        assert_eq!(ours, *theirs);
    }
}

#[test]
fn storage_packets_mean_what_linux_meant() {
    let packets: Vec<VstorPacket> = captured("p")
        .iter()
        .map(|bytes| VstorPacket::parse(bytes).unwrap())
        .collect();
    let operations: Vec<Operation> = packets
        .iter()
        .map(|packet| packet.operation().unwrap())
        .collect();
    assert_eq!(
        operations[..4],
        [
            Operation::BeginInitialization,
            Operation::QueryProtocolVersion,
            Operation::QueryProperties,
            Operation::EndInitialization,
        ]
    );
    assert_eq!(packets[1].protocol_version(), 0x0602);
    let commands: Vec<String> = packets[4..]
        .iter()
        .map(|packet| {
            assert_eq!(packet.operation(), Some(Operation::ExecuteSrb));
            let srb = packet.srb();
            let cdb = Cdb::parse(srb.cdb().unwrap()).unwrap();
            format!("{} {cdb:?}", srb.data_transfer_length)
        })
        .collect();
    assert_eq!(
        commands,
        [
            "36 Inquiry { page: None, allocation_length: 36 }",
            "4 Inquiry { page: Some(0), allocation_length: 4 }",
            "4096 ReportLuns { select: 0, allocation_length: 4096 }",
            "0 TestUnitReady",
            "32 ReadCapacity16 { allocation_length: 32 }",
            "4 ModeSense { long: false, no_block_descriptor: false, values: 0, page: 63, \
             subpage: 0, allocation_length: 4 }",
            "512 ModeSense { long: true, no_block_descriptor: true, values: 0, page: 10, \
             subpage: 5, allocation_length: 512 }",
            "4096 Read { lba: 0, blocks: 8, fua: false }",
            "524288 Write { lba: 0, blocks: 1024, fua: false }",
        ]
    );
}
