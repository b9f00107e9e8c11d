// SPDX-License-Identifier: GPL-2.0

//! The boundary to C: what `<linux/hyperv.h>` calls a device, a driver and a channel.

use core::{
    marker::PhantomData,
    mem::offset_of,
    ptr::{
        null_mut,
        NonNull, //
    },
    slice, //
};

use kernel::{
    bindings as kernel_bindings,
    device,
    device_id::{
        RawDeviceId,
        RawDeviceIdIndex, //
    },
    driver,
    error::{
        from_result,
        to_result, //
    },
    prelude::*,
    sync::{
        aref::{
            ARef,
            AlwaysRefCounted, //
        },
        atomic::{
            Acquire,
            Atomic,
            Full,
            Release, //
        },
        rcu,
        Arc,
        ArcBorrow, //
    },
    types::Opaque,
    ThisModule, //
};
use vmbus_bindings as bindings;
use vmbus_proto::{
    guid::Guid,
    packet::FLAG_COMPLETION_REQUESTED, //
};

use crate::{
    channel::{
        Callback,
        End,
        Handler,
        Options, //
    },
    Driver, //
};

/// A class of devices, as `struct hv_vmbus_device_id` has it.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct DeviceId(bindings::hv_vmbus_device_id);

impl DeviceId {
    /// The id of all devices of `class`.
    pub const fn class(class: Guid) -> Self {
        let mut id: bindings::hv_vmbus_device_id = pin_init::zeroed();
        id.guid.b = class.0;
        Self(id)
    }
}

// SAFETY: `DeviceId` is a transparent wrapper of the C type.
unsafe impl RawDeviceId for DeviceId {
    type RawType = bindings::hv_vmbus_device_id;
}

// SAFETY: `driver_data` is an `unsigned long`, which is as large as a pointer.
unsafe impl RawDeviceIdIndex for DeviceId {
    const DRIVER_DATA_OFFSET: usize = offset_of!(bindings::hv_vmbus_device_id, driver_data);
}

/// A device that the host offers.
///
/// # Invariants
/// It is a valid `struct hv_device` that the VMBus driver of the kernel has made.
#[repr(transparent)]
pub struct Device<Ctx: device::DeviceContext = device::Normal>(
    Opaque<bindings::hv_device>,
    PhantomData<Ctx>,
);

impl<Ctx: device::DeviceContext> Device<Ctx> {
    fn as_raw(&self) -> *mut bindings::hv_device {
        self.0.get()
    }

    /// The class of the device: which protocol it speaks.
    pub fn class(&self) -> Guid {
        // SAFETY: By the type's invariant this is a device; its class never changes.
        Guid(unsafe { (*self.as_raw()).dev_type.b })
    }

    /// Which device of its class it is.
    pub fn instance(&self) -> Guid {
        // SAFETY: As for the class.
        Guid(unsafe { (*self.as_raw()).dev_instance.b })
    }
}

// SAFETY: `Device` is a transparent wrapper of `struct hv_device`, which has its `struct device` there.
unsafe impl<Ctx: device::DeviceContext> device::AsBusDevice<Ctx> for Device<Ctx> {
    const OFFSET: usize = offset_of!(bindings::hv_device, device);
}

// SAFETY: `Device` is a transparent wrapper of a type that does not depend on its generic argument.
kernel::impl_device_context_deref!(unsafe { Device });

impl<Ctx: device::DeviceContext> AsRef<device::Device<Ctx>> for Device<Ctx> {
    fn as_ref(&self) -> &device::Device<Ctx> {
        // SAFETY: By the type's invariant this is a valid `struct device`, in the same context.
        unsafe { device::Device::from_raw(base(self.as_raw())) }
    }
}

/// The `struct device` in a device.
fn base(dev: *mut bindings::hv_device) -> *mut kernel_bindings::device {
    dev.wrapping_byte_add(offset_of!(bindings::hv_device, device))
        .cast()
}

// SAFETY: A `struct hv_device` is counted by its `struct device`.
unsafe impl AlwaysRefCounted for Device {
    fn inc_ref(&self) {
        // SAFETY: The reference shows that the count is not zero.
        unsafe { kernel_bindings::get_device(base(self.as_raw())) };
    }

    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: The caller gives a reference away, until then the device is valid.
        unsafe { kernel_bindings::put_device(base(obj.as_ptr().cast())) };
    }
}

impl From<&Device<device::Bound>> for ARef<Device> {
    fn from(dev: &Device<device::Bound>) -> Self {
        (&**dev).into()
    }
}

// SAFETY: A device is counted, and may be released by any thread.
unsafe impl Send for Device {}

// SAFETY: All methods may be called by several threads at once.
unsafe impl Sync for Device {}

// SAFETY: The same device; the context is a mark for the compiler only.
unsafe impl Sync for Device<device::Bound> {}

/// Registers a [`Driver`] with the kernel.
pub struct Adapter<T: Driver>(T);

// SAFETY: `struct hv_driver` is a C type with its `struct device_driver` at that offset, and
// `T::Data` is what `probe` stores with a device.
unsafe impl<T: Driver> driver::DriverLayout for Adapter<T> {
    type DriverType = bindings::hv_driver;
    type DriverData<'bound> = T::Data<'bound>;
    const DEVICE_DRIVER_OFFSET: usize = offset_of!(Self::DriverType, driver);
}

// SAFETY: `unregister` is valid for what `register` has registered.
unsafe impl<T: Driver> driver::RegistrationOps for Adapter<T> {
    unsafe fn register(
        driver: &Opaque<Self::DriverType>,
        name: &'static CStr,
        module: &'static ThisModule,
    ) -> Result {
        // SAFETY: Nobody else knows the driver yet.
        unsafe {
            (*driver.get()).name = name.as_char_ptr();
            (*driver.get()).probe = Some(Self::probe);
            (*driver.get()).remove = Some(Self::remove);
            (*driver.get()).id_table = T::ID_TABLE.as_ptr();
            // A probe waits for the host; and the kernel has a place for sub-channels only when it has
            // registered the device, which a probe on the way would hold up.
            (*driver.get()).driver.probe_type =
                kernel_bindings::probe_type_PROBE_PREFER_ASYNCHRONOUS;
        }
        // SAFETY: The caller keeps the driver where it is until `unregister`.
        to_result(unsafe {
            bindings::__vmbus_driver_register(driver.get(), module.as_ptr(), name.as_char_ptr())
        })
    }

    unsafe fn unregister(driver: &Opaque<Self::DriverType>) {
        // SAFETY: It was registered.
        unsafe { bindings::vmbus_driver_unregister(driver.get()) };
    }
}

impl<T: Driver> Adapter<T> {
    extern "C" fn probe(
        dev: *mut bindings::hv_device,
        id: *const bindings::hv_vmbus_device_id,
    ) -> c_int {
        // SAFETY: The bus gives a valid device, which it keeps and holds locked during the call.
        let dev = unsafe { &*dev.cast::<Device<device::CoreInternal<'_>>>() };
        // SAFETY: The bus gives a valid id; `DeviceId` is a transparent wrapper of it.
        let id = unsafe { &*id.cast::<DeviceId>() };
        // SAFETY: An id is of `T::ID_TABLE`, or one that an administrator has added, or the kernel's
        // own for a device that was bound by name; the latter two have no driver data.
        let info = unsafe { id.info_unchecked_opt::<T::IdInfo>() };
        from_result(|| {
            let data = T::probe(dev, info);
            dev.as_ref().set_drvdata(data)?;
            Ok(0)
        })
    }

    extern "C" fn remove(dev: *mut bindings::hv_device) {
        // SAFETY: As in `probe`.
        let dev = unsafe { &*dev.cast::<Device<device::CoreInternal<'_>>>() };
        // SAFETY: The bus calls this after a `probe` that has succeeded, and so has stored it.
        let data = unsafe { dev.as_ref().drvdata_borrow::<T::Data<'_>>() };
        T::unbind(dev, data);
    }
}

/// A device's channel, which may be open or not.
///
/// # Invariants
/// `channel` is valid until the device has lost its driver, a sub-channel where it was opened. All methods but `of` are for an open
/// channel: nobody gets at them otherwise (see [`Access`](crate::Access)).
pub(crate) struct Port {
    channel: NonNull<bindings::vmbus_channel>,
    /// Whether somebody reads from it now.
    claimed: Atomic<bool>,
}

// SAFETY: The channel belongs to no thread.
unsafe impl Send for Port {}

// SAFETY: The C functions lock what they change, but for the ring to the guest, which is for whoever has
// set `claimed`.
unsafe impl Sync for Port {}

impl Port {
    /// The channel of `dev`.
    pub(crate) fn of(dev: &Device<device::Bound>) -> Result<Self> {
        // SAFETY: A bound device is valid, and its channel was set before.
        let channel = unsafe { (*dev.as_raw()).channel };
        NonNull::new(channel).map(Self::new).ok_or(ENODEV)
    }

    fn new(channel: NonNull<bindings::vmbus_channel>) -> Self {
        Self {
            channel,
            claimed: Atomic::new(false),
        }
    }

    fn raw(&self) -> *mut bindings::vmbus_channel {
        self.channel.as_ptr()
    }

    /// The mark that somebody has opened the channel by this crate: its [`End`].
    fn mark(&self) -> &Atomic<*mut c_void> {
        // SAFETY: The channel is valid, and its field for the driver's own use is used by nobody but this
        // crate, and only so.
        unsafe { Atomic::from_ptr(&raw mut (*self.raw()).per_channel_state) }
    }

    pub(crate) fn send(&self, payload: &[u8], transaction_id: u64, completion: bool) -> Result {
        let flags = if completion {
            FLAG_COMPLETION_REQUESTED
        } else {
            0
        };
        let length = packet_len(payload.len())?;
        // SAFETY: The channel is open; the function only reads the payload.
        to_result(unsafe {
            bindings::vmbus_sendpacket(
                self.raw(),
                payload.as_ptr().cast_mut().cast(),
                length,
                transaction_id,
                bindings::vmbus_packet_type_VM_PKT_DATA_INBAND,
                flags.into(),
            )
        })
    }

    /// `packet` is room for a descriptor and a list of memory.
    ///
    /// # Safety
    /// As of [`Access::send_gpa_direct`](crate::Access::send_gpa_direct).
    pub(crate) unsafe fn send_gpa_direct(
        &self,
        packet: &mut [u8],
        payload: &[u8],
        transaction_id: u64,
    ) -> Result {
        let length = packet_len(payload.len() + packet.len())? - packet.len() as u32;
        // SAFETY: The channel is open. The function writes a descriptor at the start of `packet`, which
        // has room for it, whose C type asks for no alignment, and which is as long as it is said to be.
        to_result(unsafe {
            bindings::vmbus_sendpacket_mpb_desc(
                self.raw(),
                packet.as_mut_ptr().cast(),
                packet.len() as u32,
                payload.as_ptr().cast_mut().cast(),
                length,
                transaction_id,
            )
        })
    }

    pub(crate) fn room(&self) -> usize {
        // SAFETY: The channel is open, so it has rings.
        unsafe { bindings::vmbus_rust_get_bytes_to_write(self.raw()) as usize }
    }

    pub(crate) fn want_room(&self, bytes: u32) {
        // SAFETY: The channel is open, so it has rings.
        unsafe { bindings::vmbus_rust_set_pending_send_size(self.raw(), bytes) };
    }

    pub(crate) fn has_untaken(&self) -> bool {
        // SAFETY: The channel is open, so it has rings.
        unsafe { bindings::vmbus_rust_get_bytes_not_taken(self.raw()) != 0 }
    }

    pub(crate) fn has_packets(&self) -> bool {
        // SAFETY: The channel is open, so it has rings.
        unsafe { bindings::vmbus_rust_get_bytes_to_read(self.raw()) != 0 }
    }

    pub(crate) fn is_rescinded(&self) -> bool {
        // SAFETY: The channel is valid. Another thread may set the flag, so it is read once and whole.
        unsafe { (&raw const (*self.raw()).rescind).read_volatile() }
    }

    pub(crate) fn claim(&self) -> Option<Claim<'_>> {
        let free = !self.claimed.xchg(true, Acquire);
        free.then(|| Claim {
            port: self,
            packet: None,
            begun: false,
            // SAFETY: The channel is open, so it has rings, whose size does not change.
            left: unsafe { (*self.raw()).inbound.ring_datasize },
        })
    }
}

/// The payload's length for C, if a packet of that many bytes beside its descriptor can be.
fn packet_len(bytes: usize) -> Result<u32> {
    // A descriptor counts 8 bytes in 16 bits, itself included.
    const MOST: usize = (u16::MAX as usize - 2) * 8;
    if bytes > MOST {
        return Err(EMSGSIZE);
    }
    Ok(bytes as u32)
}

/// The right to read the ring to the guest.
pub(crate) struct Claim<'a> {
    port: &'a Port,
    /// The packet that was read last, in the kernel's copy.
    packet: Option<NonNull<bindings::vmpacket_descriptor>>,
    begun: bool,
    /// Bytes that may be read still. A host that writes as fast as they are read holds up nobody for
    /// longer than a full ring does.
    left: u32,
}

/// Bytes behind a packet that belong to it.
const TRAILER: u32 = 8;

impl Claim<'_> {
    /// The bytes of the next packet, in the kernel's copy, which stays as it is until the next call.
    pub(crate) fn next_packet(&mut self) -> Option<&[u8]> {
        let next = match self.packet.take() {
            Some(last) => self.pass(last),
            None if self.begun => return None,
            // SAFETY: The channel is open, and nobody else reads.
            None => unsafe { bindings::hv_pkt_iter_first(self.port.raw()) },
        };
        self.begun = true;
        self.packet = NonNull::new(next);
        let packet = self.packet?;
        // SAFETY: It is the kernel's copy of a packet, with a length that the kernel has set itself; it
        // is written again only by the functions above, for which this reference must have ended.
        unsafe {
            let length = usize::from(packet.as_ref().len8) * 8;
            Some(slice::from_raw_parts(packet.as_ptr().cast(), length))
        }
    }

    /// Goes past the packet that was read last; returns the next one.
    ///
    /// The kernel steps over a packet and its trailer even where the host has written less, and would take
    /// what has been in the ring for ever for packets then, round and round. Such a packet is one that was
    /// too large, or a lie: what the host has written is skipped, and with the next packet all is well.
    fn pass(
        &mut self,
        last: NonNull<bindings::vmpacket_descriptor>,
    ) -> *mut bindings::vmpacket_descriptor {
        let inbound = self.inbound();
        // SAFETY: The channel is open, so it has rings; nobody else reads, and this is the last packet. The
        // host may change what it has written up to, which is read once.
        unsafe {
            let length = u32::from(last.as_ref().len8) * 8 + TRAILER;
            let (size, at) = ((*inbound).ring_datasize, (*inbound).priv_read_index);
            let end = (&raw const (*(*inbound).ring_buffer).write_index).read_volatile();
            let written = if end >= at { end - at } else { size - at + end };
            if length > written {
                (*inbound).priv_read_index = if end < size { end } else { 0 };
                return null_mut();
            }
            self.left = self.left.saturating_sub(length);
            let next = bindings::__hv_pkt_iter_next(self.port.raw(), last.as_ptr());
            if self.left > 0 {
                next
            } else {
                null_mut()
            }
        }
    }

    fn inbound(&self) -> *mut bindings::hv_ring_buffer_info {
        // SAFETY: The channel is valid.
        unsafe { &raw mut (*self.port.raw()).inbound }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if let Some(last) = self.packet.take() {
            self.pass(last);
        }
        if self.begun {
            // SAFETY: The channel is open, and nobody else reads.
            unsafe { bindings::hv_pkt_iter_close(self.port.raw()) };
        }
        self.port.claimed.store(false, Release);
    }
}

/// An open channel; it closes when this is dropped.
///
/// # Invariants
/// `end` is that of a channel that is open.
pub(crate) struct Opened<H: Handler> {
    end: Arc<End<H>>,
}

impl<H: Handler> Opened<H> {
    pub(crate) fn new(end: Arc<End<H>>, options: &Options) -> Result<Self> {
        let port = &end.port;
        let mark = Arc::as_ptr(&end).cast_mut().cast();
        if port.mark().cmpxchg(null_mut(), mark, Full).is_err() {
            return Err(EBUSY);
        }
        // SAFETY: The device has its driver, so the channel is valid, and this driver's. `Self` holds the
        // end until it has closed the channel.
        let opened = unsafe { Self::open(&end, options) };
        if opened.is_err() {
            // SAFETY: The channel was not opened, and is this driver's.
            unsafe { leave(port) };
        }
        opened.map(|()| Self { end })
    }

    /// Opens the sub-channel of `end`, which the kernel takes the offer of meanwhile, so that it is there
    /// and nobody else's. It closes with the first one, which holds `end` until then.
    pub(crate) fn open_sub_channel(end: &Arc<End<H>>, options: &Options) -> Result {
        // SAFETY: What was just said.
        unsafe { Self::open(end, options) }
    }

    /// # Safety
    /// The channel is valid and not open, and this driver's. `end` stays until it has closed.
    unsafe fn open(end: &Arc<End<H>>, options: &Options) -> Result {
        let channel = end.port.raw();
        let mode = match H::CALLBACK {
            Callback::Batched => bindings::vmbus_channel_hv_callback_mode_HV_CALL_BATCHED,
            Callback::Direct => bindings::vmbus_channel_hv_callback_mode_HV_CALL_DIRECT,
        };
        // SAFETY: The caller's promise.
        unsafe { set_up(channel, mode, options.max_packet) };
        let context = Arc::as_ptr(end).cast_mut().cast();
        // SAFETY: The caller's promise: `context` is valid as long as the channel is open.
        let opened = to_result(unsafe {
            bindings::vmbus_open(
                channel,
                options.to_host,
                options.to_guest,
                null_mut(),
                0,
                Some(Self::callback),
                context,
            )
        });
        if opened.is_err() {
            // The kernel would call back still when the host signals, whether the channel is open or not.
            // SAFETY: The channel is valid.
            unsafe { bindings::vmbus_rust_reset_channel_cb(channel) };
        }
        opened
    }

    extern "C" fn callback(context: *mut c_void) {
        // SAFETY: `open` has said why it is valid; the channel is open during a callback.
        let end = unsafe { &*context.cast::<End<H>>() };
        end.signalled();
    }

    /// Has the kernel tell the end of `port`, the channel of a [`Self`], of the sub-channels that the host
    /// offers, until it closes.
    pub(crate) fn take_sub_channels(port: &Port) {
        // SAFETY: The channel is valid. The function belongs to the type that its mark is of.
        unsafe { bindings::vmbus_set_sc_create_callback(port.raw(), Some(Self::sub_channel)) };
    }

    /// The kernel takes the offer of a sub-channel, and waits with all else about it.
    extern "C" fn sub_channel(channel: *mut bindings::vmbus_channel) {
        let Some(channel) = NonNull::new(channel) else {
            return;
        };
        let end: Arc<End<H>> = {
            let _guard = rcu::read_lock();
            // SAFETY: The kernel gives a valid sub-channel, which holds its first channel.
            let Some(first) = NonNull::new(unsafe { (*channel.as_ptr()).primary_channel }) else {
                return;
            };
            let mark = Port::new(first).mark().load(Acquire);
            if mark.is_null() {
                return;
            }
            // SAFETY: The mark of an open channel is a pointer to its end, which was made by `Arc::as_ptr`.
            // Who takes the mark away waits for RCU readers before letting go of the end.
            unsafe { ArcBorrow::from_raw(mark.cast::<End<H>>()) }.into()
        };
        end.sub_channels().offer(Port::new(channel));
    }
}

impl<H: Handler> Drop for Opened<H> {
    fn drop(&mut self) {
        let port = &self.end.port;
        // No sub-channel is being opened from here on.
        drop(self.end.sub_channels().stop());
        // SAFETY: The channel is open, and no `Access` is left (`Devres` waits for them); the function
        // waits for a callback that is under way. It closes the sub-channels, too.
        unsafe { bindings::vmbus_close(port.raw()) };
        // SAFETY: The channel is not open any more, and is this driver's still.
        unsafe { leave(port) };
        // Who has found the mark just before has the end as well now.
        rcu::synchronize_rcu();
    }
}

/// Leaves the channel to the next driver, as the first one has found it.
///
/// # Safety
/// The channel is valid and not open, and its device is this driver's.
unsafe fn leave(port: &Port) {
    let mode = bindings::vmbus_channel_hv_callback_mode_HV_CALL_BATCHED;
    // SAFETY: The caller's promise.
    unsafe { set_up(port.raw(), mode, 0) };
    port.mark().store(null_mut(), Release);
}

/// Sets what a driver sets of a channel before it opens it, none of which the bus ever sets back: a
/// driver that had the channel before may have left functions of its own in it, such as `hv_storvsc`'s
/// for request ids. Its table of ids was freed when it closed the channel, but the pointers to it are
/// there still, and whoever closes the channel next would free it again.
///
/// # Safety
/// `channel` is valid and not open, and its device is this driver's.
unsafe fn set_up(
    channel: *mut bindings::vmbus_channel,
    mode: bindings::vmbus_channel_hv_callback_mode,
    max_packet: u32,
) {
    // SAFETY: Nobody reads or writes these fields but the driver, and the bus for an open channel.
    unsafe {
        (*channel).callback_mode = mode;
        (*channel).max_pkt_size = max_packet;
        (*channel).next_request_id_callback = None;
        (*channel).request_addr_callback = None;
        (*channel).rqstor_size = 0;
        (*channel).requestor.req_arr = null_mut();
        (*channel).requestor.req_bitmap = null_mut();
        (*channel).change_target_cpu_callback = None;
    }
}
