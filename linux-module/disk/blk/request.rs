// SPDX-License-Identifier: GPL-2.0

//! A request, from the time that blk-mq gives it to the driver until the driver completes it.

use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;

use disk_bindings as helpers;
use kernel::bindings;
use kernel::prelude::*;

use super::operations::Operations;

/// What lies behind each `struct request`.
pub(super) struct Private<T: Operations> {
    /// How the request was completed, from then until blk-mq is told.
    pub(super) status: bindings::blk_status_t,
    data: T::RequestData,
}

impl<T: Operations> Default for Private<T> {
    fn default() -> Self {
        Self {
            status: 0,
            data: T::RequestData::default(),
        }
    }
}

impl<T: Operations> Private<T> {
    /// Where it is.
    ///
    /// # Safety
    /// `raw` is a request of a tag set with `cmd_size` for this type.
    pub(super) unsafe fn of(raw: *mut bindings::request) -> *mut Self {
        const { assert!(align_of::<Self>() <= align_of::<bindings::request>()) }
        // SAFETY: That is where blk-mq has the driver's part of a request.
        unsafe { raw.add(1).cast() }
    }
}

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Sectors to memory.
    Read,
    /// Sectors from memory.
    Write,
    /// What was written before goes to the medium.
    Flush,
    /// Sectors that are not needed any more.
    Discard,
    /// A command of the driver's own.
    Command,
    /// Something that the disk's limits do not announce.
    Other,
}

/// What a request with these flags is for.
fn operation(flags: bindings::blk_opf_t) -> Operation {
    match flags & ((1 << bindings::REQ_OP_BITS) - 1) {
        bindings::req_op_REQ_OP_READ => Operation::Read,
        bindings::req_op_REQ_OP_WRITE => Operation::Write,
        bindings::req_op_REQ_OP_FLUSH => Operation::Flush,
        bindings::req_op_REQ_OP_DISCARD => Operation::Discard,
        bindings::req_op_REQ_OP_DRV_IN | bindings::req_op_REQ_OP_DRV_OUT => Operation::Command,
        _ => Operation::Other,
    }
}

/// The name of a request in its tag set: its hardware queue, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag(pub(super) u32);

impl Tag {
    /// Hardware queues are numbered from 0 on.
    pub(crate) fn queue(self) -> usize {
        (self.0 >> bindings::BLK_MQ_UNIQUE_TAG_BITS) as usize
    }

    /// The number in the queue.
    pub(super) fn number(self) -> usize {
        (self.0 & bindings::BLK_MQ_UNIQUE_TAG_MASK) as usize
    }
}

/// Physically contiguous memory of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    /// Physical address.
    pub(crate) address: u64,
    /// Bytes.
    pub(crate) length: u32,
}

/// A request that the driver has to complete.
///
/// Dropped, it is completed as failed.
///
/// # Invariants
/// `raw` is a started request of a tag set of `T`, the driver owns it, and there is no other `Request`
/// for it.
pub(crate) struct Request<T: Operations> {
    raw: NonNull<bindings::request>,
    _operations: PhantomData<T>,
}

// SAFETY: The driver may complete a request wherever it likes, and what it keeps with it is `Send`.
unsafe impl<T: Operations> Send for Request<T> {}

impl<T: Operations> Request<T> {
    /// # Safety
    /// As the type's invariants say.
    pub(super) unsafe fn from_raw(raw: *mut bindings::request) -> Self {
        // INVARIANT: The caller promises.
        Self {
            // SAFETY: A valid pointer is not null.
            raw: unsafe { NonNull::new_unchecked(raw) },
            _operations: PhantomData,
        }
    }

    /// The request for somebody else to keep, who makes it a [`Request`] once again.
    pub(super) fn into_raw(self) -> *mut bindings::request {
        ManuallyDrop::new(self).raw.as_ptr()
    }

    /// The request goes back to blk-mq, which has not been told yet that it was taken.
    pub(super) fn give_back(self) {
        let _ = self.into_raw();
    }

    /// The driver's part of a request that is no [`Request`] at the moment.
    ///
    /// # Safety
    /// `raw` is a request of a tag set of `T`, and the caller's alone for `'a`.
    pub(super) unsafe fn data_of<'a>(raw: *mut bindings::request) -> &'a mut T::RequestData {
        // SAFETY: `init_request` has made it, and the caller promises the rest.
        unsafe { &mut (*Private::<T>::of(raw)).data }
    }

    fn fields(&self) -> &bindings::request {
        // SAFETY: The request is valid. While the driver owns it, blk-mq does not write to the fields
        // that this module reads.
        unsafe { self.raw.as_ref() }
    }

    /// What it is for.
    pub(crate) fn operation(&self) -> Operation {
        operation(self.fields().cmd_flags)
    }

    /// Whether a write has to be on the medium before it is completed.
    pub(crate) fn is_fua(&self) -> bool {
        self.fields().cmd_flags & (1 << bindings::req_flag_bits___REQ_FUA) != 0
    }

    /// First sector, in units of 512 bytes.
    pub(crate) fn sector(&self) -> u64 {
        self.fields().__sector
    }

    /// Bytes.
    pub(crate) fn bytes(&self) -> u32 {
        self.fields().__data_len
    }

    /// Its name in the tag set, which no other request has until this one is completed.
    pub(crate) fn tag(&self) -> Tag {
        // SAFETY: The request is valid and has a hardware queue, as it was started.
        Tag(unsafe { bindings::blk_mq_unique_tag(self.raw.as_ptr()) })
    }

    /// The memory of a read or write, in its order.
    pub(crate) fn segments(&self) -> Segments<'_, T> {
        let bio = match self.operation() {
            Operation::Read | Operation::Write => self.fields().bio,
            _ => core::ptr::null_mut(),
        };
        let iter = match bio.is_null() {
            true => bindings::bvec_iter::default(),
            // SAFETY: The bios of a request are valid as long as it is.
            false => unsafe { (*bio).bi_iter },
        };
        Segments {
            bio,
            iter,
            _request: PhantomData,
        }
    }

    /// The driver's part.
    pub(crate) fn data(&self) -> &T::RequestData {
        // SAFETY: `init_request` has made it, and who owns the request owns it.
        unsafe { &(*Private::<T>::of(self.raw.as_ptr())).data }
    }

    /// The driver's part.
    pub(crate) fn data_mut(&mut self) -> &mut T::RequestData {
        // SAFETY: `init_request` has made it, and who owns the request owns it.
        unsafe { &mut (*Private::<T>::of(self.raw.as_ptr())).data }
    }

    /// Completes the request. `ENOSPC`, `ENODATA`, `EREMOTEIO`, `ENOLINK`, `ENODEV`, `EOPNOTSUPP` and
    /// `ETIMEDOUT` mean to blk-mq what they say; any other error is an I/O error.
    ///
    /// In any context.
    pub(crate) fn complete(self, result: Result) {
        let status = match result {
            Ok(()) => bindings::BLK_STS_OK as bindings::blk_status_t,
            // SAFETY: Any number will do.
            Err(error) => unsafe { bindings::errno_to_blk_status(error.to_errno()) },
        };
        let raw = self.into_raw();
        // SAFETY: `init_request` has made it, and who owns the request owns it.
        unsafe { (*Private::<T>::of(raw)).status = status };
        // SAFETY: The driver owns the request, was given it by blk-mq, and gives it away with this. As
        // this consumes the only `Request` that there is of it, it is completed once.
        unsafe { bindings::blk_mq_complete_request(raw) };
    }
}

impl<T: Operations> Request<T> {
    /// The request comes to [`Operations::queue`] again, in `delay` milliseconds or sooner, where another
    /// one is to.
    ///
    /// In any context.
    pub(crate) fn requeue(self, delay: usize) {
        let request = self.into_raw();
        // SAFETY: The driver owns the started request.
        let queue = unsafe { (*request).q };
        // SAFETY: The driver gives the request away with this.
        unsafe { bindings::blk_mq_requeue_request(request, false) };
        // SAFETY: As blk-mq does itself: the queue stays as long as a request of it is not completed, which
        // takes this one another way to the host and back, even where something else has it queued first.
        unsafe { bindings::blk_mq_delay_kick_requeue_list(queue, delay) };
    }
}

impl<T: Operations> Drop for Request<T> {
    fn drop(&mut self) {
        // SAFETY: This one is not used any more.
        unsafe { Self::from_raw(self.raw.as_ptr()) }.complete(Err(EIO));
    }
}

/// The memory of a request.
pub(crate) struct Segments<'a, T: Operations> {
    bio: *mut bindings::bio,
    iter: bindings::bvec_iter,
    _request: PhantomData<&'a Request<T>>,
}

impl<T: Operations> Iterator for Segments<'_, T> {
    type Item = Segment;

    fn next(&mut self) -> Option<Segment> {
        let (mut address, mut length) = (0, 0);
        // SAFETY: `bio` is null or one of the request's bios, which are valid as long as the request is,
        // and `iter` a place in it.
        let is_one = unsafe {
            helpers::blk_helper_next_segment(
                &mut self.bio,
                &mut self.iter,
                &mut address,
                &mut length,
            )
        };
        is_one.then_some(Segment { address, length })
    }
}

/// A request that takes long. The driver has it, but it may be completed at any moment.
pub(crate) struct TimedOut<'a, T: Operations> {
    raw: NonNull<bindings::request>,
    _operations: PhantomData<&'a T>,
}

impl<T: Operations> TimedOut<'_, T> {
    /// # Safety
    /// `raw` is a started request of `T`, and blk-mq does not use it again as long as this is there.
    pub(super) unsafe fn from_raw(raw: *mut bindings::request) -> Self {
        Self {
            // SAFETY: A valid pointer is not null.
            raw: unsafe { NonNull::new_unchecked(raw) },
            _operations: PhantomData,
        }
    }

    /// Whether it is a command of the driver's own.
    pub(crate) fn is_command(&self) -> bool {
        // SAFETY: The request is valid, and what it is for stays the same until it is used again.
        operation(unsafe { (*self.raw.as_ptr()).cmd_flags }) == Operation::Command
    }

    pub(super) fn as_raw(&self) -> *mut bindings::request {
        self.raw.as_ptr()
    }

    /// Its name in the tag set.
    pub(crate) fn tag(&self) -> Tag {
        // SAFETY: The request is valid, and its queue and tag stay the same until it is used again.
        Tag(unsafe { bindings::blk_mq_unique_tag(self.raw.as_ptr()) })
    }
}
