//! A tap: an interface of the host's whose cable ends here.
//!
//! Each frame comes and goes after a virtio-net header, by which the host's kernel completes
//! checksums and cuts frames of many segments. What the host sends itself, or has joined, comes with
//! its segments joined: the kernel counts frames in a tap's queue, not bytes, and single segments
//! would fill it in no time. The tap is made beforehand, by whoever may
//! (`ip tuntap add NAME mode tap user USER`, with `multi_queue` for several queues): then no
//! privilege is needed here.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use vm_memory::VolatileSlice;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes as _, FromZeros as _, IntoBytes as _};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Backend, Features, Frame, Partial, Received, RxChecksum, tap_ioctls, vectored};

/// Where taps are attached to.
const DEVICE: &str = "/dev/net/tun";

/// The header before each frame (virtio 1.0, `struct virtio_net_hdr_v1`).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    flags: u8,
    gso_type: u8,
    /// Bytes of all headers of a frame that is to be cut.
    header_length: U16,
    /// Payload of each segment.
    gso_size: U16,
    /// Where the bytes begin that the checksum covers.
    checksum_start: U16,
    /// Where the checksum is, from there.
    checksum_offset: U16,
    buffers: U16,
}
const _: () = assert!(size_of::<Header>() == 12);

/// [`Header::flags`]: the checksum is to be completed.
const NEEDS_CHECKSUM: u8 = 1;
/// [`Header::flags`]: the checksum is right.
const CHECKSUM_VALID: u8 = 2;
/// [`Header::gso_type`].
const GSO_TCP_V4: u8 = 1;
/// [`Header::gso_type`].
const GSO_TCP_V6: u8 = 4;

/// Frames that we take although they are not complete. Those with ECN's mark of a reduced window
/// stay out of it: the kernel cuts them itself.
const INCOMPLETE: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;

/// Bytes beyond what the caller has room for, by which a longer frame is recognized.
const EXCESS: usize = 64;

/// Why there is no such tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// There is no interface of that name.
    #[error("there is no tap {0}: make it by `ip tuntap add {0} mode tap user $USER`")]
    Absent(String),
    /// No interface can have that name.
    #[error("{0:?} is no name for a tap: it has 1 to 15 letters, digits, '-', '_' and '.'")]
    Name(String),
    /// The host has no taps.
    #[error("/dev/net/tun cannot be opened: {0}; load the module tun, or let the user open it")]
    Device(io::Error),
    /// It is somebody else's.
    #[error("tap {0} belongs to another user: make it by `ip tuntap add {0} mode tap user $USER`")]
    Permission(String),
    /// Somebody has it.
    #[error("tap {0} is in use by another process")]
    Busy(String),
    /// It is another kind of interface.
    #[error("{0} is no tap that can have {1} queues: make it by `ip tuntap add {0} mode tap{2}`")]
    Kind(String, u16, &'static str),
    /// Anything else.
    #[error("tap {0} cannot be used: {1}")]
    Other(String, io::Error),
}

/// A queue of a tap.
pub struct Tap {
    file: File,
    name: String,
}

impl Tap {
    /// `queues` queues of the tap `name`.
    ///
    /// # Errors
    /// Why there are none; the text is a sentence for the user.
    pub fn open(name: &str, queues: u16) -> Result<Vec<Self>, TapError> {
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty()
            || name.len() > tap_ioctls::NAME_MAX
            || !name.chars().all(is_word)
            || matches!(name, "." | "..")
        {
            return Err(TapError::Name(name.into()));
        }
        // Attaching to a name that nobody has would make a new interface.
        if !Path::new("/sys/class/net").join(name).exists() {
            return Err(TapError::Absent(name.into()));
        }
        (0..queues.max(1))
            .map(|_| Self::queue(name, queues))
            .collect()
    }

    fn queue(name: &str, queues: u16) -> Result<Self, TapError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(DEVICE)
            .map_err(TapError::Device)?;
        let other = |error| TapError::Other(name.into(), error);
        // A tap made for one queue takes none of several, and the other way round.
        let mut outcome = tap_ioctls::set_interface(&file, name, queues > 1);
        if queues <= 1 && is(&outcome, libc::EINVAL) {
            outcome = tap_ioctls::set_interface(&file, name, true);
        }
        outcome.map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM) => TapError::Permission(name.into()),
            Some(libc::EBUSY) => TapError::Busy(name.into()),
            Some(libc::EINVAL) => {
                let more = if queues > 1 { " multi_queue" } else { "" };
                TapError::Kind(name.into(), queues.max(1), more)
            }
            _ => other(error),
        })?;
        tap_ioctls::set_header_length(&file, size_of::<Header>() as libc::c_int).map_err(other)?;
        tap_ioctls::set_offload(&file, INCOMPLETE).map_err(other)?;
        Ok(Self {
            file,
            name: name.into(),
        })
    }
}

/// Whether it is this error of the system.
fn is(outcome: &io::Result<()>, error: libc::c_int) -> bool {
    matches!(outcome, Err(other) if other.raw_os_error() == Some(error))
}

impl Backend for Tap {
    fn features(&self) -> Features {
        Features {
            offload: true,
            joins: true,
        }
    }

    fn event(&self) -> Option<RawFd> {
        Some(self.file.as_raw_fd())
    }

    fn wants_room(&mut self) -> bool {
        // The kernel takes a frame or loses it, as a switch does.
        false
    }

    fn send(&mut self, frame: &Frame<'_>) -> io::Result<()> {
        let mut header = Header::new_zeroed();
        if let Some(offload) = frame.offload {
            header.flags = NEEDS_CHECKSUM;
            header.checksum_start = offload.checksum.start.into();
            header.checksum_offset = offload.checksum.offset.into();
            if let Some(segments) = offload.segments {
                header.gso_type = if segments.ipv6 {
                    GSO_TCP_V6
                } else {
                    GSO_TCP_V4
                };
                header.gso_size = segments.size.into();
                header.header_length = segments.headers.into();
            }
        }
        let mut head = Vec::with_capacity(size_of::<Header>() + frame.head.len());
        head.extend(header.as_bytes());
        head.extend(frame.head);
        vectored::write(&self.file, &head, frame.rest).map(drop)
    }

    fn receive(&mut self, to: &[VolatileSlice<'_>]) -> io::Result<Option<Received>> {
        let mut header = [0; size_of::<Header>()];
        let mut excess = [0_u8; EXCESS];
        let mut slices = to.to_vec();
        slices.push(VolatileSlice::from(&mut excess[..]));
        let length = match vectored::read(&self.file, &mut header, &slices) {
            Ok(length) => length.saturating_sub(header.len()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => {
                if !tap_ioctls::is_attached(&self.file) {
                    tracing::warn!(tap = self.name, "the tap has been deleted");
                }
                return Err(error);
            }
        };
        let (header, _) =
            Header::read_from_prefix(&header).map_err(|_| io::ErrorKind::InvalidData)?;
        let checksum = if header.flags & NEEDS_CHECKSUM != 0 {
            RxChecksum::Partial(Partial {
                start: header.checksum_start.get(),
                offset: header.checksum_offset.get(),
            })
        } else if header.flags & CHECKSUM_VALID != 0 {
            RxChecksum::Good
        } else {
            RxChecksum::Unknown
        };
        let joined = match header.gso_type {
            GSO_TCP_V4 | GSO_TCP_V6 => Some(header.gso_size.get()),
            _ => None,
        };
        Ok(Some(Received {
            length,
            checksum,
            joined,
        }))
    }

    fn set_active(&mut self, active: bool) -> io::Result<()> {
        tap_ioctls::set_attached(&self.file, active)
    }
}
