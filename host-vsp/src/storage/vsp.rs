//! The controller and its channels: the primary one, and sub-channels as the guest asks for them.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::io;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vmbus_proto::guid::Guid;
use vmbus_proto::message::OfferChannel;
use vmbus_proto::storvsp::{DISK_CLASS, ProtocolVersion, SCSI_CLASS};

use super::backend::{Backend, Format, OpenError, Qcow2File, RawFile, ServedFile};
use super::block::BlockSize;
use super::conversation::{Conversation, Request};
use super::engine::Engine;
use super::handle::{AttachError, ControllerHandle, Shared};
use super::port::Port;
use super::scsi::{DriveState, Transfer};
use crate::vmbus::channel::{Channel, ChannelError};
use crate::vsp::{StateError, Vsp, plain_offer};

/// Most sub-channels of a controller. Each has a thread; beyond that many, transfers are slower
/// than channels.
pub const MAX_SUB_CHANNELS: u16 = 15;

/// Disks on a controller: LUNs 0 to 63.
pub const MAX_LUNS: u8 = 64;

/// A disk to attach to a controller.
pub struct Disk {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) block_size: BlockSize,
    pub(super) serial: Option<String>,
}

impl Disk {
    /// A disk whose blocks are in the image at `path`, which is opened and locked; where it stands
    /// on others, these are only opened with `backing_files`.
    ///
    /// # Errors
    /// Why not; the image is untouched.
    pub fn open(
        path: &Path,
        format: Format,
        read_only: bool,
        backing_files: bool,
    ) -> Result<Self, OpenError> {
        Ok(match format {
            Format::Raw => RawFile::open(path, read_only)?.into(),
            Format::Qcow2 => Qcow2File::open(path, read_only, backing_files)?.into(),
            Format::Vhd | Format::Vhdx => ServedFile::open(path, format, read_only)?.into(),
        })
    }

    /// A disk whose blocks are in `backend`.
    pub fn new(backend: impl Backend + 'static) -> Self {
        Self {
            backend: Arc::new(backend),
            block_size: BlockSize::default(),
            serial: None,
        }
    }

    /// With logical blocks of another size. What is left of the backend beyond the last whole one
    /// is not the guest's.
    #[must_use]
    pub fn with_block_size(self, block_size: BlockSize) -> Self {
        Self { block_size, ..self }
    }

    /// With this serial number and a name made from it, wherever the disk is attached. Otherwise
    /// both are made from its place.
    #[must_use]
    pub fn with_serial(self, serial: impl Into<String>) -> Self {
        let serial = Some(serial.into());
        Self { serial, ..self }
    }
}

impl<B: Backend + 'static> From<B> for Disk {
    fn from(backend: B) -> Self {
        Self::new(backend)
    }
}

/// Which drivers a controller is for. All of them speak the same protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ControllerClass {
    /// Hyper-V's own: every guest's storage driver binds it.
    #[default]
    Scsi,
    /// This project's: only a driver that knows it, such as `linux-module`'s `vmbus_disk`.
    Disk,
}

impl ControllerClass {
    /// The class of the offer.
    pub const fn guid(self) -> Guid {
        match self {
            Self::Scsi => SCSI_CLASS,
            Self::Disk => DISK_CLASS,
        }
    }
}

/// A SCSI controller with its disks.
pub struct Controller {
    class: ControllerClass,
    // Before the engine: a lane ends before its threads.
    port: Port,
    engine: Arc<Engine<(Request, Transfer)>>,
    /// Sub-channels that a guest may ask for.
    max_sub_channels: u16,
}

/// A controller's state as bytes.
#[derive(Serialize, Deserialize)]
struct Saved {
    conversation: Vec<u8>,
    /// What the guest has not been told of its disks.
    news: (Vec<u8>, Vec<u8>),
    /// What its drives remember, by LUN.
    drives: Vec<(u8, DriveState)>,
}

impl Controller {
    /// A controller without disks. `instance` names it, to the guest and in the names of its
    /// disks: the same one at each boot.
    ///
    /// # Errors
    /// The system has no threads or eventfd for it.
    pub fn new(instance: Guid) -> io::Result<Self> {
        let engine = Engine::new()?;
        let lane = engine.lane()?;
        let shared = Arc::new(Shared::new(instance, lane.waker()?));
        Ok(Self {
            class: ControllerClass::default(),
            port: Port::new(shared, lane, Conversation::primary(0)),
            engine: Arc::new(engine),
            max_sub_channels: 0,
        })
    }

    /// For other drivers than every guest's. Before it is offered.
    #[must_use]
    pub fn with_class(mut self, class: ControllerClass) -> Self {
        self.class = class;
        self
    }

    /// Lets guests ask for sub-channels: one channel for each of `vp_count` processors, up to
    /// [`MAX_SUB_CHANNELS`] beside the primary one. Not while a guest uses the controller.
    #[must_use]
    pub fn with_channels_for(mut self, vp_count: u32) -> Self {
        let wanted = u16::try_from(vp_count.saturating_sub(1)).unwrap_or(u16::MAX);
        self.max_sub_channels = wanted.min(MAX_SUB_CHANNELS);
        self.port
            .begin(Conversation::primary(self.max_sub_channels));
        self
    }

    /// Puts a disk at `lun`.
    ///
    /// # Errors
    /// There is no such LUN, or it is not free.
    pub fn attach(&mut self, lun: u8, disk: impl Into<Disk>) -> Result<(), AttachError> {
        self.disks().attach(lun, disk)
    }

    /// The controller's disks, to be changed while it serves a guest.
    pub fn disks(&self) -> ControllerHandle {
        ControllerHandle(Arc::clone(&self.port.shared))
    }
}

impl Drop for Controller {
    /// What guests wrote and did not flush survives the end of the machine, also where the host
    /// fails after it.
    fn drop(&mut self) {
        self.port.lane.wait_idle();
        self.port.shared.target().flush_all();
    }
}

impl Vsp for Controller {
    fn offer(&self) -> OfferChannel {
        plain_offer(self.class.guid(), self.port.shared.instance())
    }

    fn opened(&mut self) {
        self.port
            .begin(Conversation::primary(self.max_sub_channels));
        self.port.shared.forget();
    }

    fn service(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        self.port.shared.set_in_use(true);
        // Cleared before the look: a change after it makes the event readable again.
        self.port.lane.clear_event();
        if self.port.shared.take_changed() {
            self.port.conversation.disks_changed();
        }
        self.port.service(channel)
    }

    fn event(&self) -> Option<RawFd> {
        Some(self.port.lane.event())
    }

    fn sub_channels(&self) -> u16 {
        self.port.conversation.granted_sub_channels()
    }

    fn sub_channel(&mut self, index: u16) -> io::Result<Box<dyn Vsp>> {
        let version = self.port.conversation.version();
        let version = version.filter(|_| index <= self.max_sub_channels);
        let version = version.ok_or(io::ErrorKind::Unsupported)?;
        Ok(Box::new(SubChannel {
            class: self.class,
            port: Port::new(
                Arc::clone(&self.port.shared),
                self.engine.lane()?,
                Conversation::sub_channel(version),
            ),
            _engine: Arc::clone(&self.engine),
            version,
        }))
    }

    fn quiesce(&mut self) {
        self.port.shared.set_in_use(false);
        self.port.quiesce();
        // Part of the state, from here on.
        if self.port.shared.take_changed() {
            self.port.conversation.disks_changed();
        }
    }

    fn save(&self) -> Vec<u8> {
        let target = self.port.shared.target();
        let saved = Saved {
            conversation: self.port.conversation.save(),
            news: target.news(),
            drives: target.drive_states(),
        };
        // Numbers and bytes cannot fail to serialize into memory.
        postcard::to_stdvec(&saved).unwrap_or_default()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let saved: Saved = postcard::from_bytes(state).map_err(|error| bad(error.to_string()))?;
        let fresh = Conversation::primary(self.max_sub_channels);
        let conversation = fresh.load(&saved.conversation).map_err(bad)?;
        self.port.begin(conversation);
        self.port.shared.forget();
        let mut target = self.port.shared.target();
        target.restore_news(saved.news);
        target.restore_drives(saved.drives);
        Ok(())
    }
}

fn bad(reason: String) -> StateError {
    StateError {
        device: "the storage controller",
        reason,
    }
}

/// A further channel to a controller's disks. It only carries commands: the initialization and
/// what the guest is told of itself are the primary channel's.
struct SubChannel {
    class: ControllerClass,
    // Before the engine: a lane ends before its threads.
    port: Port,
    _engine: Arc<Engine<(Request, Transfer)>>,
    version: ProtocolVersion,
}

impl Vsp for SubChannel {
    fn offer(&self) -> OfferChannel {
        plain_offer(self.class.guid(), self.port.shared.instance())
    }

    fn opened(&mut self) {
        self.port.begin(Conversation::sub_channel(self.version));
    }

    fn service(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        self.port.lane.clear_event();
        self.port.service(channel)
    }

    fn event(&self) -> Option<RawFd> {
        Some(self.port.lane.event())
    }

    fn quiesce(&mut self) {
        self.port.quiesce();
    }

    fn save(&self) -> Vec<u8> {
        self.port.conversation.save()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let fresh = Conversation::sub_channel(self.version);
        let conversation = fresh.load(state).map_err(bad)?;
        self.port.begin(conversation);
        Ok(())
    }
}
