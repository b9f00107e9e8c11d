//! The network adapter of virtio, as a device of `smoltcp`.

use crate::cpu;
use crate::devices::Nic;
use crate::hal::Kernel;
use alloc::string::String;
use core::cell::RefCell;
use core::time::Duration;
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use virtio_drivers::device::net::{RxBuffer, VirtIONet};
use virtio_drivers::transport::pci::PciTransport;
use x86_64::instructions::interrupts;

/// Buffers each way; the driver with its tables is moved about on the stack when it is made.
const QUEUE: usize = 16;

/// Bytes of each: a frame and the device's header.
const BUFFER: usize = 2048;

/// Most bytes of a frame.
const FRAME: usize = 1514;

/// The crate polls, so that nobody tells when a frame comes: look this often.
const LONGEST_REST: Duration = Duration::from_micros(200);

type Driver = VirtIONet<Kernel, PciTransport, QUEUE>;

/// A virtio network adapter.
pub(super) struct VirtioNic(RefCell<Driver>);

impl VirtioNic {
    pub(super) fn new(transport: PciTransport) -> virtio_drivers::Result<Self> {
        VirtIONet::new(transport, BUFFER).map(|driver| Self(RefCell::new(driver)))
    }
}

impl Nic for VirtioNic {
    fn name(&self) -> String {
        "virtio network".into()
    }

    fn mac(&self) -> [u8; 6] {
        self.0.borrow().mac_address()
    }

    fn interface(&mut self, config: Config, now: Instant) -> Interface {
        Interface::new(config, &mut Phy(&self.0), now)
    }

    fn poll(&mut self, now: Instant, interface: &mut Interface, sockets: &mut SocketSet<'_>) {
        interface.poll(now, &mut Phy(&self.0), sockets);
    }

    fn rest(&mut self, longest: Duration) -> Result<(), String> {
        interrupts::disable();
        cpu::doze(longest.min(LONGEST_REST));
        Ok(())
    }

    fn troubles(&self) -> Option<String> {
        None
    }
}

struct Phy<'a>(&'a RefCell<Driver>);

impl<'d> Device for Phy<'d> {
    type RxToken<'a>
        = RxToken<'d>
    where
        Self: 'a;
    type TxToken<'a>
        = TxToken<'d>
    where
        Self: 'a;

    fn receive(&mut self, _now: Instant) -> Option<(RxToken<'d>, TxToken<'d>)> {
        let mut driver = self.0.borrow_mut();
        if !driver.can_send() || !driver.can_recv() {
            return None;
        }
        let buffer = driver.receive().ok()?;
        Some((RxToken(self.0, buffer), TxToken(self.0)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<TxToken<'d>> {
        self.0.borrow().can_send().then_some(TxToken(self.0))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME;
        capabilities
    }
}

struct RxToken<'a>(&'a RefCell<Driver>, RxBuffer);

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let Self(driver, buffer) = self;
        let result = f(buffer.packet());
        // A buffer that does not go back is one less to receive into.
        if let Err(error) = driver.borrow_mut().recycle_rx_buffer(buffer) {
            crate::println!("virtio network: {error}");
        }
        result
    }
}

struct TxToken<'a>(&'a RefCell<Driver>);

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut driver = self.0.borrow_mut();
        let mut buffer = driver.new_tx_buffer(length);
        let result = f(buffer.packet_mut());
        if let Err(error) = driver.send(buffer) {
            crate::println!("virtio network: {error}");
        }
        result
    }
}
