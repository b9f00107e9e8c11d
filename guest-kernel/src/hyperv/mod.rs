//! The machine on Hyper-V: one VMBus, set up on every CPU, and the devices on it.
//!
//! [`bus`] is the order of steps that any kernel takes: make the [`VmBus`] on the first CPU, give
//! its interrupt a handler, start every other CPU's part; connecting comes after.

use crate::clock::Deadline;
use crate::cpu::{self, MAX_CPUS, hypervisor::Signature, smp, traps};
use crate::hal::KernelHal;
use alloc::format;
use alloc::string::{String, ToString};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::time::Duration;
use guest_vsc::Error;
use guest_vsc::bus::{BusMemory, Options, VmBus};
use spin::Once;
use vmbus_proto::version::Version;

/// The places for CPUs and offers.
static MEMORY: BusMemory<KernelHal, MAX_CPUS> = BusMemory::new();

static BUS: Once<VmBus<'static, KernelHal>> = Once::new();

/// Synthetic interrupts so far, on all CPUs.
static INTERRUPTS: AtomicU64 = AtomicU64::new(0);

/// Whether this machine is Hyper-V, or claims to be.
pub(crate) fn is_present() -> bool {
    Signature::read() == Some(Signature::HYPERV)
}

/// The bus, made at the first call; not necessarily connected.
pub(crate) fn bus() -> Result<&'static VmBus<'static, KernelHal>, String> {
    if let Some(bus) = BUS.get() {
        return Ok(bus);
    }
    traps::set_handler(traps::HYPERV, || {
        INTERRUPTS.fetch_add(1, Relaxed);
        if let Some(bus) = BUS.get() {
            bus.handle_interrupt();
        }
    });
    let bus = BUS
        .try_call_once(|| VmBus::new(&MEMORY, traps::HYPERV))
        .map_err(text)?;
    for cpu in 1..smp::online() {
        smp::run_on(cpu, start_cpu, Deadline::after(Duration::from_secs(10)));
        if bus.vp_index(cpu).is_none() {
            return Err(format!("the SynIC of CPU {cpu} does not start"));
        }
    }
    Ok(bus)
}

/// Runs on each CPU but the first.
fn start_cpu() {
    if let Some(bus) = BUS.get()
        && let Err(error) = bus.start_cpu()
    {
        crate::println!("CPU {}: {error}", cpu::index());
    }
}

/// The bus, connected with `options` unless it was already.
pub(crate) fn connected_bus(
    options: &Options,
) -> Result<&'static VmBus<'static, KernelHal>, String> {
    let bus = bus()?;
    if bus.version().is_none() {
        bus.connect(options).map_err(text)?;
    }
    Ok(bus)
}

/// Synthetic interrupts so far, on all CPUs.
pub(crate) fn interrupts() -> u64 {
    INTERRUPTS.load(Relaxed)
}

/// The version written as `5.3`.
pub(crate) fn parse_version(text: &str) -> Option<Version> {
    let (major, minor) = text.split_once('.')?;
    Some(Version::new(major.parse().ok()?, minor.parse().ok()?))
}

fn text(error: Error) -> String {
    error.to_string()
}
