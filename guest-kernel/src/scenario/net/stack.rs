//! A TCP/IP stack over the machine's adapter, with an address by DHCP.

use crate::clock::{self, Deadline};
use crate::devices::Nic;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use core::time::Duration;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::{AnySocket, dhcpv4};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Address, Ipv4Cidr};

/// The longest sleep: a wake-up that got lost costs this much.
const LONGEST_REST: Duration = Duration::from_millis(20);

/// The stack.
pub(crate) struct Stack {
    pub(super) nic: Box<dyn Nic>,
    pub(super) interface: Interface,
    sockets: SocketSet<'static>,
    /// The address, and the way out of the net, where there is one.
    pub(super) address: Ipv4Cidr,
    pub(super) router: Option<Ipv4Address>,
    next_port: u16,
}

impl Stack {
    /// Asks for an address until `deadline`.
    pub(crate) fn new(mut nic: Box<dyn Nic>, deadline: Deadline) -> Result<Self, String> {
        let mut config = Config::new(EthernetAddress(nic.mac()).into());
        // Ports and sequence numbers begin elsewhere each time.
        let seed = clock::now().as_nanos() as u64;
        config.random_seed = seed;
        let interface = nic.interface(config, now());
        let mut stack = Self {
            nic,
            interface,
            sockets: SocketSet::new(vec![]),
            address: Ipv4Cidr::new(Ipv4Address::UNSPECIFIED, 0),
            router: None,
            next_port: 0xC000 | (seed >> 10) as u16 & 0x3FFF,
        };
        let dhcp = stack.add(dhcpv4::Socket::new());
        stack.wait("an address by DHCP", deadline, |stack| {
            let event = stack.get::<dhcpv4::Socket<'_>>(dhcp).poll();
            let Some(dhcpv4::Event::Configured(lease)) = event else {
                return Ok(None);
            };
            let (address, router) = (lease.address, lease.router);
            (stack.address, stack.router) = (address, router);
            Ok(Some(()))
        })?;
        let address = IpCidr::Ipv4(stack.address);
        // There is room for one.
        stack.interface.update_ip_addrs(|addresses| {
            let _ = addresses.push(address);
        });
        if let Some(router) = stack.router {
            let _ = stack.interface.routes_mut().add_default_ipv4_route(router);
        }
        Ok(stack)
    }

    pub(super) fn add<S: AnySocket<'static>>(&mut self, socket: S) -> SocketHandle {
        self.sockets.add(socket)
    }

    pub(super) fn get<S: AnySocket<'static>>(&mut self, socket: SocketHandle) -> &mut S {
        self.sockets.get_mut(socket)
    }

    /// A socket together with what it needs of the stack to connect.
    pub(super) fn with_interface<S: AnySocket<'static>>(
        &mut self,
        socket: SocketHandle,
    ) -> (&mut S, &mut Interface) {
        (self.sockets.get_mut(socket), &mut self.interface)
    }

    pub(super) fn remove(&mut self, socket: SocketHandle) {
        self.sockets.remove(socket);
    }

    /// A port that was not used a moment ago.
    pub(super) fn port(&mut self) -> u16 {
        self.next_port = self.next_port.wrapping_add(1) | 0xC000;
        self.next_port
    }

    /// Has the stack work until `done` has a value.
    pub(super) fn wait<T>(
        &mut self,
        what: &str,
        deadline: Deadline,
        mut done: impl FnMut(&mut Self) -> Result<Option<T>, String>,
    ) -> Result<T, String> {
        loop {
            self.nic.poll(now(), &mut self.interface, &mut self.sockets);
            if let Some(value) = done(self)? {
                // What was said last is to go out, too.
                self.nic.poll(now(), &mut self.interface, &mut self.sockets);
                return Ok(value);
            }
            if deadline.passed() {
                return Err(format!("{what} did not come in time"));
            }
            let now = now();
            self.nic.poll(now, &mut self.interface, &mut self.sockets);
            let delay = self.interface.poll_delay(now, &self.sockets);
            let delay = delay.map_or(LONGEST_REST, Duration::from);
            if !delay.is_zero() {
                self.nic.rest(delay.min(LONGEST_REST))?;
            }
        }
    }
}

fn now() -> Instant {
    Instant::from_micros(clock::now().as_micros() as i64)
}
