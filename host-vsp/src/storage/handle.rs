//! The disks of a controller while a guest uses it: added, removed and made larger.
//!
//! A guest is told twice. ENUMERATE_BUS, on the channel, has it ask every disk whether it is ready
//! and look for new ones; a disk that has gone answers that there is no such LUN, and one that has
//! grown answers once with UNIT ATTENTION, CAPACITY DATA HAS CHANGED. The LUN of a disk that was
//! removed is not given to another one until the guest has met the gap: it would take the new disk
//! for the old one, with what it remembers of that.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmbus_proto::guid::Guid;
use vmm_sys_util::eventfd::EventFd;

use super::backend::Backend;
use super::block::BlockSize;
use super::identity::{Identity, is_serial};
use super::scsi::{Target, Unit};
use super::vsp::{Disk, MAX_LUNS};

/// How long a disk that is removed may take to finish what guests asked before.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a guest may take to let go of a controller's disks.
pub(super) const LETTING_GO: Duration = Duration::from_secs(20);

/// A guest that asks nothing of a controller for so long has let go. Linux removes one disk after
/// the other, each with a flush at its end; in software emulation a second may pass between two of
/// its commands.
pub(super) const QUIET: Duration = Duration::from_secs(3);

/// Why a disk was not attached. The text is a sentence for the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// There is no such LUN.
    #[error("a controller has no LUN {0}: use one from 0 to 63")]
    NoSuchLun(u8),
    /// The LUN has a disk.
    #[error("LUN {0} already has a disk, or a guest still believes so: use another one")]
    InUse(u8),
    /// It has not one block.
    #[error("the disk has {size} bytes, less than one block of {block}: make it larger")]
    TooSmall {
        /// Bytes of the disk.
        size: u64,
        /// Bytes of a block.
        block: u32,
    },
    /// Nobody could read it.
    #[error(
        "{0:?} is no serial number: use 1 to 64 letters, digits and other characters of ASCII, \
         not beginning or ending with a space"
    )]
    Serial(String),
}

/// Why a disk was not changed. The text is a sentence for the user.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// There is no disk at this LUN.
    #[error("LUN {0} has no disk")]
    NoDisk(u8),
    /// It cannot have this size.
    #[error("{0}")]
    Size(io::Error),
    /// What was written may not all be there.
    #[error("the disk is removed, but could not be flushed: {0}")]
    Flush(io::Error),
    /// There is no DVD drive at this LUN.
    #[error("LUN {0} is no DVD drive")]
    NoDrive(u8),
    /// The guest does not let go of the medium.
    #[error(
        "the guest has locked the medium in and was asked to let go of it: unmount it in the \
         guest and try again, or use force"
    )]
    Locked,
    /// It is still at work.
    #[error(
        "the disk is removed, but what the guest asked before is still not done: its image \
             stays in use until then"
    )]
    Busy,
}

/// What a controller shares with its handles.
pub(super) struct Shared {
    instance: Guid,
    target: Mutex<Target>,
    /// The guest has to be told that its disks are others than before.
    changed: AtomicBool,
    /// A guest has the primary channel open, and it is served.
    in_use: AtomicBool,
    /// Has the channel's worker look at `changed`.
    wake: EventFd,
}

impl Shared {
    pub(super) fn new(instance: Guid, wake: EventFd) -> Self {
        Self {
            instance,
            target: Mutex::default(),
            changed: AtomicBool::new(false),
            in_use: AtomicBool::new(false),
            wake,
        }
    }

    pub(super) fn instance(&self) -> Guid {
        self.instance
    }

    pub(super) fn target(&self) -> MutexGuard<'_, Target> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is something to tell since the last call.
    pub(super) fn take_changed(&self) -> bool {
        self.changed.swap(false, Ordering::AcqRel)
    }

    pub(super) fn set_changed(&self) {
        self.changed.store(true, Ordering::Release);
        // Fails only where the counter is full, and then the event is readable anyway.
        let _ = self.wake.write(1);
    }

    pub(super) fn set_in_use(&self, in_use: bool) {
        self.in_use.store(in_use, Ordering::Relaxed);
    }

    /// Waits until the guest knows that there are no disks, and asks nothing any more; or has had
    /// its time.
    fn wait_let_go(&self) {
        let begin = Instant::now();
        let (mut commands, mut last) = (0, begin);
        while self.in_use.load(Ordering::Relaxed) && begin.elapsed() < LETTING_GO {
            let (now, knows) = {
                let target = self.target();
                (target.commands(), target.has_no_gaps())
            };
            if now != commands {
                (commands, last) = (now, Instant::now());
            } else if knows && last.elapsed() >= QUIET {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A guest begins a new conversation: it looks at all disks anyway.
    pub(super) fn forget(&self) {
        self.target().forget();
        self.changed.store(false, Ordering::Release);
    }
}

/// The disks of a controller, for whoever runs the machine.
#[derive(Clone)]
pub struct ControllerHandle(pub(super) Arc<Shared>);

impl ControllerHandle {
    /// Puts a disk at `lun`.
    ///
    /// # Errors
    /// There is no such LUN, it has a disk, or the guest does not know yet that it has none; or
    /// the disk cannot be one.
    pub fn attach(&self, lun: u8, disk: impl Into<Disk>) -> Result<(), AttachError> {
        if lun >= MAX_LUNS {
            return Err(AttachError::NoSuchLun(lun));
        }
        let Disk {
            backend,
            block_size,
            serial,
        } = disk.into();
        let (size, block) = (backend.size(), block_size.bytes());
        if size < u64::from(block) {
            return Err(AttachError::TooSmall { size, block });
        }
        let identity = match serial {
            Some(serial) if is_serial(&serial) => Identity::chosen(serial),
            Some(serial) => return Err(AttachError::Serial(serial)),
            None => Identity::new(self.0.instance, lun),
        };
        let unit = Unit::new(backend, block_size, identity);
        if !self.0.target().insert(lun, unit) {
            return Err(AttachError::InUse(lun));
        }
        self.0.set_changed();
        Ok(())
    }

    /// The first LUN where a disk can be put; `None` where there is none.
    pub fn free_lun(&self) -> Option<u8> {
        let target = self.0.target();
        (0..MAX_LUNS).find(|&lun| target.is_free(lun))
    }

    /// Takes the disk at `lun` away, and waits until all that guests wrote is durable in it.
    ///
    /// # Errors
    /// There is none; or it is gone and its end was not a good one.
    pub fn detach(&self, lun: u8) -> Result<(), ChangeError> {
        let unit = self.0.target().remove(lun);
        let backend = unit.ok_or(ChangeError::NoDisk(lun))?.backend;
        self.0.set_changed();
        wait_unused(&backend)?;
        if backend.read_only() {
            return Ok(());
        }
        backend.flush().map_err(ChangeError::Flush)
    }

    /// Takes all disks and drives away, and waits until the guest has let go of them. A controller
    /// that is rescinded before that leaves Linux waiting for ever for the end of a flush, and with
    /// it whatever else is rescinded.
    ///
    /// # Errors
    /// All are gone, but the end of one was not a good one; the first such is told.
    pub fn retire(&self) -> Result<(), ChangeError> {
        let luns: Vec<u8> = self.0.target().luns().collect();
        let mut outcome = Ok(());
        for lun in luns {
            let detached = match self.detach(lun) {
                Err(ChangeError::NoDisk(_)) => self.detach_drive(lun),
                detached => detached,
            };
            // What somebody else was faster to take is gone as well.
            if !matches!(detached, Err(ChangeError::NoDrive(_))) {
                outcome = outcome.and(detached);
            }
        }
        self.0.wait_let_go();
        outcome
    }

    /// Makes the disk at `lun` larger, to `size` bytes.
    ///
    /// # Errors
    /// There is none, or it cannot have that size.
    pub fn resize(&self, lun: u8, size: u64) -> Result<(), ChangeError> {
        let (backend, block_size) = self.backend(lun)?;
        let block = block_size.bytes();
        if !size.is_multiple_of(block.into()) {
            return Err(ChangeError::Size(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a disk's size is a multiple of {block} bytes, which {size} is not"),
            )));
        }
        backend.resize(size).map_err(ChangeError::Size)?;
        if self.0.target().capacity_changed(lun, &backend) {
            self.0.set_changed();
        }
        Ok(())
    }

    /// Size in bytes of the disk at `lun`, and whether it is read-only.
    ///
    /// # Errors
    /// There is none.
    pub fn disk(&self, lun: u8) -> Result<(u64, bool), ChangeError> {
        let (backend, _) = self.backend(lun)?;
        Ok((backend.size(), backend.read_only()))
    }

    /// Serial number of the disk at `lun`, as the guest sees it.
    ///
    /// # Errors
    /// There is none.
    pub fn serial(&self, lun: u8) -> Result<String, ChangeError> {
        let serial = self.0.target().serial(lun);
        serial.ok_or(ChangeError::NoDisk(lun))
    }

    fn backend(&self, lun: u8) -> Result<(Arc<dyn Backend>, BlockSize), ChangeError> {
        let backend = self.0.target().backend(lun);
        backend.ok_or(ChangeError::NoDisk(lun))
    }
}

/// Waits until nobody else has a backend that was taken away.
///
/// # Errors
/// It takes too long.
pub(super) fn wait_unused(backend: &Arc<dyn Backend>) -> Result<(), ChangeError> {
    // Requests on their way hold it too, and there will be no new ones.
    let end = Instant::now().checked_add(PATIENCE);
    while Arc::strong_count(backend) > 1 {
        if end.is_none_or(|end| Instant::now() > end) {
            return Err(ChangeError::Busy);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
