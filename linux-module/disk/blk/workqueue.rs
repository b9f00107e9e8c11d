// SPDX-License-Identifier: GPL-2.0

//! A work queue of the driver's own, which can be waited for.

use core::ptr::NonNull;

use disk_bindings as helpers;
use kernel::bindings;
use kernel::prelude::*;
use kernel::workqueue::Queue;

/// A work queue that does one thing after the other. Dropped, it finishes first what it was given.
pub(crate) struct OrderedQueue(NonNull<bindings::workqueue_struct>);

// SAFETY: Work queues may be used and destroyed anywhere.
unsafe impl Send for OrderedQueue {}
// SAFETY: C locks what has to be locked.
unsafe impl Sync for OrderedQueue {}

impl OrderedQueue {
    /// A work queue of this name.
    pub(crate) fn new(name: &CStr) -> Result<Self> {
        // SAFETY: The name is a C string, which is copied.
        let queue = unsafe { helpers::blk_helper_alloc_workqueue(name.as_char_ptr()) };
        NonNull::new(queue).map(Self).ok_or(ENOMEM)
    }

    /// The queue.
    pub(crate) fn queue(&self) -> &Queue {
        // SAFETY: It is valid as long as this is.
        unsafe { Queue::from_raw(self.0.as_ptr()) }
    }

    /// Waits until everything is done that was given to it so far.
    pub(crate) fn flush(&self) {
        // SAFETY: It is valid.
        unsafe { bindings::__flush_workqueue(self.0.as_ptr()) };
    }
}

impl Drop for OrderedQueue {
    fn drop(&mut self) {
        // SAFETY: It is valid, and nobody has it any more.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) };
    }
}
