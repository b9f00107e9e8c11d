// SPDX-License-Identifier: GPL-2.0

//! Looking at the units again, when the host says that they have changed.

use kernel::new_mutex;
use kernel::prelude::*;
use kernel::sync::atomic::{AtomicFlag, Full, Relaxed};
use kernel::sync::{Arc, Mutex};
use kernel::workqueue::{impl_has_work, new_work, Work, WorkItem};

use crate::controller::Controller;

/// A look at the units, which waits to be asked for.
#[pin_data]
pub(crate) struct Scan {
    /// Whose, from the end of its probe until it is stopped.
    #[pin]
    controller: Mutex<Option<Arc<Controller>>>,
    /// Whether it was stopped, for good.
    stopped: AtomicFlag,
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
                stopped: AtomicFlag::new(false),
                work <- new_work!("vmbus_disk::Scan"),
            }),
            GFP_KERNEL,
        )
    }

    /// From now on units of this controller are looked at.
    pub(crate) fn begin(&self, controller: Arc<Controller>) {
        *self.controller.lock() = Some(controller);
    }

    /// No units are looked at any more. A look that is under way asks the host for nothing from here on.
    pub(crate) fn stop(&self) {
        self.stopped.xchg(true, Full);
        let before = self.controller.lock().take();
        drop(before);
    }

    /// Whether it was stopped.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Relaxed)
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
