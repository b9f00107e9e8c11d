//! Guest drivers against host devices in one process, with no VM.
//!
//! [`FakeHypervisor`] stands between them: to the host it is a
//! [`Partition`](host_vsp::hv::Partition) (RAM, messages, interrupts, doorbells), to the guest,
//! through [`FakeHal`], the privileged instructions. A thread becomes a virtual processor by
//! [`FakeHypervisor::enter`]; whatever drivers it runs then talk to that hypervisor.
//!
//! ```
//! use guest_vsc::bus::{BusMemory, Options, VmBus};
//! use inproc::{FakeHal, Machine, VECTOR};
//!
//! let machine = Machine::new(1);
//! let (_, terminal) = machine.add_console();
//! let _cpu = machine.hypervisor.enter(0);
//! let memory = BusMemory::<FakeHal, 1, 4>::new();
//! let bus = VmBus::new(&memory, VECTOR).unwrap();
//! assert_eq!(bus.connect(&Options::default()).unwrap().to_string(), "5.3");
//! let offer = bus.find(guest_vsc::console::CLASS).unwrap();
//! let console = guest_vsc::console::Console::open(&bus, &offer, &Default::default()).unwrap();
//! console.write(b"hello").unwrap();
//! assert_eq!(terminal.shown(5), b"hello");
//! ```
//!
//! [`Machine`] is a hypervisor with the real host behind it; [`ScriptedHost`] is a host that
//! misbehaves as told.
//!
//! Like real hardware it is unforgiving: an MSR that does not exist, a hypercall without its page
//! or a page freed twice panics.

mod buffer;
mod hal;
mod hypervisor;
mod machine;
mod pages;
mod script;
mod synic;

use std::ops::Range;

pub use buffer::RamBuffer;
pub use hal::{Entered, FakeHal};
pub use hypervisor::{Counts, FakeHypervisor};
pub use machine::{Machine, Terminal};
pub use script::{Script, ScriptedHost};

/// The interrupt vector that the stories use.
pub const VECTOR: u8 = 0xF3;

/// The seeds of a story that is told for many: as many as `usual`, or as `soak` where `VMBUS_SOAK` is
/// set. With `VMBUS_SEED=n` only that one, to see it fail again.
pub fn seeds(usual: u64, soak: u64) -> Range<u64> {
    let chosen = std::env::var("VMBUS_SEED").ok();
    if let Some(seed) = chosen.and_then(|seed| seed.parse().ok()) {
        return seed..seed + 1;
    }
    match std::env::var_os("VMBUS_SOAK") {
        Some(_) => 0..soak,
        None => 0..usual,
    }
}
