// SPDX-License-Identifier: GPL-2.0

//! Drivers for Hyper-V's synthetic devices, which the VMBus offers.
//!
//! A driver implements [`Driver`], names the classes of devices that it is for in a table
//! ([`vmbus_device_table!`]) and becomes a module by [`module_vmbus_driver!`]. When the host offers a
//! device of such a class, [`Driver::probe`] gets it and opens its [`Channel`], over which it then
//! sends and receives packets. What is in packets is for `vmbus_proto` to say. A device that has more
//! channels is asked for them in [`Channel::open_sub_channels`].
//!
//! When the host takes a device back (it *rescinds* the offer), somebody unbinds the driver, or its
//! module is unloaded, the channel closes by itself: from then on [`Channel::access`] gives nothing,
//! whoever still holds the channel.
//!
//! Two rules of the kernel's own abstractions hold here as well. All contact with C is in one file
//! (`ffi.rs`); and no reference is ever made to memory that the host can write: the kernel copies a
//! packet out of the ring before anybody looks at it.
//!
//! C header: `include/linux/hyperv.h`.

mod channel;
mod driver;
mod ffi;
mod sub_channels;

pub use channel::{
    Access,
    Callback,
    Channel,
    GpaDirect,
    Handler,
    Options,
    Packets,
    PACKET_OVERHEAD, //
};
pub use driver::{
    Driver,
    IdTable, //
};
pub use ffi::{
    Adapter,
    Device,
    DeviceId, //
};
