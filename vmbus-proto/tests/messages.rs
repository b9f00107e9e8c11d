//! Channel messages and packets byte by byte.

use proptest::prelude::*;
use vmbus_proto::gpa::{GpaRangeWriter, GpaRanges};
use vmbus_proto::guid::Guid;
use vmbus_proto::message::gpadl::{MAX_PFNS, announce};
use vmbus_proto::message::*;
use vmbus_proto::packet::{Descriptor, Packet, PacketKind};
use vmbus_proto::version::Version;
use zerocopy::FromBytes;

/// Bytes from hexadecimal digits, spaces ignored.
fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

#[test]
fn initiate_contact() {
    let v53 = InitiateContact::new(Version::V5_3, 1);
    let bytes = hex(
        "0e000000 00000000 03000500 01000000 0200000000000000 0000000000000000 0000000000000000",
    );
    assert_eq!(*Message::InitiateContact(v53).encode(), bytes);
    let Ok(Message::InitiateContact(parsed)) = Message::parse(&bytes) else {
        panic!()
    };
    assert_eq!(parsed.version(), Version::V5_3);
    assert_eq!(
        (parsed.sint(), parsed.vtl(), parsed.target_vp.get()),
        (Some(2), Some(0), 1)
    );

    let v40 = InitiateContact::new(Version::V4_0, 0);
    assert_eq!(
        (v40.sint(), v40.vtl(), v40.interrupt_page_or_target.get()),
        (None, None, 0)
    );
    assert!(!Version::V6_0.is_supported());
}

#[test]
fn offer() {
    let offer = OfferChannel {
        class: Guid::new(0xba6163d9, 0x04a1, 0x4d29, 0xb605, 0x72e2ffb1dc7f),
        relid: 14.into(),
        connection_id: 0x2001.into(),
        dedicated_interrupt: 1.into(),
        ..OfferChannel::default()
    };
    let bytes = Message::OfferChannel(offer).encode();
    assert_eq!(bytes.len(), 196);
    assert_eq!(bytes[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[8..24], offer.class.0);
    assert_eq!(bytes[184..], hex("0e000000 00 00 0100 01200000"));
    let pipe = offer.with_pipe(pipe_mode::MESSAGE);
    let bytes = Message::OfferChannel(pipe).encode();
    assert_eq!(bytes[56..58], [0x10, 0]);
    assert_eq!(bytes[60..64], [4, 0, 0, 0]);
    assert_eq!((pipe.pipe_mode(), offer.pipe_mode()), (Some(4), None));
}

#[test]
fn small_messages() {
    let open = OpenChannel {
        relid: 14.into(),
        open_id: 15.into(),
        ring_gpadl: 0xE1E10.into(),
        target_vp: 1.into(),
        downstream_page_offset: 0x20.into(),
        user_data: [0; 120],
    };
    let bytes = Message::OpenChannel(open).encode();
    assert_eq!(bytes.len(), 148);
    assert_eq!(
        bytes[..28],
        hex("05000000 00000000 0e000000 0f000000 101e0e00 01000000 20000000")
    );
    let result = OpenResult {
        relid: 14.into(),
        open_id: 15.into(),
        status: 0.into(),
    };
    let lengths = [
        (Message::RequestOffers, 3, 8),
        (Message::AllOffersDelivered, 4, 8),
        (Message::OpenChannelResult(result), 6, 20),
        (Message::CloseChannel(ChannelId::new(14)), 7, 12),
        (Message::RescindChannelOffer(ChannelId::new(14)), 2, 12),
        (Message::RelidReleased(ChannelId::new(14)), 13, 12),
        (Message::GpadlTorndown(GpadlId { gpadl: 1.into() }), 12, 12),
        (Message::Unload, 16, 8),
        (Message::UnloadResponse, 17, 8),
        (
            Message::ModifyChannel(ModifyChannel {
                relid: 1.into(),
                target_vp: 2.into(),
            }),
            22,
            16,
        ),
        (
            Message::ModifyChannelResponse(ModifyChannelResponse {
                relid: 1.into(),
                status: 0.into(),
            }),
            24,
            16,
        ),
        (
            Message::VersionResponse(VersionResponse {
                supported: 1,
                connection_state: 0,
                padding: 0.into(),
                message_connection_id: 1.into(),
            }),
            15,
            16,
        ),
    ];
    for (message, number, length) in lengths {
        let bytes = message.encode();
        assert_eq!((bytes[0], bytes.len()), (number, length), "{message:?}");
        let again = Message::parse(&bytes).unwrap();
        assert_eq!(*again.encode(), *bytes);
        // One byte less is refused wherever there is a body.
        assert_eq!(
            Message::parse(&bytes[..length - 1]).err(),
            Some(MessageError::TooShort(length - 1)),
        );
    }
    for unknown in [0u32, 25, 29, u32::MAX] {
        let mut bytes = [0; 64];
        bytes[..4].copy_from_slice(&unknown.to_le_bytes());
        assert_eq!(
            Message::parse(&bytes).err(),
            Some(MessageError::UnknownType(unknown))
        );
    }
}

#[test]
fn a_gpadl_over_several_messages() {
    let pfns: Vec<u64> = (0..64).map(|i| 0x1000 + i).collect();
    let messages: Vec<Encoded> = announce(14, 0xE1E10, 64 * 4096, pfns.iter().copied())
        .unwrap()
        .collect();
    let sizes: Vec<usize> = messages.iter().map(|message| message.len()).collect();
    assert_eq!(sizes, [28 + 26 * 8, 16 + 28 * 8, 16 + 10 * 8]);
    assert_eq!(
        messages[0][..28],
        hex("08000000 00000000 0e000000 101e0e00 0802 0100 00000400 00000000"),
    );
    assert_eq!(
        messages[1][..16],
        hex("09000000 00000000 00000000 101e0e00")
    );

    let mut bytes = Vec::new();
    let mut count = 0;
    for message in &messages {
        match Message::parse(message).unwrap() {
            Message::GpadlHeader(header, ranges) => {
                count = header.range_count.get().into();
                bytes.extend_from_slice(ranges);
            }
            Message::GpadlBody(_, more) => bytes.extend_from_slice(more),
            other => panic!("{other:?}"),
        }
    }
    let ranges = GpaRanges::parse(count, &bytes).unwrap();
    let range = ranges.iter().next().unwrap();
    assert_eq!((range.byte_count, range.byte_offset), (64 * 4096, 0));
    assert!(range.pfns.iter().map(|pfn| pfn.get()).eq(pfns));
}

#[test]
fn gpadls_that_cannot_be_announced() {
    assert!(announce(1, 1, 4096, [].into_iter()).is_none());
    assert!(announce(1, 1, 0, [].into_iter()).is_none());
    assert!(announce(1, 1, 8192, [1].into_iter()).is_none());
    let pages = (MAX_PFNS + 1) as u32;
    assert!(announce(1, 1, pages * 4096, vec![0; MAX_PFNS + 1].into_iter()).is_none());
    assert!(announce(1, 1, MAX_PFNS as u32 * 4096, vec![0; MAX_PFNS].into_iter()).is_some());
}

#[test]
fn a_gpa_direct_packet() {
    let mut buffer = [0; 64];
    let mut writer = GpaRangeWriter::gpa_direct(&mut buffer, 1).unwrap();
    writer.range(5000, 0xFF0).unwrap();
    for pfn in [5, 9, 7] {
        writer.pfn(pfn).unwrap();
    }
    let mut body = writer.finish().to_vec();
    assert_eq!(
        body,
        hex("00000000 01000000 88130000 f00f0000
             0500000000000000 0900000000000000 0700000000000000"),
    );
    body.extend_from_slice(b"payload!");
    let descriptor = hex("0900 0700 0800 0100 2a00000000000000");
    let descriptor = Descriptor::read_from_bytes(&descriptor).unwrap();
    let packet = Packet::parse(&descriptor, &body).unwrap();
    assert_eq!(
        (packet.transaction_id, packet.completion_requested),
        (42, true)
    );
    assert_eq!(packet.payload, b"payload!");
    let PacketKind::GpaDirect(ranges) = packet.kind else {
        panic!()
    };
    let pieces: Vec<_> = ranges.iter().flat_map(|range| range.pieces()).collect();
    assert_eq!(
        pieces,
        [
            Some((0x5FF0, 16)),
            Some((0x9000, 4096)),
            Some((0x7000, 5000 - 16 - 4096))
        ]
    );
    assert_eq!(ranges.byte_count(), 5000);
}

#[test]
fn ranges_that_lie() {
    let range = |count: u32, offset: u32, pfns: usize| {
        let mut bytes = [count.to_le_bytes(), offset.to_le_bytes()].concat();
        bytes.resize(8 + 8 * pfns, 0);
        bytes
    };
    assert!(GpaRanges::parse(1, &range(4096, 0, 1)).is_some());
    assert!(
        GpaRanges::parse(1, &range(4097, 0, 1)).is_none(),
        "one page too few"
    );
    assert!(
        GpaRanges::parse(1, &range(4096, 1, 1)).is_none(),
        "one page too few"
    );
    assert!(
        GpaRanges::parse(1, &range(1, 4096, 2)).is_none(),
        "offset beyond the page"
    );
    assert!(GpaRanges::parse(1, &range(u32::MAX, 4095, 4)).is_none());
    assert!(
        GpaRanges::parse(u32::MAX, &range(0, 0, 0)).is_none(),
        "count beyond the bytes"
    );
    assert!(GpaRanges::parse(0, &[]).is_some_and(|ranges| ranges.is_empty()));
}

proptest! {
    #[test]
    fn parsers_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        kind in 0u8..28,
        count in any::<u32>(),
    ) {
        let _ = Message::parse(&bytes);
        let mut typed = bytes.clone();
        if let Some(first) = typed.get_mut(..4) {
            first.copy_from_slice(&[kind, 0, 0, 0]);
        }
        if let Ok(message) = Message::parse(&typed) {
            let again = message.encode();
            prop_assert!(again.len() <= 240);
            // Header padding and bytes beyond the body are the only ones not kept.
            prop_assert_eq!(again[8..].to_vec(), typed[8..again.len()].to_vec());
        }
        if let Some(ranges) = GpaRanges::parse(count % 40, &bytes) {
            prop_assert_eq!(ranges.iter().count(), ranges.len());
            for range in ranges.iter() {
                prop_assert_eq!(
                    range.pieces().flatten().map(|(_, length)| length as u64).sum::<u64>()
                        <= u64::from(range.byte_count), true);
            }
        }
        if let Ok((descriptor, body)) = Descriptor::read_from_prefix(&bytes) {
            let _ = Packet::parse(&descriptor, body);
        }
    }
}
