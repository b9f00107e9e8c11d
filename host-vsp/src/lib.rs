//! Hyper-V synthetic device providers on KVM.

pub mod hv;
pub mod memory;
