//! Drop-in drivers for Hyper-V's synthetic devices, for kernels, unikernels and firmware.
#![no_std]
#![cfg_attr(
    not(test),
    warn(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

#[cfg(feature = "alloc")]
extern crate alloc;

mod arch;
pub mod bus;
pub mod channel;
mod clock;
pub mod error;
mod gpadl;
pub mod hal;
pub mod hypervisor;
mod shared;
mod sync;
mod synic;

pub use bus::VmBus;
pub use error::Error;
pub use hal::Hal;
