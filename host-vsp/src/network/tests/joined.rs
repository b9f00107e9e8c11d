//! Frames of joined segments: in pieces for a guest that wants them, cut for one that does not.

use vmbus_proto::netvsp::{
    Message, SUB_CHANNEL_ALLOCATE, Version, capability, rndis_channel, status,
};
use vmbus_proto::rndis::ndis::{Offload, OffloadParameters, switched, wanted};
use vmbus_proto::rndis::packet::{LargeSend, PacketInfo, Prefix, rx_checksum};
use vmbus_proto::rndis::{Request, oid, status as rndis_status};
use zerocopy::IntoBytes as _;

use super::guest::*;
use crate::network::Config;
use crate::network::backend::{Loopback, Offload as Incomplete, Partial, Segments};

/// Payload of a segment.
const MSS: usize = 1448;

/// A guest at a cable to itself, that has said what it can do.
fn guest(version: Version, capabilities: u64) -> (Guest, Loopback) {
    let (backend, net) = loopback(true);
    let mut guest = Guest::new(backend);
    guest.negotiate_with(version, capabilities);
    guest.begin();
    guest.take_frames();
    (guest, net)
}

/// Sets what the guest wants of IPv4 and of IPv6; the status.
fn want(guest: &mut Guest, ipv4: u8, ipv6: u8) -> u32 {
    let mut parameters = OffloadParameters::unchanged();
    parameters.tcp_ipv4_checksum = wanted::BOTH;
    (parameters.rsc_ipv4, parameters.rsc_ipv6) = (ipv4, ipv6);
    guest.try_to_set(oid::TCP_OFFLOAD_PARAMETERS, parameters.as_bytes())
}

/// What can be joined, and what is.
fn told(guest: &mut Guest) -> [(u8, u8); 2] {
    [
        oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES,
        oid::TCP_OFFLOAD_CURRENT_CONFIG,
    ]
    .map(|oid| {
        let offload = Offload::parse(&guest.query(oid, &[]).unwrap()).unwrap();
        (offload.rsc_ipv4, offload.rsc_ipv6)
    })
}

/// Where TCP's header begins.
fn transport(ipv6: bool) -> usize {
    if ipv6 { 54 } else { 34 }
}

/// A frame of many segments to this station, as a guest sends it.
fn large(ipv6: bool, payload: usize) -> Vec<u8> {
    let mut frame = [&MAC[..], &[2, 0, 0, 0, 0, 9]].concat();
    if ipv6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 6, 64]);
        frame.extend(1..33);
    } else {
        frame.extend([8, 0, 0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    }
    frame.extend([0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 2, 0x80, 0x18, 1, 0]);
    frame.extend([0, 0, 0, 0, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    frame.extend((0..payload).map(|n| ((n * n) >> 4) as u8));
    frame
}

/// Sends it over the cable.
fn send(guest: &mut Guest, ipv6: bool, payload: usize) {
    let frame = large(ipv6, payload);
    let info = PacketInfo {
        large_send: Some(LargeSend::new(MSS as u32, transport(ipv6) as u16, ipv6)),
        ..PacketInfo::default()
    };
    let prefix = Prefix::new(frame.len() as u32, &info, 0);
    let message = [prefix.bytes(), &frame].concat();
    assert_eq!(guest.rndis(rndis_channel::DATA, &message), status::SUCCESS);
}

/// Puts the pieces of frames together; of each frame the bytes, and how many pieces it had.
fn together(pieces: Vec<(Vec<u8>, PacketInfo)>) -> Vec<(Vec<u8>, usize)> {
    let mut frames: Vec<(Vec<u8>, usize)> = Vec::new();
    let mut within = false;
    for (bytes, info) in pieces {
        assert_eq!(info.checksum, Some(rx_checksum::TCP_SUCCEEDED));
        let (first, last) = match info.id {
            Some(id) => {
                assert!(id.is_piece());
                (id.is_first(), id.is_last())
            }
            None => (true, true),
        };
        assert_eq!(first, !within);
        if first {
            frames.push((Vec::new(), 0));
        }
        let (frame, count) = frames.last_mut().unwrap();
        frame.extend(bytes);
        *count += 1;
        within = !last;
    }
    assert!(!within, "a frame has no end");
    frames
}

/// The payloads of frames, whose checksums are right, behind each other.
fn payload(frames: &[(Vec<u8>, usize)], ipv6: bool) -> Vec<u8> {
    let transport = transport(ipv6);
    let addresses = if ipv6 { 22..54 } else { 26..34 };
    let mut all = Vec::new();
    for (frame, _) in frames {
        let mut words = 6 + (frame.len() - transport) as u32;
        for pair in [&frame[addresses.clone()], &frame[transport..]]
            .iter()
            .flat_map(|bytes| bytes.chunks(2))
        {
            let low = pair.get(1).copied().unwrap_or_default();
            words += u32::from(u16::from_be_bytes([pair[0], low]));
        }
        while words > 0xffff {
            words = (words >> 16) + (words & 0xffff);
        }
        assert_eq!(words, 0xffff);
        all.extend(&frame[transport + 32..]);
    }
    all
}

#[test]
fn in_pieces_or_cut_as_the_guest_wants() {
    let (mut guest, _net) = guest(Version::V6_1, capability::RSC);
    assert_eq!(told(&mut guest), [(1, 1), (0, 0)]);
    for (ipv4, ipv6) in [
        (switched::NO_CHANGE, switched::NO_CHANGE),
        (switched::ON, switched::ON),
        (switched::NO_CHANGE, switched::OFF),
        (switched::OFF, switched::ON),
        (switched::OFF, switched::OFF),
    ] {
        assert_eq!(want(&mut guest, ipv4, ipv6), rndis_status::SUCCESS);
        let [_, now] = told(&mut guest);
        for (is_ipv6, joined) in [(false, now.0), (true, now.1)] {
            for length in [1600, 20_000, 65_400] {
                send(&mut guest, is_ipv6, length);
                let frames = together(guest.take_frames());
                assert!(
                    payload(&frames, is_ipv6) == large(is_ipv6, length)[transport(is_ipv6) + 32..]
                );
                if joined == 1 {
                    let (frame, count) = &frames[0];
                    assert_eq!(frames.len(), 1);
                    assert!(*count > 1 && *count <= frame.len() / 1400 + 1);
                } else {
                    assert_eq!(frames.len(), length.div_ceil(MSS));
                    assert!(
                        frames
                            .iter()
                            .all(|(frame, count)| frame.len() <= 1534 && *count == 1)
                    );
                }
            }
        }
    }
    assert_eq!(told(&mut guest), [(1, 1), (0, 0)]);
    assert_eq!(guest.counters.rx_joined.get(), 12);
    assert_eq!(guest.counters.rx_lost.get(), 0);
}

/// Who has not said that it knows pieces gets none, whatever it sets.
#[test]
fn not_without_being_known() {
    for (version, capabilities) in [(Version::V6_1, 0), (Version::V6, capability::RSC)] {
        let (mut guest, _net) = guest(version, capabilities);
        assert_eq!(
            want(&mut guest, switched::ON, switched::ON),
            rndis_status::SUCCESS
        );
        assert_eq!(told(&mut guest), [(0, 0); 2]);
        send(&mut guest, false, 5000);
        assert_eq!(together(guest.take_frames()).len(), 4);
    }
}

/// What cannot be wanted changes nothing.
#[test]
fn lies_about_what_is_wanted() {
    let (mut guest, _net) = guest(Version::V6_1, capability::RSC);
    want(&mut guest, switched::ON, switched::ON);
    for (ipv4, ipv6) in [(3, switched::OFF), (switched::OFF, 255)] {
        assert_eq!(want(&mut guest, ipv4, ipv6), rndis_status::INVALID_DATA);
    }
    assert_eq!(told(&mut guest)[1], (1, 1));
    // The first revision does not have it.
    let mut parameters = OffloadParameters::unchanged();
    parameters.header.size = 20.into();
    (parameters.rsc_ipv4, parameters.rsc_ipv6) = (switched::OFF, switched::OFF);
    guest.set(oid::TCP_OFFLOAD_PARAMETERS, &parameters.as_bytes()[..20]);
    assert_eq!(told(&mut guest)[1], (1, 1));
}

/// It goes along with a saved state, and ends with RNDIS.
#[test]
fn as_long_as_rndis() {
    let (mut guest, _net) = guest(Version::V6_1, capability::RSC);
    want(&mut guest, switched::ON, switched::ON);
    let (backend, _net) = loopback(true);
    guest.move_to(backend);
    send(&mut guest, false, 5000);
    assert_eq!(together(guest.take_frames()).len(), 1);
    guest.control(&Request::Reset);
    assert_eq!(told(&mut guest)[1], (0, 0));
    guest.set(oid::GEN_CURRENT_PACKET_FILTER, &9_u32.to_le_bytes());
    send(&mut guest, false, 5000);
    assert_eq!(together(guest.take_frames()).len(), 4);
    // A net that joins nothing.
    want(&mut guest, switched::ON, switched::ON);
    let (backend, net) = wire(false);
    guest.move_to(backend);
    net.put(&ethernet(MAC, 1514, 3));
    guest.serve();
    let frames = guest.take_frames();
    assert_eq!((frames[0].0.len(), frames[0].1.id), (1514, None));
}

/// A guest that keeps its sections gets its frames when it gives them back, and all of them whole.
#[test]
fn sections_run_out() {
    for value in [switched::ON, switched::OFF] {
        let (mut guest, _net) = guest(Version::V6_1, capability::RSC);
        want(&mut guest, value, value);
        let mut kept = Vec::new();
        let mut pieces = Vec::new();
        for _ in 0..20 {
            send(&mut guest, false, 60_000);
            while let Some((id, _, messages)) = guest.take_rndis() {
                kept.push(id);
                pieces.extend(messages.iter().map(|(_, message)| frame(message)));
            }
        }
        let count = together(pieces).len();
        let is_joined = value == switched::ON;
        // As many as leave less of 299 sections than one might need: with 38 pieces each, or 42
        // segments.
        assert_eq!(count, if is_joined { 5 } else { 5 * 42 });
        for id in kept {
            guest.complete(id);
        }
        let mut after = Vec::new();
        loop {
            guest.serve();
            let more = guest.take_frames();
            if more.is_empty() {
                break;
            }
            after.extend(more);
        }
        let each = if is_joined { 1 } else { 42 };
        assert_eq!(count + together(after).len(), 20 * each);
        assert_eq!(guest.counters.rx_lost.get(), 0);
    }
}

/// The ring to the guest has room for a packet or two.
#[test]
fn a_ring_without_room() {
    for value in [switched::ON, switched::OFF] {
        let (backend, _net) = loopback(true);
        let mut guest = Guest::with_rings(backend, config(1500), 1);
        guest.negotiate_with(Version::V6_1, capability::RSC);
        guest.begin();
        guest.take_frames();
        want(&mut guest, value, value);
        let each = if value == switched::ON { 38 } else { 42 };
        for _ in 0..10 {
            for _ in 0..4 {
                send(&mut guest, true, 60_000);
            }
            let mut pieces = Vec::new();
            while pieces.len() < 4 * each {
                guest.serve();
                let more = guest.take_frames();
                assert!(!more.is_empty(), "{}", pieces.len());
                pieces.extend(more);
            }
            let frames = together(pieces);
            let expected = large(true, 60_000)[transport(true) + 32..].repeat(4);
            assert!(payload(&frames, true) == expected);
        }
        assert_eq!(guest.counters.rx_lost.get(), 0);
    }
}

/// What a net says is joined of segments, and is not, is lost; what follows is not.
#[test]
fn lies_of_the_net() {
    let (mut guest, net) = guest(Version::V6_1, capability::RSC);
    want(&mut guest, switched::OFF, switched::OFF);
    let partial = Partial {
        start: 34,
        offset: 16,
    };
    let put = |length: usize, size: u16, partial: Partial| {
        net.put_incomplete(
            &large(false, 3000)[..length],
            Some(Incomplete {
                checksum: partial,
                segments: Some(Segments {
                    size,
                    headers: 0,
                    ipv6: false,
                }),
            }),
        );
    };
    for (length, size, partial) in [
        (3066, 0, partial),
        (3066, 47, partial),
        (66, 1448, partial),
        (20, 1448, partial),
        (
            3066,
            1448,
            Partial {
                start: 0,
                ..partial
            },
        ),
        (
            3066,
            1448,
            Partial {
                start: 60_000,
                ..partial
            },
        ),
        (
            3066,
            1448,
            Partial {
                offset: 6,
                ..partial
            },
        ),
        // Segments that no section has room for.
        (3066, 3000, partial),
    ] {
        put(length, size, partial);
    }
    put(3066, 1500, partial);
    guest.serve();
    assert_eq!(together(guest.take_frames()).len(), 2);
    assert_eq!(guest.counters.rx_lost.get(), 8);
    // More segments than there are sections: those are lost that have none.
    put(3066, 48, partial);
    let long: Vec<u8> = large(false, 60_000);
    net.put_incomplete(
        &long,
        Some(Incomplete {
            checksum: partial,
            segments: Some(Segments {
                size: 48,
                headers: 0,
                ipv6: false,
            }),
        }),
    );
    guest.serve();
    let frames = together(guest.take_frames());
    assert!(frames.len() > 63 + 128 && frames.len() < 63 + 1250);
    // In pieces whatever the size is: they stay what they were, one frame.
    want(&mut guest, switched::ON, switched::ON);
    put(3066, 0, partial);
    guest.serve();
    assert_eq!(together(guest.take_frames()).len(), 1);
}

/// Frames in pieces that are another channel's.
#[test]
fn over_another_channel() {
    let ((first, net), (second, _)) = (loopback(true), loopback(true));
    let config = Config {
        queues: 2,
        ..config(1500)
    };
    let mut guest = Guest::with_queues(vec![first, second], config, 16);
    guest.negotiate_with(Version::V6_1, capability::RSC);
    guest.begin();
    guest.take_frames();
    want(&mut guest, switched::ON, switched::ON);
    guest.set(
        oid::GEN_RECEIVE_SCALE_PARAMETERS,
        &super::channels::all_to(1),
    );
    let ask = Message::SubChannel(SUB_CHANNEL_ALLOCATE, 1);
    assert_eq!(
        guest.ask(ask),
        Message::SubChannelComplete(status::SUCCESS, 1)
    );
    guest.take_table();
    let mut other = guest.open_sub_channel(1);
    other.serve();
    for _ in 0..3 {
        send(&mut guest, false, 30_000);
    }
    assert!(guest.take_frames().is_empty());
    other.serve();
    let frames = together(other.take_frames());
    assert_eq!(frames.len(), 3);
    assert!(payload(&frames, false) == large(false, 30_000)[66..].repeat(3));
    // It goes while frames wait for it, and takes their sections with it: all come back.
    send(&mut guest, false, 60_000);
    drop(other);
    for _ in 0..20 {
        send(&mut guest, false, 60_000);
        assert_eq!(together(guest.take_frames()).len(), 1);
    }
    drop(net);
}
