//! Integration services: what a host asks of the operating system in its guest.
//!
//! Each service is a VSP and a handle. The VSP goes to the bus; the handle stays with whoever runs
//! the machine and may be used from any thread:
//!
//! ```no_run
//! # fn f(bus: &host_vsp::vmbus::VmBus) -> Result<(), Box<dyn std::error::Error>> {
//! use host_vsp::ic::{Shutdown, ShutdownKind};
//! use std::time::Duration;
//! let (vsp, shutdown) = Shutdown::new()?;
//! bus.offer(vsp)?;
//! // Once the guest's driver is there:
//! shutdown.request(ShutdownKind::PowerOff, Duration::from_secs(5))?;
//! # Ok(()) }
//! ```
//!
//! What all have in common on the wire is in [`vmbus_proto::ic`], and on this side in `link`:
//! versions are agreed on when the channel opens, then messages go out and answers come in.
//! [`Shutdown`], [`Kvp`] and [`Vss`] ask one thing at a time (`exchange`); [`Heartbeat`] and
//! [`TimeSync`] speak by the clock (`ticker`).
//!
//! A guest can answer what it likes, as often as its ring holds, or nothing: an answer that nobody
//! waits for is dropped, and whoever asks says how long to wait.

mod exchange;
mod heartbeat;
mod kvp;
mod link;
mod shutdown;
mod ticker;
mod timesync;
mod vss;

pub use exchange::Error;
pub use heartbeat::{Heartbeat, Life};
pub use kvp::{Kvp, Pool};
pub use shutdown::{Shutdown, ShutdownKind};
pub use timesync::{Clock, Moment, TimeSync};
pub use vss::Vss;

use std::io;
use std::sync::Arc;

use crate::vsp::Vsp;

/// The handles of all services.
#[derive(Clone)]
pub struct Services {
    /// Whether the guest lives.
    pub heartbeat: Heartbeat,
    /// Ends the guest in an orderly way.
    pub shutdown: Shutdown,
    /// Sets the guest's clock.
    pub time_sync: TimeSync,
    /// Reads and writes key-value pairs.
    pub kvp: Kvp,
    /// Has the guest's file systems stand still.
    pub vss: Vss,
}

impl Services {
    /// All services: the VSPs to offer, and the handles. `clock` is the machine's.
    ///
    /// # Errors
    /// The system gives no file descriptor.
    pub fn new(clock: Arc<dyn Clock>) -> io::Result<(Vec<Box<dyn Vsp>>, Self)> {
        let (heartbeat_vsp, heartbeat) = Heartbeat::new()?;
        let (shutdown_vsp, shutdown) = Shutdown::new()?;
        let (time_sync_vsp, time_sync) = TimeSync::new(clock)?;
        let (kvp_vsp, kvp) = Kvp::new()?;
        let (vss_vsp, vss) = Vss::new()?;
        let vsps = vec![heartbeat_vsp, shutdown_vsp, time_sync_vsp, kvp_vsp, vss_vsp];
        let services = Self {
            heartbeat,
            shutdown,
            time_sync,
            kvp,
            vss,
        };
        Ok((vsps, services))
    }
}
