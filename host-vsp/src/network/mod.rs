//! The network VSP: Ethernet between a guest and a net of the host's.
//!
//! The protocols are in [`vmbus_proto::netvsp`] and [`vmbus_proto::rndis`]. A [`Network`] is one
//! adapter: `conversation` and `objects` are what it and the guest agree on, plain values;
//! `transmit` and `headers` bring frames out of the guest's memory, `receive`, `cut`, `sections` and
//! `batch` into it; a [`Backend`](backend::Backend) is what is at the other end of its [`Cable`].
//!
//! The payload of a frame is moved once, by the system call between the net and the guest's pages;
//! only headers are copied, where something has to be changed in them.

mod adapter;
pub mod backend;
mod batch;
mod conversation;
mod cut;
mod gather;
mod headers;
mod objects;
mod open;
mod receive;
mod scaling;
mod sections;
mod shared;
mod transmit;
mod vsp;

pub use adapter::{Cable, Config, DEFAULT_MTU, MAX_MTU, MAX_QUEUES, MIN_MTU, Mac, QueueCounters};
pub(crate) use open::format_mac;
pub use vsp::Network;

#[cfg(test)]
mod tests;
