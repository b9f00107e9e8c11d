//! The bus itself: contact, refusal, good-bye and contact again.

use super::machine::Machine;
use super::{Outcome, Scenario};
use crate::cpu::smp;
use crate::hyperv::{self, KernelBus};
use crate::println;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use guest_vsc::Error;
use guest_vsc::bus::{Options, Versions};
use vmbus_proto::version::Version;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "contact",
        about: "connects to VMBus and lists the offers (vmbus.max_version=, vmbus.expect=, as 5.3)",
        run: contact,
    },
    Scenario {
        name: "refusal",
        about: "asks for a version nobody speaks (vmbus.unknown=9.9), is refused, connects after that",
        run: refusal,
    },
    Scenario {
        name: "reconnect",
        about: "unloads and connects again, three times",
        run: reconnect,
    },
    Scenario {
        name: "retarget",
        about: "reads while the disk's channel interrupts each CPU in turn (protocol 4.1 or later)",
        run: retarget,
    },
];

/// A version that no host speaks.
const UNKNOWN: Version = Version::new(9, 9);

fn contact(machine: &mut Machine<'_>) -> Outcome {
    let bus = machine.connected_bus()?;
    let version = bus.version().ok_or("the bus lost its connection")?;
    let offers = offers(bus);
    println!("VMBus {version}, {} channels offered", offers.len());
    offers.iter().for_each(|offer| println!("{offer}"));
    match machine.version("vmbus.expect")? {
        Some(expected) if expected != version => Err(format!(
            "VMBus {version} was negotiated, {expected} was expected"
        )),
        _ => Ok(()),
    }
}

/// The offers in words, in the order of their relids.
fn offers(bus: &KernelBus) -> Vec<String> {
    let mut offers: Vec<_> = bus.offers().collect();
    offers.sort_by_key(|offer| offer.relid());
    let words = offers.iter().map(|offer| {
        format!(
            "offer: relid {}, class {}, instance {}",
            offer.relid(),
            offer.class(),
            offer.instance()
        )
    });
    words.collect()
}

fn refusal(machine: &mut Machine<'_>) -> Outcome {
    let unknown = machine.version("vmbus.unknown")?.unwrap_or(UNKNOWN);
    machine.close_devices();
    hyperv::disconnect()?;
    let bus = hyperv::bus()?;
    let asked = Options {
        versions: Versions::Exactly(unknown),
        ..machine.bus_options()?
    };
    match bus.connect(&asked) {
        Err(Error::VersionRefused(version)) if version == unknown => {
            println!("VMBus {unknown} was refused");
        }
        other => return Err(format!("asked for VMBus {unknown}: {other:?}")),
    }
    let version = bus
        .connect(&machine.bus_options()?)
        .map_err(|error| error.to_string())?;
    println!("VMBus {version} was negotiated after that");
    Ok(())
}

fn reconnect(machine: &mut Machine<'_>) -> Outcome {
    machine.close_devices();
    let options = machine.bus_options()?;
    let bus = hyperv::connected_bus(&options)?;
    let (version, before) = (bus.version(), offers(bus));
    for round in 1..=3 {
        bus.unload()
            .map_err(|error| format!("unload {round}: {error}"))?;
        if bus.version().is_some() || bus.offers().next().is_some() {
            return Err(format!(
                "something is left of the connection after unload {round}"
            ));
        }
        bus.connect(&options)
            .map_err(|error| format!("connection {round}: {error}"))?;
        let after = offers(bus);
        if bus.version() != version || after != before {
            return Err(format!(
                "connection {round} differs: {:?}, {after:?}",
                bus.version()
            ));
        }
    }
    println!("three times unloaded and connected again: the same version and offers");
    Ok(())
}

fn retarget(machine: &mut Machine<'_>) -> Outcome {
    const READS: u64 = 100;
    let block = machine.disk()?.block_bytes();
    let storage = machine.storage()?;
    let mut buffer = vec![0; block];
    for cpu in (0..smp::online()).rev() {
        storage
            .channel()
            .set_cpu(cpu)
            .map_err(|error| format!("CPU {cpu}: {error}"))?;
        let before = hyperv::interrupts(cpu);
        for _ in 0..READS {
            storage
                .read_blocks(0, &mut buffer)
                .map_err(|error| error.to_string())?;
        }
        let taken = hyperv::interrupts(cpu) - before;
        println!("{READS} reads interrupted CPU {cpu} {taken} times");
        if taken == 0 {
            return Err(format!("no interrupt came to CPU {cpu}"));
        }
    }
    Ok(())
}
