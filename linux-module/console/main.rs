// SPDX-License-Identifier: GPL-2.0

//! `vmbus_console`.

use kernel::prelude::*;

module! {
    type: Module,
    name: "vmbus_console",
    authors: ["The vmbus authors"],
    description: "VMBus console",
    license: "GPL",
}

struct Module;

impl kernel::Module for Module {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let class = vmbus_proto::console::CLASS;
        pr_info!("the class is {:?}\n", class);
        Ok(Self)
    }
}
