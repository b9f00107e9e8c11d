//! The test bed: a real KVM with Hyper-V support on any x86-64 Linux machine, from the cache.
//!
//! ```text
//! QEMU (software emulation, -cpu EPYC) > L1: Debian kernel + kvm-amd > host-vsp > L2: the guest
//! ```
//!
//! * [`provision`] fetches what is missing into a [`cache`] outside the checkout; nothing is
//!   installed and root is not needed.
//! * [`cargo`] builds what runs in the bed: `host-vsp` (static), `guest-kernel`, the L1 agent.
//! * [`l1`] boots an L1 and runs commands in it.
//! * [`linux_module`] builds our modules for Linux guests.
//! * [`numbered`] is what a stock Linux guest writes where its host is to be killed.
//! * [`pattern`] is what the guest kernel writes.
//! * [`progress`] tells the user what takes time.
//!
//! # Running something in an L1
//!
//! ```no_run
//! use std::time::Duration;
//! # fn main() -> Result<(), bed::Error> {
//! let l1 = bed::l1::L1::boot()?;
//! let program = bed::cargo::host_vsp()?;
//! l1.put(&program, "/tmp/host-vsp")?;
//!
//! // Run to the end.
//! let output = l1.command("/tmp/host-vsp").arg("check").run(Duration::from_secs(20))?;
//! assert!(output.status.success(), "{output}");
//!
//! // Start, talk, wait.
//! let mut process = l1.command("/tmp/host-vsp").args(["run", "--kernel", "/tmp/k"]).spawn()?;
//! let line = process.expect("vmbus: version", Duration::from_secs(30))?;
//! process.write(b"hello\n")?;
//! process.signal(bed::l1::Signal::TERM)?;
//! let status = process.wait(Duration::from_secs(10))?;
//! # Ok(()) }
//! ```
//!
//! Every wait takes a deadline. When it passes, [`Error::Deadline`] carries the end of what the
//! process printed; if the L1 itself no longer answers, the error is [`Error::BedDied`] instead,
//! which is a fault of the bed and not of what runs in it.
//!
//! # Environment
//!
//! | variable | meaning |
//! |---|---|
//! | `VMBUS_CACHE` | cache directory (default `$XDG_CACHE_HOME/vmbus`, else `~/.cache/vmbus`) |
//! | `VMBUS_MIRROR` | Debian mirror to fetch from (default: the one of this machine's apt) |
//! | `VMBUS_QEMU` | a `qemu-system-x86_64` (10.0 or newer) to use instead of fetching one |
//! | `VMBUS_L1_KERNEL` | directory of an unpacked Debian `linux-image` package to use as L1 kernel |
//! | `VMBUS_BUSYBOX` | a static busybox to use in L1 |

pub mod cache;
pub mod cargo;
mod cpio;
mod error;
pub mod guest_command;
pub mod guest_initramfs;
pub mod guest_root_initramfs;
mod initramfs;
pub mod l1;
pub mod linux_module;
pub mod numbered;
pub mod pattern;
pub mod progress;
pub mod provision;
pub mod wire;

pub use error::{Error, Result};
