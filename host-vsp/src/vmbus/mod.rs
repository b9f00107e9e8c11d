//! VMBus, the host's end.
//!
//! Three layers: [`bus`] is the control plane, a state machine without I/O; [`channel`] and
//! [`ring_memory`] are the data plane, which knows nothing of KVM; [`VmBus`] carries the state
//! machine's actions out with a hypervisor's [`Partition`](crate::hv::Partition), and gives each
//! open channel a worker thread.
//!
//! The way of a packet: the guest rings a doorbell, an eventfd wakes the channel's
//! worker, [`Channel::receive`](channel::Channel::receive) copies the packet out of the ring for
//! the [`Vsp`](crate::vsp::Vsp), whose answer goes back by
//! [`Channel::send`](channel::Channel::send) and one interrupt.

pub mod bus;
pub mod channel;
mod control;
mod doorbell;
pub mod gpadl;
pub mod lent;
pub mod ring_memory;
mod server;
mod state;
mod trace;
mod worker;

pub use server::{BusCounters, DeviceId, OfferError, SavedBus, VmBus};
pub use worker::ChannelCounters;
