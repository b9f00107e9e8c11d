//! The doorbells of open channels.
//!
//! Each channel is offered with a connection id of its own, for which the hypervisor rings an
//! eventfd without coming here. What does come here is a guest that signals the id that all
//! channels share, as guests of old did after setting a bit in a page of theirs: every open
//! channel then looks at its ring, which tells more than the bit could.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmbus_proto::message::CONNECTION_ID_EVENT;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::bus::doorbell_id;
use crate::hv::Doorbells;

/// The doorbells of open channels, by connection id.
pub(super) struct OpenDoorbells {
    hypervisor: Arc<dyn Doorbells>,
    open: Mutex<BTreeMap<u32, Arc<EventFd>>>,
}

impl OpenDoorbells {
    pub(super) fn new(hypervisor: Arc<dyn Doorbells>) -> Self {
        Self {
            hypervisor,
            open: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<EventFd>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The doorbell of channel `relid`, from now on the guest's to ring.
    pub(super) fn open(&self, relid: u32) -> io::Result<Arc<EventFd>> {
        let doorbell = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        self.hypervisor.register(doorbell_id(relid), &doorbell)?;
        self.lock()
            .insert(doorbell_id(relid), Arc::clone(&doorbell));
        Ok(doorbell)
    }

    /// Ends what [`open`](Self::open) began.
    pub(super) fn close(&self, relid: u32) {
        self.lock().remove(&doorbell_id(relid));
        if let Err(error) = self.hypervisor.unregister(doorbell_id(relid)) {
            tracing::warn!(relid, %error, "doorbell not removed");
        }
    }

    /// Rings for a signal that the hypervisor handed on; whether `connection_id` is anybody's.
    pub(super) fn ring(&self, connection_id: u32, flag: u16) -> bool {
        let open = self.lock();
        let ring = |doorbell: &EventFd| {
            // A doorbell that is full is rung.
            let _ = doorbell.write(1);
        };
        if connection_id == CONNECTION_ID_EVENT {
            open.values().for_each(|doorbell| ring(doorbell));
            return true;
        }
        // A channel's port has one flag.
        let found = open.get(&connection_id).filter(|_| flag == 0);
        found.map(|doorbell| ring(doorbell)).is_some()
    }
}
