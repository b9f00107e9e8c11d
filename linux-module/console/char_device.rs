// SPDX-License-Identifier: GPL-2.0

//! A character device that can be polled, and whose devices have data of their own: what
//! `kernel::miscdevice` does not offer yet.

use core::{
    marker::PhantomData,
    ptr, //
};

use kernel::{
    bindings,
    container_of,
    device::Device,
    error::to_result,
    ffi,
    fs::{
        file::flags,
        File, //
    },
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    module::this_module,
    prelude::*,
    str::CString,
    sync::{
        poll::PollTable,
        Arc,
        ArcBorrow, //
    },
    types::{
        ForeignOwnable,
        Opaque, //
    }, //
};

/// What a file was opened for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mode {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

/// What a device does. All but `poll` return what the system call of that name does.
pub(crate) trait CharDevice: Send + Sync + 'static {
    fn open(&self, mode: Mode) -> Result;

    /// The last use of a file that `open` was called for has ended.
    fn release(&self, mode: Mode);

    fn read(&self, to: &mut IovIterDest<'_>, may_wait: bool) -> Result<usize>;

    fn write(&self, from: &mut IovIterSource<'_>, may_wait: bool) -> Result<usize>;

    /// What the file is ready for, in the bits of `poll(2)`.
    fn poll(&self, file: &File, table: &PollTable<'_>) -> u32;
}

/// A device that can be opened below `/dev`, until this is dropped. Files that are open stay so.
///
/// # Invariants
/// `misc` is registered, and it is the `misc` of this.
#[pin_data(PinnedDrop)]
pub(crate) struct Registration<T: CharDevice> {
    #[pin]
    misc: Opaque<bindings::miscdevice>,
    device: Arc<T>,
    /// What `misc` points to.
    _name: CString,
}

// SAFETY: A device may be deregistered by any thread.
unsafe impl<T: CharDevice> Send for Registration<T> {}

// SAFETY: Nothing can be done with a reference but by the callbacks, which only read `device`.
unsafe impl<T: CharDevice> Sync for Registration<T> {}

impl<T: CharDevice> Registration<T> {
    /// Makes `device` the device `/dev/NAME`, a child of `parent`.
    pub(crate) fn new<'a>(
        name: CString,
        parent: &'a Device,
        device: Arc<T>,
    ) -> impl PinInit<Self, Error> + 'a {
        try_pin_init!(Self {
            device,
            misc <- Opaque::try_ffi_init({
                let name = name.as_char_ptr();
                move |misc: *mut bindings::miscdevice| {
                    let described = bindings::miscdevice {
                        minor: bindings::MISC_DYNAMIC_MINOR as ffi::c_int,
                        name,
                        fops: &Operations::<T>::TABLE,
                        parent: ptr::from_ref(parent).cast_mut().cast(),
                        ..pin_init::zeroed()
                    };
                    // SAFETY: The place is to be initialized.
                    unsafe { misc.write(described) };
                    // SAFETY: `misc` is described, is pinned, and is deregistered before it goes; the
                    // same holds for the name, which does not move with its owner. A file may be
                    // opened from now on: `device` was initialized before.
                    to_result(unsafe { bindings::misc_register(misc) })
                }
            }),
            _name: name,
        })
    }
}

#[pinned_drop]
impl<T: CharDevice> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type's invariant it is registered.
        unsafe { bindings::misc_deregister(self.misc.get()) };
    }
}

/// The functions that the kernel calls for files of the device `T`.
struct Operations<T>(PhantomData<T>);

impl<T: CharDevice> Operations<T> {
    const TABLE: bindings::file_operations = bindings::file_operations {
        owner: this_module::<crate::DriverModule>().as_ptr(),
        open: Some(Self::open),
        release: Some(Self::release),
        read_iter: Some(Self::read_iter),
        write_iter: Some(Self::write_iter),
        poll: Some(Self::poll),
        ..pin_init::zeroed()
    };

    /// # Safety
    /// `file` is being opened, and belongs to a [`Registration<T>`].
    unsafe extern "C" fn open(
        inode: *mut bindings::inode,
        file: *mut bindings::file,
    ) -> ffi::c_int {
        // SAFETY: `misc_open` has put the device there, and keeps it registered during this call.
        let misc = unsafe { (*file).private_data }.cast::<bindings::miscdevice>();
        let misc = Opaque::cast_from(misc.cast_const());
        // SAFETY: By the invariant of `Registration` it is the `misc` of one.
        let registration = unsafe { &*container_of!(misc, Registration<T>, misc) };
        let device = registration.device.clone();
        // SAFETY: The file is valid, and nobody else has it yet.
        let mode = unsafe { mode(file) };
        if let Err(error) = device.open(mode) {
            return error.to_errno();
        }
        // SAFETY: The file is valid, and from now on its data is our own.
        unsafe { (*file).private_data = device.into_foreign().cast() };
        // No position: a reader that waits does not hold up a writer. It never fails.
        // SAFETY: Both are valid.
        unsafe { bindings::stream_open(inode, file) }
    }

    /// # Safety
    /// Nobody else uses `file` any more, for which `open` has succeeded.
    unsafe extern "C" fn release(
        _inode: *mut bindings::inode,
        file: *mut bindings::file,
    ) -> ffi::c_int {
        // SAFETY: `open` has put it there, and nobody uses it any more.
        let device =
            unsafe { <Arc<T> as ForeignOwnable>::from_foreign((*file).private_data.cast()) };
        // SAFETY: The file is valid.
        device.release(unsafe { mode(file) });
        0
    }

    /// # Safety
    /// `kiocb` is of a file for which `open` has succeeded; `iter` is valid, for writing.
    unsafe extern "C" fn read_iter(
        kiocb: *mut bindings::kiocb,
        iter: *mut bindings::iov_iter,
    ) -> isize {
        // SAFETY: The caller's promise.
        let (device, may_wait) = unsafe { request(kiocb) };
        // SAFETY: The caller's promise.
        let to = unsafe { IovIterDest::from_raw(iter) };
        length(T::read(&device, to, may_wait))
    }

    /// # Safety
    /// `kiocb` is of a file for which `open` has succeeded; `iter` is valid, for reading.
    unsafe extern "C" fn write_iter(
        kiocb: *mut bindings::kiocb,
        iter: *mut bindings::iov_iter,
    ) -> isize {
        // SAFETY: The caller's promise.
        let (device, may_wait) = unsafe { request(kiocb) };
        // SAFETY: The caller's promise.
        let from = unsafe { IovIterSource::from_raw(iter) };
        length(T::write(&device, from, may_wait))
    }

    /// # Safety
    /// `open` has succeeded for `file`; `table` is valid.
    unsafe extern "C" fn poll(
        file: *mut bindings::file,
        table: *mut bindings::poll_table_struct,
    ) -> bindings::__poll_t {
        // SAFETY: `open` has put it there, and `release` comes later.
        let device: ArcBorrow<'_, T> =
            unsafe { <Arc<T> as ForeignOwnable>::borrow((*file).private_data.cast()) };
        // SAFETY: The file is valid, and is not being used for its position here.
        let file = unsafe { File::from_raw_file(file) };
        // SAFETY: The caller's promise.
        let table = unsafe { PollTable::from_raw(table) };
        device.poll(file, &table)
    }
}

/// The device that `kiocb` is for, and whether the request may wait.
///
/// # Safety
/// `kiocb` is of a file for which [`Operations::open`] has succeeded.
unsafe fn request<'a, T: CharDevice>(kiocb: *mut bindings::kiocb) -> (ArcBorrow<'a, T>, bool) {
    // SAFETY: The caller's promise.
    let file = unsafe { (*kiocb).ki_filp };
    // SAFETY: `open` has put it there, and `release` comes later.
    let device = unsafe { <Arc<T> as ForeignOwnable>::borrow((*file).private_data.cast()) };
    // SAFETY: The file is valid during the request.
    let now = unsafe { File::from_raw_file(file) }.flags() & flags::O_NONBLOCK != 0;
    (device, !now)
}

/// # Safety
/// `file` is valid.
unsafe fn mode(file: *mut bindings::file) -> Mode {
    // SAFETY: The caller's promise.
    let access = unsafe { File::from_raw_file(file) }.flags() & flags::O_ACCMODE;
    Mode {
        read: access == flags::O_RDONLY || access == flags::O_RDWR,
        write: access == flags::O_WRONLY || access == flags::O_RDWR,
    }
}

/// What the kernel wants: a number of bytes, or the negative of an error's number.
fn length(result: Result<usize>) -> isize {
    match result {
        Ok(bytes) => bytes as isize,
        Err(error) => error.to_errno() as isize,
    }
}
