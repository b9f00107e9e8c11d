//! The running bus: carries out what the state machine decides.
//!
//! One control thread owns the [`Bus`] and the devices. The guest's messages queue up for it, in
//! order and bounded: a guest that posts faster than it is served is told to try again. So a slow
//! close never holds up a virtual processor, and no lock is shared with the data plane.
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
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};
use vmbus_proto::hv::hypercall::Status;
use vmbus_proto::hv::synic::{MESSAGE_PAYLOAD, MESSAGE_TYPE_CHANNEL};
use vmbus_proto::message::{CONNECTION_ID_CONTACT, CONNECTION_ID_MESSAGE, Message};
use vmbus_proto::ring::{Consumer, Producer};
use vmm_sys_util::eventfd::EventFd;

use super::bus::{Action, Bus, BusState, OpenRequest};
use super::channel::Channel;
use super::doorbell::OpenDoorbells;
use super::ring_memory::GuestRing;
use super::trace::Hex;
use super::worker::{ChannelCounters, Worker};
use crate::hv::{Hypercalls, Partition};
use crate::vsp::{StateError, Vsp};

/// Messages of the guest that may wait for the control thread.
const QUEUE: usize = 64;

/// Messages to the guest that may wait for it before it may post more. All offers of a full bus
/// fit on top.
const BACKLOG: usize = 256;

/// A device on a bus, for as long as it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeviceId(u32);

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
    bus: BusState,
    channels: BTreeMap<u32, SavedChannel>,
}

impl SavedBus {
    /// Number of channels that were open.
    pub fn open_channels(&self) -> usize {
        self.channels.len()
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SavedChannel {
    /// Read index of `to_host`, write index of `to_guest`.
    indices: (u32, u32),
    device: Vec<u8>,
}

/// The VMBus of one VM.
pub struct VmBus {
    commands: SyncSender<Command>,
    partition: Partition,
    doorbells: Arc<OpenDoorbells>,
    thread: Option<JoinHandle<()>>,
}

enum Command {
    Message { vp: u32, payload: Box<[u8]> },
    Offer(Box<dyn Vsp>, Sender<Result<DeviceId, OfferError>>),
    Rescind(DeviceId, Sender<()>),
    Reset(Sender<()>),
    Pause(Sender<SavedBus>),
    Resume(Sender<()>),
    Counters(Sender<Vec<(u32, Arc<ChannelCounters>)>>),
    End,
}

impl VmBus {
    /// A bus without devices on `partition`.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn new(partition: Partition) -> io::Result<Self> {
        let bus = Bus::new(Arc::clone(&partition.memory), partition.vp_count);
        Self::start(Server::new(partition, bus))
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
        let mut server = Server::new(partition, bus);
        server.adopt(devices, saved)?;
        Self::start(server).map_err(|error| bad(error.to_string()))
    }

    fn start(server: Server) -> io::Result<Self> {
        let (commands, queue) = sync_channel(QUEUE);
        let partition = server.partition.clone();
        let doorbells = Arc::clone(&server.doorbells);
        let thread = std::thread::Builder::new()
            .name("vmbus".into())
            .spawn(move || server.run(&queue))?;
        Ok(Self {
            commands,
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

    /// What the open channels did, by relid.
    pub fn counters(&self) -> Vec<(u32, Arc<ChannelCounters>)> {
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
        match self.commands.try_send(Command::Message {
            vp,
            payload: payload.into(),
        }) {
            Ok(()) => Status::SUCCESS,
            Err(TrySendError::Full(_)) => Status::INSUFFICIENT_BUFFERS,
            Err(TrySendError::Disconnected(_)) => Status::INVALID_CONNECTION_ID,
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

/// A device and the channel it serves.
struct Device {
    id: DeviceId,
    state: DeviceState,
    counters: Arc<ChannelCounters>,
}

enum DeviceState {
    /// No conversation, or a paused one with its indices.
    Idle(Box<dyn Vsp>, Option<(u32, u32)>),
    Serving(Worker),
    /// Its code panicked; the channel can be closed but not opened again.
    Lost,
}

struct Server {
    partition: Partition,
    doorbells: Arc<OpenDoorbells>,
    bus: Bus,
    /// By relid.
    devices: BTreeMap<u32, Device>,
    next_id: u32,
}

impl Server {
    fn new(partition: Partition, bus: Bus) -> Self {
        Self {
            doorbells: Arc::new(OpenDoorbells::new(Arc::clone(&partition.doorbells))),
            partition,
            bus,
            devices: BTreeMap::new(),
            next_id: 0,
        }
    }

    fn run(mut self, queue: &Receiver<Command>) {
        while let Ok(command) = queue.recv() {
            // Whoever asked may have gone; that is no reason to stop.
            match command {
                Command::Message { vp, payload } => {
                    tracing::trace!(vp, message = %Hex(&payload), "from the guest");
                    self.bus.handle(vp, &payload);
                    self.carry_out();
                }
                Command::Offer(vsp, reply) => {
                    let _ = reply.send(self.offer(vsp));
                }
                Command::Rescind(device, reply) => {
                    self.rescind(device);
                    let _ = reply.send(());
                }
                Command::Reset(reply) => {
                    self.bus.reset();
                    self.carry_out();
                    self.partition.messages.clear();
                    let _ = reply.send(());
                }
                Command::Pause(reply) => {
                    let _ = reply.send(self.pause());
                }
                Command::Resume(reply) => {
                    self.resume();
                    let _ = reply.send(());
                }
                Command::Counters(reply) => {
                    let all = self.devices.iter();
                    let all = all.map(|(&relid, device)| (relid, Arc::clone(&device.counters)));
                    let _ = reply.send(all.collect());
                }
                Command::End => break,
            }
        }
        self.bus.reset();
        self.carry_out();
    }

    fn carry_out(&mut self) {
        while let Some(action) = self.bus.poll() {
            match action {
                Action::ForgetMessages => self.partition.messages.clear(),
                Action::Send { vp, message } => {
                    tracing::trace!(vp, message = %Hex(&message), "to the guest");
                    self.partition.messages.post(vp, &message);
                }
                Action::Open(request) => {
                    let outcome = self.open(&request);
                    if let Err(error) = &outcome {
                        self.not_opened(request.relid, error);
                    }
                    self.bus.opened(request.relid, outcome.is_ok());
                }
                Action::Close { relid } => self.close(relid),
                Action::Retarget { relid, vp } => {
                    if let Some(worker) = self.worker(relid) {
                        worker.retarget(vp);
                    }
                }
                Action::Kick { relid } => {
                    if let Some(worker) = self.worker(relid) {
                        worker.kick();
                    }
                }
            }
        }
    }

    fn not_opened(&self, relid: u32, error: &str) {
        let counters = self.devices.get(&relid).map(|device| &device.counters);
        if counters.is_some_and(|counters| counters.failed()) {
            tracing::warn!(relid, %error, "channel not opened");
        }
    }

    fn worker(&self, relid: u32) -> Option<&Worker> {
        match &self.devices.get(&relid)?.state {
            DeviceState::Serving(worker) => Some(worker),
            _ => None,
        }
    }

    fn offer(&mut self, vsp: Box<dyn Vsp>) -> Result<DeviceId, OfferError> {
        let relid = self.bus.offer(vsp.offer()).ok_or(OfferError::Full)?;
        let id = self.add(relid, DeviceState::Idle(vsp, None));
        self.carry_out();
        Ok(id)
    }

    fn add(&mut self, relid: u32, state: DeviceState) -> DeviceId {
        let id = DeviceId(self.next_id);
        self.next_id = self.next_id.wrapping_add(1);
        self.devices.insert(
            relid,
            Device {
                id,
                state,
                counters: Arc::default(),
            },
        );
        id
    }

    fn rescind(&mut self, id: DeviceId) {
        let found = self.devices.iter().find(|(_, device)| device.id == id);
        if let Some(relid) = found.map(|(&relid, _)| relid) {
            self.bus.rescind(relid);
            self.carry_out();
            self.devices.remove(&relid);
        }
    }

    fn open(&mut self, request: &OpenRequest) -> Result<(), String> {
        let device = self
            .devices
            .get_mut(&request.relid)
            .ok_or("there is no device")?;
        match std::mem::replace(&mut device.state, DeviceState::Lost) {
            DeviceState::Idle(mut vsp, _) => {
                vsp.opened();
                let (state, outcome) = serve(
                    &self.partition,
                    &self.doorbells,
                    request,
                    None,
                    vsp,
                    Arc::clone(&device.counters),
                );
                device.state = state;
                outcome
            }
            other => {
                device.state = other;
                Err("the device is not ready".into())
            }
        }
    }

    fn close(&mut self, relid: u32) {
        self.stop(relid);
        if let Some(Device {
            state: DeviceState::Idle(_, indices),
            ..
        }) = self.devices.get_mut(&relid)
        {
            *indices = None;
        }
    }

    /// Stops a channel's worker; the device keeps where it was.
    fn stop(&mut self, relid: u32) {
        let Some(device) = self.devices.get_mut(&relid) else {
            return;
        };
        device.state = match std::mem::replace(&mut device.state, DeviceState::Lost) {
            DeviceState::Serving(worker) => {
                self.doorbells.close(relid);
                match worker.stop() {
                    Some(stopped) => DeviceState::Idle(stopped.vsp, Some(stopped.indices)),
                    None => DeviceState::Lost,
                }
            }
            other => other,
        };
    }

    fn pause(&mut self) -> SavedBus {
        let relids: Vec<u32> = self.devices.keys().copied().collect();
        let mut channels = BTreeMap::new();
        for relid in relids {
            self.stop(relid);
            if let Some(Device {
                state: DeviceState::Idle(vsp, Some(indices)),
                ..
            }) = self.devices.get(&relid)
            {
                channels.insert(
                    relid,
                    SavedChannel {
                        indices: *indices,
                        device: vsp.save(),
                    },
                );
            }
        }
        SavedBus {
            bus: self.bus.state().clone(),
            channels,
        }
    }

    fn resume(&mut self) {
        let open: Vec<OpenRequest> = self.bus.open_channels().cloned().collect();
        for request in open {
            let Some(device) = self.devices.get_mut(&request.relid) else {
                continue;
            };
            device.state = match std::mem::replace(&mut device.state, DeviceState::Lost) {
                DeviceState::Idle(vsp, Some(indices)) => {
                    let counters = Arc::clone(&device.counters);
                    let (state, outcome) = serve(
                        &self.partition,
                        &self.doorbells,
                        &request,
                        Some(indices),
                        vsp,
                        counters,
                    );
                    if let Err(error) = outcome {
                        tracing::error!(relid = request.relid, %error, "channel not resumed");
                    }
                    state
                }
                other => other,
            };
            if let Some(worker) = self.worker(request.relid) {
                worker.kick();
            }
        }
    }

    /// Takes devices in for the channels of a saved bus.
    fn adopt(&mut self, devices: Vec<Box<dyn Vsp>>, saved: SavedBus) -> Result<(), StateError> {
        let relids: Vec<u32> = self.bus.relids().collect();
        if relids.len() != devices.len() {
            return Err(StateError {
                device: "the bus",
                reason: format!("it had {} devices, not {}", relids.len(), devices.len()),
            });
        }
        for (relid, mut vsp) in relids.into_iter().zip(devices) {
            let mut indices = None;
            if let Some(channel) = saved.channels.get(&relid) {
                vsp.restore(&channel.device)?;
                indices = Some(channel.indices);
            }
            self.add(relid, DeviceState::Idle(vsp, indices));
        }
        Ok(())
    }
}

/// Starts a worker on the rings of `request`, at `indices` where the conversation goes on.
fn serve(
    partition: &Partition,
    doorbells: &OpenDoorbells,
    request: &OpenRequest,
    indices: Option<(u32, u32)>,
    vsp: Box<dyn Vsp>,
    counters: Arc<ChannelCounters>,
) -> (DeviceState, Result<(), String>) {
    let prepared = (|| -> Result<(Channel, Arc<EventFd>), String> {
        let ring = |pages: &Arc<[u64]>| {
            GuestRing::new(Arc::clone(&partition.memory), pages)
                .ok_or("the ring's pages are not usable RAM")
        };
        let (to_host, to_guest) = (ring(&request.to_host)?, ring(&request.to_guest)?);
        let (to_host, to_guest) = match indices {
            None => (Consumer::attach(to_host), Producer::attach(to_guest)),
            Some((read, write)) => (
                Consumer::resume(to_host, read),
                Producer::resume(to_guest, write),
            ),
        };
        let corrupt = |error: vmbus_proto::ring::Corrupt| error.to_string();
        let (to_host, to_guest) = (to_host.map_err(corrupt)?, to_guest.map_err(corrupt)?);
        let channel = Channel::new(to_host, to_guest, Arc::clone(&partition.memory));
        let doorbell = doorbells.open(request.relid);
        let doorbell = doorbell.map_err(|error| error.to_string())?;
        Ok((channel, doorbell))
    })();
    let (channel, doorbell) = match prepared {
        Ok(prepared) => prepared,
        Err(reason) => return (DeviceState::Idle(vsp, indices), Err(reason)),
    };
    let interrupts = Arc::clone(&partition.interrupts);
    match Worker::start(
        vsp,
        channel,
        doorbell,
        request.relid,
        request.target_vp,
        interrupts,
        counters,
    ) {
        Ok(worker) => (DeviceState::Serving(worker), Ok(())),
        Err((vsp, error)) => {
            let state = vsp.map_or(DeviceState::Lost, |vsp| DeviceState::Idle(vsp, indices));
            doorbells.close(request.relid);
            (state, Err(error.to_string()))
        }
    }
}
