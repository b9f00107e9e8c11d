//! The network adapter on Hyper-V: `guest-vsc`'s driver, as a device of `smoltcp`.

use super::KernelBus;
use crate::devices::Nic;
use crate::hal::KernelHal;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;
use guest_vsc::network::{self, Network, NetworkMemory, NetworkOptions, Phy};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::time::Instant;

/// Most queues of an adapter.
const QUEUES: usize = 4;

/// Places for frames on their way, and for those that wait in each queue: as many as by default.
const SENDS: usize = 64;
const FRAMES: usize = 256;

/// The places for frames. One adapter is open at a time.
static MEMORY: NetworkMemory<KernelHal, &'static mut [u8], SENDS, FRAMES, QUEUES> =
    NetworkMemory::new();

/// A synthetic network adapter.
pub(crate) struct VmbusNic {
    network: Network<'static, KernelHal>,
    /// One frame each way.
    receive: Vec<u8>,
    transmit: Vec<u8>,
    relid: u32,
}

impl VmbusNic {
    /// Opens the adapter that was offered as number `index`, counted from 0, with up to `queues`
    /// queues.
    pub(crate) fn open(
        bus: &'static KernelBus,
        index: u64,
        options: &NetworkOptions,
        queues: u64,
    ) -> Result<Self, String> {
        let offer = super::offer(bus, network::CLASS, index, "network")?;
        let network = Network::open_with_queues(bus, &offer, &MEMORY, options, queues as usize)
            .map_err(|error| format!("the adapter does not open: {error}"))?;
        let offloads = network.offloads();
        if offloads.tcp_ipv4 && offloads.tcp_ipv6 {
            crate::println!("checksums of TCP are the adapter's affair");
        }
        let frame = network.max_frame();
        Ok(Self {
            network,
            receive: vec![0; frame],
            transmit: vec![0; frame],
            relid: offer.relid(),
        })
    }

    fn phy(&mut self) -> Phy<'_, 'static, KernelHal> {
        Phy::new(&self.network, &mut self.receive, &mut self.transmit)
    }
}

impl Nic for VmbusNic {
    fn name(&self) -> String {
        format!("VMBus network, channel {}", self.relid)
    }

    fn mac(&self) -> [u8; 6] {
        self.network.mac_address()
    }

    fn queues(&self) -> Vec<(u64, u64)> {
        let stats = (0..self.network.queues()).filter_map(|queue| self.network.queue_stats(queue));
        stats.map(|stats| (stats.received, stats.sent)).collect()
    }

    fn interface(&mut self, config: Config, now: Instant) -> Interface {
        Interface::new(config, &mut self.phy(), now)
    }

    fn poll(&mut self, now: Instant, interface: &mut Interface, sockets: &mut SocketSet<'_>) {
        interface.poll(now, &mut self.phy(), sockets);
    }

    fn rest(&mut self, longest: Duration) -> Result<(), String> {
        let waited = self.network.wait_until_ready(longest);
        waited.map(|_| ()).map_err(|error| error.to_string())
    }

    fn troubles(&self) -> Option<String> {
        let stats = self.network.stats();
        // What found no place was lost on this side of the wire, and TCP has sent it again.
        let none = stats.bad == 0 && stats.lost == 0 && stats.refused == 0;
        (!none).then(|| format!("{stats:?}"))
    }
}
