//! The running bus, as others see it.
//!
//! One control thread ([`Server`]) owns the [`Bus`] and the devices. What there is to do queues up
//! for it, in order; of the guest's messages only so many: a guest that posts faster than it is
//! served is told to try again. So a slow close never holds up a virtual processor, and no lock is
//! shared with the data plane.
#![warn(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};
use vmbus_proto::hv::hypercall::Status;
use vmbus_proto::hv::synic::{MESSAGE_PAYLOAD, MESSAGE_TYPE_CHANNEL};
use vmbus_proto::message::{CONNECTION_ID_CONTACT, CONNECTION_ID_MESSAGE, Message};

use super::bus::{Bus, BusState};
use super::control::Server;
use super::doorbell::OpenDoorbells;
use super::worker::ChannelCounters;
use crate::hv::{Hypercalls, Partition};
use crate::vsp::{StateError, Vsp};

/// Messages of the guest that may wait for the control thread.
const QUEUE: usize = 64;

/// Messages to the guest that may wait for it before it may post more. All offers of a full bus
/// fit on top.
const BACKLOG: usize = 256;

/// A device on a bus, for as long as it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeviceId(pub(super) u32);

/// Why a device was not offered.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// All 2047 relids are taken.
    #[error("the bus is full: it holds at most 2047 channels")]
    Full,
    /// The bus has ended.
    #[error("the bus has ended")]
    Ended,
}

/// A saved bus: the control plane, and each open channel's indices and device state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SavedBus {
    pub(super) bus: BusState,
    pub(super) channels: BTreeMap<u32, SavedChannel>,
}

impl SavedBus {
    /// Number of channels that were open.
    pub fn open_channels(&self) -> usize {
        self.channels.len()
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SavedChannel {
    /// Read index of `to_host`, write index of `to_guest`.
    pub(super) indices: (u32, u32),
    pub(super) device: Vec<u8>,
}

/// What is on a bus, for whoever asks.
#[derive(Clone, Debug, Default)]
pub struct BusCounters {
    /// What each channel did since it was first offered, by relid. Sub-channels are among them
    /// while their primary channel is open.
    pub channels: BTreeMap<u32, Arc<ChannelCounters>>,
    /// GPADLs that the guest has established, or begun to.
    pub gpadls: usize,
    /// Pages that those have, or were announced to have.
    pub gpadl_pages: usize,
}

/// The VMBus of one VM.
pub struct VmBus {
    commands: Sender<Command>,
    /// The guest's messages among them.
    messages: Arc<AtomicUsize>,
    partition: Partition,
    doorbells: Arc<OpenDoorbells>,
    thread: Option<JoinHandle<()>>,
}

/// What the control thread is asked to do.
pub(super) enum Command {
    Message {
        vp: u32,
        payload: Box<[u8]>,
    },
    /// A worker wants a sub-channel offered, to be served by this VSP.
    SubChannel {
        /// The worker's primary channel.
        primary: u32,
        /// Which of its workers, one after the other, it is.
        worker: u64,
        index: u16,
        vsp: Box<dyn Vsp>,
    },
    Offer(Box<dyn Vsp>, Sender<Result<DeviceId, OfferError>>),
    Rescind(DeviceId, Sender<()>),
    Reset(Sender<()>),
    Pause(Sender<SavedBus>),
    Resume(Sender<()>),
    Counters(Sender<BusCounters>),
    End,
}

impl VmBus {
    /// A bus without devices on `partition`.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn new(partition: Partition) -> io::Result<Self> {
        let bus = Bus::new(Arc::clone(&partition.memory), partition.vp_count);
        let (commands, queue) = channel();
        Self::start(Server::new(partition, bus, commands), queue)
    }

    /// A bus that goes on from `saved`, with `devices` in the order in which they were offered to
    /// the saved one. It is paused until [`resume`](Self::resume).
    ///
    /// # Errors
    /// A device or the rings do not agree with the state, or the system gives no thread.
    pub fn restore(
        partition: Partition,
        devices: Vec<Box<dyn Vsp>>,
        saved: SavedBus,
    ) -> Result<Self, StateError> {
        let bad = |reason: String| StateError {
            device: "the bus",
            reason,
        };
        let bus = Bus::restore(
            Arc::clone(&partition.memory),
            partition.vp_count,
            saved.bus.clone(),
        );
        let (commands, queue) = channel();
        let mut server = Server::new(partition, bus, commands);
        server.adopt(devices, &saved)?;
        Self::start(server, queue).map_err(|error| bad(error.to_string()))
    }

    fn start(server: Server, queue: Receiver<Command>) -> io::Result<Self> {
        let commands = server.commands.clone();
        let messages = Arc::new(AtomicUsize::new(0));
        let partition = server.partition.clone();
        let doorbells = Arc::clone(&server.doorbells);
        let thread = std::thread::Builder::new().name("vmbus".into()).spawn({
            let messages = Arc::clone(&messages);
            move || server.run(&queue, &messages)
        })?;
        Ok(Self {
            commands,
            messages,
            partition,
            doorbells,
            thread: Some(thread),
        })
    }

    /// Offers a device, now and after every reset.
    ///
    /// # Errors
    /// There is no relid left.
    pub fn offer(&self, vsp: Box<dyn Vsp>) -> Result<DeviceId, OfferError> {
        self.ask(|reply| Command::Offer(vsp, reply))
            .unwrap_or(Err(OfferError::Ended))
    }

    /// Takes a device away from a running guest.
    pub fn rescind(&self, device: DeviceId) {
        self.ask(|reply| Command::Rescind(device, reply));
    }

    /// Puts the bus back to where it was before the guest came, all channels closed.
    pub fn reset(&self) {
        self.ask(Command::Reset);
    }

    /// Stops all channels where they are and gives the state of everything. The guest must be
    /// stopped. `None` where the bus has ended.
    ///
    /// Messages that were posted and are not in the guest's slot yet are not part of it: they are
    /// the hypervisor's ([`Messages`](crate::hv::Messages)), as are the guest's registers, and
    /// whoever takes the bus elsewhere takes both along.
    pub fn pause(&self) -> Option<SavedBus> {
        self.ask(Command::Pause)
    }

    /// Goes on after [`pause`](Self::pause) or [`restore`](Self::restore).
    pub fn resume(&self) {
        self.ask(Command::Resume);
    }

    /// What is there, and what it did.
    pub fn counters(&self) -> BusCounters {
        self.ask(Command::Counters).unwrap_or_default()
    }

    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = channel();
        self.commands.send(command(reply)).ok()?;
        answer.recv().ok()
    }
}

impl Drop for VmBus {
    fn drop(&mut self) {
        // Where the thread is gone, so are the channels.
        let _ = self.commands.send(Command::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Whether a message makes the bus forget all that waits for the guest: a kernel that comes after
/// a crash finds a backlog that it cannot take.
fn ends_backlog(payload: &[u8]) -> bool {
    matches!(
        Message::parse(payload),
        Ok(Message::InitiateContact(_) | Message::Unload)
    )
}

impl Hypercalls for VmBus {
    fn post_message(
        &self,
        vp: u32,
        connection_id: u32,
        message_type: u32,
        payload: &[u8],
    ) -> Status {
        if connection_id != CONNECTION_ID_MESSAGE && connection_id != CONNECTION_ID_CONTACT {
            return Status::INVALID_CONNECTION_ID;
        }
        if payload.len() > MESSAGE_PAYLOAD || message_type != MESSAGE_TYPE_CHANNEL {
            return Status::INVALID_PARAMETER;
        }
        if self.partition.messages.backlog() >= BACKLOG && !ends_backlog(payload) {
            return Status::INSUFFICIENT_BUFFERS;
        }
        // Relaxed: it only counts, and the queue orders.
        if self.messages.fetch_add(1, Ordering::Relaxed) >= QUEUE {
            self.messages.fetch_sub(1, Ordering::Relaxed);
            return Status::INSUFFICIENT_BUFFERS;
        }
        let payload = payload.into();
        match self.commands.send(Command::Message { vp, payload }) {
            Ok(()) => Status::SUCCESS,
            Err(_) => Status::INVALID_CONNECTION_ID,
        }
    }

    fn signal_event(&self, _vp: u32, connection_id: u32, flag: u16) -> Status {
        if self.doorbells.ring(connection_id, flag) {
            Status::SUCCESS
        } else {
            Status::INVALID_CONNECTION_ID
        }
    }
}
