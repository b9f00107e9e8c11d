// SPDX-License-Identifier: GPL-2.0

//! The room for requests that all queues of a device share.

use core::marker::PhantomData;

use disk_bindings as helpers;
use kernel::bindings;
use kernel::error::to_result;
use kernel::prelude::*;
use kernel::types::Opaque;

use super::operations::{Operations, Table};
use super::request::Private;

/// Processors that run.
pub(crate) fn online_cpus() -> usize {
    // SAFETY: It may be called anywhere.
    unsafe { helpers::blk_helper_online_cpus() as usize }
}

/// Room for the requests of a device.
///
/// # Invariants
/// `inner` is an initialized tag set whose operations are those of `T`.
#[pin_data(PinnedDrop)]
pub(crate) struct TagSet<T: Operations> {
    #[pin]
    inner: Opaque<bindings::blk_mq_tag_set>,
    _operations: PhantomData<T>,
}

// SAFETY: A tag set may be used and freed anywhere.
unsafe impl<T: Operations> Send for TagSet<T> {}
// SAFETY: Nothing is done with a shared one but making queues, which C does under its own locks.
unsafe impl<T: Operations> Sync for TagSet<T> {}

impl<T: Operations> TagSet<T> {
    /// Room for `depth` requests in each of as many hardware queues as `queues`, or as there can be
    /// processors; one in each is for commands only. One that takes longer than `timeout` jiffies is
    /// reported ([`Operations::expired`]).
    pub(crate) fn new(queues: u16, depth: u16, timeout: u32) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            inner <- Opaque::try_ffi_init(|set: *mut bindings::blk_mq_tag_set| {
                let value = bindings::blk_mq_tag_set {
                    ops: Table::<T>::operations(),
                    nr_maps: 1,
                    nr_hw_queues: queues.into(),
                    queue_depth: depth.into(),
                    reserved_tags: 1,
                    cmd_size: size_of::<Private<T>>() as u32,
                    numa_node: bindings::NUMA_NO_NODE,
                    timeout,
                    ..pin_init::zeroed()
                };
                // SAFETY: `set` is room for it.
                unsafe { set.write(value) };
                // SAFETY: It is valid, stays where it is and was not initialized before.
                to_result(unsafe { bindings::blk_mq_alloc_tag_set(set) })
            }),
            _operations: PhantomData,
        })
    }

    pub(super) fn as_raw(&self) -> *mut bindings::blk_mq_tag_set {
        self.inner.get()
    }
}

#[pinned_drop]
impl<T: Operations> PinnedDrop for TagSet<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: It is initialized, and queues that use it hold it.
        unsafe { bindings::blk_mq_free_tag_set(self.inner.get()) };
    }
}
