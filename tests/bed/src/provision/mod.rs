//! What the bed needs from outside, fetched on demand into the cache.
//!
//! Packages come from the Debian mirror that this machine's own apt uses, resolved through the
//! suite's signed index with a private apt configuration, checked against the index's
//! SHA-256, and unpacked into the cache ([`debian`]). Nothing is installed.

mod apt;
pub mod debian;
pub mod debian_root;
mod hyperv_daemons;
pub mod kernel;
pub mod kernel_rustc;
mod l1_kernel;
mod passt;
mod qemu;
mod qemu_tools;
pub mod rust_src;

pub use hyperv_daemons::hyperv_daemons;
pub use l1_kernel::busybox;
pub use passt::Passt;
pub use qemu::Qemu;
pub use qemu_tools::QemuTools;

use crate::error::Result;
use kernel::{Kernel, Series};

/// Fetches everything the bed needs, so that nothing later has to wait for the network.
pub fn everything() -> Result<()> {
    Qemu::get()?;
    QemuTools::get()?;
    for series in Series::ALL {
        Kernel::get(series)?;
    }
    busybox()?;
    hyperv_daemons()?;
    Passt::get()?;
    rust_src::bare_metal_route()?;
    debian_root::get()?;
    Ok(())
}
