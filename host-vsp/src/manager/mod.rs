//! A machine with names for its devices: what the API does to it.
//!
//! Disks have names (`disk0`) and places: a controller (`scsi0`) and a LUN there. A controller is
//! offered to the guest when it gets its first disk and stays until it is removed by name.

mod console;
mod disks;
mod net;
mod unit;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::api::model::{
    Counters, CpusConfig, Disk, DiskConfig, GuestInfo, Heartbeat, KvpPair, KvpPool, MemoryConfig,
    Net, NetConfig, PayloadConfig, State, VmConfig, VmInfo,
};
use crate::api::{Error, Vm};
use crate::freezer::Frozen;
use crate::guest::Guest;
use crate::ic::{Life, Services, ShutdownKind};
use crate::keyboard::Keyboard;
use crate::machine::{Machine, RunState};
use crate::storage::{AttachError, ChangeError, Medium};
use disks::{Attached, ControllerName, Place};
pub use net::OpenNet;
pub use unit::OpenDisk;
use unit::What;

/// How long a guest may take to say that it will shut down.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(5);

/// A machine and its devices by name.
pub struct Manager {
    machine: Arc<Machine>,
    payload: PayloadConfig,
    services: Option<Services>,
    guest: Guest,
    keyboard: Option<Keyboard>,
    devices: Mutex<Devices>,
}

#[derive(Default)]
struct Devices {
    controllers: BTreeMap<ControllerName, Place>,
    disks: BTreeMap<String, Attached>,
    nets: BTreeMap<String, net::Plugged>,
    console: Option<console::Connected>,
}

impl Manager {
    /// Manages `machine`, which boots `payload`. Where there are `services`, the guest is asked to
    /// shut down, and learns the time after a pause; where there is a `keyboard`, it can be typed on.
    pub fn new(
        machine: Arc<Machine>,
        payload: PayloadConfig,
        services: Option<Services>,
        keyboard: Option<Keyboard>,
    ) -> Self {
        Self {
            machine,
            payload,
            guest: Guest::new(services.as_ref()),
            services,
            keyboard,
            devices: Mutex::default(),
        }
    }

    fn devices(&self) -> MutexGuard<'_, Devices> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the guest to end; false where it does not offer to be asked.
    fn ask(&self, kind: ShutdownKind) -> Result<bool, Error> {
        match self.state() {
            State::Running => {}
            State::Paused => {
                return Err(Error::Conflict(
                    "the machine is paused, so the guest cannot be asked: resume it first".into(),
                ));
            }
            State::Shutdown => return Err(Error::Conflict("the machine has ended".into())),
        }
        match &self.services {
            Some(services) if services.shutdown.is_ready() => services
                .shutdown
                .request(kind, SHUTDOWN_PATIENCE)
                .map(|()| true)
                .map_err(|error| {
                    Error::Failed(format!(
                        "the guest was asked to shut down and does not: {error}; vm.power-off \
                         and vm.reset do not ask"
                    ))
                }),
            _ => Ok(false),
        }
    }

    fn state(&self) -> State {
        match self.machine.handle().state() {
            RunState::Running => State::Running,
            RunState::Paused => State::Paused,
            RunState::Ended => State::Shutdown,
        }
    }

    fn still_there(&self) -> Result<(), Error> {
        match self.state() {
            State::Shutdown => Err(Error::Conflict("the machine has ended".into())),
            State::Running | State::Paused => Ok(()),
        }
    }
}

impl Devices {
    /// The name of a new device, by default `kind` and a number.
    fn name(&self, wish: Option<String>, kind: &str) -> Result<String, Error> {
        let taken = |id: &str| self.disks.contains_key(id) || self.nets.contains_key(id);
        let Some(id) = wish else {
            let mut names = (0_u64..).map(|number| format!("{kind}{number}"));
            let free = names.find(|name| !taken(name));
            return free.ok_or_else(|| Error::Conflict("there are too many devices".into()));
        };
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if id.is_empty() || id.len() > 64 || !id.chars().all(is_word) {
            return Err(Error::BadRequest(format!(
                "{id:?} is no name for a device: use letters, digits, '-', '_' and '.', at most 64"
            )));
        }
        if taken(&id) || id == console::NAME || ControllerName::parse(&id).is_some() {
            return Err(Error::Conflict(format!(
                "there is already a device {id}: give this one another name"
            )));
        }
        Ok(id)
    }
}

impl From<AttachError> for Error {
    fn from(error: AttachError) -> Self {
        let sentence = error.to_string();
        match error {
            AttachError::InUse(_) => Self::Conflict(sentence),
            AttachError::NoSuchLun(_) | AttachError::TooSmall { .. } | AttachError::Serial(_) => {
                Self::BadRequest(sentence)
            }
        }
    }
}

impl From<ChangeError> for Error {
    fn from(error: ChangeError) -> Self {
        let sentence = error.to_string();
        match error {
            ChangeError::NoDisk(_) => Self::NotFound(sentence),
            ChangeError::Size(_) | ChangeError::NoDrive(_) => Self::BadRequest(sentence),
            ChangeError::Locked => Self::Conflict(sentence),
            ChangeError::Flush(_) | ChangeError::Busy => Self::Failed(sentence),
        }
    }
}

impl Vm for Manager {
    fn info(&self) -> Result<VmInfo, Error> {
        let config = self.machine.config();
        let devices = self.devices();
        let mut disks = devices
            .disks
            .iter()
            .map(|(id, disk)| devices.describe(id, disk))
            .collect::<Result<Vec<_>, _>>()?;
        disks.sort_by(|a, b| (&a.controller, a.lun).cmp(&(&b.controller, b.lun)));
        Ok(VmInfo {
            config: VmConfig {
                cpus: CpusConfig {
                    boot_vcpus: config.cpus,
                },
                memory: MemoryConfig {
                    size: config.memory,
                },
                payload: self.payload.clone(),
                disks,
                net: devices
                    .nets
                    .iter()
                    .map(|(id, net)| net.describe(id))
                    .collect(),
            },
            state: self.state(),
            memory_actual_size: config.memory,
        })
    }

    fn guest(&self) -> Result<GuestInfo, Error> {
        let services = self.services.as_ref();
        let (life, beats) = services.map_or((Life::NoContact, 0), |services| {
            (services.heartbeat.status(), services.heartbeat.beats())
        });
        let (crash, crashes) = self.machine.crash();
        Ok(GuestInfo {
            heartbeat: match life {
                Life::NoContact => Heartbeat::NoContact,
                Life::Alive { .. } => Heartbeat::Alive,
                Life::Critical => Heartbeat::Critical,
                Life::Lost => Heartbeat::Lost,
            },
            beats,
            shutdown: services.is_some_and(|services| services.shutdown.is_ready()),
            kvp: services.is_some_and(|services| services.kvp.is_ready()),
            vss: services.is_some_and(|services| services.vss.is_ready()),
            frozen: self.guest.is_frozen(),
            keyboard: self.keyboard.as_ref().is_some_and(Keyboard::is_ready),
            crashes,
            crash: crash.map(Into::into),
        })
    }

    fn kvp_list(&self, pool: KvpPool) -> Result<Vec<KvpPair>, Error> {
        self.still_there()?;
        self.guest.kvp_list(pool)
    }

    fn kvp_get(&self, pool: KvpPool, key: &str) -> Result<KvpPair, Error> {
        self.still_there()?;
        self.guest.kvp_get(pool, key)
    }

    fn kvp_set(&self, pool: KvpPool, key: &str, value: &str) -> Result<(), Error> {
        self.still_there()?;
        self.guest.kvp_set(pool, key, value)
    }

    fn kvp_delete(&self, pool: KvpPool, key: &str) -> Result<(), Error> {
        self.still_there()?;
        self.guest.kvp_delete(pool, key)
    }

    fn freeze(&self, seconds: u64) -> Result<Frozen, Error> {
        self.still_there()?;
        self.guest.freeze(seconds)
    }

    fn thaw(&self) -> Result<(), Error> {
        self.still_there()?;
        self.guest.thaw()
    }

    fn type_text(&self, text: &str) -> Result<(), Error> {
        use crate::ic::Error as Guest;
        let keyboard = self.keyboard.as_ref().ok_or_else(|| {
            Error::Conflict("the machine has no keyboard: run it without --no-keyboard".into())
        })?;
        keyboard.type_text(text).map_err(|error| match error {
            Guest::Unsuitable => Error::BadRequest(
                "a keyboard of the United States has no key for some character of the text".into(),
            ),
            other => Error::Conflict(format!("the text is not typed: {other}")),
        })
    }

    fn counters(&self) -> Result<Counters, Error> {
        let mut counters: Counters = self.machine.counters().snapshot().into();
        let bus = self.machine.bus().counters();
        let devices = &mut counters.devices;
        devices.insert("vmbus.gpadls".into(), bus.gpadls as u64);
        devices.insert("vmbus.gpadl_pages".into(), bus.gpadl_pages as u64);
        for (relid, channel) in bus.channels {
            for (what, counter) in [
                ("wakeups", &channel.wakeups),
                ("interrupts", &channel.interrupts),
                ("failures", &channel.failures),
            ] {
                let value = counter.load(Ordering::Relaxed);
                devices.insert(format!("channel{relid}.{what}"), value);
            }
        }
        Ok(counters)
    }

    fn pause(&self) -> Result<(), Error> {
        Ok(self.machine.handle().pause()?)
    }

    fn resume(&self) -> Result<(), Error> {
        self.machine.handle().resume()?;
        if let Some(services) = &self.services {
            // Its clock has stood still.
            services.time_sync.sync();
        }
        Ok(())
    }

    fn shutdown(&self) -> Result<(), Error> {
        if !self.ask(ShutdownKind::PowerOff)? {
            self.machine.handle().power_off();
        }
        Ok(())
    }

    fn power_off(&self) -> Result<(), Error> {
        self.still_there()?;
        self.machine.handle().power_off();
        Ok(())
    }

    fn reboot(&self) -> Result<(), Error> {
        if !self.ask(ShutdownKind::Restart)? {
            self.machine.handle().reset();
        }
        Ok(())
    }

    fn reset(&self) -> Result<(), Error> {
        self.still_there()?;
        self.machine.handle().reset();
        Ok(())
    }

    fn add_disk(&self, disk: &DiskConfig) -> Result<Disk, Error> {
        self.still_there()?;
        self.attach(OpenDisk::open(disk.clone())?)
    }

    fn add_net(&self, net: &NetConfig) -> Result<Net, Error> {
        self.still_there()?;
        self.plug(OpenNet::open(net.clone())?)
    }

    fn add_console(&self) -> Result<(), Error> {
        self.still_there()?;
        self.offer_console()
    }

    fn set_link(&self, id: &str, up: bool) -> Result<(), Error> {
        let devices = self.devices();
        let net = devices.nets.get(id).ok_or_else(|| {
            Error::NotFound(format!(
                "there is no network adapter {id:?}: vm.info lists what there is"
            ))
        })?;
        net.set_link(up);
        Ok(())
    }

    fn remove_device(&self, id: &str) -> Result<(), Error> {
        self.still_there()?;
        if let Some(name) = ControllerName::parse(id) {
            return self.remove_controller(name);
        }
        if id == console::NAME {
            return self.remove_console();
        }
        let mut devices = self.devices();
        if let Some(net) = devices.nets.remove(id) {
            // Nobody may add another one in its place before it has ended.
            self.machine.bus().rescind(net.device());
            return Ok(());
        }
        drop(devices);
        self.remove_disk(id)
    }

    fn insert_medium(&self, id: &str, path: &Path, force: bool) -> Result<(), Error> {
        self.still_there()?;
        let (handle, lun) = self.devices().drive(id)?;
        let medium = Medium::open(path).map_err(|error| Error::BadRequest(error.to_string()))?;
        Ok(handle.change_medium(lun, Some(medium), force)?)
    }

    fn eject_medium(&self, id: &str, force: bool) -> Result<(), Error> {
        self.still_there()?;
        let (handle, lun) = self.devices().drive(id)?;
        Ok(handle.change_medium(lun, None, force)?)
    }

    fn resize_disk(&self, id: &str, size: u64) -> Result<(), Error> {
        self.still_there()?;
        let devices = self.devices();
        let disk = devices.disk(id)?;
        if matches!(disk.what, What::Dvd) {
            return Err(Error::BadRequest(format!(
                "{id} is a DVD drive, whose medium keeps its size"
            )));
        }
        Ok(devices.handle(disk)?.resize(disk.lun, size)?)
    }
}
