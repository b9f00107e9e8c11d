//! Guest memory to plain bytes and back, for backends that cannot be given guest memory itself.

use std::io;

use vm_memory::{Bytes as _, VolatileSlice};

/// The bytes of `from`, copied once: what is kept is what was checked or sent.
pub(super) fn gather(from: &[VolatileSlice<'_>]) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length(from)];
    let mut rest = bytes.as_mut_slice();
    for slice in from {
        let (piece, after) = rest.split_at_mut_checked(slice.len()).ok_or_else(gone)?;
        slice.read_slice(piece, 0).map_err(io::Error::other)?;
        rest = after;
    }
    Ok(bytes)
}

/// Puts `bytes` into `to`, which is as long.
pub(super) fn scatter(bytes: &[u8], to: &[VolatileSlice<'_>]) -> io::Result<()> {
    let mut rest = bytes;
    for slice in to {
        let (piece, after) = rest.split_at_checked(slice.len()).ok_or_else(gone)?;
        slice.write_slice(piece, 0).map_err(io::Error::other)?;
        rest = after;
    }
    Ok(())
}

/// Bytes of all slices together.
pub(super) fn length(slices: &[VolatileSlice<'_>]) -> usize {
    slices.iter().map(VolatileSlice::len).sum()
}

fn gone() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_length_both_ways() {
        let mut memory: Vec<u8> = (0..100).collect();
        let expected = memory.clone();
        let whole = VolatileSlice::from(memory.as_mut_slice());
        let pieces = [(0, 7), (7, 0), (7, 92), (99, 1)];
        let pieces = pieces.map(|(at, length)| whole.subslice(at, length).unwrap());
        let bytes = gather(&pieces).unwrap();
        assert_eq!(bytes, expected);
        let other: Vec<u8> = bytes.iter().rev().copied().collect();
        scatter(&other, &pieces).unwrap();
        assert_eq!(gather(&pieces).unwrap(), other);
        assert!(scatter(&other[1..], &pieces).is_err());
    }
}
