//! Memory that the host reads and writes while we do.
//!
//! [`Dma`] owns pages and is the only way to them: copies are volatile, words are atomic, and no
//! Rust reference to plain memory is ever made. Pages the host knows of are *lent*: dropped while
//! lent, they are leaked rather than handed back to an allocator under the host's pen.
//! [`Ring`] makes a [`RingMemory`] of them.
#![expect(unsafe_code, reason = "the one place that touches shared pages")]

use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use vmbus_proto::PAGE_SIZE;
use vmbus_proto::ring::{Control, RingMemory};

use crate::PAGE;
use crate::hal::{BufferDirection, Hal, PhysAddr};

/// Pages shared with the host.
pub(crate) struct Dma<H: Hal> {
    paddr: PhysAddr,
    vaddr: NonNull<u8>,
    pages: usize,
    /// Whether the host may still use the pages.
    lent: AtomicBool,
    hal: PhantomData<fn() -> H>,
}

// SAFETY: the pages belong to the value alone and, by the contract of `Hal`, to no processor.
unsafe impl<H: Hal> Send for Dma<H> {}
// SAFETY: all access is volatile or atomic and tolerates concurrent writers, as the host is one.
unsafe impl<H: Hal> Sync for Dma<H> {}

impl<H: Hal> Dma<H> {
    /// `pages` zeroed pages.
    pub(crate) fn new(pages: usize) -> Option<Self> {
        let (paddr, vaddr) = H::dma_alloc(pages, BufferDirection::Both)?;
        Some(Self {
            paddr,
            vaddr,
            pages,
            lent: AtomicBool::new(false),
            hal: PhantomData,
        })
    }

    /// Where the host finds the first page.
    pub(crate) fn paddr(&self) -> PhysAddr {
        self.paddr
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.pages.saturating_mul(PAGE_SIZE)
    }

    /// The frame numbers of the pages.
    pub(crate) fn pfns(&self) -> impl ExactSizeIterator<Item = u64> + Clone + use<H> {
        let first = self.paddr / PAGE;
        (0..self.pages).map(move |page| first.saturating_add(page as u64))
    }

    /// The host knows the pages from now on.
    pub(crate) fn lend(&self) {
        self.lent.store(true, Ordering::Relaxed);
    }

    /// The host has acknowledged that it does not use the pages any more.
    pub(crate) fn reclaim(&self) {
        self.lent.store(false, Ordering::Relaxed);
    }

    /// Copies out of the pages. Beyond their end nothing is copied.
    pub(crate) fn read(&self, offset: usize, to: &mut [u8]) {
        let Some(from) = self.at(offset, to.len()) else {
            debug_assert!(false, "read beyond shared pages");
            return;
        };
        // SAFETY: `at` has checked that the pages hold `to.len()` bytes from there on.
        unsafe { copy_out(from, to) }
    }

    /// Copies into the pages. Beyond their end nothing is copied.
    pub(crate) fn write(&self, offset: usize, from: &[u8]) {
        let Some(to) = self.at(offset, from.len()) else {
            debug_assert!(false, "write beyond shared pages");
            return;
        };
        // SAFETY: `at` has checked that the pages hold `from.len()` bytes from there on.
        unsafe { copy_in(to, from) }
    }

    /// The byte at `offset`.
    pub(crate) fn u8_at(&self, offset: usize) -> Option<&AtomicU8> {
        let at = self.at(offset, 1)?;
        // SAFETY: within the pages, which live as long as `self`.
        Some(unsafe { AtomicU8::from_ptr(at) })
    }

    /// The word at `offset`, a multiple of 4.
    pub(crate) fn u32_at(&self, offset: usize) -> Option<&AtomicU32> {
        let at = self.at(offset, 4)?.cast::<u32>();
        // SAFETY: checked to be aligned and within the pages, which live as long as `self`.
        at.is_aligned().then(|| unsafe { AtomicU32::from_ptr(at) })
    }

    /// The double word at `offset`, a multiple of 8.
    pub(crate) fn u64_at(&self, offset: usize) -> Option<&AtomicU64> {
        let at = self.at(offset, 8)?.cast::<u64>();
        // SAFETY: checked to be aligned and within the pages, which live as long as `self`.
        at.is_aligned().then(|| unsafe { AtomicU64::from_ptr(at) })
    }

    /// A pointer to `length` bytes at `offset`, if the pages hold them.
    fn at(&self, offset: usize, length: usize) -> Option<*mut u8> {
        let end = offset.checked_add(length)?;
        // Stays within the allocation, as `offset` is at most its length.
        (end <= self.len()).then(|| self.vaddr.as_ptr().wrapping_add(offset))
    }
}

impl<H: Hal> Drop for Dma<H> {
    fn drop(&mut self) {
        if *self.lent.get_mut() {
            return;
        }
        // SAFETY: the values are those of `dma_alloc`, and with `self` the last user goes.
        unsafe { H::dma_dealloc(self.paddr, self.vaddr, self.pages) }
    }
}

/// Bytes that are copied at a time where the shared side is aligned.
const WORD: usize = 8;

/// # Safety
/// `from` is valid for volatile reads of `to.len()` bytes.
unsafe fn copy_out(from: *const u8, to: &mut [u8]) {
    let (head, words) = to.split_at_mut(from.align_offset(WORD).min(to.len()));
    for (i, byte) in head.iter_mut().enumerate() {
        // SAFETY: below `to.len()`.
        *byte = unsafe { from.wrapping_add(i).read_volatile() };
    }
    let from = from.wrapping_add(head.len());
    let mut chunks = words.chunks_exact_mut(WORD);
    let mut at = from.cast::<u64>();
    for chunk in chunks.by_ref() {
        // SAFETY: aligned by the choice of `head`, and a whole chunk lies below `to.len()`.
        chunk.copy_from_slice(&unsafe { at.read_volatile() }.to_ne_bytes());
        at = at.wrapping_add(1);
    }
    for (i, byte) in chunks.into_remainder().iter_mut().enumerate() {
        // SAFETY: below `to.len()`.
        *byte = unsafe { at.cast::<u8>().wrapping_add(i).read_volatile() };
    }
}

/// # Safety
/// `to` is valid for volatile writes of `from.len()` bytes.
unsafe fn copy_in(to: *mut u8, from: &[u8]) {
    let (head, words) = from.split_at(to.align_offset(WORD).min(from.len()));
    for (i, &byte) in head.iter().enumerate() {
        // SAFETY: below `from.len()`.
        unsafe { to.wrapping_add(i).write_volatile(byte) }
    }
    let to = to.wrapping_add(head.len());
    let (chunks, tail) = words.as_chunks::<WORD>();
    let mut at = to.cast::<u64>();
    for chunk in chunks {
        // SAFETY: aligned by the choice of `head`, and a whole chunk lies below `from.len()`.
        unsafe { at.write_volatile(u64::from_ne_bytes(*chunk)) }
        at = at.wrapping_add(1);
    }
    for (i, &byte) in tail.iter().enumerate() {
        // SAFETY: below `from.len()`.
        unsafe { at.cast::<u8>().wrapping_add(i).write_volatile(byte) }
    }
}

/// One ring in pages of its own: the control page, then the data area.
pub(crate) struct Ring<H: Hal> {
    dma: Dma<H>,
    data_size: u32,
}

impl<H: Hal> Ring<H> {
    /// A zeroed ring with at least `data_size` bytes, rounded up to whole pages.
    pub(crate) fn new(data_size: u32) -> Option<Self> {
        let data_pages = (data_size as usize).div_ceil(PAGE_SIZE).max(1);
        let dma = Dma::new(data_pages.checked_add(1)?)?;
        let data_size = u32::try_from(data_pages.checked_mul(PAGE_SIZE)?).ok()?;
        Some(Self { dma, data_size })
    }

    /// Its pages.
    pub(crate) fn dma(&self) -> &Dma<H> {
        &self.dma
    }
}

impl<H: Hal> RingMemory for Ring<H> {
    fn data_size(&self) -> u32 {
        self.data_size
    }

    fn load(&self, field: Control) -> u32 {
        // All fields lie in the control page, so there is always a word.
        let word = self.dma.u32_at(field.offset());
        word.map_or(0, |word| u32::from_le(word.load(Ordering::Acquire)))
    }

    fn store(&self, field: Control, value: u32) {
        if let Some(word) = self.dma.u32_at(field.offset()) {
            word.store(value.to_le(), Ordering::Release);
        }
    }

    fn read(&self, offset: u32, to: &mut [u8]) {
        self.dma.read(PAGE_SIZE.saturating_add(offset as usize), to);
    }

    fn write(&self, offset: u32, from: &[u8]) {
        self.dma
            .write(PAGE_SIZE.saturating_add(offset as usize), from);
    }
}
