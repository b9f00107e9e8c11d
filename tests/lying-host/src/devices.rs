//! The honest devices behind the lies.

use std::io::{self, Read};
use std::time::Duration;

use host_vsp::console::{Console, Streams};
use host_vsp::storage::{Backend, Controller, ControllerClass, Disk};
use host_vsp::vsp::Vsp;
use vm_memory::VolatileSlice;
use vmbus_proto::guid::Guid;

use crate::liar::Liar;
use crate::lies;

/// Instance of the controller.
const CONTROLLER: Guid = Guid::new(0x6c1e_11a5, 0x1e5d, 0x4f0e, 0x8d21, 0x0000_0000_0001);

/// Bytes of the disk.
const DISK: u64 = 64 << 20;

/// A console that always has something to say, and a disk.
pub(crate) fn all(seed: u64, cpus: u32) -> anyhow::Result<Vec<Box<dyn Vsp>>> {
    let console = Console::new(Streams::new(Some(Box::new(Chatter)), Box::new(io::sink()))?);
    let mut controller = Controller::new(CONTROLLER)?
        .with_class(ControllerClass::Disk)
        .with_channels_for(cpus);
    controller.attach(0, Disk::new(NoBlocks))?;
    Ok(vec![
        Box::new(Liar::new(Box::new(console), lies::of_a_console, seed)),
        Box::new(Liar::new(Box::new(controller), lies::of_a_disk, !seed)),
    ])
}

/// Some bytes at a time, for ever.
struct Chatter;

impl Read for Chatter {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        std::thread::sleep(Duration::from_millis(1));
        let length = to.len().min(500);
        to.iter_mut().take(length).for_each(|byte| *byte = b'.');
        Ok(length)
    }
}

/// A disk that is asked in vain: it says that all went well and touches nothing.
struct NoBlocks;

impl Backend for NoBlocks {
    fn size(&self) -> u64 {
        DISK
    }

    fn read_only(&self) -> bool {
        false
    }

    fn can_unmap(&self) -> bool {
        true
    }

    fn read(&self, _offset: u64, _to: &[VolatileSlice<'_>]) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, _offset: u64, _from: &[VolatileSlice<'_>], _durable: bool) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn unmap(&self, _offset: u64, _length: u64) -> io::Result<()> {
        Ok(())
    }
}
