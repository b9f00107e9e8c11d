//! The control thread: owns the [`Bus`] and the devices, and carries out what the bus decides.
#![warn(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender};

use vmbus_proto::ring::{Consumer, Producer};
use vmm_sys_util::eventfd::EventFd;

use super::bus::{Action, Bus, OpenRequest, SubChannel};
use super::channel::Channel;
use super::doorbell::OpenDoorbells;
use super::ring_memory::GuestRing;
use super::server::{BusCounters, Command, DeviceId, OfferError, SavedBus, SavedChannel};
use super::trace::Hex;
use super::worker::{ChannelCounters, Serving, SubChannels, Worker};
use crate::hv::Partition;
use crate::vsp::{StateError, Vsp};

/// A device and the channel it serves.
struct Device {
    id: DeviceId,
    state: DeviceState,
    counters: Arc<ChannelCounters>,
}

enum DeviceState {
    /// No conversation, or a paused one with its indices.
    Idle(Box<dyn Vsp>, Option<(u32, u32)>),
    /// The worker, and which one of the bus's it is.
    Serving(Worker, u64),
    /// Its code panicked; the channel can be closed but not opened again.
    Lost,
}

pub(super) struct Server {
    pub(super) partition: Partition,
    pub(super) doorbells: Arc<OpenDoorbells>,
    /// How workers ask this thread for sub-channels.
    pub(super) commands: Sender<Command>,
    bus: Bus,
    /// By relid.
    devices: BTreeMap<u32, Device>,
    next_id: u32,
    /// Workers that were started.
    workers: u64,
}

impl Server {
    pub(super) fn new(partition: Partition, bus: Bus, commands: Sender<Command>) -> Self {
        Self {
            doorbells: Arc::new(OpenDoorbells::new(Arc::clone(&partition.doorbells))),
            partition,
            commands,
            bus,
            devices: BTreeMap::new(),
            next_id: 0,
            workers: 0,
        }
    }

    /// Does what comes by `queue`, until its end. `messages` counts the guest's messages in it.
    pub(super) fn run(mut self, queue: &Receiver<Command>, messages: &AtomicUsize) {
        while let Ok(command) = queue.recv() {
            // Whoever asked may have gone; that is no reason to stop.
            match command {
                Command::Message { vp, payload } => {
                    messages.fetch_sub(1, Ordering::Relaxed);
                    tracing::trace!(vp, message = %Hex(&payload), "from the guest");
                    self.bus.handle(vp, &payload);
                    self.carry_out();
                }
                Command::SubChannel {
                    primary,
                    worker,
                    index,
                    vsp,
                } => self.offer_sub_channel(primary, worker, index, vsp),
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
                    let _ = reply.send(BusCounters {
                        channels: all.collect(),
                        gpadls: self.bus.gpadls().len(),
                        gpadl_pages: self.bus.gpadls().pages(),
                    });
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
                Action::Remove { relid } => {
                    self.devices.remove(&relid);
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
            DeviceState::Serving(worker, _) => Some(worker),
            _ => None,
        }
    }

    fn offer(&mut self, vsp: Box<dyn Vsp>) -> Result<DeviceId, OfferError> {
        let relid = self.bus.offer(vsp.offer()).ok_or(OfferError::Full)?;
        let id = self.add(relid, DeviceState::Idle(vsp, None));
        self.carry_out();
        Ok(id)
    }

    /// Offers the sub-channel that a worker asked for, if that one is still at work.
    fn offer_sub_channel(&mut self, primary: u32, asker: u64, index: u16, vsp: Box<dyn Vsp>) {
        let state = self.devices.get(&primary).map(|device| &device.state);
        if !matches!(state, Some(DeviceState::Serving(_, worker)) if *worker == asker) {
            // Its conversation has ended; or it was paused, and asks again.
            return;
        }
        let Some(relid) = self.bus.offer_sub_channel(primary, index) else {
            tracing::warn!(primary, index, "there is no relid for a sub-channel");
            return;
        };
        self.add(relid, DeviceState::Idle(vsp, None));
        self.carry_out();
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
        }
    }

    fn open(&mut self, request: &OpenRequest) -> Result<(), String> {
        let device = self.devices.get_mut(&request.relid);
        let device = device.ok_or("there is no device")?;
        match std::mem::replace(&mut device.state, DeviceState::Lost) {
            DeviceState::Idle(mut vsp, _) => {
                vsp.opened();
                self.serve(request, None, vsp)
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
            DeviceState::Serving(worker, _) => {
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
        // All stand still before the first is saved: channels of one device share state.
        for relid in relids {
            self.stop(relid);
        }
        let mut channels = BTreeMap::new();
        for (&relid, device) in &self.devices {
            if let DeviceState::Idle(vsp, Some(indices)) = &device.state {
                let saved = SavedChannel {
                    indices: *indices,
                    device: vsp.save(),
                };
                channels.insert(relid, saved);
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
            match std::mem::replace(&mut device.state, DeviceState::Lost) {
                DeviceState::Idle(vsp, Some(indices)) => {
                    if let Err(error) = self.serve(&request, Some(indices), vsp) {
                        tracing::error!(relid = request.relid, %error, "channel not resumed");
                    }
                }
                other => device.state = other,
            }
            if let Some(worker) = self.worker(request.relid) {
                worker.kick();
            }
        }
    }

    /// Takes devices in for the channels of a saved bus.
    pub(super) fn adopt(
        &mut self,
        devices: Vec<Box<dyn Vsp>>,
        saved: &SavedBus,
    ) -> Result<(), StateError> {
        let bad = |reason| StateError {
            device: "the bus",
            reason,
        };
        let relids: Vec<u32> = self.bus.relids().collect();
        if relids.len() != devices.len() {
            let (had, has) = (relids.len(), devices.len());
            return Err(bad(format!("it had {had} devices, not {has}")));
        }
        for (relid, vsp) in relids.into_iter().zip(devices) {
            self.adopt_channel(relid, vsp, saved)?;
        }
        let sub_channels: Vec<SubChannel> = self.bus.sub_channels().collect();
        for SubChannel {
            relid,
            primary,
            index,
        } in sub_channels
        {
            let device = self.devices.get_mut(&primary).map(|found| &mut found.state);
            let Some(DeviceState::Idle(device, _)) = device else {
                return Err(bad(format!("sub-channel {relid} has no primary channel")));
            };
            let vsp = device.sub_channel(index);
            let vsp = vsp.map_err(|error| bad(format!("sub-channel {relid}: {error}")))?;
            self.adopt_channel(relid, vsp, saved)?;
        }
        Ok(())
    }

    fn adopt_channel(
        &mut self,
        relid: u32,
        mut vsp: Box<dyn Vsp>,
        saved: &SavedBus,
    ) -> Result<(), StateError> {
        let mut indices = None;
        if let Some(channel) = saved.channels.get(&relid) {
            vsp.restore(&channel.device)?;
            indices = Some(channel.indices);
        }
        self.add(relid, DeviceState::Idle(vsp, indices));
        Ok(())
    }

    /// Starts a worker on the rings of `request`, at `indices` where the conversation goes on.
    fn serve(
        &mut self,
        request: &OpenRequest,
        indices: Option<(u32, u32)>,
        vsp: Box<dyn Vsp>,
    ) -> Result<(), String> {
        let relid = request.relid;
        let (channel, doorbell) = match self.prepare(request, indices) {
            Ok(prepared) => prepared,
            Err(reason) => {
                self.set_state(relid, DeviceState::Idle(vsp, indices));
                return Err(reason);
            }
        };
        self.workers = self.workers.wrapping_add(1);
        let worker = self.workers;
        let commands = self.commands.clone();
        let mine = self.bus.sub_channels().filter(|sub| sub.primary == relid);
        let sub_channels = SubChannels {
            offered: mine.map(|sub| sub.index).max().unwrap_or(0),
            offer: Box::new(move |index, vsp| {
                // A control thread that has gone offers nothing.
                let _ = commands.send(Command::SubChannel {
                    primary: relid,
                    worker,
                    index,
                    vsp,
                });
            }),
        };
        let counters = self.devices.get(&relid).map(|device| &device.counters);
        let serving = Serving {
            relid,
            vp: request.target_vp,
            interrupts: Arc::clone(&self.partition.interrupts),
            counters: counters.map(Arc::clone).unwrap_or_default(),
            sub_channels,
        };
        let (state, outcome) = match Worker::start(vsp, channel, doorbell, serving) {
            Ok(started) => (DeviceState::Serving(started, worker), Ok(())),
            Err((vsp, error)) => {
                self.doorbells.close(relid);
                let state = vsp.map_or(DeviceState::Lost, |vsp| DeviceState::Idle(vsp, indices));
                (state, Err(error.to_string()))
            }
        };
        self.set_state(relid, state);
        outcome
    }

    fn set_state(&mut self, relid: u32, state: DeviceState) {
        if let Some(device) = self.devices.get_mut(&relid) {
            device.state = state;
        }
    }

    /// The host's end of the rings of `request`, and its doorbell.
    fn prepare(
        &self,
        request: &OpenRequest,
        indices: Option<(u32, u32)>,
    ) -> Result<(Channel, Arc<EventFd>), String> {
        let memory = &self.partition.memory;
        let ring = |pages: &Arc<[u64]>| {
            GuestRing::new(Arc::clone(memory), pages).ok_or("the ring's pages are not usable RAM")
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
        let channel = Channel::new(to_host, to_guest, Arc::clone(memory))
            .with_lent(self.bus.gpadls().table());
        let doorbell = self.doorbells.open(request.relid);
        let doorbell = doorbell.map_err(|error| error.to_string())?;
        Ok((channel, doorbell))
    }
}
