//! Nets that are sockets, and the other end of them.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vmbus_proto::netvsp::status;
use vmbus_proto::rndis::packet::PacketInfo;
use vmbus_proto::rndis::{oid, status as rndis_status};

use super::guest::*;
use crate::network::backend::{
    Backend as _, Passt, PasstError, Stream, StreamError, Tap, TapError,
};

const DEADLINE: Duration = Duration::from_secs(20);

fn serve_until(guest: &mut Guest, mut done: impl FnMut(&mut Guest) -> bool) {
    let begin = Instant::now();
    while !done(guest) {
        assert!(begin.elapsed() < DEADLINE);
        guest.serve();
    }
}

/// Two adapters at one cable.
#[test]
fn two_guests_talk() {
    let (one, other) = UnixStream::pair().unwrap();
    let mut one = Guest::ready(Box::new(Stream::new(one).unwrap()));
    let mut other = Guest::ready(Box::new(Stream::new(other).unwrap()));
    for seed in 0..200_u8 {
        let frame = ethernet(MAC, 60 + usize::from(seed) * 7, seed);
        let (from, to) = if seed % 3 == 0 {
            (&mut one, &mut other)
        } else {
            (&mut other, &mut one)
        };
        assert_eq!(from.send(&frame, &PacketInfo::default()), status::SUCCESS);
        let mut frames = Vec::new();
        serve_until(to, |guest| {
            frames.extend(guest.take_frames());
            !frames.is_empty()
        });
        assert_eq!((frames.len(), &frames[0].0), (1, &frame));
    }
}

/// A reader that takes nothing for a while stops its writer, which loses nothing.
#[test]
fn a_slow_reader_loses_nothing() {
    let (socket, mut reader) = UnixStream::pair().unwrap();
    let mut guest = Guest::ready(Box::new(Stream::new(socket).unwrap()));
    const COUNT: usize = 2000;
    let received = std::thread::scope(|scope| {
        let received = scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            let mut seen = Vec::new();
            for _ in 0..COUNT {
                let mut length = [0; 4];
                reader.read_exact(&mut length).unwrap();
                let mut frame = vec![0; u32::from_be_bytes(length) as usize];
                reader.read_exact(&mut frame).unwrap();
                seen.push((frame.len(), frame[14]));
            }
            seen
        });
        for n in 0..COUNT {
            let frame = ethernet(MAC, 1514, n as u8);
            guest.put_frame(&frame);
            serve_until(&mut guest, |guest| guest.take_answer());
        }
        received.join().unwrap()
    });
    let expected: Vec<_> = (0..COUNT).map(|n| (1514, n as u8)).collect();
    assert_eq!(received, expected);
}

/// Chains in whose middle the socket has no more room come out whole, and in order.
#[test]
fn a_slow_reader_of_chains() {
    let (socket, mut reader) = UnixStream::pair().unwrap();
    let mut guest = Guest::ready(Box::new(Stream::new(socket).unwrap()));
    let chain = |n: usize| {
        let frame = |at: usize| ethernet(MAC, 100 + (n * 37 + at * 101) % 600, (n + at) as u8);
        (0..8).map(frame).collect::<Vec<_>>()
    };
    const CHAINS: usize = 200;
    reader.set_nonblocking(true).unwrap();
    let mut received: Vec<u8> = Vec::new();
    let mut some = [0; 1000];
    for n in 0..CHAINS {
        guest.put_frames(&chain(n));
        serve_until(&mut guest, |guest| {
            let answered = guest.take_answer();
            if !answered && let Ok(length) = reader.read(&mut some) {
                received.extend(&some[..length]);
            }
            answered
        });
    }
    assert_eq!(guest.counters.tx_lost.get(), 0);
    let all = (0..CHAINS).flat_map(chain).map(|frame| 4 + frame.len());
    let all = all.sum::<usize>();
    serve_until(&mut guest, |_| {
        if let Ok(length) = reader.read(&mut some) {
            received.extend(&some[..length]);
        }
        received.len() >= all
    });
    let mut rest = &received[..];
    for frame in (0..CHAINS).flat_map(chain) {
        let length = (frame.len() as u32).to_be_bytes();
        let (seen, after) = rest.split_at(4 + frame.len());
        assert_eq!(seen, [&length[..], &frame].concat());
        rest = after;
    }
}

/// A reader that takes nothing at all does not keep the guest from being heard.
#[test]
fn a_reader_that_has_stopped() {
    let (socket, _reader) = UnixStream::pair().unwrap();
    let mut guest = Guest::ready(Box::new(Stream::new(socket).unwrap()));
    guest.take_frames();
    let frame = ethernet(MAC, 1514, 1);
    loop {
        guest.put_frame(&frame);
        guest.serve();
        if !guest.take_answer() {
            break;
        }
    }
    assert_eq!(guest.counters.tx_lost.get(), 0);
    let begin = Instant::now();
    while !guest.is_called() {
        assert!(begin.elapsed() < DEADLINE);
        std::thread::sleep(Duration::from_millis(20));
    }
    guest.serve();
    assert!(guest.take_answer());
    assert_eq!(guest.counters.tx_lost.get(), 1);
    assert!(guest.query(oid::GEN_LINK_SPEED, &[]).is_ok());
    assert!(!guest.is_called());
}

/// Frames that come in pieces, and a length that cannot be: the end of the cable.
#[test]
fn pieces_and_lies() {
    let (socket, mut peer) = UnixStream::pair().unwrap();
    let mut guest = Guest::ready(Box::new(Stream::new(socket).unwrap()));
    guest.take_frames();
    let frame = ethernet(MAC, 100, 5);
    let bytes = [&100_u32.to_be_bytes()[..], &frame].concat();
    for byte in &bytes {
        assert!(guest.take_frames().is_empty());
        peer.write_all(&[*byte]).unwrap();
        guest.serve();
    }
    assert_eq!(guest.take_frames()[0].0, frame);
    peer.write_all(&[0xff; 100]).unwrap();
    guest.serve();
    guest.serve();
    let (id, _, messages) = guest.take_rndis().expect("it is told");
    guest.complete(id);
    assert_eq!(
        messages[0].1[8..12],
        rndis_status::MEDIA_DISCONNECT.to_le_bytes()
    );
    assert_eq!(guest.send(&frame, &PacketInfo::default()), status::SUCCESS);
    assert_eq!(guest.counters.tx_lost.get(), 1);
}

/// Who listens takes one after the other, and what a killed process left is no obstacle.
#[test]
fn listeners() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("net");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let error = Stream::connect(&path).err().unwrap();
    assert!(matches!(error, StreamError::Connect { .. }), "{error}");
    let mut guest = Guest::ready(Box::new(Stream::listen(&path).unwrap()));
    guest.take_frames();
    let error = Stream::listen(&path).err().unwrap();
    assert!(matches!(error, StreamError::Listen { .. }), "{error}");
    for _ in 0..3 {
        let frame = ethernet(MAC, 60, 1);
        let mut peer = UnixStream::connect(&path).unwrap();
        let bytes = [&60_u32.to_be_bytes()[..], &frame].concat();
        peer.write_all(&bytes).unwrap();
        let mut frames = Vec::new();
        serve_until(&mut guest, |guest| {
            frames.extend(guest.take_frames());
            !frames.is_empty()
        });
        drop(peer);
        guest.serve();
    }
    drop(guest);
    assert!(!path.exists());
}

#[test]
fn nets_that_are_not_there() {
    for (name, wanted) in [
        ("", "no name"),
        ("a/b", "no name"),
        ("1234567890123456", "no name"),
    ] {
        let error = Tap::open(name, 1).err().unwrap();
        assert!(error.to_string().contains(wanted), "{error}");
    }
    let error = Tap::open("no-such-tap", 1).err().unwrap();
    assert!(matches!(error, TapError::Absent(_)), "{error}");
    // passt is not everywhere; where it is not, that is what is said.
    match Passt::start(1500, &[]) {
        Ok(net) => assert!(!net.features().offload),
        Err(error) => assert!(
            matches!(error, PasstError::Missing | PasstError::Refused(_)),
            "{error}"
        ),
    }
}
