//! Disks by name, and the controllers they are on.

use std::fmt;

use vmbus_proto::guid::Guid;
use vmbus_proto::scsi::SECTOR;

use super::unit::{OpenDisk, OpenUnit, What};
use super::{Devices, Manager};
use crate::api::Error;
use crate::api::model::{Disk, DiskType, State};
use crate::storage::{Controller, ControllerClass, ControllerHandle, Format};
use crate::vmbus::DeviceId;

/// Controllers of a machine, of each class: `scsi0` to `scsi7`, `vmd0` to `vmd7`.
const MAX_CONTROLLERS: u16 = 8;

/// A controller on the bus.
pub(super) struct Place {
    device: DeviceId,
    handle: ControllerHandle,
    /// It is being removed: it is there until the guest has let go of it.
    is_leaving: bool,
}

/// A disk or drive on a controller.
pub(super) struct Attached {
    controller: ControllerName,
    pub(super) lun: u8,
    pub(super) what: What,
}

/// The name of a controller, which says its class. By default the first one of Hyper-V's class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ControllerName {
    class: ControllerClass,
    number: u16,
}

impl ControllerName {
    /// The controller of this name, if there can be one.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let of_class = |class, digits: &str| {
            let number = digits.parse().ok()?;
            let found = Self { class, number };
            // One name for each: not `scsi00`.
            (number < MAX_CONTROLLERS && found.to_string() == name).then_some(found)
        };
        let scsi = name.strip_prefix("scsi");
        let disk = name.strip_prefix("vmd");
        scsi.and_then(|digits| of_class(ControllerClass::Scsi, digits))
            .or_else(|| of_class(ControllerClass::Disk, disk?))
    }

    /// Its instance: disks' names for the guest are made from it, so it stays the same.
    fn instance(self) -> Guid {
        let class = match self.class {
            ControllerClass::Scsi => 0,
            ControllerClass::Disk => 0x100,
        };
        let number = 1 + class + u64::from(self.number);
        Guid::new(0x2a4c_9d11, 0x6f0b, 0x4c57, 0x8e21, number)
    }
}

impl fmt::Display for ControllerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = match self.class {
            ControllerClass::Scsi => "scsi",
            ControllerClass::Disk => "vmd",
        };
        write!(f, "{prefix}{}", self.number)
    }
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
        let controller = match &config.controller {
            None => ControllerName::default(),
            Some(name) => ControllerName::parse(name).ok_or_else(|| {
                let last = MAX_CONTROLLERS - 1;
                Error::BadRequest(format!(
                    "{name:?} is no controller: use scsi0 to scsi{last}, or, for a guest with the \
                     driver vmbus_disk, vmd0 to vmd{last}"
                ))
            })?,
        };
        if let Some(serial) = &config.serial
            && devices.has_serial(serial)?
        {
            return Err(Error::Conflict(format!(
                "there is already a disk with the serial number {serial:?}: the guest would take \
                 both for one"
            )));
        }
        let (lun, what) =
            match devices.controllers.get(&controller) {
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
                    let (place, what) = self.offer(controller, lun, unit)?;
                    devices.controllers.insert(controller, place);
                    (lun, what)
                }
            };
        let attached = Attached {
            controller,
            lun,
            what,
        };
        let disk = devices.describe(&id, &attached)?;
        devices.disks.insert(id, attached);
        Ok(disk)
    }

    /// A new controller with its first disk.
    fn offer(&self, name: ControllerName, lun: u8, unit: OpenUnit) -> Result<(Place, What), Error> {
        let failed = |error: &dyn std::fmt::Display| {
            Error::Failed(format!("there can be no storage controller: {error}"))
        };
        let controller = Controller::new(name.instance()).map_err(|error| failed(&error))?;
        let controller = controller
            .with_class(name.class)
            .with_channels_for(self.machine.config().cpus);
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
    pub(super) fn remove_controller(&self, name: ControllerName) -> Result<(), Error> {
        if self.state() == State::Paused {
            return Err(Error::Conflict(
                "the machine is paused, so the guest cannot let go of its disks: resume it first"
                    .into(),
            ));
        }
        let (device, handle) = {
            let mut devices = self.devices();
            let place = devices.controllers.get_mut(&name);
            let place = place.filter(|place| !place.is_leaving).ok_or_else(|| {
                Error::NotFound(format!(
                    "there is no controller {name}: vm.info lists what there is"
                ))
            })?;
            place.is_leaving = true;
            let found = (place.device, place.handle.clone());
            devices.disks.retain(|_, disk| disk.controller != name);
            found
        };
        // It may take its time, in which others may ask how the machine is.
        let retired = handle.retire();
        self.machine.bus().rescind(device);
        self.devices().controllers.remove(&name);
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
            Error::Failed(format!("the disk's controller {} is gone", disk.controller))
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
            controller: disk.controller.to_string(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_controller_has_one_name() {
        let mut instances = Vec::new();
        for name in ["scsi0", "scsi7", "vmd0", "vmd7"] {
            let controller = ControllerName::parse(name).expect(name);
            assert_eq!(controller.to_string(), name);
            instances.push(controller.instance());
        }
        instances.sort_unstable();
        instances.dedup();
        assert_eq!(instances.len(), 4);
        for name in [
            "scsi", "scsi8", "scsi00", "vmd", "vmd8", "vmd-1", "vmd+1", "ide0", "Scsi0",
        ] {
            assert_eq!(ControllerName::parse(name), None, "{name}");
        }
        assert_eq!(ControllerName::default().to_string(), "scsi0");
    }
}
