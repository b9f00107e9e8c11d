//! What the bed needs from outside, fetched on demand into the cache.
//!
//! Packages come from the Debian mirror that this machine's own apt uses, resolved through the
//! suite's signed index with a private apt configuration, checked against the index's
//! SHA-256, and unpacked into the cache ([`debian`]). Nothing is installed.

mod apt;
mod carried;
pub mod debian;
pub mod debian_root;
mod hyperv_daemons;
pub mod kernel;
mod l1_kernel;
pub mod module_kit;
mod ovmf;
mod qemu;
pub mod rust_src;

pub(crate) use apt::output_of;
pub use carried::Carried;
pub use hyperv_daemons::hyperv_daemons;
pub use l1_kernel::busybox;
pub use ovmf::Ovmf;
pub use qemu::Qemu;

use crate::error::Result;
use kernel::{Kernel, Series};
use module_kit::{Flavour, Kit, kernel_of_the_bed};

/// Fetches everything the bed needs, so that nothing later has to wait for the network.
pub fn everything() -> Result<()> {
    Qemu::get()?;
    Carried::qemu()?;
    Ovmf::get()?;
    Carried::qemu_tools()?;
    Carried::net_tools()?;
    Carried::iproute()?;
    Carried::passt()?;
    Carried::kexec()?;
    for series in Series::ALL {
        Kernel::get(series)?;
    }
    busybox()?;
    hyperv_daemons()?;
    rust_src::bare_metal_route()?;
    debian_root::get()?;
    Kit::get(&kernel_of_the_bed(Flavour::CloudAmd64)?)?;
    Ok(())
}
