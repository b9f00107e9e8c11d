//! Hyper-V synthetic device providers on KVM.

pub mod acpi;
pub mod api;
pub mod boot;
pub mod check;
pub mod console;
mod control;
pub mod counters;
pub mod files;
pub mod freezer;
mod guest;
pub mod hv;
pub mod ic;
pub mod identity;
pub mod keyboard;
pub mod kvm;
pub mod layout;
pub mod machine;
pub mod manager;
pub mod memory;
pub mod output;
pub mod platform;
pub mod rtc;
pub mod serial;
pub mod storage;
pub mod terminal;
pub mod vmbus;
pub mod vsp;
