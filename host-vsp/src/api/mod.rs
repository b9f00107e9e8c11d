//! The machine over a Unix socket: REST with JSON bodies, in the shape Cloud Hypervisor's users
//! know (`PUT /api/v1/vm.pause`), with its OpenAPI description at `/api/v1/openapi.json`.
//!
//! [`routes`] has the calls, [`model`] what goes over the wire, [`socket`] the file, [`client`]
//! the other end for `host-vsp ctl`. All of it runs on threads of its own and shares nothing with
//! the data path; what a call does to a machine is behind [`Vm`].

pub mod client;
mod held;
pub mod model;
pub mod routes;
pub mod socket;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::freezer::Frozen;
use crate::machine::NotNow;
use model::{Counters, Disk, DiskConfig, GuestInfo, KvpPair, KvpPool, Net, NetConfig, VmInfo};
use socket::{BindError, Socket};

/// How long calls that are being answered may hold up the end.
const PATIENCE: Duration = Duration::from_secs(2);

/// Calls that are carried out at a time: one may wait for a slow disk, another one still says how
/// the machine is.
const CALLS: usize = 4;

/// Why a call was not carried out. The text is a sentence for the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// What is asked for cannot be.
    #[error("{0}")]
    BadRequest(String),
    /// There is no such device.
    #[error("{0}")]
    NotFound(String),
    /// It cannot be now.
    #[error("{0}")]
    Conflict(String),
    /// This side failed.
    #[error("{0}")]
    Failed(String),
}

impl From<NotNow> for Error {
    fn from(reason: NotNow) -> Self {
        Self::Conflict(reason.to_string())
    }
}

/// A machine as the API sees it. The calls may wait.
pub trait Vm: Send + Sync {
    /// What it is and does.
    ///
    /// # Errors
    /// This call and all others: why it was not carried out.
    fn info(&self) -> Result<VmInfo, Error>;
    /// What its guest says and would listen to.
    fn guest(&self) -> Result<GuestInfo, Error>;
    /// Types on its keyboard.
    fn type_text(&self, text: &str) -> Result<(), Error>;
    /// The key-value pairs of a pool.
    fn kvp_list(&self, pool: KvpPool) -> Result<Vec<KvpPair>, Error>;
    /// One of them.
    fn kvp_get(&self, pool: KvpPool, key: &str) -> Result<KvpPair, Error>;
    /// Writes a key-value pair.
    fn kvp_set(&self, pool: KvpPool, key: &str, value: &str) -> Result<(), Error>;
    /// Takes a key-value pair away.
    fn kvp_delete(&self, pool: KvpPool, key: &str) -> Result<(), Error>;
    /// Has the guest's file systems stand still, at most so many seconds.
    fn freeze(&self, seconds: u64) -> Result<Frozen, Error>;
    /// Has them go on.
    fn thaw(&self) -> Result<(), Error>;
    /// What it has counted.
    fn counters(&self) -> Result<Counters, Error>;
    /// Stops it where it is.
    fn pause(&self) -> Result<(), Error>;
    /// Lets it go on.
    fn resume(&self) -> Result<(), Error>;
    /// Asks the guest to shut down; where it cannot be asked, the machine ends at once.
    fn shutdown(&self) -> Result<(), Error>;
    /// Ends it without asking the guest.
    fn power_off(&self) -> Result<(), Error>;
    /// Asks the guest to restart; where it cannot be asked, the machine is reset at once.
    fn reboot(&self) -> Result<(), Error>;
    /// Resets it without asking the guest.
    fn reset(&self) -> Result<(), Error>;
    /// Adds a disk.
    fn add_disk(&self, disk: &DiskConfig) -> Result<Disk, Error>;
    /// Adds a network adapter.
    fn add_net(&self, net: &NetConfig) -> Result<Net, Error>;
    /// Plugs a network adapter's cable in, or pulls it.
    fn set_link(&self, id: &str, up: bool) -> Result<(), Error>;
    /// Offers the console again that [`remove_device`](Self::remove_device) took away. A machine need
    /// not have one.
    fn add_console(&self) -> Result<(), Error> {
        Err(Error::NotFound("the machine has no console".into()))
    }
    /// Removes a disk, a controller with its disks, a network adapter, or the console.
    fn remove_device(&self, id: &str) -> Result<(), Error>;
    /// Puts the image at `path` into a DVD drive.
    fn insert_medium(&self, id: &str, path: &Path, force: bool) -> Result<(), Error>;
    /// Takes the medium out of a DVD drive.
    fn eject_medium(&self, id: &str, force: bool) -> Result<(), Error>;
    /// Makes a disk larger, to `size` bytes.
    fn resize_disk(&self, id: &str, size: u64) -> Result<(), Error>;
}

/// The API at a socket, until it is dropped.
#[derive(Debug)]
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Takes the socket at `path`, which answers nobody before [`start`](Self::start).
    ///
    /// # Errors
    /// Why not; whatever is at `path` is as it was.
    pub fn bind(path: &Path) -> Result<Socket, BindError> {
        Socket::bind(path)
    }

    /// Answers calls on `socket` about `vm`, on a thread of its own.
    ///
    /// # Errors
    /// The system has no thread or no events for it.
    pub fn start(socket: Socket, vm: Arc<dyn Vm>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(CALLS)
            .thread_name("api-call")
            .build()?;
        let listener = {
            let _context = runtime.enter();
            tokio::net::UnixListener::from_std(socket.listener()?)?
        };
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("api".into())
            .spawn(move || {
                runtime.block_on(serve(listener, vm, stopped));
                // A call that waits for something for ever does not keep the process.
                runtime.shutdown_timeout(PATIENCE);
                drop(socket);
            })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    /// Lets calls that are being answered finish, and removes the socket.
    fn drop(&mut self) {
        // The thread ends by itself where the channel is gone.
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(
    listener: tokio::net::UnixListener,
    vm: Arc<dyn Vm>,
    stopped: oneshot::Receiver<()>,
) {
    let (begin_end, end) = oneshot::channel::<()>();
    let served = axum::serve(listener, routes::router(vm)).with_graceful_shutdown(async {
        let _ = stopped.await;
        drop(begin_end);
    });
    let impatience = async {
        let _ = end.await;
        tokio::time::sleep(PATIENCE).await;
    };
    tokio::select! {
        outcome = served => if let Err(error) = outcome {
            tracing::error!(%error, "the API cannot go on");
        },
        () = impatience => {}
    }
}
