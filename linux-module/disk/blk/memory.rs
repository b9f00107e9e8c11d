// SPDX-License-Identifier: GPL-2.0

//! A page that is lent to the device.

use core::ptr::NonNull;

use disk_bindings as helpers;
use kernel::alloc::{allocator::Kmalloc, Allocator, Flags, NumaNode};
use kernel::prelude::*;

/// A page of the driver's own for the data of a command. The device may write to it at any time, so
/// there is no reference to what is in it: it is copied.
pub(crate) struct DeviceMemory(NonNull<u8>);

// SAFETY: It is memory that nobody else has.
unsafe impl Send for DeviceMemory {}

impl DeviceMemory {
    /// Bytes.
    pub(crate) const SIZE: usize = 4096;

    const LAYOUT: core::alloc::Layout =
        match core::alloc::Layout::from_size_align(Self::SIZE, Self::SIZE) {
            Ok(layout) => layout,
            Err(_) => panic!("a page is a layout"),
        };

    /// A page of zeros.
    pub(crate) fn new(flags: Flags) -> Result<Self> {
        let memory = Kmalloc::alloc(Self::LAYOUT, flags | __GFP_ZERO, NumaNode::NO_NODE)?;
        Ok(Self(memory.cast()))
    }

    /// Its physical address, a multiple of its size.
    pub(crate) fn address(&self) -> u64 {
        // SAFETY: `kmalloc` gives memory of the kernel's linear mapping.
        unsafe { helpers::blk_helper_address(self.0.as_ptr().cast()) }
    }

    /// Puts bytes at its beginning, as many as there is room for.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        for (at, byte) in bytes.iter().take(Self::SIZE).enumerate() {
            // SAFETY: `at` is below the size.
            unsafe { self.0.add(at).write_volatile(*byte) };
        }
    }

    /// Copies its beginning; returns how many bytes.
    pub(crate) fn read(&self, bytes: &mut [u8]) -> usize {
        let length = bytes.len().min(Self::SIZE);
        for (at, byte) in bytes.iter_mut().take(length).enumerate() {
            // SAFETY: `at` is below the size.
            *byte = unsafe { self.0.add(at).read_volatile() };
        }
        length
    }

    /// Nobody gets this memory again: the device has not said that it is done with it.
    pub(crate) fn leak(self) {
        core::mem::forget(self);
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: `new` has allocated it with this layout.
        unsafe { Kmalloc::free(self.0, Self::LAYOUT) };
    }
}
