//! Guest drivers against host devices in one process, with no VM.
//!
//! [`FakeHypervisor`] stands between them: to the host it is a
//! [`Partition`](host_vsp::hv::Partition) (RAM, messages, interrupts, doorbells), to the guest,
//! through [`FakeHal`], the privileged instructions. A thread becomes a virtual processor by
//! [`FakeHypervisor::enter`]; whatever drivers it runs then talk to that hypervisor.
//!
//! ```
//! use guest_vsc::bus::{BusMemory, Options, VmBus};
//! use inproc::{FakeHal, FakeHypervisor, VECTOR};
//!
//! let hypervisor = FakeHypervisor::new(1);
//! let host = host_vsp::vmbus::VmBus::new(hypervisor.partition()).unwrap();
//! hypervisor.serve(host);
//! let _cpu = hypervisor.enter(0);
//! let memory = BusMemory::<FakeHal, 1, 4>::new();
//! let bus = VmBus::new(&memory, VECTOR).unwrap();
//! assert_eq!(bus.connect(&Options::default()).unwrap().to_string(), "5.3");
//! bus.unload().unwrap();
//! ```
//!
//! Like real hardware it is unforgiving: an MSR that does not exist, a hypercall without its page
//! or a page freed twice panics.

mod buffer;
mod hal;
mod hypervisor;
mod pages;
mod script;
mod synic;

pub use buffer::RamBuffer;
pub use hal::{Entered, FakeHal};
pub use hypervisor::{Counts, FakeHypervisor};
pub use script::{Script, ScriptedHost};

/// The interrupt vector that the stories use.
pub const VECTOR: u8 = 0xF3;
