//! Positioned transfers between a file and guest memory, without a copy in between.
#![expect(
    unsafe_code,
    reason = "preadv2 and pwritev2 take raw pointers, and guest memory may be given to them no other way"
)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::VolatileSlice;
use vm_memory::volatile_memory::PtrGuardMut;

/// Most pieces of one system call (Linux `UIO_MAXIOV`).
const MAX_PIECES: usize = 1024;

/// Fills `to` from `offset` of `file`. `flags` as of preadv2(2).
///
/// # Errors
/// Those of the system call; [`io::ErrorKind::UnexpectedEof`] where the file ends before.
pub(super) fn read(
    file: &File,
    to: &[VolatileSlice<'_>],
    offset: u64,
    flags: i32,
) -> io::Result<()> {
    transfer(to, offset, |iov, count, at| {
        // SAFETY: `transfer` promises that the `count` entries at `iov` are writable memory that
        // stays mapped during the call. It is guest memory, of which Rust has no references, so
        // the kernel may change it.
        unsafe { libc::preadv2(file.as_raw_fd(), iov, count, at, flags) }
    })
}

/// Puts `from` at `offset` of `file`. `flags` as of pwritev2(2).
///
/// # Errors
/// Those of the system call; [`io::ErrorKind::UnexpectedEof`] where it takes no more.
pub(super) fn write(
    file: &File,
    from: &[VolatileSlice<'_>],
    offset: u64,
    flags: i32,
) -> io::Result<()> {
    transfer(from, offset, |iov, count, at| {
        // SAFETY: `transfer` promises that the `count` entries at `iov` are readable memory that
        // stays mapped during the call. The guest may change it meanwhile: then the file holds
        // some of both, which is what a real device's DMA would do.
        unsafe { libc::pwritev2(file.as_raw_fd(), iov, count, at, flags) }
    })
}

/// Repeats `call` until all pieces are moved. Each time it gets a list of iovecs over memory of
/// `pieces`, its length, and the offset in the file.
fn transfer(
    pieces: &[VolatileSlice<'_>],
    offset: u64,
    call: impl Fn(*const libc::iovec, i32, i64) -> isize,
) -> io::Result<()> {
    // The guards keep the memory mapped until the end of this function, as does the lifetime of
    // the slices.
    let guards: Vec<PtrGuardMut> = pieces.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let mut iovecs: Vec<libc::iovec> = guards
        .iter()
        .map(|guard| libc::iovec {
            iov_base: guard.as_ptr().cast(),
            iov_len: guard.len(),
        })
        .collect();
    let mut left = iovecs.as_mut_slice();
    let mut at = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    loop {
        // Pieces without bytes would make the end of the file look like progress.
        while left.first().is_some_and(|piece| piece.iov_len == 0) {
            left = left.get_mut(1..).unwrap_or_default();
        }
        if left.is_empty() {
            return Ok(());
        }
        let moved = call(left.as_ptr(), left.len().min(MAX_PIECES) as i32, at);
        let Ok(mut moved) = usize::try_from(moved) else {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        };
        if moved == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        at = at.saturating_add_unsigned(moved as u64);
        for piece in left.iter_mut() {
            let step = moved.min(piece.iov_len);
            piece.iov_base = piece.iov_base.wrapping_byte_add(step);
            piece.iov_len = piece.iov_len.saturating_sub(step);
            moved = moved.saturating_sub(step);
            if moved == 0 {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More pieces than one system call takes, some of them empty, all at odd places.
    #[test]
    fn many_odd_pieces_both_ways() {
        let file = tempfile::tempfile().unwrap();
        let lengths: Vec<usize> = (0..3000).map(|i| i % 7).collect();
        let total: usize = lengths.iter().sum();
        let mut memory: Vec<u8> = (0..total).map(|i| (i * 31 % 251) as u8).collect();
        let expected = memory.clone();

        let pieces = split(&mut memory, &lengths);
        write(&file, &pieces, 5, 0).unwrap();
        memory.fill(0);
        let pieces = split(&mut memory, &lengths);
        read(&file, &pieces, 5, 0).unwrap();
        assert_eq!(memory, expected);
        assert_eq!(file.metadata().unwrap().len(), 5 + total as u64);
    }

    #[test]
    fn a_file_that_ends_early_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(100).unwrap();
        let mut memory = [0; 64];
        let pieces = [VolatileSlice::from(&mut memory[..])];
        read(&file, &pieces, 36, 0).unwrap();
        let error = read(&file, &pieces, 37, 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    fn split<'a>(memory: &'a mut [u8], lengths: &[usize]) -> Vec<VolatileSlice<'a>> {
        let whole = VolatileSlice::from(memory);
        let mut at = 0;
        lengths
            .iter()
            .map(|&length| {
                at += length;
                whole.subslice(at - length, length).unwrap()
            })
            .collect()
    }
}
