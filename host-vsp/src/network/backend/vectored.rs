//! Frames between a file descriptor and guest memory, without a copy in between.
#![expect(
    unsafe_code,
    reason = "readv and writev take raw pointers, and guest memory may be given to them no other way"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

use vm_memory::VolatileSlice;
use vm_memory::volatile_memory::PtrGuardMut;

/// Most pieces of one frame, its private beginning included (Linux `UIO_MAXIOV`).
pub(super) const MAX_PIECES: usize = 1024;

/// Reads once: into `head`, then into `to`; the bytes read.
///
/// # Errors
/// Those of readv(2); [`io::ErrorKind::WouldBlock`] where there is nothing.
pub(super) fn read(fd: impl AsFd, head: &mut [u8], to: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let guards: Vec<PtrGuardMut> = to.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let head = libc::iovec {
        iov_base: head.as_mut_ptr().cast(),
        iov_len: head.len(),
    };
    let iovecs = list(head, &guards);
    let count = iovecs.len().min(MAX_PIECES) as i32;
    again(|| {
        // SAFETY: the first entry is a slice borrowed for this function; the others are guest
        // memory that the guards keep mapped, of which Rust has no references. All are writable.
        unsafe { libc::readv(fd.as_fd().as_raw_fd(), iovecs.as_ptr(), count) }
    })
}

/// Writes once: `head`, then `from`; the bytes written.
///
/// # Errors
/// Those of writev(2); [`io::ErrorKind::WouldBlock`] where there is no room, and
/// [`io::ErrorKind::BrokenPipe`] where nobody reads a stream.
pub(super) fn write(fd: impl AsFd, head: &[u8], from: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let guards: Vec<PtrGuardMut> = from.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let head = libc::iovec {
        iov_base: head.as_ptr().cast_mut().cast(),
        iov_len: head.len(),
    };
    let iovecs = list(head, &guards);
    let count = iovecs.len().min(MAX_PIECES) as i32;
    again(|| {
        // SAFETY: the kernel only reads. The first entry is a slice borrowed for this function; the
        // others are guest memory that the guards keep mapped. The guest may change it meanwhile:
        // then the frame has some of both, which is what a real adapter's DMA would do.
        unsafe { libc::writev(fd.as_fd().as_raw_fd(), iovecs.as_ptr(), count) }
    })
}

fn list(head: libc::iovec, guards: &[PtrGuardMut]) -> Vec<libc::iovec> {
    let pieces = guards.iter().map(|guard| libc::iovec {
        iov_base: guard.as_ptr().cast(),
        iov_len: guard.len(),
    });
    let mut iovecs = Vec::with_capacity(guards.len() + 1);
    iovecs.push(head);
    iovecs.extend(pieces);
    iovecs
}

fn again(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        let Ok(moved) = usize::try_from(call()) else {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        };
        return Ok(moved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn a_frame_in_pieces_both_ways() {
        let (one, other) = UnixDatagram::pair().unwrap();
        other.set_nonblocking(true).unwrap();
        let mut memory: Vec<u8> = (0..100).collect();
        let whole = VolatileSlice::from(&mut memory[..]);
        let pieces = [
            whole.subslice(10, 5).unwrap(),
            whole.subslice(0, 0).unwrap(),
            whole.subslice(50, 3).unwrap(),
        ];
        assert_eq!(write(&one, &[200, 201], &pieces).unwrap(), 10);
        let mut head = [0; 4];
        let to = [
            whole.subslice(90, 4).unwrap(),
            whole.subslice(80, 9).unwrap(),
        ];
        assert_eq!(read(&other, &mut head, &to).unwrap(), 10);
        assert_eq!(head, [200, 201, 10, 11]);
        let nothing = read(&other, &mut head, &to).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(
            (&memory[90..94], &memory[80..82]),
            (&[12, 13, 14, 50][..], &[51, 52][..])
        );
    }
}
