//! The machine on Hyper-V: one VMBus, set up on every CPU, and the devices on it.
//!
//! [`bus`] is the order of steps that any kernel takes: make the [`VmBus`] on the first CPU, give
//! its interrupt a handler, start every other CPU's part; connecting comes after.

mod console;
mod disk;
mod network;

pub(crate) use console::VmbusConsole;
pub(crate) use disk::{KernelStorage, REQUESTS, VmbusDisk};
pub(crate) use network::VmbusNic;

use crate::clock::Deadline;
use crate::cpu::{self, MAX_CPUS, hypervisor::Signature, smp, traps};
use crate::hal::KernelHal;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::time::Duration;
use guest_vsc::Error;
use guest_vsc::bus::{BusMemory, Offer, Options, VmBus};
use spin::Once;
use vmbus_proto::guid::Guid;
use vmbus_proto::version::Version;

/// The places for CPUs and offers.
static MEMORY: BusMemory<KernelHal, MAX_CPUS> = BusMemory::new();

/// The bus with this kernel under it.
pub(crate) type KernelBus = VmBus<'static, KernelHal>;

static BUS: Once<KernelBus> = Once::new();

/// Synthetic interrupts so far, by CPU.
static INTERRUPTS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// Whether this machine is Hyper-V, or claims to be.
pub(crate) fn is_present() -> bool {
    Signature::read() == Some(Signature::HYPERV)
}

/// The bus, made at the first call; not necessarily connected.
pub(crate) fn bus() -> Result<&'static KernelBus, String> {
    if let Some(bus) = BUS.get() {
        return Ok(bus);
    }
    traps::set_handler(traps::HYPERV, interrupted);
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

/// The handler of the synthetic interrupt, on every CPU.
fn interrupted() {
    let cpu = cpu::index();
    INTERRUPTS[cpu].fetch_add(1, Relaxed);
    let Some(bus) = BUS.get() else { return };
    let handled = bus.handle_interrupt();
    // Scenarios run on the first CPU: what another one hears may be what that one waits for.
    if cpu != 0 && handled.events > 0 {
        smp::wake(0);
    }
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
pub(crate) fn connected_bus(options: &Options) -> Result<&'static KernelBus, String> {
    let bus = bus()?;
    if bus.version().is_none() {
        bus.connect(options).map_err(text)?;
    }
    Ok(bus)
}

/// Says good-bye to the host, where connected. All devices are closed.
pub(crate) fn disconnect() -> Result<(), String> {
    match BUS.get() {
        Some(bus) if bus.version().is_some() => bus.unload().map_err(text),
        _ => Ok(()),
    }
}

/// The primary channel of `class` that was offered as number `index`, counted from 0.
pub(crate) fn offer(bus: &KernelBus, class: Guid, index: u64, what: &str) -> Result<Offer, String> {
    let mut offers: Vec<_> = bus
        .offers()
        .filter(|offer| offer.class() == class && offer.sub_channel_index() == 0)
        .collect();
    offers.sort_by_key(Offer::relid);
    let found = offers.get(index as usize).copied();
    found.ok_or_else(|| format!("there is no {what} channel number {index}"))
}

/// Synthetic interrupts so far, on CPU `cpu`.
pub(crate) fn interrupts(cpu: usize) -> u64 {
    INTERRUPTS[cpu].load(Relaxed)
}

/// The version written as `5.3`.
pub(crate) fn parse_version(text: &str) -> Option<Version> {
    let (major, minor) = text.split_once('.')?;
    Some(Version::new(major.parse().ok()?, minor.parse().ok()?))
}

fn text(error: Error) -> String {
    error.to_string()
}
