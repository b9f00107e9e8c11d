use super::*;
use proptest::prelude::*;

/// An IPv4 or IPv6 frame of TCP or UDP, headers and payload, fields as a guest may leave them.
fn frame(ipv6: bool, udp: bool, tags: usize, payload: usize) -> (Vec<u8>, usize) {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    for _ in 0..tags {
        frame.extend([0x81, 0, 0, 7]);
    }
    let transport_length = payload + if udp { 8 } else { 32 };
    let protocol = if udp { 17 } else { 6 };
    if ipv6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((transport_length as u16).to_be_bytes());
        frame.extend([protocol, 64]);
        frame.extend((1..33).map(|n| n * 7));
    } else {
        frame.extend([8, 0, 0x45, 0]);
        frame.extend(((20 + transport_length) as u16).to_be_bytes());
        frame.extend([
            0, 9, 0x40, 0, 64, protocol, 0xaa, 0xbb, 10, 0, 2, 15, 192, 168, 1, 9,
        ]);
    }
    let transport = frame.len();
    if udp {
        frame.extend([0, 53, 0, 99]);
        frame.extend((transport_length as u16).to_be_bytes());
        frame.extend([0xcc, 0xdd]);
    } else {
        frame.extend([
            0, 80, 0, 99, 1, 2, 3, 4, 5, 6, 7, 8, 0x80, 0x18, 1, 0, 0xcc, 0xdd, 0, 0,
        ]);
        frame.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    }
    frame.extend((0..payload).map(|n| n as u8));
    (frame, transport)
}

/// What a net does: complete the checksum that `partial` describes.
fn complete(frame: &mut [u8], partial: Partial) {
    let start = usize::from(partial.start);
    let mut sum = Sum::default();
    sum.add(&frame[start..]);
    set(frame, start + usize::from(partial.offset), !sum.fold()).unwrap();
}

/// Whether the checksum over the pseudo header and all that follows is right.
fn is_right(frame: &[u8], transport: usize, ipv6: bool, protocol: u8) -> bool {
    let network = transport - if ipv6 { 40 } else { 20 };
    let addresses = if ipv6 { 8..40 } else { 12..20 };
    let mut sum = Sum::default();
    sum.add(&frame[network + addresses.start..network + addresses.end]);
    sum.add(&[0, protocol]);
    sum.add(&((frame.len() - transport) as u32).to_be_bytes());
    sum.add(&frame[transport..]);
    sum.fold() == 0xffff
}

#[test]
fn checksums_come_out_right() {
    for (ipv6, udp, tags) in [
        (false, false, 0),
        (false, true, 0),
        (true, false, 0),
        (true, true, 0),
        (false, false, 1),
        (true, false, 2),
    ] {
        let (mut frame, transport) = frame(ipv6, udp, tags, 333);
        let mut flags = if udp {
            TxChecksum::UDP
        } else {
            TxChecksum::TCP
        };
        flags |= if ipv6 {
            TxChecksum::IPV6
        } else {
            TxChecksum::IPV4 | TxChecksum::IP_HEADER
        };
        let wish = Wish::Checksum(TxChecksum::new(flags, transport as u16));
        let (length, copied) = (frame.len(), wish.header_bytes().min(frame.len()));
        let offload = wish.prepare(&mut frame[..copied], length).unwrap().unwrap();
        assert_eq!(offload.segments, None);
        complete(&mut frame, offload.checksum);
        let protocol = if udp { 17 } else { 6 };
        assert!(
            is_right(&frame, transport, ipv6, protocol),
            "{ipv6} {udp} {tags}"
        );
        if !ipv6 {
            let mut sum = Sum::default();
            sum.add(&frame[transport - 20..transport]);
            assert_eq!(sum.fold(), 0xffff);
        }
    }
}

/// A frame that is filled up to Ethernet's shortest: what fills it is no part of the segment.
#[test]
fn padded_frames() {
    for ipv6 in [false, true] {
        let (mut frame, transport) = frame(ipv6, true, 0, 1);
        let whole = frame.len();
        frame.resize(whole + 17, 0);
        let wish = Wish::Checksum(TxChecksum::new(TxChecksum::UDP, transport as u16));
        let length = frame.len();
        let offload = wish.prepare(&mut frame, length).unwrap().unwrap();
        complete(&mut frame, offload.checksum);
        assert!(is_right(&frame[..whole], transport, ipv6, 17));
    }
}

/// As Linux leaves a large frame: no IPv4 length, no IPv4 checksum, a seed without a length.
#[test]
fn large_frames_are_made_whole() {
    for ipv6 in [false, true] {
        let (mut frame, transport) = frame(ipv6, false, 0, 10_000);
        if ipv6 {
            frame[18..20].fill(0);
        } else {
            frame[16..18].fill(0);
            frame[24..26].fill(0);
        }
        let wish = Wish::Segments(LargeSend::new(1448, transport as u16, ipv6));
        let length = frame.len();
        let copied = wish.header_bytes();
        let offload = wish.prepare(&mut frame[..copied], length).unwrap().unwrap();
        let headers = (transport + 32) as u16;
        assert_eq!(
            offload.segments,
            Some(Segments {
                size: 1448,
                headers,
                ipv6
            })
        );
        complete(&mut frame, offload.checksum);
        assert!(is_right(&frame, transport, ipv6, 6));
        if ipv6 {
            assert_eq!(frame[18..20], 10_032_u16.to_be_bytes());
        } else {
            assert_eq!(frame[16..18], 10_052_u16.to_be_bytes());
            let mut sum = Sum::default();
            sum.add(&frame[14..34]);
            assert_eq!(sum.fold(), 0xffff);
        }
    }
}

#[test]
fn large_frames_that_cannot_be() {
    let (right, transport) = frame(false, false, 0, 100);
    let try_to = |large: LargeSend, change: fn(&mut Vec<u8>)| {
        let mut frame = right.clone();
        change(&mut frame);
        let length = frame.len();
        let wish = Wish::Segments(large);
        let copied = wish.header_bytes().min(length);
        wish.prepare(&mut frame[..copied], length)
    };
    let large = |mss, transport| LargeSend::new(mss, transport, false);
    assert!(try_to(large(48, transport as u16), |_| {}).is_some());
    // No segment size, one that keeps the net for long, one that no header can say, no version,
    // another kind of IP.
    assert_eq!(try_to(large(0, 34), |_| {}), None);
    assert_eq!(try_to(large(47, 34), |_| {}), None);
    assert_eq!(try_to(large(65_536, 34), |_| {}), None);
    assert_eq!(try_to(LargeSend(48 | 34 << 20), |_| {}), None);
    assert_eq!(try_to(LargeSend::new(48, 34, true), |_| {}), None);
    // TCP within IP, beyond the frame, beyond everything.
    for transport in [0, 14, 33, 166, 0x3ff] {
        assert_eq!(try_to(large(48, transport), |_| {}), None, "{transport}");
    }
    // A TCP header of no words, of more than there is; an IPv4 header of none.
    assert_eq!(try_to(large(48, 34), |frame| frame[46] = 0x40), None);
    assert_eq!(try_to(large(48, 34), |frame| frame.truncate(66)), None);
    assert_eq!(try_to(large(48, 34), |frame| frame[14] = 0x40), None);
    assert_eq!(try_to(large(48, 34), |frame| frame[12] = 0x99), None);
}

#[test]
fn tags() {
    let (plain, _) = frame(false, false, 0, 4);
    let mut tagged = plain.clone();
    insert_tag(&mut tagged, 0x2007).unwrap();
    assert_eq!(tagged[..12], plain[..12]);
    assert_eq!(tagged[12..16], [0x81, 0, 0x20, 7]);
    assert_eq!(tagged[16..], plain[12..]);
    assert_eq!(insert_tag(&mut vec![0; 13], 1), None);
}

proptest! {
    #[test]
    fn nothing_panics(
        mut headers in prop::collection::vec(any::<u8>(), 0..200),
        ipv6 in any::<bool>(),
        length in 0usize..70_000,
        word in any::<u32>(),
    ) {
        if headers.len() > 14 {
            let kind: [u8; 2] = if ipv6 { [0x86, 0xdd] } else { [8, 0] };
            headers[12..14].copy_from_slice(&kind);
        }
        let length = length.max(headers.len());
        let large = LargeSend(word | 1 << 30);
        for wish in [Wish::Checksum(TxChecksum(word)), Wish::Segments(large)] {
            let _ = wish.prepare(&mut headers, length);
            prop_assert!(wish.header_bytes() <= 0x3ff + 60);
        }
    }

    #[test]
    fn sums_do_not_depend_on_pieces(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0usize..150) {
        let at = (at * 2).min(bytes.len() / 2 * 2);
        let mut whole = Sum::default();
        whole.add(&bytes);
        let mut pieces = Sum::default();
        pieces.add(&bytes[..at]);
        pieces.add(&bytes[at..]);
        prop_assert_eq!(whole.fold(), pieces.fold());
    }
}
