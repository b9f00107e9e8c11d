//! PCI configuration space through the two I/O ports that every PC has: an address goes to the
//! one, data comes from the other.
#![expect(unsafe_code, reason = "the trait has an unsafe method")]

use crate::cpu::port;
use spin::Mutex;
use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};

const ADDRESS: u16 = 0xCF8;
const DATA: u16 = 0xCFC;

/// An access takes two steps; nobody may come in between.
static PORTS: Mutex<()> = Mutex::new(());

pub(super) struct PortAccess;

fn select(function: DeviceFunction, register_offset: u8) {
    let enable = 1 << 31;
    let address = u32::from(function.bus) << 16
        | u32::from(function.device) << 11
        | u32::from(function.function) << 8
        | u32::from(register_offset & !0b11);
    port::write32(ADDRESS, enable | address);
}

impl ConfigurationAccess for PortAccess {
    fn read_word(&self, function: DeviceFunction, register_offset: u8) -> u32 {
        let _ports = PORTS.lock();
        select(function, register_offset);
        port::read32(DATA)
    }

    fn write_word(&mut self, function: DeviceFunction, register_offset: u8, data: u32) {
        let _ports = PORTS.lock();
        select(function, register_offset);
        port::write32(DATA, data);
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self
    }
}
