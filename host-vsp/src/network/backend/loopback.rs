//! A cable from an adapter to itself, for tests: what is sent is received.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::{Bytes as _, VolatileSlice};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Backend, Features, Frame, Offload, Received, RxChecksum};

/// Most frames on the cable; more are lost.
const LIMIT: usize = 1024;

/// A frame on the cable, and what was to be done to it.
type Carried = (Vec<u8>, Option<Offload>);

/// A cable from an adapter to itself. A clone is another hold of the same cable.
#[derive(Clone)]
pub struct Loopback {
    offload: bool,
    frames: Arc<Mutex<VecDeque<Carried>>>,
    event: Arc<EventFd>,
}

impl Loopback {
    /// A cable. With `offload` it takes frames whose checksums are not complete, or whose segments
    /// are joined, and does nothing to them.
    ///
    /// # Errors
    /// The system gives no file descriptor.
    pub fn new(offload: bool) -> io::Result<Self> {
        Ok(Self {
            offload,
            frames: Arc::default(),
            event: Arc::new(EventFd::new(EFD_NONBLOCK)?),
        })
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Carried>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a frame on the cable, as if somebody had sent it.
    pub fn put(&self, frame: &[u8]) {
        self.put_incomplete(frame, None);
    }

    /// Puts a frame on the cable to which something is to be done.
    pub fn put_incomplete(&self, frame: &[u8], offload: Option<Offload>) {
        self.lock().push_back((frame.to_vec(), offload));
        // An eventfd that is full is readable, which is all we want of it.
        let _ = self.event.write(1);
    }
}

impl Backend for Loopback {
    fn features(&self) -> Features {
        Features {
            offload: self.offload,
            joins: self.offload,
        }
    }

    fn event(&self) -> Option<RawFd> {
        Some(self.event.as_raw_fd())
    }

    fn wants_room(&mut self) -> bool {
        false
    }

    fn send(&mut self, frame: &Frame<'_>) -> io::Result<()> {
        let mut bytes = frame.head.to_vec();
        for piece in frame.rest {
            let at = bytes.len();
            bytes.resize(at + piece.len(), 0);
            piece
                .read_slice(&mut bytes[at..], 0)
                .map_err(io::Error::other)?;
        }
        let mut frames = self.lock();
        if frames.len() >= LIMIT {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        frames.push_back((bytes, frame.offload));
        drop(frames);
        let _ = self.event.write(1);
        Ok(())
    }

    fn receive(&mut self, to: &[VolatileSlice<'_>]) -> io::Result<Option<Received>> {
        let Some((frame, offload)) = self.lock().pop_front() else {
            // Empty the event, then look again: a frame that comes later sets it again.
            let _ = self.event.read();
            if self.lock().is_empty() {
                return Ok(None);
            }
            return self.receive(to);
        };
        super::stream::scatter(&frame, to)?;
        Ok(Some(Received {
            length: frame.len(),
            checksum: match offload {
                Some(offload) => RxChecksum::Partial(offload.checksum),
                None => RxChecksum::Unknown,
            },
            joined: offload
                .and_then(|offload| offload.segments)
                .map(|segments| segments.size),
        }))
    }
}
