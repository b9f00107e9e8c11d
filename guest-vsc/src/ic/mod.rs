//! Integration services: what the host asks of the operating system in its guest.
//!
//! Each service is a channel of its own. The host asks, the guest answers; what both have in
//! common is in `link`, the messages are in [`vmbus_proto::ic`]. A driver's `poll` takes what has
//! come, answers it and never waits, so that it can be called in an interrupt handler, a timer or
//! an idle loop:
//!
//! - [`Heartbeat`] answers that the guest lives; [`Heartbeat::set_health`] says how well.
//! - [`Shutdown`] hands over each request to power off, restart or hibernate, to be accepted or
//!   refused.
//! - [`TimeSync`] hands over the host's time.
//!
//! ```no_run
//! # use guest_vsc::{Hal, VmBus, channel::OpenOptions, Error};
//! use guest_vsc::ic::{self, Heartbeat, Shutdown};
//! # fn f<H: Hal>(bus: &VmBus<'_, H>) -> Result<(), Error> {
//! let offer = bus.find(ic::heartbeat::CLASS).ok_or(Error::NoOffer)?;
//! let heartbeat = Heartbeat::open(bus, &offer, &ic::open_options())?;
//! let offer = bus.find(ic::shutdown::CLASS).ok_or(Error::NoOffer)?;
//! let shutdown = Shutdown::open(bus, &offer, &ic::open_options())?;
//! loop {
//!     heartbeat.poll()?;
//!     if let Some(request) = shutdown.poll()? {
//!         request.accept()?;
//!         // Ends what runs here, then powers off.
//!         break;
//!     }
//! }
//! # Ok(()) }
//! ```

pub mod heartbeat;
mod link;
pub mod shutdown;
pub mod timesync;

pub use heartbeat::{Health, Heartbeat};
pub use shutdown::{Shutdown, ShutdownKind, ShutdownRequest};
pub use timesync::{HostTime, TimeSync};

use crate::channel::OpenOptions;

/// How to open a service's channel: with rings of 16 KiB, which hold any of its messages.
pub fn open_options() -> OpenOptions {
    OpenOptions {
        to_host: 16 << 10,
        to_guest: 16 << 10,
        ..OpenOptions::default()
    }
}
