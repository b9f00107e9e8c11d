// SPDX-License-Identifier: GPL-2.0

//! A controller: its channel, and the disks that are on it.

use kernel::device::{self, Bound};
use kernel::new_mutex;
use kernel::prelude::*;
use kernel::sync::aref::ARef;
use kernel::sync::{Arc, Mutex};
use kernel::time::msecs_to_jiffies;
use vmbus::{Channel, Options};
use vmbus_proto::scsi::{Cdb, ReportLuns};

use crate::blk::{online_cpus, CommandQueue, Disk, Limits, TagSet};
use crate::channels::{Channels, MAX_CHANNELS};
use crate::commands::{is_silence, Commands};
use crate::operations::{Address, DiskOperations, Target, MAX_TRANSFER, PAGE};
use crate::port::{ChannelEnd, Port, DEPTH};
use crate::scan::Scan;
use crate::unit::{self, Identity};

/// The rings. The one to the host has room for some hundred requests, or fifty of the largest.
const RINGS: Options = Options {
    to_host: 128 * 1024,
    to_guest: 64 * 1024,
    max_packet: 1024,
};

/// How long a request may take until somebody looks whether the host is still there, in milliseconds.
const LOOK_AFTER: u32 = 5_000;

/// Units that are looked at one by one where the controller has no list of them.
const PROBED: u8 = 64;

/// A unit that is a disk.
struct Unit {
    address: Address,
    sectors: u64,
    disk: Disk<DiskOperations>,
}

/// A controller that a driver is bound to.
#[pin_data]
pub(crate) struct Controller {
    // In the order in which they go: the channel last.
    #[pin]
    units: Mutex<KVec<Unit>>,
    commands: Commands,
    tags: Arc<TagSet<DiskOperations>>,
    /// Most bytes of a request.
    max_transfer: u32,
    scan: Arc<Scan>,
    device: ARef<device::Device>,
    port: Arc<Port>,
    channels: Arc<Channels>,
    /// The first one.
    channel: Channel<ChannelEnd>,
}

impl Controller {
    /// Opens the controller, and finds its disks.
    pub(crate) fn open(dev: &vmbus::Device<Bound>) -> Result<Arc<Self>> {
        let scan = Scan::new()?;
        let queues = online_cpus().clamp(1, MAX_CHANNELS) as u16;
        let port = Arc::new(Port::new(queues, scan.clone())?, GFP_KERNEL)?;
        let end = ChannelEnd(port.clone());
        let channel = Channel::open(dev, &RINGS, Ok::<_, Error>(end))?;
        let tags = Arc::pin_init(
            TagSet::new(queues, DEPTH, msecs_to_jiffies(LOOK_AFTER) as u32),
            GFP_KERNEL,
        )?;
        let target = Arc::new(
            Target {
                port: port.clone(),
                channels: Arc::new(Channels::first(channel.clone()), GFP_KERNEL)?,
                unit: None,
            },
            GFP_KERNEL,
        )?;
        let commands = CommandQueue::new(tags.clone(), &COMMANDS, target)?;
        let commands = Commands {
            queue: commands,
            scan: scan.clone(),
        };
        let properties = commands.initialize(&port)?;
        let channels = Channels::open_further(
            channel.clone(),
            queues,
            &properties,
            &commands,
            &port,
            &RINGS,
        )?;
        dev_info!(
            dev.as_ref(),
            "{} channels, {} queues\n",
            channels.count(),
            queues
        );
        let channels = Arc::new(channels, GFP_KERNEL)?;
        let max_transfer = properties
            .max_transfer_bytes
            .get()
            .clamp(PAGE, MAX_TRANSFER);
        let device: &device::Device = dev.as_ref();
        let controller = Arc::pin_init(
            pin_init!(Self {
                units <- new_mutex!(KVec::new()),
                commands,
                tags,
                max_transfer,
                scan,
                device: device.into(),
                port,
                channels,
                channel,
            }),
            GFP_KERNEL,
        )?;
        controller.scan();
        controller.scan.begin(controller.clone());
        // What the host has said before that is seen now.
        controller.port.request_scan();
        Ok(controller)
    }

    /// Brings the kernel's disks in line with the controller's units, as far as the host answers and
    /// nobody stops it.
    pub(crate) fn scan(&self) {
        let mut units = self.units.lock();
        let mut there = [false; 256];
        if self.list(&mut there).is_err() {
            // Nobody knows, so nothing has changed.
            return;
        }
        let mut answers = true;
        units.retain(|unit| {
            let there = &mut there[usize::from(unit.address.lun)];
            if !*there || !answers {
                return *there;
            }
            match self.is_same(unit) {
                Ok(is_same) => {
                    // What has taken a unit's place is one to be added.
                    *there = !is_same;
                    is_same
                }
                Err(_) => {
                    answers = false;
                    true
                }
            }
        });
        for lun in 0..=u8::MAX {
            if !answers {
                return;
            }
            if !there[usize::from(lun)] {
                continue;
            }
            let added = self
                .add(lun)
                .and_then(|unit| unit.map_or(Ok(()), |unit| Ok(units.push(unit, GFP_KERNEL)?)));
            match added {
                Ok(()) => {}
                Err(ECANCELED) => return,
                Err(error) => {
                    dev_warn!(&self.device, "unit {} is of no use: {:?}\n", lun, error);
                    answers = !is_silence(error);
                }
            }
        }
    }

    /// Which units there are.
    fn list(&self, there: &mut [bool; 256]) -> Result {
        let mut data = KVec::from_elem(0, 8 + 8 * 256, GFP_KERNEL)?;
        let cdb = Cdb::ReportLuns {
            select: 0,
            allocation_length: data.len() as u32,
        };
        match self.commands.scsi(0, cdb, &mut data) {
            Ok(moved) => {
                let list = data
                    .get(..moved)
                    .and_then(ReportLuns::parse)
                    .ok_or(EPROTO)?;
                list.for_each(|lun| there[usize::from(lun)] = true);
            }
            // The list is asked of unit 0, which there may be none of.
            Err(ENODEV | EOPNOTSUPP | EREMOTEIO) => {
                (0..PROBED).for_each(|lun| there[usize::from(lun)] = true);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The unit of this number as a disk; nothing where it is none.
    fn add(&self, lun: u8) -> Result<Option<Unit>> {
        let identity = match Identity::ask(&self.commands, lun, self.max_transfer) {
            Ok(Some(identity)) => identity,
            Ok(None) | Err(ENODEV) => return Ok(None),
            Err(error) => return Err(error),
        };
        let Identity { address, options } = identity;
        let target = Arc::new(
            Target {
                port: self.port.clone(),
                channels: self.channels.clone(),
                unit: Some(address),
            },
            GFP_KERNEL,
        )?;
        let disk = Disk::add(&self.device, "vmd", &options, self.tags.clone(), target)?;
        let (number, sectors) = (disk.number(), options.sectors);
        dev_info!(
            &self.device,
            "vmd{}: unit {}, {} sectors\n",
            number,
            lun,
            sectors
        );
        Ok(Some(Unit {
            address,
            sectors,
            disk,
        }))
    }

    /// Whether a unit is the same disk still, which may have grown; an error where nobody answers.
    fn is_same(&self, unit: &mut Unit) -> Result<bool> {
        let (sectors, block) = match unit::size(&self.commands, unit.address.lun) {
            Ok(size) => size,
            Err(ENODEV) => return Ok(false),
            Err(error) if is_silence(error) => return Err(error),
            // A unit in trouble is there.
            Err(_) => return Ok(true),
        };
        if block >> 9 != 1 << unit.address.block_shift {
            return Ok(false);
        }
        if sectors != unit.sectors {
            unit.disk.set_sectors(sectors);
            unit.sectors = sectors;
        }
        Ok(true)
    }

    /// The driver is about to lose the device: takes the disks from the kernel. What was not written
    /// yet is, unless the host is gone already.
    pub(crate) fn stop(&self) {
        self.scan.stop();
        let port = &self.port;
        let is_gone = self
            .channel
            .access()
            .is_none_or(|channel| channel.is_rescinded());
        if is_gone {
            // A host that takes a device back has done with its requests.
            port.end();
        }
        port.flush_scans();
        let units = core::mem::take(&mut *self.units.lock());
        if is_gone {
            units.iter().for_each(|unit| unit.disk.mark_dead());
        }
        drop(units);
        let strays = port.strays();
        if strays > 0 {
            dev_warn!(
                &self.device,
                "the host has sent {} packets that meant nothing\n",
                strays
            );
        }
    }
}

/// What the driver's own commands may be like: nothing of it matters to them.
const COMMANDS: Limits = Limits {
    logical_block_size: 512,
    physical_block_size: 512,
    max_sectors: MAX_TRANSFER / 512,
    max_segments: 1,
    virt_boundary_mask: PAGE as u64 - 1,
    max_discard_sectors: 0,
    discard_granularity: 0,
    write_cache: false,
    fua: false,
};
