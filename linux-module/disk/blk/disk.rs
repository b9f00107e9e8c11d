// SPDX-License-Identifier: GPL-2.0

//! Disks, and queues for a driver's own commands.

use core::ptr::NonNull;

use disk_bindings as helpers;
use kernel::bindings;
use kernel::device::Device;
use kernel::error::{from_err_ptr, to_result};
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::Arc;
use kernel::types::ForeignOwnable;

use super::operations::{Operations, Table};
use super::request::Request;
use super::tag_set::TagSet;

/// Most disks at a time.
const MAX_DISKS: u32 = 4096;

/// What requests may be like. Sectors have 512 bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of a block: 512 to 4096, a power of two.
    pub(crate) logical_block_size: u32,
    /// Bytes that the medium writes at a time, a power of two.
    pub(crate) physical_block_size: u32,
    /// Most sectors of a read or write.
    pub(crate) max_sectors: u32,
    /// Most pieces of memory of a read or write.
    pub(crate) max_segments: u32,
    /// A piece may begin, but for the first, and end, but for the last, only where these bits of the
    /// address are 0.
    pub(crate) virt_boundary_mask: u64,
    /// Most sectors of a discard, 0 where there is none.
    pub(crate) max_discard_sectors: u32,
    /// Bytes that are discarded together.
    pub(crate) discard_granularity: u32,
    /// What is written may be lost until it is flushed.
    pub(crate) write_cache: bool,
    /// A write can be told to reach the medium by itself.
    pub(crate) fua: bool,
}

impl Limits {
    fn to_c(self) -> helpers::blk_helper_limits {
        helpers::blk_helper_limits {
            logical_block_size: self.logical_block_size,
            physical_block_size: self.physical_block_size,
            max_sectors: self.max_sectors,
            max_segments: self.max_segments,
            max_discard_sectors: self.max_discard_sectors,
            discard_granularity: self.discard_granularity,
            virt_boundary_mask: self.virt_boundary_mask,
            write_cache: self.write_cache,
            fua: self.fua,
            rotational: false,
        }
    }
}

/// A disk that is to be.
pub(crate) struct DiskOptions {
    /// What requests may be like.
    pub(crate) limits: Limits,
    /// Its size in sectors of 512 bytes.
    pub(crate) sectors: u64,
    /// It must not be written to.
    pub(crate) read_only: bool,
}

/// The number in a disk's name, which no other disk has meanwhile.
struct Index(u32);

impl Index {
    fn new() -> Result<Self> {
        // SAFETY: Any number will do.
        let index = unsafe { helpers::blk_helper_index_alloc(MAX_DISKS - 1) };
        u32::try_from(index)
            .map(Self)
            .map_err(|_| Error::from_errno(index))
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        // SAFETY: `new` has got it.
        unsafe { helpers::blk_helper_index_free(self.0) };
    }
}

/// A disk that the kernel has. Dropped, it is taken from the kernel: data that was not written yet is,
/// and requests in flight are waited for.
///
/// # Invariants
/// `raw` was added to the kernel, and its queue's data is a `T::QueueData`.
pub(crate) struct Disk<T: Operations> {
    raw: NonNull<bindings::gendisk>,
    index: Index,
    _tags: Arc<TagSet<T>>,
}

// SAFETY: A disk may be used and taken down anywhere, and its queue's data is `Send`.
unsafe impl<T: Operations> Send for Disk<T> {}
// SAFETY: What can be done with a shared disk is what C locks.
unsafe impl<T: Operations> Sync for Disk<T> {}

impl<T: Operations> Disk<T> {
    /// Adds a disk `<prefix><number>` of `parent` to the kernel. Partitions are read before this
    /// returns.
    pub(crate) fn add(
        parent: &Device,
        prefix: &str,
        options: &DiskOptions,
        tags: Arc<TagSet<T>>,
        data: T::QueueData,
    ) -> Result<Self> {
        let index = Index::new()?;
        let name = CString::try_from_fmt(fmt!("{}{}", prefix, index.0))?;
        let data = Table::<T>::into_pointer(data);
        // SAFETY: The tag set is valid. C copies the limits, and stores `data` in the queue.
        let disk = from_err_ptr(unsafe {
            helpers::blk_helper_alloc_disk(tags.as_raw(), &options.limits.to_c(), data)
        });
        let disk = disk.inspect_err(|_| {
            // SAFETY: There is no queue that has it.
            drop(unsafe { T::QueueData::from_foreign(data) });
        })?;
        // SAFETY: Nobody else has the disk yet.
        let place = unsafe { &mut (*disk).disk_name };
        // The last byte stays 0.
        let room = place.len() - 1;
        for (to, from) in place.iter_mut().take(room).zip(name.to_bytes()) {
            *to = *from as _;
        }
        // `Device` is a transparent wrapper of the C type.
        let parent = core::ptr::from_ref(parent).cast_mut().cast();
        // SAFETY: The disk and the parent are valid.
        let added = to_result(unsafe {
            bindings::set_capacity(disk, options.sectors);
            bindings::set_disk_ro(disk, options.read_only);
            bindings::device_add_disk(parent, disk, core::ptr::null_mut())
        });
        if let Err(error) = added {
            // SAFETY: The disk was not added, so this ends it, and then its queue's data is nobody's.
            unsafe {
                bindings::put_disk(disk);
                drop(T::QueueData::from_foreign(data));
            }
            return Err(error);
        }
        Ok(Self {
            // SAFETY: A valid pointer is not null.
            raw: unsafe { NonNull::new_unchecked(disk) },
            index,
            _tags: tags,
        })
    }

    /// The number in its name.
    pub(crate) fn number(&self) -> u32 {
        self.index.0
    }

    /// It has another size now, in sectors of 512 bytes; whoever wants to know is told.
    pub(crate) fn set_sectors(&self, sectors: u64) {
        // SAFETY: The disk is valid.
        unsafe { bindings::set_capacity_and_notify(self.raw.as_ptr(), sectors) };
    }

    /// The device is gone: nothing is written any more, and no new request comes.
    pub(crate) fn mark_dead(&self) {
        // SAFETY: The disk is valid.
        unsafe { bindings::blk_mark_disk_dead(self.raw.as_ptr()) };
    }
}

impl<T: Operations> Drop for Disk<T> {
    fn drop(&mut self) {
        let raw = self.raw.as_ptr();
        // SAFETY: The disk is valid, and so its queue is.
        let data = unsafe { (*(*raw).queue).queuedata };
        // SAFETY: It was added once. Afterwards no function of the driver is called for it any more,
        // though who has it open may keep the `struct gendisk` for a while.
        unsafe {
            bindings::del_gendisk(raw);
            bindings::put_disk(raw);
        }
        // SAFETY: `add` has stored it, and nobody uses it any more.
        drop(unsafe { T::QueueData::from_foreign(data) });
    }
}

/// A queue for commands of the driver's own, which belong to no disk.
///
/// # Invariants
/// `raw` is a valid queue whose data is a `T::QueueData`.
pub(crate) struct CommandQueue<T: Operations> {
    raw: NonNull<bindings::request_queue>,
    _tags: Arc<TagSet<T>>,
}

// SAFETY: A queue may be used and taken down anywhere, and its data is `Send`.
unsafe impl<T: Operations> Send for CommandQueue<T> {}
// SAFETY: What can be done with a shared queue is what C locks.
unsafe impl<T: Operations> Sync for CommandQueue<T> {}

impl<T: Operations> CommandQueue<T> {
    /// A queue that shares the room of `tags`.
    pub(crate) fn new(tags: Arc<TagSet<T>>, limits: &Limits, data: T::QueueData) -> Result<Self> {
        let data = Table::<T>::into_pointer(data);
        // SAFETY: The tag set is valid. C copies the limits, and stores `data` in the queue.
        let queue = from_err_ptr(unsafe {
            helpers::blk_helper_alloc_queue(tags.as_raw(), &limits.to_c(), data)
        });
        match queue.map(NonNull::new) {
            Ok(Some(raw)) => Ok(Self { raw, _tags: tags }),
            failed => {
                // SAFETY: There is no queue that has it.
                drop(unsafe { T::QueueData::from_foreign(data) });
                Err(failed.err().unwrap_or(ENOMEM))
            }
        }
    }

    /// Carries a command out and waits for it. `prepare` fills the request's data in before
    /// [`Operations::queue`] gets the request; `look` sees the data afterwards. What comes back is how
    /// it was completed and what `look` says.
    ///
    /// A command that takes longer than `timeout` jiffies is reported ([`Operations::expired`]).
    ///
    /// May sleep.
    pub(crate) fn execute<R>(
        &self,
        timeout: u32,
        prepare: impl FnOnce(&mut T::RequestData),
        look: impl FnOnce(&mut T::RequestData) -> R,
    ) -> Result<(Result, R)> {
        // SAFETY: The queue is valid.
        let raw = from_err_ptr(unsafe {
            bindings::blk_mq_alloc_request(
                self.raw.as_ptr(),
                bindings::req_op_REQ_OP_DRV_IN,
                bindings::BLK_MQ_REQ_RESERVED,
            )
        })?;
        // SAFETY: The request is ours until it is executed.
        unsafe { (*raw).timeout = timeout };
        // SAFETY: The same, and `init_request` has made its data.
        prepare(unsafe { Request::<T>::data_of(raw) });
        // SAFETY: The request is ours and was not executed yet.
        let status = unsafe { bindings::blk_execute_rq(raw, false) };
        // SAFETY: Any number will do.
        let result = to_result(unsafe { bindings::blk_status_to_errno(status) });
        // SAFETY: It was completed, so it is ours again.
        let seen = look(unsafe { Request::<T>::data_of(raw) });
        // SAFETY: It is ours, and not used any more.
        unsafe { bindings::blk_mq_free_request(raw) };
        Ok((result, seen))
    }
}

impl<T: Operations> Drop for CommandQueue<T> {
    fn drop(&mut self) {
        let raw = self.raw.as_ptr();
        // SAFETY: The queue is valid.
        let data = unsafe { (*raw).queuedata };
        // SAFETY: It is taken down once; nobody executes anything on it any more.
        unsafe {
            bindings::blk_mq_destroy_queue(raw);
            bindings::blk_put_queue(raw);
        }
        // SAFETY: `new` has stored it, and nobody uses it any more.
        drop(unsafe { T::QueueData::from_foreign(data) });
    }
}
