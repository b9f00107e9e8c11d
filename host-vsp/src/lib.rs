//! Hyper-V synthetic device providers on KVM.

pub mod console;
pub mod hv;
pub mod memory;
pub mod storage;
pub mod vmbus;
pub mod vsp;
