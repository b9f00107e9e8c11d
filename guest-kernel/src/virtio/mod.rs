//! The machine without Hyper-V: virtio devices on the PCI bus, driven by the crate
//! `virtio-drivers`.
//!
//! Nothing here uses interrupts: the crate's blocking calls poll.

mod network;
mod pci;

use crate::clock::Deadline;
use crate::devices::{Console, Disk, DiskError, Nic};
use crate::hal::Kernel;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use pci::PortAccess;
use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::device::console::VirtIOConsole;
use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::pci::bus::{Command, DeviceFunction, PciRoot};
use virtio_drivers::transport::pci::{PciTransport, virtio_device_type};

/// The first disk on PCI bus 0.
pub(crate) fn disk() -> Result<Box<dyn Disk>, String> {
    let transport = find(DeviceType::Block)?;
    let disk = VirtIOBlk::<Kernel, _>::new(transport)
        .map_err(|error| format!("the virtio disk does not start: {error}"))?;
    Ok(Box::new(VirtioDisk(disk)))
}

/// The first console on PCI bus 0.
pub(crate) fn console() -> Result<Box<dyn Console>, String> {
    let transport = find(DeviceType::Console)?;
    let console = VirtIOConsole::<Kernel, _>::new(transport)
        .map_err(|error| format!("the virtio console does not start: {error}"))?;
    Ok(Box::new(VirtioConsole(console)))
}

/// The first network adapter on PCI bus 0.
pub(crate) fn network() -> Result<Box<dyn Nic>, String> {
    let transport = find(DeviceType::Network)?;
    let adapter = network::VirtioNic::new(transport)
        .map_err(|error| format!("the virtio network does not start: {error}"))?;
    Ok(Box::new(adapter))
}

fn find(wanted: DeviceType) -> Result<PciTransport, String> {
    let mut root = PciRoot::new(PortAccess);
    let found = root
        .enumerate_bus(0)
        .find(|(_, info)| virtio_device_type(info) == Some(wanted));
    let Some((function, _)) = found else {
        return Err(format!("there is no virtio device of type {wanted:?}"));
    };
    open(&mut root, function)
        .map_err(|error| format!("virtio {wanted:?} at PCI {function}: {error}"))
}

fn open(root: &mut PciRoot<PortAccess>, function: DeviceFunction) -> Result<PciTransport, String> {
    let (_, command) = root.get_status_command(function);
    root.set_command(
        function,
        command | Command::MEMORY_SPACE | Command::BUS_MASTER,
    );
    PciTransport::new::<Kernel, _>(root, function).map_err(|error| error.to_string())
}

struct VirtioDisk(VirtIOBlk<Kernel, PciTransport>);

impl Disk for VirtioDisk {
    fn name(&self) -> String {
        "virtio disk".into()
    }

    fn blocks(&self) -> u64 {
        self.0.capacity()
    }

    fn block_bytes(&self) -> usize {
        SECTOR_SIZE
    }

    fn is_read_only(&self) -> bool {
        self.0.readonly()
    }

    fn read(&mut self, lba: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.0.read_blocks(lba as usize, buffer).map_err(other)
    }

    fn write(&mut self, lba: u64, data: &[u8]) -> Result<(), DiskError> {
        self.0.write_blocks(lba as usize, data).map_err(other)
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        self.0.flush().map_err(other)
    }
}

fn other(error: virtio_drivers::Error) -> DiskError {
    DiskError::Other(error.to_string())
}

struct VirtioConsole(VirtIOConsole<Kernel, PciTransport>);

impl Console for VirtioConsole {
    fn name(&self) -> String {
        "virtio console".into()
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.0.send_bytes(bytes).map_err(|error| error.to_string())
    }

    fn receive(&mut self, buffer: &mut [u8], deadline: Deadline) -> Result<usize, String> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.0.recv(true).map_err(|error| error.to_string())? {
                Some(byte) => {
                    buffer[filled] = byte;
                    filled += 1;
                }
                None if filled > 0 || deadline.passed() => break,
                None => core::hint::spin_loop(),
            }
        }
        Ok(filled)
    }
}
