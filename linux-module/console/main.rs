// SPDX-License-Identifier: GPL-2.0

//! The VMBus console as a character device, `/dev/vmbus-console0` and on.
//!
//! Bytes that are written come out at the host's end and the other way round; what they mean is for the
//! programs at both ends. See the README for how a login gets there.

mod char_device;
mod console;
mod number;
mod signals;

use kernel::{
    device::{
        Bound,
        Core, //
    },
    prelude::*,
    str::CString,
    sync::Arc, //
};
use vmbus_proto::console::CLASS;

use char_device::Registration;
use console::Console;
use number::Number;

vmbus::module_vmbus_driver! {
    type: Driver,
    name: "vmbus_console",
    authors: ["The vmbus authors"],
    description: "Console over VMBus",
    license: "GPL",
}

vmbus::vmbus_device_table!(
    IDS,
    <Driver as vmbus::Driver>::IdInfo,
    [(vmbus::DeviceId::class(CLASS), ())]
);

struct Driver;

/// A console that the host offers.
#[pin_data]
struct Offered {
    // Fields are dropped in this order: nobody opens the device while its number is free again.
    #[pin]
    _device: Registration<Console>,
    _number: Number,
    console: Arc<Console>,
}

impl Offered {
    fn new(dev: &vmbus::Device<Bound>) -> impl PinInit<Self, Error> + '_ {
        pin_init::pin_init_scope(move || {
            let number = Number::claim().ok_or(ENOSPC)?;
            let name = CString::try_from_fmt(fmt!("vmbus-console{}", number.get()))?;
            let console = Console::new(dev)?;
            Ok(try_pin_init!(Self {
                _device <- Registration::new(name, dev.as_ref(), console.clone()),
                _number: number,
                console,
            }))
        })
    }
}

impl vmbus::Driver for Driver {
    type IdInfo = ();
    type Data<'bound> = Offered;
    const ID_TABLE: vmbus::IdTable<()> = &IDS;

    fn probe<'bound>(
        dev: &'bound vmbus::Device<Core<'_>>,
        _info: Option<&'bound ()>,
    ) -> impl PinInit<Offered, Error> + 'bound {
        Offered::new(dev)
    }

    fn unbind<'bound>(_dev: &'bound vmbus::Device<Core<'_>>, offered: Pin<&Offered>) {
        offered.console.hang_up();
    }
}
