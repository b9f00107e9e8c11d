//! Hyper-V synthetic device providers on KVM.
