//! The hypervisor interface that carries VMBus: CPUID leaves, MSRs, hypercalls and the SynIC.
//!
//! Source: TLFS, chapters "Feature and Interface Discovery", "Hypercall Interface" and
//! "Inter-Partition Communication"; Linux `include/hyperv/hvgdk_mini.h` for the names.

pub mod cpuid;
pub mod hypercall;
pub mod msr;
pub mod synic;
