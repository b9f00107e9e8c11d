//! What a guest may do that breaks the protocol: it gets a status or loses its channel, and nothing
//! else happens.

use proptest::prelude::*;
use vmbus_proto::netvsp::{Message, Version, status};
use vmbus_proto::packet::Outgoing;
use vmbus_proto::rndis::packet::{LargeSend, PacketInfo, Prefix, TxChecksum};
use vmbus_proto::rndis::{Request, oid, status as rndis_status};

use super::guest::*;

const TO: [u8; 6] = [2, 0, 0, 0, 0, 1];

#[test]
fn sections_that_are_not_there() {
    let (backend, net) = wire(false);
    let mut guest = Guest::ready(backend);
    let sections = (SEND.2 * 4096 / 6144) as u32;
    for (index, size) in [
        (sections, 60),
        (u32::MAX - 1, 60),
        (0x8000_0000, 60),
        (0, 6145),
        (0, u32::MAX),
        (0, 0),
    ] {
        let outcome = guest.rndis_in(in_section(index, size), &[]);
        assert_eq!(outcome, status::INVALID_RNDIS_PACKET, "{index} {size}");
    }
    assert!(net.take().is_none());
    assert_eq!(guest.counters.tx_refused.get(), 6);
}

/// Lengths and offsets of a message and of the frame in it.
#[test]
fn messages_that_point_elsewhere() {
    let (backend, net) = wire(false);
    let mut guest = Guest::ready(backend);
    let right = [
        Prefix::new(
            60,
            &PacketInfo {
                hash: Some(1),
                ..PacketInfo::default()
            },
            0,
        )
        .bytes(),
        &ethernet(TO, 60, 1),
    ]
    .concat();
    assert_eq!(guest.rndis(0, &right), status::SUCCESS);
    assert!(net.take().is_some());
    let lengths = [0, 7, 8, 43, 119, 121, 0x8000_0000, u32::MAX];
    let offsets = [0, 35, 53, u32::MAX, u32::MAX - 59];
    let frames = [0, 13, 61, 70_000, u32::MAX];
    let infos = [37, 113, u32::MAX];
    let info_lengths = [1, 11, 17, u32::MAX];
    let cases = [
        (4, &lengths[..]),
        (8, &offsets),
        (12, &frames),
        (28, &infos),
        (32, &info_lengths),
        // The entry's own size and offset.
        (44, &[0, 11, 17, u32::MAX]),
        (52, &[13, u32::MAX]),
    ];
    for (at, values) in cases {
        for &value in values {
            let mut wrong = right.clone();
            wrong[at..at + 4].copy_from_slice(&value.to_le_bytes());
            let outcome = guest.rndis(0, &wrong);
            assert_eq!(outcome, status::INVALID_RNDIS_PACKET, "{at} {value:#x}");
        }
    }
    // A control message on the way of frames, and the other way round.
    let mut bytes = [0; 64];
    let query = Request::Query {
        id: 1,
        oid: oid::GEN_LINK_SPEED,
        value: &[],
    };
    let query = query.encode(&mut bytes).unwrap();
    assert_eq!(guest.rndis(0, query), status::INVALID_RNDIS_PACKET);
    assert_eq!(guest.rndis(1, &right), status::INVALID_RNDIS_PACKET);
    assert!(net.take().is_none());
}

/// Of a chain, what is right before what is wrong is sent.
#[test]
fn a_chain_with_an_end_that_is_none() {
    let (backend, net) = wire(false);
    let mut guest = Guest::ready(backend);
    let frame = ethernet(TO, 60, 1);
    let mut chain = [Prefix::new(60, &PacketInfo::default(), 0).bytes(), &frame].concat();
    chain.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(guest.rndis(0, &chain), status::INVALID_RNDIS_PACKET);
    assert!(net.take().is_some() && net.take().is_none());
    // A rest that is not even a header.
    chain.truncate(chain.len() - 5);
    assert_eq!(guest.rndis(0, &chain), status::INVALID_RNDIS_PACKET);
}

#[test]
fn ranges_that_are_no_memory() {
    let (backend, net) = wire(false);
    let mut guest = Guest::ready(backend);
    let page = SCRATCH / 4096;
    let packet = vmbus_proto::netvsp::SendRndisPacket::without_section(0);
    for ranges in [
        vec![(4096, 0, vec![0x10_0000])],
        vec![(4096, 0, vec![u64::MAX])],
        vec![(0, 0, vec![])],
        // More than any frame has, and in more pieces.
        vec![(0x2_0001, 0, (0..33).map(|n| page + n).collect())],
        vec![(1, 0, vec![page]); 300],
    ] {
        let outcome = guest.rndis_in(packet, &ranges);
        assert_eq!(outcome, status::INVALID_RNDIS_PACKET);
    }
    assert!(net.take().is_none());
}

#[test]
fn large_sends_that_cannot_be() {
    let (backend, net) = wire(true);
    let mut guest = Guest::ready(backend);
    let frame = ethernet(TO, 1000, 0);
    for large in [
        LargeSend::new(1448, 34, false),
        LargeSend::new(0xf_ffff, 34, true),
        LargeSend::new(1, 0x3ff, false),
        LargeSend(u32::MAX),
    ] {
        let info = PacketInfo {
            large_send: Some(large),
            ..PacketInfo::default()
        };
        assert_eq!(guest.send(&frame, &info), status::INVALID_RNDIS_PACKET);
    }
    let checksum = TxChecksum::new(TxChecksum::IPV4 | TxChecksum::TCP, 0x3ff);
    let info = PacketInfo {
        checksum: Some(checksum.0),
        ..PacketInfo::default()
    };
    assert_eq!(guest.send(&frame, &info), status::INVALID_RNDIS_PACKET);
    assert!(net.take().is_none());
}

/// Only what the net is to cut may be longer than a frame.
#[test]
fn frames_too_long() {
    let (backend, net) = wire(true);
    let mut guest = Guest::ready(backend);
    for (length, outcome) in [
        (1518, status::SUCCESS),
        (1519, status::INVALID_RNDIS_PACKET),
    ] {
        let frame = ethernet(TO, length, 0);
        assert_eq!(guest.send(&frame, &PacketInfo::default()), outcome);
        assert_eq!(net.take().is_some(), outcome == status::SUCCESS);
    }
}

/// Completions of packets that the guest does not have, or twice.
#[test]
fn completions_of_nothing() {
    let (backend, net) = wire(false);
    let mut guest = Guest::ready(backend);
    guest.take_frames();
    for id in [0, 1, 77, 100_000, u64::MAX] {
        guest.complete(id);
    }
    guest.serve();
    assert_eq!(guest.counters.tx_refused.get(), 5);
    net.put(&ethernet(MAC, 60, 1));
    guest.serve();
    let (id, _, _) = guest.take_rndis().unwrap();
    guest.complete(id);
    guest.complete(id);
    guest.serve();
    assert_eq!(guest.counters.tx_refused.get(), 6);
}

/// Everything before there is a version, and everything twice.
#[test]
fn out_of_order() {
    let (backend, _net) = wire(false);
    let mut guest = Guest::new(backend);
    let refused = Message::SendReceiveBufferComplete(status::FAILURE, Default::default());
    let receive = Message::SendReceiveBuffer(receive_buffer());
    assert_eq!(guest.ask(receive), refused);
    let send = Message::SendSendBuffer(send_buffer());
    let no_send = Message::SendSendBufferComplete(status::FAILURE, 0);
    assert_eq!(guest.ask(send), no_send);
    let unknown = Message::Init(0x70000, 0x70000);
    assert_eq!(guest.ask(unknown), Message::InitComplete(status::FAILURE));
    // RNDIS without buffers is nobody's, but does no harm.
    assert_eq!(
        guest.rndis(1, &[2, 0, 0, 0, 24, 0, 0, 0]),
        status::INVALID_RNDIS_PACKET
    );

    guest.negotiate(Version::V5);
    assert_eq!(guest.ask(receive), refused);
    assert_eq!(guest.ask(send), no_send);
    let again = Message::Init(2, 2);
    assert_eq!(guest.ask(again), Message::InitComplete(status::FAILURE));
    let sub_channels = Message::SubChannel(1, 7);
    assert_eq!(
        guest.ask(sub_channels),
        Message::SubChannelComplete(status::FAILURE, 0)
    );
    let data_path = Message::SwitchDataPath(1);
    assert_eq!(guest.ask(data_path), data_path);
}

/// Buffers of no GPADL, and of one that is too short.
#[test]
fn buffers_that_are_none() {
    let (backend, _net) = wire(false);
    let mut guest = Guest::new(backend);
    let version = Version::V6 as u32;
    guest.ask(Message::Init(version, version));
    guest.table.lend(0x99, 8192, &[0x5000, 0x6000].into());
    let refused = Message::SendReceiveBufferComplete(status::FAILURE, Default::default());
    for gpadl in [0, 0x98, 0x99] {
        let mut buffer = receive_buffer();
        buffer.gpadl = gpadl.into();
        assert_eq!(guest.ask(Message::SendReceiveBuffer(buffer)), refused);
    }
    guest.table.lend(0x97, 4096, &[0x5000].into());
    let mut buffer = send_buffer();
    buffer.gpadl = 0x97.into();
    assert_eq!(
        guest.ask(Message::SendSendBuffer(buffer)),
        Message::SendSendBufferComplete(status::FAILURE, 0)
    );
}

/// The guest takes its memory back without a word, and goes on sending.
#[test]
fn memory_taken_back() {
    let (backend, net) = wire(false);
    let mut guest = Guest::ready(backend);
    guest.take_frames();
    guest.table.take_back(SEND.0);
    let frame = ethernet(TO, 60, 1);
    let outcome = guest.send(&frame, &PacketInfo::default());
    assert_eq!(outcome, status::INVALID_RNDIS_PACKET);
    guest.table.take_back(RECEIVE.0);
    net.put(&ethernet(MAC, 60, 1));
    guest.serve();
    assert!(guest.take_frames().is_empty());
}

/// A guest that asks and asks, and never gives a section back, loses its channel, not our memory.
#[test]
fn answers_that_nobody_takes() {
    let (backend, _net) = wire(false);
    let mut guest = Guest::ready(backend);
    let mut bytes = [0; 64];
    let query = Request::Query {
        id: 1,
        oid: oid::GEN_FRIENDLY_NAME,
        value: &[],
    };
    let message = query.encode(&mut bytes).unwrap().to_vec();
    guest.memory.write(SCRATCH, &message).unwrap();
    let packet = vmbus_proto::netvsp::SendRndisPacket::without_section(1);
    let mut ranges = [0; 64];
    let mut writer = vmbus_proto::gpa::GpaRangeWriter::gpa_direct(&mut ranges, 1).unwrap();
    writer.range(message.len() as u32, 0).unwrap();
    writer.pfn(SCRATCH / 4096).unwrap();
    let ranges = writer.finish();
    let payload = Message::SendRndisPacket(packet).encode(None);
    let mut outcome = Ok(());
    for _ in 0..2000 {
        let id = guest.id();
        guest.put(&Outgoing::gpa_direct(id, ranges, &payload));
        outcome = guest.try_to_serve();
        if outcome.is_err() {
            break;
        }
        guest.drain();
    }
    assert!(outcome.is_err());
}

#[test]
fn objects_that_cannot_be() {
    let (backend, _net) = wire(true);
    let mut guest = Guest::ready(backend);
    for (oid, value) in [
        (oid::GEN_CURRENT_PACKET_FILTER, &[1, 0, 0][..]),
        (oid::ETHERNET_MULTICAST_LIST, &[1; 7]),
        (oid::ETHERNET_MULTICAST_LIST, &[1; 65 * 6]),
        (oid::TCP_OFFLOAD_PARAMETERS, &[0x80, 3, 28]),
        (
            oid::TCP_OFFLOAD_PARAMETERS,
            &[
                0x80, 3, 28, 0, 9, 9, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ],
        ),
        (oid::GEN_RECEIVE_SCALE_PARAMETERS, &[0x89; 28]),
        (oid::GEN_RNDIS_CONFIG_PARAMETER, &[0xff; 20]),
        (oid::GEN_LINK_SPEED, &[0; 4]),
        (0, &[]),
    ] {
        assert_ne!(
            guest.try_to_set(oid, value),
            rndis_status::SUCCESS,
            "{oid:#x}"
        );
    }
    let short = [0xa7, 1, 100, 0];
    assert_eq!(
        guest.query(oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES, &short),
        Err(rndis_status::INVALID_LENGTH)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any bytes as packets: the channel may stop, nothing more.
    #[test]
    fn any_payload(
        payloads in prop::collection::vec(
            (prop_oneof![Just(1_u8), 100..137_u8], prop::collection::vec(any::<u8>(), 0..60), any::<bool>()),
            1..30,
        ),
    ) {
        let (backend, _net) = wire(true);
        let mut guest = Guest::ready(backend);
        for (kind, rest, answered) in payloads {
            let payload = [&[kind, 0, 0, 0][..], &rest].concat();
            let id = guest.id();
            guest.put(&Outgoing::in_band(id, &payload, answered));
            if guest.try_to_serve().is_err() {
                break;
            }
            guest.drain();
        }
    }

    /// Any bytes as RNDIS, some of them near the truth.
    #[test]
    fn any_rndis(
        changes in prop::collection::vec((0usize..30, any::<u32>()), 0..4),
        kind in 0u8..10,
        channel in 0u32..2,
        rest in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let (backend, net) = wire(true);
        let mut guest = Guest::ready(backend);
        let info = PacketInfo {
            checksum: Some(TxChecksum::new(TxChecksum::IPV4 | TxChecksum::TCP, 34).0),
            large_send: Some(LargeSend::new(100, 34, false)),
            ..PacketInfo::default()
        };
        let mut message = [Prefix::new(rest.len() as u32, &info, 0).bytes(), &rest].concat();
        message[0] = kind;
        for (at, value) in changes {
            let at = at * 4 % (message.len() - 4);
            message[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        guest.rndis(channel, &message);
        guest.drain();
        while net.take().is_some() {}
    }
}
