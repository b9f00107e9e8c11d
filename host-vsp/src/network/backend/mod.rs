//! What is at the other end of an adapter's cable.

mod loopback;
mod passt;
mod stream;
mod tap;
mod tap_ioctls;
mod vectored;

pub use loopback::Loopback;
pub use passt::{Forward, Passt, PasstError, Transport};
pub use stream::{Stream, StreamError};
pub use tap::{Tap, TapError};

use std::io;
use std::os::fd::RawFd;

use vm_memory::VolatileSlice;

/// A net: takes frames and has some. No call waits.
pub trait Backend: Send {
    /// What it does for frames that are sent.
    fn features(&self) -> Features;

    /// A file descriptor to wait for: readable when there may be frames; writable when there may be
    /// room again, where [`wants_room`](Self::wants_room).
    fn event(&self) -> Option<RawFd>;

    /// Whether frames that were given to it wait for room. More must not be sent until it is false;
    /// this call tries to make it so.
    fn wants_room(&mut self) -> bool;

    /// Sends a frame. What it has no room for, it keeps for [`wants_room`](Self::wants_room).
    ///
    /// # Errors
    /// The frame is lost.
    fn send(&mut self, frame: &Frame<'_>) -> io::Result<()>;

    /// Puts the next frame into `to`; `None` where there is none now. A frame that is longer than
    /// `to` is lost; `length` says that it was longer.
    ///
    /// # Errors
    /// The net is gone; the cable is as good as pulled.
    fn receive(&mut self, to: &[VolatileSlice<'_>]) -> io::Result<Option<Received>>;

    /// Whether frames shall come out of this queue, where a net has several; those without it come
    /// out of others.
    ///
    /// # Errors
    /// It stays as it was.
    fn set_active(&mut self, active: bool) -> io::Result<()> {
        let _ = active;
        Ok(())
    }
}

/// What a net does for frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// It completes checksums of frames that are sent, and cuts those of many segments.
    pub offload: bool,
    /// It gives segments of TCP joined, as [`Received::joined`] tells.
    pub joins: bool,
}

/// Most bytes of a frame whose segments are joined: all that IP can say, an Ethernet header and
/// two tags.
pub const MAX_JOINED: usize = u16::MAX as usize + 14 + 2 * 4;

/// A frame to send: its private beginning, and the rest in guest memory.
#[derive(Debug)]
pub struct Frame<'a> {
    /// The first bytes, checked and perhaps changed.
    pub head: &'a [u8],
    /// The others.
    pub rest: &'a [VolatileSlice<'a>],
    /// What is to be done to it; nothing where the net does nothing.
    pub offload: Option<Offload>,
}

/// What the net is to do to a frame that is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offload {
    /// The checksum to complete.
    pub checksum: Partial,
    /// The frame is many segments of TCP.
    pub segments: Option<Segments>,
}

/// A checksum that is not complete: the sum of the pseudo header is where it shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partial {
    /// Where the bytes that it covers begin in the frame; they go to its end.
    pub start: u16,
    /// Where it is, from there.
    pub offset: u16,
}

/// How a frame is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    /// Most bytes of payload in each.
    pub size: u16,
    /// Bytes of all headers, which each gets.
    pub headers: u16,
    /// Over IPv6.
    pub ipv6: bool,
}

/// A frame that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its bytes.
    pub length: usize,
    /// What is known of its checksum.
    pub checksum: RxChecksum,
    /// Most bytes of payload in each of the TCP segments that it is joined of, where it is.
    pub joined: Option<u16>,
}

/// What is known of a received frame's checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RxChecksum {
    /// Nothing.
    Unknown,
    /// It is right.
    Good,
    /// It has to be completed.
    Partial(Partial),
}
