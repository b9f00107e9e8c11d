//! Disks by name, and the controllers they are on.

use vmbus_proto::guid::Guid;
use vmbus_proto::scsi::SECTOR;

use super::unit::{OpenDisk, OpenUnit, What};
use super::{Devices, Manager};
use crate::api::Error;
use crate::api::model::{Disk, DiskType, State};
use crate::storage::{Controller, ControllerHandle, Format};
use crate::vmbus::DeviceId;

/// Controllers of a machine: `scsi0` to `scsi7`.
const MAX_CONTROLLERS: u16 = 8;

/// The controller of a disk that names none.
const FIRST_CONTROLLER: &str = "scsi0";

/// A controller on the bus.
pub(super) struct Place {
    device: DeviceId,
    handle: ControllerHandle,
    /// It is being removed: it is there until the guest has let go of it.
    is_leaving: bool,
}

/// A disk or drive on a controller.
pub(super) struct Attached {
    controller: u16,
    pub(super) lun: u8,
    pub(super) what: What,
}

pub(super) fn controller_name(number: u16) -> String {
    format!("scsi{number}")
}

pub(super) fn controller_number(name: &str) -> Option<u16> {
    let number = name.strip_prefix("scsi")?.parse().ok()?;
    // One name for each: not `scsi00`.
    (number < MAX_CONTROLLERS && controller_name(number) == name).then_some(number)
}

/// Instance of a controller: disks' names for the guest are made from it, so it stays the same.
fn instance(number: u16) -> Guid {
    Guid::new(0x2a4c_9d11, 0x6f0b, 0x4c57, 0x8e21, 1 + u64::from(number))
}

impl Manager {
    /// Attaches a disk, on a controller that is made where it has to be.
    ///
    /// # Errors
    /// Its name or the controller's cannot be, or there is no room.
    pub fn attach(&self, disk: OpenDisk) -> Result<Disk, Error> {
        let OpenDisk { config, unit } = disk;
        let mut devices = self.devices();
        let kind = match config.kind {
            DiskType::Disk => "disk",
            DiskType::Dvd => "dvd",
        };
        let id = devices.name(config.id, kind)?;
        let controller = config.controller.as_deref().unwrap_or(FIRST_CONTROLLER);
        let number = controller_number(controller).ok_or_else(|| {
            let last = controller_name(MAX_CONTROLLERS - 1);
            Error::BadRequest(format!(
                "{controller:?} is no controller: use {FIRST_CONTROLLER} to {last}"
            ))
        })?;
        if let Some(serial) = &config.serial
            && devices.has_serial(serial)?
        {
            return Err(Error::Conflict(format!(
                "there is already a disk with the serial number {serial:?}: the guest would take \
                 both for one"
            )));
        }
        let (lun, what) =
            match devices.controllers.get(&number) {
                Some(place) if place.is_leaving => {
                    return Err(Error::Conflict(format!(
                        "{controller} is being removed: try again when it is gone"
                    )));
                }
                Some(place) => {
                    let lun = config.lun.or_else(|| place.handle.free_lun()).ok_or_else(|| {
                    Error::Conflict(format!(
                        "{controller} has no LUN left that the guest knows to be free: put the \
                         disk on another controller"
                    ))
                })?;
                    let what = unit.attach(&place.handle, lun)?;
                    (lun, what)
                }
                None => {
                    let lun = config.lun.unwrap_or(0);
                    let (place, what) = self.offer(number, lun, unit)?;
                    devices.controllers.insert(number, place);
                    (lun, what)
                }
            };
        let attached = Attached {
            controller: number,
            lun,
            what,
        };
        let disk = devices.describe(&id, &attached)?;
        devices.disks.insert(id, attached);
        Ok(disk)
    }

    /// A new controller with its first disk.
    fn offer(&self, number: u16, lun: u8, unit: OpenUnit) -> Result<(Place, What), Error> {
        let failed = |error: &dyn std::fmt::Display| {
            Error::Failed(format!("there can be no storage controller: {error}"))
        };
        let controller = Controller::new(instance(number)).map_err(|error| failed(&error))?;
        let controller = controller.with_channels_for(self.machine.config().cpus);
        let handle = controller.disks();
        let what = unit.attach(&handle, lun)?;
        let device = self.machine.bus().offer(Box::new(controller));
        let place = Place {
            device: device.map_err(|error| failed(&error))?,
            handle,
            is_leaving: false,
        };
        Ok((place, what))
    }

    /// Takes a controller from the guest, and all its disks.
    pub(super) fn remove_controller(&self, number: u16) -> Result<(), Error> {
        if self.state() == State::Paused {
            return Err(Error::Conflict(
                "the machine is paused, so the guest cannot let go of its disks: resume it first"
                    .into(),
            ));
        }
        let (device, handle) = {
            let mut devices = self.devices();
            let place = devices.controllers.get_mut(&number);
            let place = place.filter(|place| !place.is_leaving).ok_or_else(|| {
                Error::NotFound(format!(
                    "there is no controller {}: vm.info lists what there is",
                    controller_name(number)
                ))
            })?;
            place.is_leaving = true;
            let found = (place.device, place.handle.clone());
            devices.disks.retain(|_, disk| disk.controller != number);
            found
        };
        // It may take its time, in which others may ask how the machine is.
        let retired = handle.retire();
        self.machine.bus().rescind(device);
        self.devices().controllers.remove(&number);
        Ok(retired?)
    }

    /// Takes a disk or drive from the guest.
    pub(super) fn remove_disk(&self, id: &str) -> Result<(), Error> {
        let (handle, lun, is_dvd) = {
            let mut devices = self.devices();
            let disk = devices.disk(id)?;
            let is_dvd = matches!(disk.what, What::Dvd);
            let found = (devices.handle(disk)?.clone(), disk.lun, is_dvd);
            // Whatever becomes of it, it is no disk of the machine any more. It may take its time,
            // in which others may ask how the machine is.
            devices.disks.remove(id);
            found
        };
        if is_dvd {
            return Ok(handle.detach_drive(lun)?);
        }
        Ok(handle.detach(lun)?)
    }
}

impl Devices {
    pub(super) fn disk(&self, id: &str) -> Result<&Attached, Error> {
        self.disks.get(id).ok_or_else(|| {
            Error::NotFound(format!(
                "there is no device {id:?}: vm.info lists what there is"
            ))
        })
    }

    /// The controller and LUN of a DVD drive.
    pub(super) fn drive(&self, id: &str) -> Result<(ControllerHandle, u8), Error> {
        let disk = self.disk(id)?;
        match disk.what {
            What::Dvd => Ok((self.handle(disk)?.clone(), disk.lun)),
            What::Disk { .. } => Err(Error::BadRequest(format!(
                "{id} is a disk, not a DVD drive"
            ))),
        }
    }

    pub(super) fn handle(&self, disk: &Attached) -> Result<&ControllerHandle, Error> {
        let place = self.controllers.get(&disk.controller);
        place.map(|place| &place.handle).ok_or_else(|| {
            Error::Failed(format!(
                "the disk's controller {} is gone",
                controller_name(disk.controller)
            ))
        })
    }

    pub(super) fn has_serial(&self, serial: &str) -> Result<bool, Error> {
        for disk in self.disks.values() {
            if self.handle(disk)?.serial(disk.lun)? == serial {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) fn describe(&self, id: &str, disk: &Attached) -> Result<Disk, Error> {
        let handle = self.handle(disk)?;
        let mut told = Disk {
            id: id.into(),
            kind: DiskType::Dvd,
            controller: controller_name(disk.controller),
            lun: disk.lun,
            path: None,
            format: Format::Raw,
            readonly: true,
            size: 0,
            block_size: SECTOR,
            serial: handle.serial(disk.lun)?,
        };
        match &disk.what {
            What::Disk {
                path,
                format,
                readonly,
                block_size,
            } => {
                (told.size, _) = handle.disk(disk.lun)?;
                (told.kind, told.path) = (DiskType::Disk, Some(path.clone()));
                (told.format, told.readonly) = (*format, *readonly);
                told.block_size = block_size.bytes();
            }
            What::Dvd => {
                if let Some((path, size)) = handle.medium(disk.lun)? {
                    (told.path, told.size) = (Some(path), size);
                }
            }
        }
        Ok(told)
    }
}
