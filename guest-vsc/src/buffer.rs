//! Buffers that the host reads or fills while a request is in flight.
//!
//! [`Buffer`] says what can be handed over by value: its bytes stay where they are however the
//! value is moved. [`Parked`] holds such a value while the host has it; [`Mapping`] is the list of
//! its pages as the host sees them.
#![expect(
    unsafe_code,
    reason = "the contract of buffers, and sharing them with the host"
)]

use core::mem::MaybeUninit;
use core::ptr::NonNull;

use vmbus_proto::PAGE_SIZE;

use crate::PAGE;
use crate::hal::{BufferDirection, Hal, PhysAddr};

/// A buffer that owns its bytes, and can be given away for the time of a request.
///
/// # Safety
/// The region is valid for reads and writes, and only this value refers to it, for as long as the
/// value exists; it is the same at each call, also after the value was moved.
pub unsafe trait Buffer: Send {
    /// Where the bytes are.
    fn region(&mut self) -> NonNull<[u8]>;
}

// SAFETY: a unique reference to memory that lives for ever.
unsafe impl Buffer for &'static mut [u8] {
    fn region(&mut self) -> NonNull<[u8]> {
        NonNull::from(&mut **self)
    }
}

// SAFETY: the heap block does not move with the box.
#[cfg(feature = "alloc")]
unsafe impl Buffer for alloc::boxed::Box<[u8]> {
    fn region(&mut self) -> NonNull<[u8]> {
        NonNull::from(&mut **self)
    }
}

// SAFETY: the heap block does not move with the vector, and nobody can grow it while it is given
// away. Its region is its length, not its capacity.
#[cfg(feature = "alloc")]
unsafe impl Buffer for alloc::vec::Vec<u8> {
    fn region(&mut self) -> NonNull<[u8]> {
        NonNull::from(self.as_mut_slice())
    }
}

/// Copies the first bytes of a buffer to `to`, as many as both have, and returns them.
pub(crate) fn beginning<'t>(buffer: &mut impl Buffer, to: &'t mut [u8]) -> &'t [u8] {
    let region = buffer.region();
    let length = region.len().min(to.len());
    let from = NonNull::slice_from_raw_parts(region.cast::<u8>(), length);
    let to = to.get_mut(..length).unwrap_or_default();
    // SAFETY: a part of the region, which is valid for reads as long as the value exists, and only
    // the value refers to it, which is borrowed.
    to.copy_from_slice(unsafe { from.as_ref() });
    to
}

/// A buffer while the host has it. Dropped, it is lost rather than freed under the host's pen.
///
/// `MaybeUninit` keeps the compiler from assuming that nobody else writes to what the value
/// refers to; the value is always there.
pub(crate) struct Parked<B>(MaybeUninit<B>);

impl<B> Parked<B> {
    pub(crate) fn new(buffer: B) -> Self {
        Self(MaybeUninit::new(buffer))
    }

    /// The region of the buffer.
    ///
    /// Taken when the value is parked: moving a reference or a box after that would count as a
    /// use of its own, which ends the life of pointers made from it.
    pub(crate) fn region(&mut self) -> NonNull<[u8]>
    where
        B: Buffer,
    {
        // SAFETY: made from a value in `new`, the only constructor.
        unsafe { self.0.assume_init_mut() }.region()
    }

    /// The buffer, after the host is done with it.
    pub(crate) fn into_inner(self) -> B {
        // SAFETY: made from a value in `new`, the only constructor.
        unsafe { self.0.assume_init() }
    }
}

/// The pages of a buffer as the host sees them, `PAGES` at most.
pub(crate) struct Mapping<const PAGES: usize> {
    /// The buffer, while it is shared.
    shared: Option<(NonNull<[u8]>, BufferDirection)>,
    /// Address of each piece that lies in one page.
    pieces: [PhysAddr; PAGES],
    count: usize,
}

// SAFETY: the pointer is to a buffer that was given away and is only used to take it back.
unsafe impl<const PAGES: usize> Send for Mapping<PAGES> {}

impl<const PAGES: usize> Mapping<PAGES> {
    /// Of no buffer.
    pub(crate) const fn none() -> Self {
        Self {
            shared: None,
            pieces: [0; PAGES],
            count: 0,
        }
    }

    /// Shares a buffer with the host, page by page. Says whether it has few enough pages; an
    /// empty one has none.
    ///
    /// # Safety
    /// The buffer is valid, nobody else accesses it, and both stays so until
    /// [`unshare`](Self::unshare).
    pub(crate) unsafe fn share<H: Hal>(
        &mut self,
        buffer: NonNull<[u8]>,
        direction: BufferDirection,
    ) -> bool {
        debug_assert!(self.shared.is_none());
        self.count = 0;
        if pieces(buffer).count() > PAGES {
            return false;
        }
        for (place, piece) in self.pieces.iter_mut().zip(pieces(buffer)) {
            // SAFETY: a non-empty part of the buffer, within one page.
            *place = unsafe { H::share(piece, direction) };
            self.count = self.count.saturating_add(1);
        }
        self.shared = Some((buffer, direction));
        true
    }

    /// Ends sharing. Does nothing where nothing is shared.
    pub(crate) fn unshare<H: Hal>(&mut self) {
        let Some((buffer, direction)) = self.shared.take() else {
            return;
        };
        for (paddr, piece) in self.pieces.iter().zip(pieces(buffer)) {
            // SAFETY: the values of the matching call of `share`; the buffer is still valid and
            // unused by its owner, as `share` demanded.
            unsafe { H::unshare(*paddr, piece, direction) };
        }
        self.count = 0;
    }

    /// Offset of the buffer in its first page, in bytes.
    pub(crate) fn byte_offset(&self) -> u32 {
        let first = self.pieces.first().copied().unwrap_or_default();
        (first % PAGE) as u32
    }

    /// Frame numbers of the buffer's pages.
    pub(crate) fn pfns(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        let pieces = self.pieces.get(..self.count).unwrap_or_default();
        pieces.iter().map(|paddr| paddr / PAGE)
    }
}

/// The parts of a buffer that lie in one page each.
fn pieces(buffer: NonNull<[u8]>) -> impl Iterator<Item = NonNull<[u8]>> {
    let start = buffer.cast::<u8>();
    let length = buffer.len();
    let mut done = 0usize;
    core::iter::from_fn(move || {
        let left = length.checked_sub(done).filter(|left| *left != 0)?;
        // SAFETY: `done` is less than the buffer's length.
        let at = unsafe { start.add(done) };
        let page_left = PAGE_SIZE.saturating_sub(at.addr().get() % PAGE_SIZE);
        let piece = left.min(page_left);
        done = done.saturating_add(piece);
        Some(NonNull::slice_from_raw_parts(at, piece))
    })
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    #[test]
    fn pieces_end_at_pages() {
        #[repr(align(4096))]
        struct Pages([u8; 3 * PAGE_SIZE]);
        let mut pages = std::boxed::Box::new(Pages([0; 3 * PAGE_SIZE]));
        let cut = |from: &mut [u8]| -> Vec<usize> {
            pieces(NonNull::from(from)).map(|p| p.len()).collect()
        };
        assert_eq!(cut(&mut pages.0[..]), [4096; 3]);
        assert_eq!(cut(&mut pages.0[4095..4097]), [1, 1]);
        assert_eq!(cut(&mut pages.0[4095..8193]), [1, 4096, 1]);
        assert_eq!(cut(&mut pages.0[100..612]), [512]);
        assert_eq!(cut(&mut pages.0[..0]), [0; 0]);
    }
}
