//! Nets at which the test is the other end.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes as _, VolatileSlice};

use crate::network::backend::{Backend, Features, Frame, Loopback, Offload, Received};

/// A net at which the test is the other end: what the guest sends, and what is sent to it.
#[derive(Clone)]
pub(super) struct Wire {
    offload: bool,
    sent: Arc<Mutex<VecDeque<Sent>>>,
    to_guest: Loopback,
}

/// A frame, and what was to be done to it.
type Sent = (Vec<u8>, Option<Offload>);

impl Wire {
    /// Sends a frame to the guest.
    pub(super) fn put(&self, frame: &[u8]) {
        self.to_guest.put(frame);
    }

    /// Takes the oldest frame that the guest has sent.
    pub(super) fn take(&self) -> Option<Sent> {
        self.sent.lock().unwrap().pop_front()
    }
}

impl Backend for Wire {
    fn features(&self) -> Features {
        Features {
            offload: self.offload,
            joins: false,
        }
    }

    fn event(&self) -> Option<RawFd> {
        self.to_guest.event()
    }

    fn wants_room(&mut self) -> bool {
        false
    }

    fn send(&mut self, frame: &Frame<'_>) -> io::Result<()> {
        let mut bytes = frame.head.to_vec();
        for piece in frame.rest {
            let at = bytes.len();
            bytes.resize(at + piece.len(), 0);
            piece.read_slice(&mut bytes[at..], 0).unwrap();
        }
        self.sent.lock().unwrap().push_back((bytes, frame.offload));
        Ok(())
    }

    fn receive(&mut self, to: &[VolatileSlice<'_>]) -> io::Result<Option<Received>> {
        self.to_guest.receive(to)
    }
}

pub(super) fn wire(offload: bool) -> (Box<dyn Backend>, Wire) {
    let net = Wire {
        offload,
        sent: Arc::default(),
        to_guest: Loopback::new(false).unwrap(),
    };
    (Box::new(net.clone()), net)
}

/// A net that is gone, and of which nobody has asked.
pub(super) struct Ended(pub(super) UnixStream);

impl Backend for Ended {
    fn features(&self) -> Features {
        Features::default()
    }

    fn event(&self) -> Option<RawFd> {
        Some(self.0.as_raw_fd())
    }

    fn wants_room(&mut self) -> bool {
        false
    }

    fn send(&mut self, _: &Frame<'_>) -> io::Result<()> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn receive(&mut self, _: &[VolatileSlice<'_>]) -> io::Result<Option<Received>> {
        Err(io::ErrorKind::ConnectionReset.into())
    }
}
