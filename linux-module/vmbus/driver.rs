// SPDX-License-Identifier: GPL-2.0

//! What a driver is.

use kernel::{
    device,
    prelude::*, //
};

use crate::{Device, DeviceId};

/// The classes of devices that a driver is for, each with what the driver wants to know of it.
pub type IdTable<T> = &'static dyn kernel::device_id::IdTable<DeviceId, T>;

/// A driver for devices on the VMBus.
///
/// # Examples
///
/// ```ignore
/// struct MyDriver;
///
/// vmbus::vmbus_device_table!(
///     IDS,
///     <MyDriver as vmbus::Driver>::IdInfo,
///     [(vmbus::DeviceId::class(CLASS), ())]
/// );
///
/// impl vmbus::Driver for MyDriver {
///     type IdInfo = ();
///     type Data<'bound> = MyData;
///     const ID_TABLE: vmbus::IdTable<()> = &IDS;
///
///     fn probe<'bound>(
///         dev: &'bound vmbus::Device<Core<'_>>,
///         _info: Option<&'bound ()>,
///     ) -> impl PinInit<MyData, Error> + 'bound {
///         // Open the channel here.
///     }
/// }
///
/// vmbus::module_vmbus_driver! {
///     type: MyDriver,
///     name: "my_driver",
///     authors: ["Me"],
///     description: "An example",
///     license: "GPL",
/// }
/// ```
pub trait Driver {
    /// What the driver wants to know of a class.
    type IdInfo: 'static;

    /// The driver's data of one device, from its probe until it is unbound.
    type Data<'bound>: Send + 'bound;

    /// The classes.
    const ID_TABLE: IdTable<Self::IdInfo>;

    /// A device has come. `info` is what [`Self::ID_TABLE`] says of its class; nothing where an
    /// administrator has bound the device by `driver_override` or `new_id`.
    ///
    /// May sleep.
    fn probe<'bound>(
        dev: &'bound Device<device::Core<'_>>,
        info: Option<&'bound Self::IdInfo>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound;

    /// The driver is about to lose the device, whose channels are open still unless the host has taken
    /// them back already. Afterwards `data` is dropped, and then all channels of the device are closed.
    ///
    /// May sleep.
    fn unbind<'bound>(dev: &'bound Device<device::Core<'_>>, data: Pin<&Self::Data<'bound>>) {
        let _ = (dev, data);
    }
}

/// Makes the table of classes for [`Driver::ID_TABLE`], and the module aliases by which the module
/// is loaded when the host offers such a device.
#[macro_export]
macro_rules! vmbus_device_table {
    ($($table:tt)*) => {
        ::kernel::module_device_table!("vmbus", $crate::DeviceId, $($table)*);
    };
}

/// Makes a module that is one driver.
#[macro_export]
macro_rules! module_vmbus_driver {
    ($($module:tt)*) => {
        ::kernel::module_driver!(<T>, $crate::Adapter<T>, { $($module)* });
    };
}
