//! What a guest that keeps to the protocol sees.

use vmbus_proto::netvsp::{Message, NO_SECTION, SendRndisPacket, Version, rndis_channel, status};
use vmbus_proto::rndis::ndis::{Offload, OffloadParameters, wanted};
use vmbus_proto::rndis::packet::{PacketInfo, Prefix, TxChecksum, Vlan, rx_checksum};
use vmbus_proto::rndis::{Request, oid, status as rndis_status};
use zerocopy::IntoBytes as _;

use super::guest::*;
use crate::network::Mac;

const EVERYBODY: Mac = [0xff; 6];

#[test]
fn frames_go_both_ways_with_every_version() {
    for version in Version::NEWEST_FIRST {
        let (backend, net) = loopback(false);
        let mut guest = Guest::new(backend);
        guest.negotiate(version);
        guest.begin();
        let sent = ethernet(EVERYBODY, 60, 7);
        assert_eq!(guest.send(&sent, &PacketInfo::default()), status::SUCCESS);
        let frames = guest.take_frames();
        assert_eq!(frames, [(sent, PacketInfo::default())], "{version:?}");
        for seed in 0..100 {
            net.put(&ethernet(MAC, 60 + usize::from(seed) * 14, seed));
        }
        guest.serve();
        let frames = guest.take_frames();
        assert_eq!(frames.len(), 100, "{version:?}");
        for (seed, (frame, _)) in frames.iter().enumerate() {
            assert_eq!(*frame, ethernet(MAC, 60 + seed * 14, seed as u8));
        }
        assert_eq!(guest.counters.rx_frames.get(), 101);
    }
}

/// Headers in a section, the frame in pages of its own, as Linux sends longer ones; and in pages
/// alone.
#[test]
fn frames_in_sections_and_pages() {
    let (backend, net) = wire(false);
    let mut guest = Guest::with_rings(backend, config(9000), 16);
    guest.negotiate(Version::V6_1);
    guest.begin();
    let frame = ethernet([2, 0, 0, 0, 0, 1], 5000, 3);
    let prefix = Prefix::new(5000, &PacketInfo::default(), 0);
    guest.memory.write(SEND.1 * 4096, prefix.bytes()).unwrap();
    guest.memory.write(SCRATCH + 4000, &frame).unwrap();
    let page = SCRATCH / 4096;
    let length = prefix.bytes().len() as u32;
    let ranges = [(5000, 4000, vec![page, page + 1, page + 2])];
    assert_eq!(
        guest.rndis_in(in_section(0, length), &ranges),
        status::SUCCESS
    );
    assert_eq!(net.take().unwrap().0, frame);

    let message = [prefix.bytes(), &frame].concat();
    assert_eq!(guest.rndis(0, &message), status::SUCCESS);
    assert_eq!(net.take().unwrap().0, frame);
    assert!(net.take().is_none());
}

/// Several frames in one packet, each padded to eight bytes.
#[test]
fn chained_frames() {
    let (backend, net) = wire(false);
    let mut guest = Guest::ready(backend);
    let mut chain = Vec::new();
    for seed in 1..=8_u8 {
        let frame = ethernet([2, 0, 0, 0, 0, 1], 61, seed);
        let prefix = Prefix::new(61, &PacketInfo::default(), 7);
        chain.extend(prefix.bytes());
        chain.extend(frame);
        chain.extend([0; 7]);
    }
    assert_eq!(guest.rndis(0, &chain), status::SUCCESS);
    for seed in 1..=8 {
        assert_eq!(net.take().unwrap().0[60], seed);
    }
    assert_eq!(guest.counters.tx_frames.get(), 8);
}

#[test]
fn filters() {
    let (backend, net) = wire(false);
    let mut guest = Guest::ready(backend);
    let multicast = [1, 0, 0x5e, 0, 0, 7];
    let all = [MAC, EVERYBODY, multicast, [2, 0, 0, 0, 0, 99]];
    let seen = |guest: &mut Guest, filter: u32| {
        guest.set(oid::GEN_CURRENT_PACKET_FILTER, &filter.to_le_bytes());
        for to in all {
            net.put(&ethernet(to, 60, 1));
        }
        guest.serve();
        let frames = guest.take_frames();
        frames
            .iter()
            .map(|(frame, _)| all.iter().position(|to| frame[..6] == *to).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(seen(&mut guest, 1), [0]);
    assert_eq!(seen(&mut guest, 9), [0, 1]);
    assert_eq!(seen(&mut guest, 0xd), [0, 1, 2]);
    assert_eq!(seen(&mut guest, 0x20), [0, 1, 2, 3]);
    assert_eq!(seen(&mut guest, 2), [0; 0]);
    guest.set(oid::ETHERNET_MULTICAST_LIST, &multicast);
    assert_eq!(seen(&mut guest, 2), [2]);
    // Nothing is wanted, and nothing is left for later.
    assert_eq!(seen(&mut guest, 0), [0; 0]);
    assert_eq!(seen(&mut guest, 1), [0]);
}

/// After a reset the guest sets its filter, and nothing else, to get frames again.
#[test]
fn resets() {
    let (backend, net) = wire(false);
    let mut guest = Guest::ready(backend);
    guest.take_frames();
    let answer = guest.control(&Request::Reset);
    // Done, and addresses have to be set anew.
    assert_eq!(answer[8..16], [0, 0, 0, 0, 1, 0, 0, 0]);
    net.put(&ethernet(MAC, 60, 1));
    guest.serve();
    assert!(guest.take_frames().is_empty());
    guest.set(oid::GEN_CURRENT_PACKET_FILTER, &9_u32.to_le_bytes());
    net.put(&ethernet(MAC, 60, 2));
    guest.serve();
    assert_eq!(guest.take_frames()[0].0, ethernet(MAC, 60, 2));
}

/// Frames that are too long for the guest are lost; those behind them are not.
#[test]
fn long_frames() {
    let (backend, net) = wire(false);
    let mut guest = Guest::ready(backend);
    net.put(&ethernet(MAC, 9000, 1));
    net.put(&ethernet(MAC, 1518, 2));
    net.put(&[1, 2, 3]);
    net.put(&ethernet(MAC, 14, 3));
    guest.serve();
    let frames = guest.take_frames();
    let lengths: Vec<usize> = frames.iter().map(|(frame, _)| frame.len()).collect();
    assert_eq!(lengths, [1518, 14]);
    assert_eq!(guest.counters.rx_lost.get(), 2);
}

/// A guest that keeps its sections gets no more frames, but answers; and goes on when they come
/// back.
#[test]
fn sections_run_out_and_come_back() {
    let (backend, net) = wire(false);
    let mut guest = Guest::ready(backend);
    guest.take_frames();
    for _ in 0..600 {
        net.put(&ethernet(MAC, 60, 1));
    }
    for _ in 0..20 {
        guest.serve();
    }
    let mut kept = Vec::new();
    let mut count = 0;
    while let Some((id, _, messages)) = guest.take_rndis() {
        count += messages.len();
        kept.push(id);
    }
    let sections = RECEIVE.2 * 4096 / u64::from(guest.section);
    assert_eq!(count as u64, sections - 16);
    assert!(guest.query(oid::GEN_LINK_SPEED, &[]).is_ok());
    for id in kept {
        guest.complete(id);
    }
    guest.serve();
    // As many as there are sections, and then the rest.
    let more = guest.take_frames().len() + guest.take_frames().len();
    assert_eq!(more, 600 - count);
}

/// Much at once is taken in rounds, and the worker called for the next one.
#[test]
fn rounds_end() {
    let (backend, _net) = wire(false);
    let mut guest = Guest::ready(backend);
    guest.take_frames();
    let frames: Vec<_> = (0..80).map(|n| ethernet(MAC, 1400, n)).collect();
    let message = chain(&frames);
    guest.memory.write(SCRATCH, &message).unwrap();
    let pages = (0..message.len() as u64).step_by(4096);
    let pages: Vec<u64> = pages.map(|at| (SCRATCH + at) / 4096).collect();
    let packet = SendRndisPacket::without_section(rndis_channel::DATA);
    for _ in 0..20 {
        guest.put_rndis(packet, &[(message.len() as u32, 0, pages.clone())]);
    }
    let mut answers = Vec::new();
    while answers.iter().sum::<usize>() < 20 {
        assert!(answers.is_empty() || guest.is_called());
        guest.serve();
        answers.push(std::iter::from_fn(|| guest.take_answer().then_some(())).count());
    }
    assert_eq!(answers, [10, 10]);
    assert_eq!(guest.counters.tx_frames.get(), 1600);
}

/// A net that is gone is no event while nothing of it is wanted.
#[test]
fn a_net_that_ends_unwatched() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    drop(theirs);
    let guest = Guest::new(Box::new(Ended(ours)));
    assert!(!guest.is_called());
}

/// The ring to the guest is full for a while.
#[test]
fn a_ring_without_room() {
    let (backend, net) = wire(false);
    let mut guest = Guest::with_rings(backend, config(1500), 1);
    guest.negotiate(Version::V6_1);
    guest.begin();
    for round in 0..20 {
        for seed in 0..200_u8 {
            net.put(&ethernet(MAC, 60, seed));
        }
        let mut seen = Vec::new();
        while seen.len() < 200 {
            guest.serve();
            let frames = guest.take_frames();
            assert!(!frames.is_empty(), "{round} {}", seen.len());
            seen.extend(frames.iter().map(|(frame, _)| frame[59]));
        }
        assert_eq!(seen, (0..200).collect::<Vec<u8>>());
    }
}

#[test]
fn what_linux_asks_for() {
    let (backend, _net) = wire(true);
    let mut guest = Guest::ready(backend);
    let word = |value: u32| Ok(value.to_le_bytes().to_vec());
    assert_eq!(guest.query(oid::GEN_MAXIMUM_FRAME_SIZE, &[]), word(1500));
    assert_eq!(
        guest.query(oid::ETHERNET_PERMANENT_ADDRESS, &[]),
        Ok(MAC.to_vec())
    );
    assert_eq!(guest.query(oid::GEN_MEDIA_CONNECT_STATUS, &[]), word(0));
    assert_eq!(guest.query(oid::GEN_LINK_SPEED, &[]), word(100_000_000));
    assert_eq!(guest.query(oid::GEN_FRIENDLY_NAME, &[]).unwrap().len(), 512);
    let header = [0xa7, 3, 156, 0];
    let mut of = header.to_vec();
    of.resize(156, 0);
    let value = guest
        .query(oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES, &of)
        .unwrap();
    let offload = Offload::parse(&value).unwrap();
    assert_eq!(offload.header.size.get(), 156);
    // What Linux demands before it leaves TCP's checksums to us: TCP with options.
    assert_eq!(offload.ipv4_tx_flags.get() & 0x14, 0x14);
    assert_eq!(offload.ipv6_tx_flags.get() & 0x15, 0x15);
    assert_eq!(offload.lso_ipv6_flags.get(), 5);
    let caps = guest.query(oid::GEN_RECEIVE_SCALE_CAPABILITIES, &[]);
    assert_eq!(caps.unwrap()[12..16], [1, 0, 0, 0]);
    let list = guest.query(oid::GEN_SUPPORTED_LIST, &[]).unwrap();
    for known in list.chunks(4) {
        let oid = u32::from_le_bytes(known.try_into().unwrap());
        let unset = guest.query(oid, &[]) == Err(rndis_status::NOT_SUPPORTED);
        let unasked = guest.try_to_set(oid, &[]) == rndis_status::NOT_SUPPORTED;
        assert!(!unset || !unasked, "{oid:#x} can neither be asked nor set");
    }
    assert_eq!(
        guest.query(0x0001_9999, &[]),
        Err(rndis_status::NOT_SUPPORTED)
    );
}

/// A net that does nothing to frames has no offloads, and a guest that uses one all the same is
/// told.
#[test]
fn a_net_without_offloads() {
    let (backend, net) = wire(false);
    let mut guest = Guest::ready(backend);
    let value = guest.query(oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES, &[]);
    let offload = Offload::parse(&value.unwrap()).unwrap();
    assert_eq!(
        (offload.ipv4_tx_flags.get(), offload.lso_ipv4_max_size.get()),
        (0, 0)
    );
    let info = PacketInfo {
        checksum: Some(TxChecksum::new(TxChecksum::IPV4 | TxChecksum::TCP, 34).0),
        ..PacketInfo::default()
    };
    let outcome = guest.send(&tcp(200), &info);
    assert_eq!(outcome, status::INVALID_RNDIS_PACKET);
    assert!(net.take().is_none());
}

/// A TCP segment to this station, its checksum left out.
fn tcp(length: usize) -> Vec<u8> {
    let mut frame = [&MAC[..], &[2, 0, 0, 0, 0, 9, 8, 0, 0x45, 0]].concat();
    frame.extend(((length - 14) as u16).to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([
        0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 1, 0, 0, 0, 0, 0,
    ]);
    frame.resize(length, 0x5a);
    frame
}

/// A checksum left to the net, and over a cable to oneself left to the receiver: whole when it
/// comes to the guest.
#[test]
fn checksums_are_completed() {
    let (backend, _net) = loopback(true);
    let mut guest = Guest::ready(backend);
    let mut parameters = OffloadParameters::unchanged();
    parameters.tcp_ipv4_checksum = wanted::BOTH;
    guest.set(oid::TCP_OFFLOAD_PARAMETERS, parameters.as_bytes());
    let info = PacketInfo {
        checksum: Some(TxChecksum::new(TxChecksum::IPV4 | TxChecksum::TCP, 34).0),
        ..PacketInfo::default()
    };
    for length in [55, 200, 1514] {
        assert_eq!(guest.send(&tcp(length), &info), status::SUCCESS);
        let frames = guest.take_frames();
        let [(frame, info)] = &frames[..] else {
            panic!("{frames:?}");
        };
        assert_eq!(info.checksum, Some(rx_checksum::TCP_SUCCEEDED));
        let mut words: u32 = 6 + (length as u32 - 34);
        for pair in frame[26..].chunks(2) {
            let low = pair.get(1).copied().unwrap_or_default();
            words += u32::from(u16::from_be_bytes([pair[0], low]));
        }
        while words > 0xffff {
            words = (words >> 16) + (words & 0xffff);
        }
        assert_eq!(words, 0xffff, "{length}");
    }
    // Of a frame of which nothing is known, nothing is said.
    let plain = ethernet(MAC, 60, 1);
    assert_eq!(guest.send(&plain, &PacketInfo::default()), status::SUCCESS);
    assert_eq!(guest.take_frames()[0].1.checksum, Some(0));
}

#[test]
fn tags_come_into_the_frame() {
    let (backend, net) = wire(true);
    let mut guest = Guest::ready(backend);
    let info = PacketInfo {
        vlan: Some(Vlan::from_tag(0x2064)),
        checksum: Some(TxChecksum::new(TxChecksum::IPV4 | TxChecksum::TCP, 34).0),
        ..PacketInfo::default()
    };
    assert_eq!(guest.send(&tcp(100), &info), status::SUCCESS);
    let (frame, offload) = net.take().unwrap();
    assert_eq!(frame[12..18], [0x81, 0, 0x20, 0x64, 8, 0]);
    assert_eq!((frame.len(), offload.unwrap().checksum.start), (104, 38));
}

/// The cable is pulled and plugged in: the guest is told, and frames are lost meanwhile.
#[test]
fn the_cable() {
    let (backend, net) = wire(false);
    let mut guest = Guest::ready(backend);
    // It is told once that all is well.
    guest.take_frames();
    let told = |guest: &mut Guest| {
        guest.serve();
        let (id, channel, messages) = guest.take_rndis().expect("told");
        guest.complete(id);
        assert_eq!(channel, 1);
        let (_, message) = &messages[0];
        assert_eq!(message[0], 7);
        u32::from_le_bytes(message[8..12].try_into().unwrap())
    };
    guest.cable.set_plugged(false);
    assert_eq!(told(&mut guest), rndis_status::MEDIA_DISCONNECT);
    net.put(&ethernet(MAC, 60, 1));
    guest.serve();
    let lost = ethernet(EVERYBODY, 60, 2);
    assert_eq!(guest.send(&lost, &PacketInfo::default()), status::SUCCESS);
    assert!(guest.take_frames().is_empty() && net.take().is_none());
    let down = guest.query(oid::GEN_MEDIA_CONNECT_STATUS, &[]);
    assert_eq!(down, Ok(vec![1, 0, 0, 0]));
    guest.cable.set_plugged(true);
    assert_eq!(told(&mut guest), rndis_status::MEDIA_CONNECT);
    net.put(&ethernet(MAC, 60, 3));
    guest.serve();
    assert_eq!(guest.take_frames().len(), 1);
}

/// A conversation goes on in another adapter, at any pause.
#[test]
fn state_goes_along() {
    let (backend, net) = wire(false);
    let mut guest = Guest::ready(backend);
    guest.take_frames();
    for seed in 0..40 {
        net.put(&ethernet(MAC, 60, seed));
    }
    guest.serve();
    // Sections are the guest's while everything else moves.
    let (id, _, messages) = guest.take_rndis().unwrap();
    let (backend, net) = wire(false);
    guest.move_to(backend);
    guest.complete(id);
    assert_eq!(guest.take_frames().len() + messages.len(), 40);
    net.put(&ethernet(MAC, 60, 9));
    guest.serve();
    let frames = guest.take_frames();
    assert_eq!((frames.len(), frames[0].0[59]), (1, 9));
    assert_eq!(guest.counters.tx_refused.get(), 0);
    let sent = ethernet([2, 0, 0, 0, 0, 1], 60, 4);
    assert_eq!(guest.send(&sent, &PacketInfo::default()), status::SUCCESS);
    assert_eq!(net.take().unwrap().0, sent);
}

/// The channel is opened anew with another MTU, as Linux does it: other sections.
#[test]
fn another_mtu() {
    let (backend, _net) = wire(false);
    let mut guest = Guest::with_rings(backend, config(9000), 16);
    guest.negotiate(Version::V6_1);
    let short = guest.section;
    assert!((1518..1800).contains(&short));
    assert_eq!(
        guest.ask(Message::RevokeReceiveBuffer(0xcafe)),
        Message::RevokeReceiveBuffer(0xcafe)
    );
    guest.tell(Message::SendNdisConfig(vmbus_proto::netvsp::NdisConfig {
        mtu: 9014.into(),
        reserved: 0.into(),
        capabilities: 0.into(),
    }));
    match guest.ask(Message::SendReceiveBuffer(receive_buffer())) {
        Message::SendReceiveBufferComplete(status::SUCCESS, groups) => {
            assert!((9018..9400).contains(&groups.size.get()));
        }
        other => panic!("{other:?}"),
    }
    assert_ne!(
        guest.rndis_in(in_section(NO_SECTION, 0), &[]),
        status::SUCCESS
    );
}
