//! Network adapters by name.

use vmbus_proto::guid::Guid;

use super::Manager;
use crate::api::Error;
use crate::api::model::{Net, NetConfig};
use crate::network::backend::Backend;
use crate::network::{Cable, Config, Mac, Network, QueueCounters, format_mac};
use crate::vmbus::DeviceId;

/// A network adapter whose net is open and that is not yet there.
pub struct OpenNet {
    config: NetConfig,
    mac: Mac,
    queues: Vec<Box<dyn Backend>>,
}

impl OpenNet {
    /// Opens the net.
    ///
    /// # Errors
    /// Why not.
    pub fn open(config: NetConfig) -> Result<Self, Error> {
        Ok(Self {
            mac: config.mac()?,
            queues: config.open()?,
            config,
        })
    }
}

/// A network adapter on the bus.
pub(super) struct Plugged {
    device: DeviceId,
    /// Which one: its instance is made from it.
    number: u16,
    cable: Cable,
    mac: Mac,
    mtu: u32,
    leads_to: String,
}

/// Instance of a network adapter: the guest's name for it may be made from it, so it stays the same.
fn net_instance(number: u16) -> Guid {
    Guid::new(0x7c1f_54e2, 0x90ad, 0x4d36, 0xa5b8, 1 + u64::from(number))
}

impl Manager {
    /// Adds a network adapter, its cable plugged in.
    ///
    /// # Errors
    /// Its name cannot be, or there is no room.
    pub fn plug(&self, net: OpenNet) -> Result<Net, Error> {
        let OpenNet {
            config,
            mac,
            queues,
        } = net;
        let failed = |error: &dyn std::fmt::Display| {
            Error::Failed(format!("there can be no network adapter: {error}"))
        };
        let mut devices = self.devices();
        let id = devices.name(config.id.clone(), "net")?;
        let taken: Vec<u16> = devices.nets.values().map(|net| net.number).collect();
        let number = (0..u16::MAX)
            .find(|number| !taken.contains(number))
            .ok_or_else(|| Error::Conflict("there are too many network adapters".into()))?;
        let cable = Cable::new().map_err(|error| failed(&error))?;
        let adapter = Config {
            instance: net_instance(number),
            mac,
            mtu: config.mtu(),
            queues: config.queues(),
        };
        let counters = self.machine.counters();
        let named = |(number, queue)| (queue, QueueCounters::named(counters, &id, number));
        let queues = (0..).zip(queues).map(named).collect();
        let vsp = Network::new(adapter, queues, cable.clone());
        let vsp = vsp.map_err(|error| failed(&error))?;
        let device = self.machine.bus().offer(Box::new(vsp));
        let plugged = Plugged {
            device: device.map_err(|error| failed(&error))?,
            number,
            cable,
            mac,
            mtu: config.mtu(),
            leads_to: match (&config.tap, &config.socket) {
                (Some(tap), _) => format!("tap {tap}"),
                (None, Some(socket)) => format!("socket {}", socket.display()),
                (None, None) => "user".into(),
            },
        };
        let net = plugged.describe(&id);
        devices.nets.insert(id, plugged);
        Ok(net)
    }
}

impl Plugged {
    /// It on the bus.
    pub(super) fn device(&self) -> DeviceId {
        self.device
    }

    /// Plugs its cable in, or pulls it.
    pub(super) fn set_link(&self, up: bool) {
        self.cable.set_plugged(up);
    }

    /// What the API says of it.
    pub(super) fn describe(&self, id: &str) -> Net {
        Net {
            id: id.into(),
            mac: format_mac(self.mac),
            mtu: self.mtu,
            leads_to: self.leads_to.clone(),
            up: self.cable.is_plugged(),
        }
    }
}
