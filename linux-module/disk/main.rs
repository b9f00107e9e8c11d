// SPDX-License-Identifier: GPL-2.0

//! `vmbus_disk`.

use kernel::prelude::*;

module! {
    type: Module,
    name: "vmbus_disk",
    authors: ["The vmbus authors"],
    description: "VMBus disk",
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
