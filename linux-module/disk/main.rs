// SPDX-License-Identifier: GPL-2.0

//! `vmbus_disk`: the disks of Hyper-V's SCSI controllers, as `/dev/vmd0` and so on.
//!
//! A device of the bus is a controller with logical units. Each unit that is a disk becomes a disk of
//! the kernel, on blk-mq, without the SCSI layer in between: a request becomes a CDB in a packet, with
//! the list of its pages, and the host's completion ends it.
//!
//! The module is for a class of its own, which loads it, and for the class of all storage controllers
//! where an administrator says so (`driver_override`, or `new_id`).

#[allow(dead_code)]
mod blk;
mod channels;
mod commands;
mod controller;
mod operations;
mod outcome;
mod pages;
mod port;
mod scan;
mod unit;

use kernel::device::Core;
use kernel::prelude::*;
use kernel::sync::Arc;
use vmbus_proto::storvsp::DISK_CLASS;

use controller::Controller;

vmbus::vmbus_device_table!(
    CLASSES,
    <DiskDriver as vmbus::Driver>::IdInfo,
    [(vmbus::DeviceId::class(DISK_CLASS), ())]
);

struct DiskDriver;

/// What the driver keeps of a device. The channel is open still when it is dropped.
struct DeviceData {
    controller: Arc<Controller>,
}

impl Drop for DeviceData {
    fn drop(&mut self) {
        self.controller.stop();
    }
}

impl vmbus::Driver for DiskDriver {
    type IdInfo = ();
    type Data<'bound> = DeviceData;
    const ID_TABLE: vmbus::IdTable<()> = &CLASSES;

    fn probe<'bound>(
        dev: &'bound vmbus::Device<Core<'_>>,
        _info: Option<&'bound ()>,
    ) -> impl PinInit<DeviceData, Error> + 'bound {
        Controller::open(dev).map(|controller| DeviceData { controller })
    }
}

vmbus::module_vmbus_driver! {
    type: DiskDriver,
    name: "vmbus_disk",
    authors: ["The vmbus authors"],
    description: "Disks of Hyper-V's SCSI controllers",
    license: "GPL",
}
