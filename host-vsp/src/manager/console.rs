//! The console, which can be taken away and given back: its streams stay open meanwhile.

use std::sync::Arc;

use super::Manager;
use crate::api::Error;
use crate::console::{Console, Streams};
use crate::vmbus::DeviceId;

/// The one console's name.
pub(super) const NAME: &str = "console";

/// A console that a machine was started with.
pub(super) struct Connected {
    streams: Arc<Streams>,
    /// It on the bus, unless it was taken away.
    device: Option<DeviceId>,
}

impl Manager {
    /// Gives the machine a console over `streams`.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn connect(&self, streams: Streams) -> Result<(), Error> {
        self.devices().console = Some(Connected {
            streams: Arc::new(streams),
            device: None,
        });
        self.offer_console()
    }

    /// Offers the guest the console, which it has not got.
    pub(super) fn offer_console(&self) -> Result<(), Error> {
        let mut devices = self.devices();
        let console = devices.console.as_mut().ok_or_else(missing)?;
        if console.device.is_some() {
            return Err(Error::Conflict("the guest has got its console".into()));
        }
        let vsp = Console::new(Arc::clone(&console.streams));
        let device = self.machine.bus().offer(Box::new(vsp));
        let device =
            device.map_err(|error| Error::Failed(format!("there can be no console: {error}")))?;
        console.device = Some(device);
        Ok(())
    }

    /// Takes the console away from the guest.
    pub(super) fn remove_console(&self) -> Result<(), Error> {
        let mut devices = self.devices();
        let console = devices.console.as_mut().ok_or_else(missing)?;
        let device = console.device.take().ok_or_else(|| {
            Error::Conflict("the guest has not got its console: add it first".into())
        })?;
        self.machine.bus().rescind(device);
        Ok(())
    }
}

fn missing() -> Error {
    Error::NotFound("the machine has no console: run it with --console".into())
}
