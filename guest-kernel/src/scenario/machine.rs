//! What scenarios have at hand: the command line's options, and the machine's disk, network and
//! console, opened when they are first asked for. On Hyper-V those are on VMBus, elsewhere virtio.

use super::net::Stack;
use crate::clock::Deadline;
use crate::devices::{Console, Disk, Nic};
use crate::hyperv::{self, KernelBus, KernelStorage, VmbusConsole, VmbusDisk, VmbusNic};
use crate::options::Options;
use crate::virtio;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use guest_vsc::bus::{self, Versions};
use guest_vsc::channel::OpenOptions;
use guest_vsc::network::NetworkOptions;
use guest_vsc::storage::StorageOptions;
use vmbus_proto::version::Version;

/// The disk that is open, by the driver it has.
enum OpenDisk {
    Vmbus(Box<VmbusDisk>),
    Virtio(Box<dyn Disk>),
}

/// What scenarios have at hand.
pub(super) struct Machine<'a> {
    pub(super) options: &'a Options<'a>,
    /// The unit to open, if another one than the options say.
    unit: Option<u8>,
    disk: Option<OpenDisk>,
    console: Option<Box<dyn Console>>,
    network: Option<Stack>,
}

impl<'a> Machine<'a> {
    pub(super) const fn new(options: &'a Options<'a>) -> Self {
        Self {
            options,
            unit: None,
            disk: None,
            console: None,
            network: None,
        }
    }

    /// The disk; `disk.index=` chooses the controller, `disk.lun=` the unit, `channel.cpu=` the CPU
    /// to interrupt, `disk.channels=` the number of channels.
    pub(super) fn disk(&mut self) -> Result<&mut dyn Disk, String> {
        Ok(match self.open_disk()? {
            OpenDisk::Vmbus(disk) => &mut **disk,
            OpenDisk::Virtio(disk) => &mut **disk,
        })
    }

    /// The disk's driver, for what only it can do.
    pub(super) fn storage(&mut self) -> Result<&KernelStorage, String> {
        self.shared_storage().map(|storage| &**storage)
    }

    /// The same, to be shared with other CPUs.
    pub(super) fn shared_storage(&mut self) -> Result<&Arc<KernelStorage>, String> {
        match self.open_disk()? {
            OpenDisk::Vmbus(disk) => Ok(disk.storage()),
            OpenDisk::Virtio(_) => Err("this scenario needs Hyper-V".into()),
        }
    }

    fn open_disk(&mut self) -> Result<&mut OpenDisk, String> {
        let disk = match self.disk.take() {
            Some(disk) => disk,
            None if hyperv::is_present() => {
                let lun = match self.unit {
                    Some(unit) => unit,
                    None => self.options.number("disk.lun", 0)? as u8,
                };
                let channels = self.options.number("disk.channels", 1)?;
                let options = StorageOptions {
                    lun,
                    sub_channels: channels.saturating_sub(1) as u16,
                    channel: self.channel_options()?,
                    ..StorageOptions::default()
                };
                let index = self.options.number("disk.index", 0)?;
                let disk = VmbusDisk::open(self.connected_bus()?, index, &options)?;
                OpenDisk::Vmbus(Box::new(disk))
            }
            None => OpenDisk::Virtio(virtio::disk()?),
        };
        Ok(self.disk.insert(disk))
    }

    /// The console.
    pub(super) fn console(&mut self) -> Result<&mut dyn Console, String> {
        let console: Box<dyn Console> = match self.console.take() {
            Some(console) => console,
            None if hyperv::is_present() => {
                let options = self.channel_options()?;
                Box::new(VmbusConsole::open(self.connected_bus()?, &options)?)
            }
            None => virtio::console()?,
        };
        Ok(&mut **self.console.insert(console))
    }

    /// The network, with an address by DHCP; `net.index=` chooses the adapter, `net.mtu=` the length
    /// of its frames, `net.queues=` the number of queues.
    pub(super) fn network(&mut self) -> Result<&mut Stack, String> {
        let stack = match self.network.take() {
            Some(stack) => stack,
            None => {
                let deadline = self.options.seconds("net.seconds", 60)?;
                Stack::new(self.open_nic()?, Deadline::after(deadline))?
            }
        };
        Ok(self.network.insert(stack))
    }

    fn open_nic(&self) -> Result<Box<dyn Nic>, String> {
        if !hyperv::is_present() {
            return virtio::network();
        }
        let options = NetworkOptions {
            mtu: self.options.number("net.mtu", 1500)? as u32,
            channel: self.channel_options()?,
            ..NetworkOptions::default()
        };
        let index = self.options.number("net.index", 0)?;
        let queues = self.options.number("net.queues", 1)?;
        let adapter = VmbusNic::open(self.connected_bus()?, index, &options, queues)?;
        Ok(Box::new(adapter))
    }

    /// Closes the disk; the next one that is opened is `unit`, or what the options say.
    pub(super) fn change_unit(&mut self, unit: Option<u8>) {
        self.disk = None;
        self.unit = unit;
    }

    /// Closes all devices; they are opened anew when they are asked for again.
    pub(super) fn close_devices(&mut self) {
        self.disk = None;
        self.console = None;
        self.network = None;
    }

    /// Closes everything and leaves the bus.
    pub(super) fn leave(mut self) -> Result<(), String> {
        self.close_devices();
        hyperv::disconnect()
    }

    /// The bus, connected as the command line wants it.
    pub(super) fn connected_bus(&self) -> Result<&'static KernelBus, String> {
        hyperv::connected_bus(&self.bus_options()?)
    }

    /// How the command line wants the bus connected: `vmbus.max_version=`, `vmbus.seconds=`.
    pub(super) fn bus_options(&self) -> Result<bus::Options, String> {
        let mut options = bus::Options::default();
        if let Some(version) = self.version("vmbus.max_version")? {
            options.versions = Versions::UpTo(version);
        }
        options.timeout = self.options.seconds("vmbus.seconds", 10)?;
        Ok(options)
    }

    /// The VMBus version that `key` is set to.
    pub(super) fn version(&self, key: &str) -> Result<Option<Version>, String> {
        let Some(text) = self.options.text(key) else {
            return Ok(None);
        };
        hyperv::parse_version(text)
            .map(Some)
            .ok_or_else(|| format!("{key}={text} is not a version: write it as 5.3"))
    }

    fn channel_options(&self) -> Result<OpenOptions, String> {
        Ok(OpenOptions {
            cpu: Some(self.options.number("channel.cpu", 0)? as usize),
            ..OpenOptions::default()
        })
    }
}
