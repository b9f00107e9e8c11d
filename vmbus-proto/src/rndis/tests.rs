extern crate std;
use super::ndis::*;
use super::packet::*;
use super::*;
use proptest::prelude::*;
use std::vec::Vec;

/// What Linux sends to begin.
#[test]
fn initialize_in_bytes() {
    let request = Request::Initialize {
        id: 2,
        version: VERSION,
        max_transfer: 0x4000,
    };
    #[rustfmt::skip]
    let golden = [
        2, 0, 0, 0, 24, 0, 0, 0, // type, length
        2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0,
    ];
    let mut to = [0; 64];
    assert_eq!(request.encode(&mut to), Some(&golden[..]));
    let (kind, body, rest) = split(&golden).unwrap();
    assert_eq!(Request::parse(kind, body), Ok(Some(request)));
    assert!(rest.is_empty());

    let complete = Completion::Initialize {
        id: 2,
        status: status::SUCCESS,
        adapter: Adapter {
            version: [1.into(), 0.into()],
            flags: DEVICE_CONNECTIONLESS.into(),
            medium: MEDIUM_802_3.into(),
            max_packets: 8.into(),
            max_transfer: 0x4000.into(),
            alignment: 3.into(),
            families: [0.into(); 2],
        },
    };
    #[rustfmt::skip]
    let golden = [
        2, 0, 0, 0x80, 52, 0, 0, 0, // type, length
        2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, // id, status, version
        1, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0x40, 0, 0, // flags, medium, packets, transfer
        3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(complete.encode(&mut to), Some(&golden[..]));
    let (kind, body, _) = split(&golden).unwrap();
    assert_eq!(Completion::parse(kind, body), Ok(Some(complete)));
    assert_eq!(complete.encode(&mut to[..51]), None);
}

#[test]
fn a_query_and_its_answer_in_bytes() {
    let query = Request::Query {
        id: 5,
        oid: oid::ETHERNET_PERMANENT_ADDRESS,
        value: &[],
    };
    #[rustfmt::skip]
    let golden = [
        4, 0, 0, 0, 28, 0, 0, 0, 5, 0, 0, 0, // type, length, id
        1, 1, 1, 1, 0, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, // object, length, offset, handle
    ];
    let mut to = [0; 64];
    assert_eq!(query.encode(&mut to), Some(&golden[..]));
    let answer = Completion::Query {
        id: 5,
        status: status::SUCCESS,
        value: &[2, 0, 0, 0, 0, 7],
    };
    #[rustfmt::skip]
    let golden = [
        4, 0, 0, 0x80, 30, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, // type, length, id, status
        6, 0, 0, 0, 16, 0, 0, 0, 2, 0, 0, 0, 0, 7, // length, offset, value
    ];
    assert_eq!(answer.encode(&mut to), Some(&golden[..]));
}

#[test]
fn link_down_in_bytes() {
    let down = Indication {
        status: status::MEDIA_DISCONNECT,
        value: &[],
    };
    let mut to = [0; 64];
    let golden = [
        7, 0, 0, 0, 20, 0, 0, 0, 0x0c, 0, 1, 0x40, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(down.encode(&mut to), Some(&golden[..]));
    assert_eq!(Indication::parse(&golden[8..]), Ok(down));
}

/// A frame with a checksum to complete, as Linux sends it.
#[test]
fn a_frame_in_bytes() {
    let info = PacketInfo {
        checksum: Some(TxChecksum::new(TxChecksum::IPV4 | TxChecksum::TCP, 34).0),
        ..PacketInfo::default()
    };
    let prefix = Prefix::new(66, &info, 0);
    #[rustfmt::skip]
    let golden = [
        1, 0, 0, 0, 126, 0, 0, 0, // type, length
        52, 0, 0, 0, 66, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // data, out of band
        36, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // list
        16, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0, 0, 5, 0, 34, 0,
    ];
    assert_eq!(prefix.bytes(), golden);
    let packet = Packet::parse(&golden[8..], 118).unwrap();
    assert_eq!((packet.data_offset, packet.data_length), (52, 66));
    assert_eq!(packet.info, info);
    // A byte less, and the frame is not within.
    assert_eq!(Packet::parse(&golden[8..], 117), Err(BadMessage));
}

#[test]
fn bits() {
    let large = LargeSend::new(1448, 54, true);
    assert_eq!(large.0, 1448 | 54 << 20 | 1 << 30 | 1 << 31);
    assert_eq!(
        (
            large.mss(),
            large.transport_offset(),
            large.is_ipv6(),
            large.is_version_2()
        ),
        (1448, 54, true, true)
    );
    for tag in [0, 0x0fff, 0x1000, 0xe000, 0xb123, 0xffff] {
        assert_eq!(Vlan::from_tag(tag).tag(), tag);
    }
    let id = PacketId::piece(7, true, false);
    assert_eq!(id.0.to_le_bytes(), [1, 3, 7, 0]);
    assert!(id.is_piece() && id.is_first() && !id.is_last());
}

/// Lists that lie: entries of no size, beyond the end, values beyond their entry.
#[test]
fn lists_that_lie() {
    let list = |size: u32, offset: u32| {
        let mut body = Prefix::new(
            0,
            &PacketInfo {
                hash: Some(1),
                ..PacketInfo::default()
            },
            0,
        )
        .bytes()[8..]
            .to_vec();
        body[36..40].copy_from_slice(&size.to_le_bytes());
        body[44..48].copy_from_slice(&offset.to_le_bytes());
        Packet::parse(&body, body.len())
    };
    assert!(list(16, 12).is_ok());
    for (size, offset) in [
        (0, 12),
        (11, 12),
        (17, 12),
        (u32::MAX, 12),
        (16, 13),
        (16, 16),
        (16, u32::MAX),
        (15, 12),
    ] {
        assert_eq!(list(size, offset), Err(BadMessage), "{size} {offset}");
    }
}

#[test]
fn offloads_by_revision() {
    assert_eq!(Offload::none(111), None);
    for (room, revision, size) in [(112, 1, 112), (143, 1, 112), (144, 2, 144), (200, 3, 156)] {
        let mut offload = Offload::none(room).unwrap();
        offload.lso_ipv4_max_size = 62_780.into();
        let bytes = offload.wire_bytes();
        assert_eq!(
            (bytes.len(), bytes[..4].to_vec()),
            (size, [0xa7, revision, size as u8, 0].into())
        );
        assert_eq!(bytes[84..88], 62_780_u32.to_le_bytes());
        assert_eq!(Offload::parse(bytes), Some(offload));
        assert_eq!(Offload::parse(&bytes[..111]), None);
    }
    let mut parameters = OffloadParameters::unchanged();
    parameters.lso_ipv6 = switched::ON;
    let bytes = parameters.as_bytes();
    assert_eq!(bytes[12], 2);
    // As long as Linux sends it to version 4 and below.
    assert_eq!(OffloadParameters::parse(&bytes[..22]).unwrap().lso_ipv6, 2);
    assert_eq!(OffloadParameters::parse(&bytes[..19]), None);
}

/// As Linux spreads over two queues.
fn scale(change: impl FnOnce(&mut ReceiveScaleParameters)) -> Vec<u8> {
    let mut parameters = ReceiveScaleParameters {
        header: ObjectHeader {
            object_type: object_type::RSS_PARAMETERS,
            revision: 2,
            size: 40.into(),
        },
        flags: 0.into(),
        base_processor: 0.into(),
        hash: (hash::TOEPLITZ | hash::TCP_IPV4).into(),
        table_size: 512.into(),
        reserved1: 0.into(),
        table_offset: 40.into(),
        key_size: 40.into(),
        reserved2: 0.into(),
        key_offset: 552.into(),
    };
    change(&mut parameters);
    let mut bytes = parameters.as_bytes().to_vec();
    bytes.resize(40, 0);
    for entry in 0..128_u32 {
        bytes.extend((entry % 2).to_le_bytes());
    }
    bytes.extend([0x6d; 40]);
    bytes
}

#[test]
fn receive_scaling() {
    let bytes = scale(|_| {});
    let parsed = ReceiveScale::parse(&bytes).unwrap();
    assert_eq!((parsed.table.len(), parsed.key.len()), (128, 40));
    assert_eq!(parsed.table[3].get(), 1);
    let off = scale(|p| p.flags = rss_flag::DISABLE.into());
    assert!(ReceiveScale::parse(&off).unwrap().table.is_empty());
    let stays = scale(|p| {
        p.flags = rss_flag::TABLE_UNCHANGED.into();
        p.table_offset = u32::MAX.into();
    });
    assert!(ReceiveScale::parse(&stays).unwrap().table.is_empty());

    let mut to = [0; RECEIVE_SCALE_SIZE];
    assert_eq!(parsed.encode(&mut to), Some(&bytes[..]), "as Linux");
    let table = &[U32::ZERO; RSS_TABLE_ENTRIES + 1];
    assert_eq!(ReceiveScale { table, ..parsed }.encode(&mut to), None);
    let key = &[0; RSS_KEY_SIZE + 1];
    assert_eq!(ReceiveScale { key, ..parsed }.encode(&mut to), None);
}

#[test]
fn what_of_receive_scaling_can_be() {
    let mut capabilities = ReceiveScaleCapabilities::question();
    capabilities.queues = 8.into();
    capabilities.table_entries = 64.into();
    let bytes = capabilities.as_bytes();
    assert_eq!(bytes[..4], [0x88, 2, 18, 0]);
    assert_eq!(ReceiveScaleCapabilities::parse(bytes), Some(capabilities));
    // Revision 1 says nothing of the table.
    let first = ReceiveScaleCapabilities::parse(&bytes[..16]).unwrap();
    assert_eq!((first.queues.get(), first.table_entries.get()), (8, 0));
    assert_eq!(ReceiveScaleCapabilities::parse(&bytes[..15]), None);
    let mut other = bytes.to_vec();
    other[0] = object_type::RSS_PARAMETERS;
    assert_eq!(ReceiveScaleCapabilities::parse(&other), None);
}

/// Tables of no size, of odd sizes, too long, beyond the end.
#[test]
fn receive_scaling_that_cannot_be() {
    let lies: [fn(&mut ReceiveScaleParameters); 8] = [
        |p| p.table_size = 0.into(),
        |p| p.table_size = 7.into(),
        |p| p.table_size = 516.into(),
        |p| p.table_offset = 81.into(),
        |p| p.table_offset = u32::MAX.into(),
        |p| p.key_size = 41.into(),
        |p| p.key_offset = 553.into(),
        |p| p.header.object_type = 0x80,
    ];
    for (number, lie) in lies.into_iter().enumerate() {
        assert_eq!(ReceiveScale::parse(&scale(lie)), None, "{number}");
    }
}

#[test]
fn parameters_by_name() {
    let mut bytes = Vec::new();
    for word in [20, 4, CONFIG_STRING, 24, 2] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend([b'N', 0, b'A', 0, b'7', 0]);
    let parsed = ConfigParameter::parse(&bytes);
    assert_eq!(
        parsed,
        Some((&[b'N', 0, b'A', 0][..], CONFIG_STRING, &[b'7', 0][..]))
    );
    assert_eq!(ConfigParameter::parse(&bytes[..25]), None);
}

fn option() -> impl Strategy<Value = Option<u32>> {
    prop::option::of(any::<u32>())
}

proptest! {
    #[test]
    fn frames_are_found_again(
        data_length in 0u32..70_000,
        padding in 0u32..8,
        (checksum, large, vlan, hash, id) in (option(), option(), option(), option(), option()),
    ) {
        let info = PacketInfo {
            checksum,
            large_send: large.map(LargeSend),
            vlan: vlan.map(Vlan),
            hash,
            id: id.map(PacketId),
        };
        let prefix = Prefix::new(data_length, &info, padding);
        let mut message = prefix.bytes().to_vec();
        message.resize(message.len() + (data_length + padding) as usize, 0xee);
        message.push(1);
        let (kind, body, rest) = split(&message).unwrap();
        prop_assert_eq!((kind, rest), (message_type::PACKET, &[1][..]));
        let packet = Packet::parse(body, body.len()).unwrap();
        prop_assert_eq!(packet.data_offset + HEADER_SIZE, prefix.bytes().len());
        prop_assert_eq!(packet.data_length, data_length as usize);
        prop_assert_eq!(packet.info, info);
    }

    #[test]
    fn requests_are_found_again(id: u32, oid: u32, value in prop::collection::vec(any::<u8>(), 0..99)) {
        let mut to = [0; 256];
        for request in [
            Request::Query { id, oid, value: &value },
            Request::Set { id, oid, value: &value },
            Request::Keepalive { id },
            Request::Halt,
            Request::Reset,
        ] {
            let bytes = request.encode(&mut to).unwrap();
            let (kind, body, rest) = split(bytes).unwrap();
            prop_assert_eq!(Request::parse(kind, body), Ok(Some(request)));
            prop_assert!(rest.is_empty());
        }
        for completion in [
            Completion::Query { id, status: 0, value: &value },
            Completion::Set { id, status: oid },
            Completion::Reset { status: oid, addressing: true },
            Completion::Keepalive { id, status: oid },
        ] {
            let bytes = completion.encode(&mut to).unwrap();
            let (kind, body, _) = split(bytes).unwrap();
            prop_assert_eq!(Completion::parse(kind, body), Ok(Some(completion)));
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..160), kind in 0u32..10) {
        let _ = split(&bytes);
        for kind in [kind, kind | message_type::COMPLETION] {
            let _ = Request::parse(kind, &bytes);
            let _ = Completion::parse(kind, &bytes);
        }
        let _ = Indication::parse(&bytes);
        let _ = Packet::parse(&bytes, bytes.len());
        let _ = Offload::parse(&bytes);
        let _ = OffloadParameters::parse(&bytes);
        let _ = ReceiveScale::parse(&bytes);
        let _ = ReceiveScaleCapabilities::parse(&bytes);
        let _ = ConfigParameter::parse(&bytes);
    }

    /// Near the truth: one word of a right message is wrong.
    #[test]
    fn one_wrong_word_panics_nobody(at in 0usize..40, word: u32) {
        let mut list = Prefix::new(60, &PacketInfo {
            checksum: Some(5),
            large_send: Some(LargeSend(7)),
            ..PacketInfo::default()
        }, 0).bytes().to_vec();
        let mut rss = scale(|_| {});
        for bytes in [&mut list, &mut rss] {
            let at = at * 4 % bytes.len();
            let end = bytes.len().min(at + 4);
            bytes[at..end].copy_from_slice(&word.to_le_bytes()[..end - at]);
        }
        if let Ok(packet) = Packet::parse(&list[8..], list.len() + 52) {
            prop_assert!(packet.data_offset + packet.data_length <= list.len() + 52);
        }
        let _ = ReceiveScale::parse(&rss);
    }
}
