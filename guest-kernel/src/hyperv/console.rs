//! The console on Hyper-V: `guest-vsc`'s console driver behind the scenarios' [`Console`].

use super::KernelBus;
use crate::clock::Deadline;
use crate::cpu;
use crate::devices::Console;
use crate::hal::KernelHal;
use alloc::format;
use alloc::string::{String, ToString};
use guest_vsc::channel::OpenOptions;
use guest_vsc::console;

/// The first console that is offered.
pub(crate) struct VmbusConsole {
    console: console::Console<'static, KernelHal>,
    name: String,
}

impl VmbusConsole {
    /// Opens it.
    pub(crate) fn open(bus: &'static KernelBus, options: &OpenOptions) -> Result<Self, String> {
        let offer = super::offer(bus, console::CLASS, 0, "console")?;
        let console = console::Console::open(bus, &offer, options)
            .map_err(|error| format!("the console does not open: {error}"))?;
        Ok(Self {
            console,
            name: format!("VMBus console, channel {}", offer.relid()),
        })
    }
}

impl Console for VmbusConsole {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.console.write(bytes).map_err(|error| error.to_string())
    }

    fn receive(&mut self, buffer: &mut [u8], deadline: Deadline) -> Result<usize, String> {
        loop {
            match self.console.try_read(buffer) {
                Ok(0) => {}
                other => return other.map_err(|error| error.to_string()),
            }
            if !cpu::wait_until(deadline, || self.console.channel().has_news()) {
                return Ok(0);
            }
        }
    }
}
