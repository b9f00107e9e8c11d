//! The network: an address by DHCP, an echo, and TCP both ways.

mod flows;
mod ping;
mod stack;
mod tcp;

pub(super) use stack::Stack;

use super::machine::Machine;
use super::{Outcome, Scenario};
use crate::clock::Deadline;
use crate::println;
use alloc::format;
use alloc::string::String;
use smoltcp::wire::Ipv4Address;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "network",
        about: "an address by DHCP, and echoes of the router (net.index=0, net.mtu=1500, net.queues=1, net.seconds=60)",
        run: address_and_echo,
    },
    Scenario {
        name: "tcp-fetch",
        about: "all that a server sends, and its SHA-256 (net.server=ROUTER, net.fetch=7002)",
        run: tcp::fetch,
    },
    Scenario {
        name: "tcp-push",
        about: "a pattern to a server, and its SHA-256 (net.server=ROUTER, net.push=7001, net.bytes=65536, seed=)",
        run: tcp::push,
    },
    Scenario {
        name: "tcp-flows",
        about: "many connections at a time to a server that sends back what it gets (net.server=ROUTER, net.echoes=7003, net.flows=16, net.bytes=65536, seed=)",
        run: flows::flows,
    },
    Scenario {
        name: "tcp-echo",
        about: "one connection is taken, and sent back what it sends (net.echo=7)",
        run: tcp::echo,
    },
];

fn address_and_echo(machine: &mut Machine<'_>) -> Outcome {
    let deadline = deadline(machine)?;
    let stack = machine.network()?;
    let router = stack.router.ok_or("DHCP named no router")?;
    println!(
        "{}: address {} by DHCP, router {router}",
        stack.nic.name(),
        stack.address
    );
    ping::run(stack, router, deadline)?;
    none_lost(stack)
}

/// The end of a scenario that begins now.
fn deadline(machine: &Machine<'_>) -> Result<Deadline, String> {
    machine
        .options
        .seconds("net.seconds", 60)
        .map(Deadline::after)
}

/// That the driver had no trouble.
fn none_lost(stack: &Stack) -> Outcome {
    match stack.nic.troubles() {
        None => Ok(()),
        Some(troubles) => Err(format!("frames were lost: {troubles}")),
    }
}

/// The server that the command line names, or the router.
fn server(machine: &mut Machine<'_>) -> Result<Ipv4Address, String> {
    match machine.options.text("net.server") {
        Some(text) => text
            .parse()
            .map_err(|_| format!("net.server={text} is no address: write it as 10.0.2.2")),
        None => machine
            .network()?
            .router
            .ok_or_else(|| "DHCP named no router: say net.server=".into()),
    }
}

/// The port that `key` is set to, or `default`.
fn port(machine: &Machine<'_>, key: &str, default: u16) -> Result<u16, String> {
    let number = machine.options.number(key, default.into())?;
    u16::try_from(number).map_err(|_| format!("{key}={number} is no port"))
}
