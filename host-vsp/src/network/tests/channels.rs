//! An adapter with several channels: each frame on the one that the guest's table says.

use vmbus_proto::netvsp::{Message, SUB_CHANNEL_ALLOCATE, Version, status};
use vmbus_proto::rndis::ndis::{
    ObjectHeader, ReceiveScaleCapabilities, ReceiveScaleParameters, hash, object_type,
};
use vmbus_proto::rndis::packet::PacketInfo;
use vmbus_proto::rndis::{oid, status as rndis_status};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::guest::*;
use crate::network::Config;

/// What a guest sets to spread frames: all to channel `channel`.
pub(super) fn all_to(channel: u32) -> Vec<u8> {
    let size = size_of::<ReceiveScaleParameters>();
    let parameters = ReceiveScaleParameters {
        header: ObjectHeader {
            object_type: object_type::RSS_PARAMETERS,
            revision: 2,
            size: (size as u16).into(),
        },
        flags: 0.into(),
        base_processor: 0.into(),
        hash: (hash::TOEPLITZ | hash::IPV4 | hash::TCP_IPV4).into(),
        table_size: 512.into(),
        reserved1: 0.into(),
        table_offset: (size as u32).into(),
        key_size: 40.into(),
        reserved2: 0.into(),
        key_offset: (size as u32 + 512).into(),
    };
    let mut value = parameters.as_bytes().to_vec();
    for _ in 0..128 {
        value.extend(channel.to_le_bytes());
    }
    value.extend([0x6d; 40]);
    value
}

/// A frame of IPv4 for the guest.
fn ip_frame(seed: u8) -> Vec<u8> {
    let mut frame = ethernet(MAC, 100, seed);
    frame[12..].fill(0);
    frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
    frame[23] = 17;
    frame[99] = seed;
    frame
}

fn two_queues() -> (Guest, [Wire; 2]) {
    let ((first, first_net), (second, second_net)) = (wire(false), wire(false));
    let config = Config {
        queues: 2,
        ..config(1500)
    };
    let mut guest = Guest::with_queues(vec![first, second], config, 16);
    guest.negotiate(Version::V6_1);
    guest.begin();
    guest.take_frames();
    (guest, [first_net, second_net])
}

fn open_second(guest: &mut Guest) -> Guest {
    let ask = Message::SubChannel(SUB_CHANNEL_ALLOCATE, 7);
    assert_eq!(
        guest.ask(ask),
        Message::SubChannelComplete(status::SUCCESS, 1)
    );
    assert_eq!(guest.vsp.sub_channels(), 1);
    assert_eq!(guest.take_table()[..4], [0, 1, 0, 1]);
    let mut second = guest.open_sub_channel(1);
    second.serve();
    second
}

#[test]
fn frames_are_spread_by_the_guests_table() {
    let (mut guest, [first_net, second_net]) = two_queues();
    let capabilities = guest
        .query(oid::GEN_RECEIVE_SCALE_CAPABILITIES, &[])
        .unwrap();
    let (capabilities, _) = ReceiveScaleCapabilities::read_from_prefix(&capabilities).unwrap();
    assert_eq!(capabilities.queues.get(), 2);
    // FreeBSD spreads nothing where no function is named.
    assert_eq!(capabilities.flags.get() & 0xff, hash::TOEPLITZ);
    guest.set(oid::GEN_RECEIVE_SCALE_PARAMETERS, &all_to(1));
    // Nobody is there yet.
    first_net.put(&ip_frame(1));
    guest.serve();
    assert_eq!(guest.take_frames().len(), 1);

    let mut second = open_second(&mut guest);
    for (net, taker) in [(&first_net, 0), (&second_net, 1)] {
        for seed in 0..100 {
            net.put(&ip_frame(seed));
        }
        [&mut guest, &mut second][taker].serve();
        assert!(guest.take_frames().is_empty());
        second.serve();
        let frames = second.take_frames();
        assert_eq!(frames.len(), 100);
        assert!(
            (0..)
                .zip(&frames)
                .all(|(seed, (frame, _))| frame[99] == seed)
        );
    }
    // What has no address of IP goes to the first channel.
    second_net.put(&ethernet(MAC, 60, 5));
    second.serve();
    guest.serve();
    assert_eq!(guest.take_frames()[0].0, ethernet(MAC, 60, 5));

    // Frames are sent on each, to its own queue of the net.
    for (guest, net) in [(&mut guest, &first_net), (&mut second, &second_net)] {
        let sent = ethernet([2, 0, 0, 0, 0, 1], 60, 4);
        assert_eq!(guest.send(&sent, &PacketInfo::default()), status::SUCCESS);
        assert_eq!(net.take().unwrap().0, sent);
    }
    // Sections are nobody's alone: each may bring back what the other has.
    guest.set(oid::GEN_RECEIVE_SCALE_PARAMETERS, &all_to(0));
    first_net.put(&ip_frame(9));
    guest.serve();
    let (id, _, _) = guest.take_rndis().unwrap();
    second.complete(id);
    second.serve();
    assert_eq!(guest.counters.tx_refused.get(), 0);
}

#[test]
fn what_cannot_be_is_refused() {
    let (mut guest, [net, _]) = two_queues();
    let no = Message::SubChannelComplete(status::FAILURE, 0);
    for lie in [Message::SubChannel(2, 1), Message::SubChannel(1, 0)] {
        assert_eq!(guest.ask(lie), no);
    }
    let rss = oid::GEN_RECEIVE_SCALE_PARAMETERS;
    let outcome = guest.try_to_set(rss, &all_to(2));
    assert_eq!(outcome, rndis_status::INVALID_DATA);
    let mut second = open_second(&mut guest);
    assert_eq!(guest.ask(Message::SubChannel(1, 1)), no);
    assert!(guest.vsp.sub_channel(2).is_err() && guest.vsp.sub_channel(0).is_err());
    // A sub-channel is for frames.
    for lie in [
        Message::SubChannel(1, 1),
        Message::RevokeReceiveBuffer(0xcafe),
    ] {
        let answer = second.ask(lie);
        assert_eq!(answer, Message::SendRndisPacketComplete(status::FAILURE));
    }
    let halt = [3, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0];
    assert_eq!(second.rndis(1, &halt), status::INVALID_RNDIS_PACKET);
    second.complete(0x1_0000_0001);
    second.serve();
    assert_eq!(guest.counters.tx_refused.get(), 4);

    // The receive buffer goes while frames are on their way by another channel.
    guest.set(rss, &all_to(1));
    net.put(&ip_frame(1));
    guest.serve();
    let revoke = Message::RevokeReceiveBuffer(0xcafe);
    assert_eq!(guest.ask(revoke), revoke);
    second.serve();
    assert!(second.take_rndis().is_none());
    let (Message::SendReceiveBufferComplete(granted, _), old) = (
        guest.ask(Message::SendReceiveBuffer(receive_buffer())),
        0x1_0000_0001,
    ) else {
        panic!("no receive buffer");
    };
    assert_eq!(granted, status::SUCCESS);
    // A packet of the buffer before.
    second.complete(old);
    second.serve();
    assert_eq!(guest.counters.tx_refused.get(), 5);
}

#[test]
fn a_channel_that_closes_loses_nothing_but_frames() {
    let (mut guest, [net, _]) = two_queues();
    guest.set(oid::GEN_RECEIVE_SCALE_PARAMETERS, &all_to(1));
    let mut second = open_second(&mut guest);
    for _ in 0..3 {
        for seed in 0..30 {
            net.put(&ip_frame(seed));
        }
        guest.serve();
        second.vsp.quiesce();
        // All comes on the first channel, as long as the other one stands still.
        net.put(&ip_frame(77));
        guest.serve();
        assert_eq!(guest.take_frames()[0].0[99], 77);
        second.serve();
        assert!(second.take_frames().is_empty());
    }
    net.put(&ip_frame(5));
    guest.serve();
    second.serve();
    assert_eq!(second.take_frames().len(), 1);
    assert_eq!(guest.counters.rx_lost.get(), 90);
}
