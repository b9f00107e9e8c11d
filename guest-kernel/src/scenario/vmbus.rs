//! The bus itself: contact, refusal, good-bye and contact again.

use super::{Machine, Outcome, Scenario};
use crate::hal::KernelHal;
use crate::{hyperv, println};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use guest_vsc::Error;
use guest_vsc::bus::{Options, Versions, VmBus};
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
        about: "connects, unloads and connects again, three times",
        run: reconnect,
    },
];

/// A version that no host speaks.
const UNKNOWN: Version = Version::new(9, 9);

/// How the command line wants the bus connected.
pub(super) fn options(machine: &Machine<'_>) -> Result<Options, String> {
    let mut options = Options::default();
    if let Some(version) = version(machine, "vmbus.max_version")? {
        options.versions = Versions::UpTo(version);
    }
    options.timeout = machine.options.seconds("vmbus.seconds", 10)?;
    Ok(options)
}

fn version(machine: &Machine<'_>, key: &str) -> Result<Option<Version>, String> {
    let Some(text) = machine.options.text(key) else {
        return Ok(None);
    };
    let version = hyperv::parse_version(text);
    version
        .map(Some)
        .ok_or_else(|| format!("{key}={text} is not a version: write it as 5.3"))
}

fn contact(machine: &mut Machine<'_>) -> Outcome {
    let bus = hyperv::connected_bus(&options(machine)?)?;
    let version = bus.version().ok_or("the bus lost its connection")?;
    let offers = offers(bus);
    println!("VMBus {version}, {} channels offered", offers.len());
    offers.iter().for_each(|offer| println!("{offer}"));
    match self::version(machine, "vmbus.expect")? {
        Some(expected) if expected != version => Err(format!(
            "VMBus {version} was negotiated, {expected} was expected"
        )),
        _ => Ok(()),
    }
}

/// The offers in words, in the order of their relids.
fn offers(bus: &VmBus<'_, KernelHal>) -> Vec<String> {
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
    let unknown = version(machine, "vmbus.unknown")?.unwrap_or(UNKNOWN);
    machine.close_devices();
    let bus = hyperv::bus()?;
    if bus.version().is_some() {
        bus.unload().map_err(|error| error.to_string())?;
    }
    let known = options(machine)?;
    let asked = Options {
        versions: Versions::Exactly(unknown),
        ..known
    };
    match bus.connect(&asked) {
        Err(Error::VersionRefused(version)) if version == unknown => {
            println!("VMBus {unknown} was refused");
        }
        other => return Err(format!("asked for VMBus {unknown}: {other:?}")),
    }
    let version = bus.connect(&known).map_err(|error| error.to_string())?;
    println!("VMBus {version} was negotiated after that");
    Ok(())
}

fn reconnect(machine: &mut Machine<'_>) -> Outcome {
    machine.close_devices();
    let options = options(machine)?;
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
