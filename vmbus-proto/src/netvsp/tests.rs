extern crate std;
use super::*;
use proptest::prelude::*;
use std::vec;

fn pair() -> impl Strategy<Value = (u32, u32)> {
    (any::<u32>(), any::<u32>())
}

fn buffer() -> impl Strategy<Value = Buffer> {
    (any::<u32>(), any::<u16>()).prop_map(|(gpadl, id)| Buffer {
        gpadl: gpadl.into(),
        id: id.into(),
        reserved: 0.into(),
    })
}

/// Any message, with who sends it.
fn message() -> impl Strategy<Value = (Sender, Message)> {
    let guest = prop_oneof![
        pair().prop_map(|(a, b)| Message::Init(a, b)),
        pair().prop_map(|(a, b)| Message::SendNdisVersion(a, b)),
        (any::<u32>(), any::<u64>()).prop_map(|(mtu, capabilities)| {
            Message::SendNdisConfig(NdisConfig {
                mtu: mtu.into(),
                reserved: 0.into(),
                capabilities: capabilities.into(),
            })
        }),
        buffer().prop_map(Message::SendReceiveBuffer),
        buffer().prop_map(Message::SendSendBuffer),
        any::<u16>().prop_map(Message::RevokeReceiveBuffer),
        any::<u16>().prop_map(Message::RevokeSendBuffer),
        any::<[u32; 3]>().prop_map(|[channel, index, size]| {
            Message::SendRndisPacket(SendRndisPacket {
                channel: channel.into(),
                section_index: index.into(),
                section_size: size.into(),
            })
        }),
        any::<u32>().prop_map(Message::SendRndisPacketComplete),
        any::<u32>().prop_map(Message::SwitchDataPath),
        pair().prop_map(|(a, b)| Message::SubChannel(a, b)),
    ];
    let host = prop_oneof![
        any::<u32>().prop_map(Message::InitComplete),
        (any::<u32>(), any::<u32>(), 1..=u32::MAX).prop_map(|(status, size, count)| {
            let sections = Sections {
                offset: 0.into(),
                size: size.into(),
                count: count.into(),
                end_offset: size.wrapping_mul(count).into(),
            };
            Message::SendReceiveBufferComplete(status, sections)
        }),
        pair().prop_map(|(a, b)| Message::SendSendBufferComplete(a, b)),
        any::<u32>().prop_map(Message::SendRndisPacketComplete),
        (any::<bool>(), any::<u32>()).prop_map(|(a, b)| Message::SendVfAssociation(a, b)),
        pair().prop_map(|(a, b)| Message::SubChannelComplete(a, b)),
    ];
    prop_oneof![
        guest.prop_map(|message| (Sender::Guest, message)),
        host.prop_map(|message| (Sender::Host, message)),
    ]
}

#[test]
fn in_bytes() {
    let init = Message::Init(Version::V6_1 as u32, Version::V6_1 as u32).encode(None);
    let mut golden = [0; 0x1c];
    golden[..12].copy_from_slice(&[1, 0, 0, 0, 1, 0, 6, 0, 1, 0, 6, 0]);
    assert_eq!(*init, golden);

    let sections = Sections {
        offset: 0.into(),
        size: 0x6c0.into(),
        count: 9709.into(),
        end_offset: 0xff_ff40.into(),
    };
    let complete = Message::SendReceiveBufferComplete(status::SUCCESS, sections);
    #[rustfmt::skip]
    let golden = [
        102, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, // type, success, one group
        0, 0, 0, 0, 0xc0, 6, 0, 0, 0xed, 0x25, 0, 0, 0x40, 0xff, 0xff, 0,
    ];
    assert_eq!(*complete.encode(Some(Version::V6)), golden);
    let long = complete.encode(Some(Version::V6_1));
    assert_eq!((&long[..0x1c], long.len()), (&golden[..], 0x28));

    let refused = Message::SendReceiveBufferComplete(status::FAILURE, Sections::default());
    assert_eq!(refused.encode(None)[4..12], [2, 0, 0, 0, 0, 0, 0, 0]);
    let parsed = Message::parse(Sender::Host, &refused.encode(None));
    assert_eq!(parsed, Ok(refused));

    let packet = Message::SendRndisPacket(SendRndisPacket::without_section(rndis_channel::CONTROL));
    assert_eq!(
        packet.encode(None)[..16],
        [107, 0, 0, 0, 1, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0]
    );
}

/// Linux sends the answer to a received packet in eight bytes.
#[test]
fn short_completion() {
    assert_eq!(
        Message::parse(Sender::Guest, &[108, 0, 0, 0, 1, 0, 0, 0]),
        Ok(Message::SendRndisPacketComplete(status::SUCCESS))
    );
}

/// A buffer that is taken has one group of sections.
#[test]
fn other_numbers_of_groups() {
    for groups in [0, 2, 255] {
        let mut bytes = [0; 0x1c];
        bytes[..12].copy_from_slice(&[102, 0, 0, 0, 1, 0, 0, 0, groups, 0, 0, 0]);
        assert_eq!(
            Message::parse(Sender::Host, &bytes),
            Err(BadMessage::CutShort)
        );
    }
}

#[test]
fn versions() {
    for version in Version::NEWEST_FIRST {
        assert_eq!(Version::from_wire(version as u32), Some(version));
    }
    assert_eq!(Version::from_wire(0x70000), None);
    assert!(Version::NEWEST_FIRST.is_sorted_by(|newer, older| newer > older));
}

#[test]
fn send_tables() {
    let table = SendTable {
        channels: core::array::from_fn(|at| at as u32 % 3),
    };
    let mut bytes = [0; SEND_TABLE_SIZE];
    for (version, length) in [(Version::V5, 92), (Version::V6_1, 104)] {
        let bytes = table.encode(version, &mut bytes);
        assert_eq!(bytes.len(), length);
        assert_eq!(SendTable::parse(bytes), Some(table));
        assert_eq!(SendTable::parse(&bytes[..length - 1]), None);
    }
    bytes[4] = 17;
    assert_eq!(SendTable::parse(&bytes), None);

    // Hyper-V's own before 6.1: the offset is wrong, the table is where it should be.
    let mut bytes = [0; SEND_TABLE_SIZE];
    let length = table.encode(Version::V5, &mut bytes).len();
    bytes[8] = 24;
    let bytes = &bytes[..length];
    assert_ne!(SendTable::parse(bytes), Some(table));
    assert_eq!(SendTable::parse_as(Version::V5, bytes), Some(table));
    assert_eq!(
        SendTable::parse_as(Version::V6_1, bytes),
        SendTable::parse(bytes)
    );
    assert_eq!(SendTable::parse_as(Version::V5, &bytes[..length - 5]), None);
}

proptest! {
    #[test]
    fn encoding_and_parsing_agree((from, message) in message(), newest in any::<bool>()) {
        let version = if newest { Version::V6_1 } else { Version::V2 };
        let bytes = message.encode(Some(version));
        prop_assert_eq!(bytes.len(), version.message_size());
        prop_assert_eq!(Message::parse(from, &bytes), Ok(message));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..120), kind in 0u8..140) {
        let mut bytes = bytes;
        for from in [Sender::Guest, Sender::Host] {
            let _ = Message::parse(from, &bytes);
        }
        if let Some(head) = bytes.get_mut(..4) {
            head.copy_from_slice(&[kind, 0, 0, 0]);
        }
        for from in [Sender::Guest, Sender::Host] {
            let _ = Message::parse(from, &bytes);
        }
        let _ = SendTable::parse(&bytes);
        let _ = SendTable::parse_as(Version::V5, &bytes);
    }
}
