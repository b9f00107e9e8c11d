//! A stream socket that carries frames, each after its length: another VM, or passt.
//!
//! The length is four bytes, the highest first, as QEMU's `stream` and passt have it. Nothing is
//! done to frames: whoever sends completes checksums.

use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::SendFlags;
use vm_memory::{Bytes as _, VolatileSlice};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{Backend, Features, Frame, Received, RxChecksum, vectored};

/// Longest frame: passt takes no longer ones, and no adapter has them.
const MAX_FRAME: usize = 65_535;

/// Bytes taken from the socket at a time.
const CHUNK: usize = 2 * MAX_FRAME;

/// Bytes of a frame's length.
const LENGTH: usize = 4;

/// Why there is no such socket.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Nobody listens there.
    #[error(
        "nobody listens at {path}: {error}; start the other end first, or let this one listen by listen=on"
    )]
    Connect {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It cannot be listened at.
    #[error("{path} cannot be listened at: {error}; name a path where nothing is")]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// Frames over a stream socket.
pub struct Stream {
    /// The other end, as long as there is one.
    socket: Option<UnixStream>,
    /// Where another one may come.
    listener: Option<(UnixListener, PathBuf)>,
    /// The socket there is: listener or stream, and room on the stream.
    epoll: Epoll,
    /// Whether somebody who comes to the listener is an event.
    awaited: bool,
    /// Whether the epoll asks for room.
    armed: bool,
    /// What the socket had no room for: the rest of a frame, and those of the same chain after it.
    unsent: Vec<u8>,
    /// Received bytes: frames in `received[start..]`, the last one perhaps not whole.
    received: Vec<u8>,
    start: usize,
}

impl Stream {
    /// Frames over `socket`, as long as its other end is open.
    ///
    /// # Errors
    /// The system gives no file descriptor.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        let mut stream = Self {
            socket: None,
            listener: None,
            epoll: Epoll::new()?,
            awaited: false,
            armed: false,
            unsent: Vec::new(),
            received: Vec::new(),
            start: 0,
        };
        stream.attach(socket)?;
        Ok(stream)
    }

    /// Connects to who listens at `path`.
    ///
    /// # Errors
    /// Nobody does.
    pub fn connect(path: &Path) -> Result<Self, StreamError> {
        let failed = |error| StreamError::Connect {
            path: path.into(),
            error,
        };
        let socket = UnixStream::connect(path).map_err(failed)?;
        Self::new(socket).map_err(failed)
    }

    /// Waits for others at `path`, for one at a time. As long as there is none, frames are lost.
    ///
    /// # Errors
    /// Something is at `path` that is no abandoned socket, or it cannot be made.
    pub fn listen(path: &Path) -> Result<Self, StreamError> {
        let failed = |error| StreamError::Listen {
            path: path.into(),
            error,
        };
        // What a process left that was killed is in nobody's use.
        let is_socket =
            std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
        if is_socket && UnixStream::connect(path).is_err() {
            std::fs::remove_file(path).map_err(failed)?;
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let epoll = Epoll::new().map_err(failed)?;
        let fd = listener.as_raw_fd();
        let event = EpollEvent::new(EventSet::IN, 0);
        epoll
            .ctl(ControlOperation::Add, fd, event)
            .map_err(failed)?;
        Ok(Self {
            socket: None,
            listener: Some((listener, path.into())),
            epoll,
            awaited: true,
            armed: false,
            unsent: Vec::new(),
            received: Vec::new(),
            start: 0,
        })
    }

    fn attach(&mut self, socket: UnixStream) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        self.await_others(false)?;
        let event = EpollEvent::new(EventSet::IN, 0);
        self.epoll
            .ctl(ControlOperation::Add, socket.as_raw_fd(), event)?;
        self.armed = false;
        self.unsent.clear();
        self.received.clear();
        self.start = 0;
        self.socket = Some(socket);
        Ok(())
    }

    /// Whether somebody who comes to the listener is an event: not while another one is there, or
    /// it would be one all the time.
    fn await_others(&mut self, wanted: bool) -> io::Result<()> {
        let Some((listener, _)) = self.listener.as_ref().filter(|_| self.awaited != wanted) else {
            return Ok(());
        };
        let operation = if wanted {
            ControlOperation::Add
        } else {
            ControlOperation::Delete
        };
        let event = EpollEvent::new(EventSet::IN, 0);
        self.epoll.ctl(operation, listener.as_raw_fd(), event)?;
        self.awaited = wanted;
        Ok(())
    }

    /// The other end has gone.
    fn lose(&mut self) -> io::Result<Option<Received>> {
        if let Some(socket) = self.socket.take() {
            let event = EpollEvent::default();
            // Closing it takes it out all the same.
            let _ = self
                .epoll
                .ctl(ControlOperation::Delete, socket.as_raw_fd(), event);
        }
        self.armed = false;
        self.unsent.clear();
        match &self.listener {
            Some(_) => self.await_others(true).map(|()| None),
            None => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }

    /// Whether there is another end, now.
    ///
    /// # Errors
    /// There is none any more, and none can come.
    fn accept(&mut self) -> io::Result<bool> {
        if self.socket.is_some() {
            return Ok(true);
        }
        let Some((listener, _)) = &self.listener else {
            return Err(io::ErrorKind::ConnectionReset.into());
        };
        match listener.accept() {
            Ok((socket, _)) => self.attach(socket).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.await_others(true).map(|()| false)
            }
            Err(error) if is_passing(&error) => {
                // Who waits would be an event all the time. They are asked in when there is the
                // next frame to send, or the guest gives back what it has received.
                tracing::debug!(%error, "nobody can be let in now");
                self.await_others(false).map(|()| false)
            }
            Err(error) => Err(error),
        }
    }

    fn arm(&mut self, armed: bool) {
        if self.armed == armed {
            return;
        }
        let Some(socket) = &self.socket else { return };
        let events = if armed {
            EventSet::IN | EventSet::OUT
        } else {
            EventSet::IN
        };
        let event = EpollEvent::new(events, 0);
        let changed = self
            .epoll
            .ctl(ControlOperation::Modify, socket.as_raw_fd(), event);
        self.armed = armed && changed.is_ok();
    }

    /// Received bytes that are not taken yet.
    fn waiting(&self) -> &[u8] {
        self.received.get(self.start..).unwrap_or_default()
    }

    /// The length of the next frame, if all of it is there.
    fn next_frame(&self) -> io::Result<Option<usize>> {
        let Some((length, rest)) = self.waiting().split_first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if length > MAX_FRAME {
            // There is no way to find the next frame in such a stream.
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok((rest.len() >= length).then_some(length))
    }

    /// Takes more bytes from the socket; false where there are none now.
    fn fill(&mut self) -> io::Result<bool> {
        let Some(socket) = &mut self.socket else {
            return Ok(false);
        };
        self.received.drain(..self.start);
        self.start = 0;
        let at = self.received.len();
        self.received.resize(CHUNK, 0);
        let outcome = socket.read(&mut self.received[at..]);
        let taken = match &outcome {
            Ok(length) => *length,
            Err(_) => 0,
        };
        self.received.truncate(at + taken);
        match outcome {
            Ok(0) => Err(io::ErrorKind::ConnectionReset.into()),
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Sends what is left of a frame.
    fn flush(&mut self) -> io::Result<()> {
        let Some(socket) = &self.socket else {
            self.unsent.clear();
            return Ok(());
        };
        while !self.unsent.is_empty() {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::send(socket, &self.unsent, flags) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some((_, path)) = &self.listener {
            // It was ours; if somebody has taken it away, that is no loss.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Backend for Stream {
    fn features(&self) -> Features {
        Features::default()
    }

    fn event(&self) -> Option<RawFd> {
        Some(self.epoll.as_raw_fd())
    }

    fn wants_room(&mut self) -> bool {
        if self.flush().is_err() {
            // A part of a frame may be on its way: nothing can follow it. Where nobody else may
            // come, whoever receives next finds out and says so.
            let _ = self.lose();
        }
        self.arm(!self.unsent.is_empty());
        !self.unsent.is_empty()
    }

    fn send(&mut self, frame: &Frame<'_>) -> io::Result<()> {
        let rest: usize = frame.rest.iter().map(VolatileSlice::len).sum();
        let length = frame.head.len() + rest;
        if length > MAX_FRAME {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if !self.accept()? {
            return Err(io::ErrorKind::NotConnected.into());
        }
        // The frames of a chain come one after the other, without a question for room in between.
        if let Err(error) = self.flush() {
            let _ = self.lose();
            return Err(error);
        }
        let Some(socket) = &self.socket else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let mut head = Vec::with_capacity(LENGTH + frame.head.len());
        head.extend((length as u32).to_be_bytes());
        head.extend(frame.head);
        let sent = if self.unsent.is_empty() {
            match vectored::write(socket, &head, frame.rest) {
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error),
            }
        } else {
            0
        };
        if sent == LENGTH + length {
            return Ok(());
        }
        // A stream cannot lose a part of a frame: keep what is left. That is no more than one packet
        // of the guest has, after which room is asked for.
        let mut whole = head;
        for piece in frame.rest {
            let at = whole.len();
            whole.resize(at + piece.len(), 0);
            piece
                .read_slice(&mut whole[at..], 0)
                .map_err(io::Error::other)?;
        }
        self.unsent.extend(whole.drain(sent.min(whole.len())..));
        self.arm(true);
        Ok(())
    }

    fn receive(&mut self, to: &[VolatileSlice<'_>]) -> io::Result<Option<Received>> {
        if !self.accept()? {
            return Ok(None);
        }
        let length = loop {
            match self.next_frame() {
                Ok(Some(length)) => break length,
                Ok(None) => match self.fill() {
                    Ok(true) => {}
                    Ok(false) => return Ok(None),
                    Err(_) => return self.lose(),
                },
                Err(_) => return self.lose(),
            }
        };
        let begin = self.start + LENGTH;
        let end = begin + length;
        let frame = self.received.get(begin..end).unwrap_or_default();
        scatter(frame, to)?;
        self.start = end;
        Ok(Some(Received {
            length,
            checksum: RxChecksum::Unknown,
            joined: None,
        }))
    }
}

/// Whether it says nothing of the listener: who came has gone, or the system is short of something.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::EINTR
                | libc::EMFILE
                | libc::ENFILE
                | libc::ENOBUFS
                | libc::ENOMEM
        )
    )
}

/// Copies `frame` into `to`, if it fits.
pub(super) fn scatter(frame: &[u8], to: &[VolatileSlice<'_>]) -> io::Result<()> {
    let room: usize = to.iter().map(VolatileSlice::len).sum();
    let mut rest = if room < frame.len() { &[] } else { frame };
    for slice in to {
        let (piece, after) = rest.split_at(rest.len().min(slice.len()));
        slice.write_slice(piece, 0).map_err(io::Error::other)?;
        rest = after;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes() {
        for error in [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ECONNABORTED] {
            assert!(is_passing(&io::Error::from_raw_os_error(error)), "{error}");
        }
        assert!(!is_passing(&io::Error::from_raw_os_error(libc::EINVAL)));
    }

    /// A connection that breaks within a frame ends, and the net with it where nobody can come.
    #[test]
    fn an_end_within_a_frame() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut stream = Stream::new(ours).unwrap();
        let bytes = [1; 60_000];
        while !stream.wants_room() {
            let frame = Frame {
                head: &bytes,
                rest: &[],
                offload: None,
            };
            stream.send(&frame).unwrap();
        }
        drop(theirs);
        assert!(!stream.wants_room());
        assert!(stream.socket.is_none());
        assert!(stream.receive(&[]).is_err());
    }
}
