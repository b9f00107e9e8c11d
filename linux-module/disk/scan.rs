// SPDX-License-Identifier: GPL-2.0

//! Looking at the units again, when the host says that they have changed.

use kernel::new_mutex;
use kernel::prelude::*;
use kernel::sync::{Arc, Mutex};
use kernel::workqueue::{impl_has_work, new_work, Work, WorkItem};

use crate::controller::Controller;

/// A look at the units, which waits to be asked for.
#[pin_data]
pub(crate) struct Scan {
    /// Whose, from the end of its probe until it is stopped.
    #[pin]
    controller: Mutex<Option<Arc<Controller>>>,
    #[pin]
    work: Work<Scan>,
}

impl_has_work! {
    impl HasWork<Self> for Scan { self.work }
}

impl Scan {
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                controller <- new_mutex!(None),
                work <- new_work!("vmbus_disk::Scan"),
            }),
            GFP_KERNEL,
        )
    }

    /// From now on units of this controller are looked at; of none, where there is none.
    pub(crate) fn set(&self, controller: Option<Arc<Controller>>) {
        let before = core::mem::replace(&mut *self.controller.lock(), controller);
        drop(before);
    }
}

impl WorkItem for Scan {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let controller = this.controller.lock().clone();
        if let Some(controller) = controller {
            controller.scan();
        }
    }
}
