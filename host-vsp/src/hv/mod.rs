//! What VMBus asks of a hypervisor, as four small traits.
//!
//! The VMBus server and the VSPs know nothing of KVM: a hypervisor delivers the guest's two
//! hypercalls to [`Hypercalls`], and serves [`Messages`], [`Interrupts`] and [`Doorbells`].
//! `crate::kvm` does so for a real VM; tests do so in one process.

use std::io;
use std::sync::Arc;

use vmbus_proto::hv::hypercall::Status;
use vmm_sys_util::eventfd::EventFd;

/// The guest's VMBus hypercalls, as the hypervisor hands them on.
pub trait Hypercalls: Send + Sync {
    /// HvPostMessage from virtual processor `vp`; `payload` is the hypervisor's private copy.
    fn post_message(
        &self,
        vp: u32,
        connection_id: u32,
        message_type: u32,
        payload: &[u8],
    ) -> Status;

    /// HvSignalEvent that no [`Doorbells`] registration served.
    fn signal_event(&self, vp: u32, connection_id: u32, flag: u16) -> Status;
}

/// Messages to the guest, through its SynIC message page.
pub trait Messages: Send + Sync {
    /// Queues `payload` (at most 240 bytes) for the VMBus SINT of `vp`; messages to one processor
    /// arrive in order. The queue is the hypervisor's and it is bounded by what the control plane
    /// can have outstanding.
    fn post(&self, vp: u32, payload: &[u8]);

    /// Messages queued and not yet in a slot, over all processors. A guest that does not take its
    /// messages may post no more.
    fn backlog(&self) -> usize;

    /// Forgets what is queued and not yet in a slot: the guest was reset.
    fn clear(&self);
}

/// Channel interrupts to the guest.
pub trait Interrupts: Send + Sync {
    /// Sets event flag `flag` in the VMBus SINT of `vp` and raises the SINT where the flag was
    /// clear. Never blocks.
    fn signal(&self, vp: u32, flag: u32);

    /// Raises the SINT even where the flag was set already: after OPEN and MODIFYCHANNEL an
    /// earlier interrupt may have been lost to a masked SINT.
    fn signal_always(&self, vp: u32, flag: u32);

    /// Clears event flag `flag` on `vp`: its channel was closed.
    fn clear(&self, vp: u32, flag: u32);
}

/// Doorbells: events that the guest rings by HvSignalEvent.
pub trait Doorbells: Send + Sync {
    /// From now on HvSignalEvent for `connection_id` (flag 0) writes 1 to `event`.
    fn register(&self, connection_id: u32, event: &EventFd) -> io::Result<()>;

    /// Ends the registration.
    fn unregister(&self, connection_id: u32) -> io::Result<()>;
}

/// The services of one hypervisor for one VM.
#[derive(Clone)]
pub struct Partition {
    /// Guest RAM.
    pub memory: Arc<dyn crate::memory::GuestMemory>,
    /// Messages to the guest.
    pub messages: Arc<dyn Messages>,
    /// Channel interrupts to the guest.
    pub interrupts: Arc<dyn Interrupts>,
    /// Doorbells from the guest.
    pub doorbells: Arc<dyn Doorbells>,
    /// Number of virtual processors; VP indices are below it.
    pub vp_count: u32,
}
