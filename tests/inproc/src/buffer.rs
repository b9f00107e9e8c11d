//! Buffers in guest RAM, which the host reaches without a copy.
#![expect(unsafe_code, reason = "Buffer is an unsafe trait")]

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use guest_vsc::storage::Buffer;
use vm_memory::{GuestAddress, GuestMemoryBackend as _};
use vmbus_proto::PAGE_SIZE;

use crate::FakeHypervisor;

/// Bytes in guest RAM, at any place in their first page.
pub struct RamBuffer {
    hypervisor: FakeHypervisor,
    page: u64,
    pages: usize,
    region: NonNull<[u8]>,
}

// SAFETY: the pages are this value's alone.
unsafe impl Send for RamBuffer {}

impl RamBuffer {
    /// `length` zeroed bytes, the first `offset` bytes into its page.
    pub fn new(hypervisor: &FakeHypervisor, offset: usize, length: usize) -> Self {
        assert!(offset < PAGE_SIZE);
        let vm = &hypervisor.vm;
        let pages = (offset + length).div_ceil(PAGE_SIZE);
        let page = vm.pages.take(&vm.memory, pages).expect("guest RAM");
        let at = GuestAddress(page + offset as u64);
        let start = vm.memory.get_host_address(at).expect("RAM");
        let start = NonNull::new(start).expect("RAM is not at 0");
        Self {
            hypervisor: hypervisor.clone(),
            page,
            pages,
            region: NonNull::slice_from_raw_parts(start, length),
        }
    }

    /// Such a buffer with these bytes.
    pub fn with(hypervisor: &FakeHypervisor, offset: usize, bytes: &[u8]) -> Self {
        let mut buffer = Self::new(hypervisor, offset, bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }
}

impl Drop for RamBuffer {
    fn drop(&mut self) {
        self.hypervisor.vm.pages.give(self.page, self.pages);
    }
}

impl Deref for RamBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the pages are ours, in a mapping that the handle keeps; the host writes to them
        // only while a driver has the value.
        unsafe { self.region.as_ref() }
    }
}

impl DerefMut for RamBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { self.region.as_mut() }
    }
}

// SAFETY: the pages are ours until the value is dropped, and do not move with it.
unsafe impl Buffer for RamBuffer {
    fn region(&mut self) -> NonNull<[u8]> {
        self.region
    }
}
