// SPDX-License-Identifier: GPL-2.0

//! What a driver does, and the table of C functions by which blk-mq asks for it.

use core::marker::PhantomData;

use kernel::bindings;
use kernel::error::from_result;
use kernel::ffi::{c_int, c_uint, c_void};
use kernel::prelude::*;
use kernel::types::ForeignOwnable;

use super::request::{Private, Request, TimedOut};

/// A queue's data, as a driver's functions get it.
pub(crate) type Borrowed<'a, T> = <<T as Operations>::QueueData as ForeignOwnable>::Borrowed<'a>;

/// A block device driver.
pub(crate) trait Operations: Sized + 'static {
    /// What belongs to one queue: which disk it is.
    type QueueData: ForeignOwnable + Send + Sync;

    /// The driver's part of each request. There is one for each tag, which is used again and again.
    type RequestData: Default + Send;

    /// A request has come. `last` says that no other one follows at once.
    ///
    /// Must not sleep.
    fn queue(queue: Borrowed<'_, Self>, request: Request<Self>, last: bool) -> Queued<Self>;

    /// A request that was taken has not been completed for as long as the tag set's timeout.
    ///
    /// May sleep.
    fn expired(queue: Borrowed<'_, Self>, request: &TimedOut<'_, Self>) -> Expired;
}

/// What became of a request that has come.
pub(crate) enum Queued<T: Operations> {
    /// It was taken, or is completed already.
    Taken,
    /// There is no room now: it is to come again.
    Busy(Request<T>),
}

/// What is to become of a request that takes long.
pub(crate) enum Expired {
    /// It gets that time again.
    Wait,
    /// It was completed, by this function or anybody else.
    Done,
}

/// The C functions of a driver.
pub(super) struct Table<T: Operations>(PhantomData<T>);

impl<T: Operations> Table<T> {
    const OPERATIONS: bindings::blk_mq_ops = bindings::blk_mq_ops {
        queue_rq: Some(Self::queue_rq),
        complete: Some(Self::complete),
        timeout: Some(Self::timeout),
        init_request: Some(Self::init_request),
        exit_request: Some(Self::exit_request),
        ..pin_init::zeroed()
    };

    pub(super) const fn operations() -> &'static bindings::blk_mq_ops {
        &Self::OPERATIONS
    }

    /// # Safety
    /// `queue` is one of a [`super::Disk`] or [`super::CommandQueue`] of this driver, and has not been
    /// taken down for `'a`.
    unsafe fn queue_data<'a>(queue: *mut bindings::request_queue) -> Borrowed<'a, T> {
        // SAFETY: Whoever makes a queue stores a `T::QueueData` in it, as a foreign pointer, and takes
        // it out again only after the queue was taken down.
        unsafe { T::QueueData::borrow((*queue).queuedata) }
    }

    /// # Safety
    /// For blk-mq only, with a hardware queue of this driver and a request for it.
    unsafe extern "C" fn queue_rq(
        hctx: *mut bindings::blk_mq_hw_ctx,
        data: *const bindings::blk_mq_queue_data,
    ) -> bindings::blk_status_t {
        // SAFETY: blk-mq gives valid pointers.
        let (queue, raw, last) = unsafe { ((*hctx).queue, (*data).rq, (*data).last) };
        // SAFETY: blk-mq calls this on queues that were not taken down, and no longer than for the
        // call.
        let queue = unsafe { Self::queue_data(queue) };
        // SAFETY: The request is valid and was not started yet.
        unsafe { bindings::blk_mq_start_request(raw) };
        // SAFETY: The driver owns a request that was given to this function, `init_request` has made
        // its data, and this is the only `Request` made for it.
        let request = unsafe { Request::from_raw(raw) };
        match T::queue(queue, request, last) {
            Queued::Taken => bindings::BLK_STS_OK as bindings::blk_status_t,
            Queued::Busy(request) => {
                request.give_back();
                // blk-mq knows the want of a resource by this error, and asks again a little later.
                // SAFETY: Any number will do.
                unsafe { bindings::errno_to_blk_status(ENOMEM.to_errno()) }
            }
        }
    }

    /// # Safety
    /// For blk-mq only, with a request that [`Request::complete`] has given away.
    unsafe extern "C" fn complete(raw: *mut bindings::request) {
        // SAFETY: `init_request` has made the data of all requests; nobody else uses it now.
        let status = unsafe { (*Private::<T>::of(raw)).status };
        // SAFETY: The driver owned the request, and gives it back with this.
        unsafe { bindings::blk_mq_end_request(raw, status) };
    }

    /// # Safety
    /// For blk-mq only, with a request that was started; blk-mq keeps it from being used again
    /// meanwhile.
    unsafe extern "C" fn timeout(raw: *mut bindings::request) -> bindings::blk_eh_timer_return {
        // SAFETY: The request is valid, and so its queue is.
        let queue = unsafe { Self::queue_data((*raw).q) };
        // SAFETY: The request is valid during this call.
        let request = unsafe { TimedOut::from_raw(raw) };
        match T::expired(queue, &request) {
            Expired::Wait => bindings::blk_eh_timer_return_BLK_EH_RESET_TIMER,
            Expired::Done => bindings::blk_eh_timer_return_BLK_EH_DONE,
        }
    }

    /// # Safety
    /// For blk-mq only, with a request of a tag set that has room for [`Private`] behind each.
    unsafe extern "C" fn init_request(
        _set: *mut bindings::blk_mq_tag_set,
        raw: *mut bindings::request,
        _hctx: c_uint,
        _node: c_int,
    ) -> c_int {
        from_result(|| {
            // SAFETY: There is room, which nobody uses yet.
            unsafe { Private::<T>::of(raw).write(Private::default()) };
            Ok(0)
        })
    }

    /// # Safety
    /// For blk-mq only, once for each request that [`Self::init_request`] was called for.
    unsafe extern "C" fn exit_request(
        _set: *mut bindings::blk_mq_tag_set,
        raw: *mut bindings::request,
        _hctx: c_uint,
    ) {
        // SAFETY: `init_request` has written it, and nobody uses it any more.
        unsafe { core::ptr::drop_in_place(Private::<T>::of(raw)) };
    }

    /// A queue's data as the pointer that C stores.
    pub(super) fn into_pointer(data: T::QueueData) -> *mut c_void {
        data.into_foreign()
    }
}
