//! A hypervisor with the real host behind it, and devices with ends that a test can hold.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use host_vsp::console::{Console, Streams};
use host_vsp::ic::{Clock, Moment, Services};
use host_vsp::keyboard::Keyboard;
use host_vsp::network::backend::Backend;
use host_vsp::network::{Cable, Config, Network, QueueCounters};
use host_vsp::storage::{Controller, Disk};
use host_vsp::vmbus::{DeviceId, VmBus};
use vmbus_proto::guid::Guid;

use crate::FakeHypervisor;

/// The hypervisor, and the host's VMBus that serves its guest.
pub struct Machine {
    /// The hypervisor.
    pub hypervisor: FakeHypervisor,
    /// The host's end of the bus.
    pub host: Arc<VmBus>,
}

impl Machine {
    /// A machine with `vps` processors and no devices.
    pub fn new(vps: u32) -> Self {
        let hypervisor = FakeHypervisor::new(vps);
        let host = VmBus::new(hypervisor.partition()).expect("a thread");
        let host = Arc::new(host);
        hypervisor.serve_shared(host.clone());
        Self { hypervisor, host }
    }

    /// Offers a controller with `disk` at LUN 0.
    pub fn add_disk(&self, disk: impl Into<Disk>) -> DeviceId {
        self.add_disks([(0, disk)])
    }

    /// Offers a controller with these disks.
    pub fn add_disks<D: Into<Disk>>(&self, disks: impl IntoIterator<Item = (u8, D)>) -> DeviceId {
        let instance = Guid::new(0x1111_2222, 3, 4, 5, 6);
        let mut controller = Controller::new(instance).expect("threads");
        for (lun, disk) in disks {
            controller.attach(lun, disk).expect("a free LUN");
        }
        self.host.offer(Box::new(controller)).expect("a relid")
    }

    /// Offers a keyboard and returns its other end.
    pub fn add_keyboard(&self) -> (DeviceId, Keyboard) {
        let (device, keyboard) = Keyboard::new().expect("an eventfd");
        (self.host.offer(device).expect("a relid"), keyboard)
    }

    /// Offers a network adapter before `net`, with address 02:00:00:00:00:`number`; returns its cable
    /// and its counters.
    pub fn add_network(
        &self,
        number: u8,
        mtu: u32,
        net: impl Backend + 'static,
    ) -> (DeviceId, Cable, QueueCounters) {
        let (id, cable, counters) = self.add_network_with_queues(number, mtu, [net]);
        let [counters] = counters;
        (id, cable, counters)
    }

    /// The same with a queue for each of `nets`.
    pub fn add_network_with_queues<const QUEUES: usize>(
        &self,
        number: u8,
        mtu: u32,
        nets: [impl Backend + 'static; QUEUES],
    ) -> (DeviceId, Cable, [QueueCounters; QUEUES]) {
        let config = Config {
            instance: Guid::new(0x3333_4444, 3, 4, 5, number.into()),
            mac: [2, 0, 0, 0, 0, number],
            mtu,
            queues: QUEUES as u16,
        };
        let cable = Cable::new().expect("an eventfd");
        let counters = [(); QUEUES].map(|()| QueueCounters::default());
        let queues = nets.into_iter().zip(counters.clone());
        let queues = queues.map(|(net, counters)| (Box::new(net) as Box<dyn Backend>, counters));
        let adapter = Network::new(config, queues.collect(), cable.clone());
        let adapter = adapter.expect("an epoll");
        let id = self.host.offer(Box::new(adapter)).expect("a relid");
        (id, cable, counters)
    }

    /// Offers all integration services and returns their other ends. The host's clock is the
    /// system's; the reference clock is the hypervisor's.
    pub fn add_services(&self) -> (Vec<DeviceId>, Services) {
        let clock = Arc::new(self.hypervisor.clone());
        let (devices, services) = Services::new(clock).expect("file descriptors");
        let offer = |device| self.host.offer(device).expect("a relid");
        (devices.into_iter().map(offer).collect(), services)
    }

    /// Offers a console and returns its other end.
    pub fn add_console(&self) -> (DeviceId, Terminal) {
        let terminal = Terminal::default();
        let (input, output) = (terminal.typed.clone(), terminal.shown.clone());
        let streams = Streams::new(Some(Box::new(input)), Box::new(output)).expect("threads");
        let console = Console::new(streams);
        let id = self.host.offer(Box::new(console)).expect("a relid");
        (id, terminal)
    }
}

impl Clock for FakeHypervisor {
    fn now(&self) -> Option<Moment> {
        let host = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        let reference = self.reference_time();
        Some(Moment { host, reference })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Hypervisor and host hold each other.
        self.hypervisor.unserve();
    }
}

/// The other end of a console.
#[derive(Clone, Default)]
pub struct Terminal {
    typed: Pipe,
    shown: Pipe,
}

impl Terminal {
    /// Sends bytes to the guest.
    pub fn type_in(&self, bytes: &[u8]) {
        self.typed
            .clone()
            .write_all(bytes)
            .expect("a pipe in memory");
    }

    /// Holds back what the guest writes, or lets it through.
    pub fn hold(&self, held: bool) {
        self.shown.shared.0.lock().unwrap().held = held;
        self.shown.shared.1.notify_all();
    }

    /// Waits until the guest has written `length` bytes, and takes them.
    pub fn shown(&self, length: usize) -> Vec<u8> {
        let (queue, changed) = &*self.shown.shared;
        let end = Instant::now() + Duration::from_secs(10);
        let mut queue = queue.lock().unwrap();
        while queue.bytes.len() < length {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "only {} bytes came", queue.bytes.len());
            queue = changed.wait_timeout(queue, left).unwrap().0;
        }
        queue.bytes.drain(..length).collect()
    }
}

/// A pipe in memory.
#[derive(Clone, Default)]
struct Pipe {
    shared: Arc<(Mutex<Queue>, Condvar)>,
}

#[derive(Default)]
struct Queue {
    bytes: VecDeque<u8>,
    /// Writers wait.
    held: bool,
}

impl Read for Pipe {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let (queue, changed) = &*self.shared;
        let mut queue = queue.lock().unwrap();
        while queue.bytes.is_empty() {
            queue = changed.wait(queue).unwrap();
        }
        queue.bytes.read(to)
    }
}

impl Write for Pipe {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        let (queue, changed) = &*self.shared;
        let mut queue = queue.lock().unwrap();
        while queue.held {
            queue = changed.wait(queue).unwrap();
        }
        queue.bytes.extend(from);
        changed.notify_all();
        Ok(from.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
