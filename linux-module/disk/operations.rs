// SPDX-License-Identifier: GPL-2.0

//! From a request to a packet, and from the answer back.

use core::cell::Cell;

use kernel::prelude::*;
use kernel::sync::{Arc, ArcBorrow};
use vmbus::GpaDirect;
use vmbus_proto::scsi::{Cdb, UnmapDescriptor};
use vmbus_proto::storvsp::{Srb, VstorPacket, DATA_IN, DATA_NONE, DATA_OUT};

use crate::blk::{DeviceMemory, Expired, Operation, Operations, Queued, Request, TimedOut};
use crate::channels::Channels;
use crate::outcome::{outcome, Outcome};
use crate::pages::Pages;
use crate::port::Port;

/// Most bytes of one transfer. The host may have a lower limit.
pub(crate) const MAX_TRANSFER: u32 = 512 * 1024;

/// Bytes of a page, as the host counts.
pub(crate) const PAGE: u32 = vmbus_proto::PAGE_SIZE as u32;

/// Most pages of one transfer, which may begin within a page.
const MAX_PAGES: usize = (MAX_TRANSFER / PAGE) as usize + 1;

/// How often a command is sent, where the unit has news each time.
const ATTEMPTS: u32 = 5;

/// How long a command waits that the unit cannot take, in milliseconds, and how often it does.
const LATER: usize = 100;
const PATIENCE: u32 = 300;

/// What a queue belongs to.
pub(crate) struct Target {
    pub(crate) port: Arc<Port>,
    pub(crate) channels: Arc<Channels>,
    /// The unit; nothing for the queue of commands, each of which says it.
    pub(crate) unit: Option<Address>,
}

/// How a unit is addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) lun: u8,
    /// A block has 2 to this many sectors of 512 bytes.
    pub(crate) block_shift: u32,
}

/// A command of the driver's own.
#[derive(Clone, Copy)]
pub(crate) struct Command {
    pub(crate) packet: VstorPacket,
    /// Bytes of its data, at most [`DeviceMemory::SIZE`].
    pub(crate) length: u32,
}

/// What is kept with each request.
#[derive(Default)]
pub(crate) struct Kept {
    /// The command, where it is one.
    pub(crate) command: Option<Command>,
    /// The host's answer to it.
    pub(crate) answer: Option<VstorPacket>,
    /// Memory of the driver's own that the host has the use of.
    pub(crate) memory: Option<DeviceMemory>,
    /// How often the request was sent, and is to be sent again.
    attempts: u32,
    /// How often the unit could not take it.
    refusals: u32,
}

/// The driver's side of blk-mq.
pub(crate) enum DiskOperations {}

/// What goes into a packet beside its list of memory.
struct Prepared {
    packet: VstorPacket,
    /// Bytes of data; none where there is no memory to give.
    length: u32,
}

impl Operations for DiskOperations {
    type QueueData = Arc<Target>;
    type RequestData = Kept;

    fn queue(
        target: ArcBorrow<'_, Target>,
        mut request: Request<Self>,
        _last: bool,
    ) -> Queued<Self> {
        let prepared = match prepare(&target, &mut request) {
            Ok(prepared) => prepared,
            Err(ENOMEM) => return Queued::Busy(request),
            Err(error) => return done(request, Err(error)),
        };
        send(&target, request, &prepared)
    }

    fn expired(target: ArcBorrow<'_, Target>, request: &TimedOut<'_, Self>) -> Expired {
        let port = &target.port;
        let channel = target.channels.of(request.tag()).access();
        let is_gone = channel.is_none_or(|channel| channel.is_rescinded());
        if !is_gone && !request.is_command() {
            // The host has the use of the memory until it answers, however long that takes.
            return Expired::Wait;
        }
        if let Some(mut request) = port.in_flight.take_expired(request) {
            let memory = request.data_mut().memory.take();
            if is_gone {
                finish(request, Err(ENODEV));
            } else {
                // It may answer yet, and write to the memory before.
                memory.into_iter().for_each(DeviceMemory::leak);
                finish(request, Err(ETIMEDOUT));
            }
        }
        Expired::Done
    }
}

impl DiskOperations {
    /// The host has answered.
    pub(crate) fn answered(port: &Port, mut request: Request<Self>, answer: VstorPacket) {
        let bytes = match request.operation() {
            Operation::Command => {
                request.data_mut().answer = Some(answer);
                return finish(request, Ok(()));
            }
            Operation::Read | Operation::Write => Some(request.bytes()),
            _ => None,
        };
        // A discard's list was counted as moved.
        let length = bytes.unwrap_or(DeviceMemory::SIZE as u32);
        let attempts = request.data().attempts + 1;
        let refusals = request.data().refusals + 1;
        let result = match outcome(&answer, length) {
            Outcome::Done(moved) if bytes.is_none_or(|bytes| bytes == moved) => Ok(()),
            // Less was moved than asked for, and nobody says which part.
            Outcome::Done(_) => Err(EIO),
            Outcome::Again if attempts < ATTEMPTS => {
                request.data_mut().attempts = attempts;
                // Its news may be of its size.
                port.request_scan();
                return request.requeue(0);
            }
            Outcome::Busy if refusals < PATIENCE => {
                request.data_mut().refusals = refusals;
                return request.requeue(LATER);
            }
            Outcome::Again | Outcome::Busy => Err(EIO),
            Outcome::Failed(error) => Err(error),
        };
        finish(request, result);
    }
}

/// Completes a request. What was kept with it is not for the next one that has its place; a command's is
/// for whoever waits for it.
pub(crate) fn finish(mut request: Request<DiskOperations>, result: Result) {
    if request.operation() != Operation::Command {
        *request.data_mut() = Kept::default();
    }
    request.complete(result);
}

/// A request that has come was completed at once.
fn done(request: Request<DiskOperations>, result: Result) -> Queued<DiskOperations> {
    finish(request, result);
    Queued::Taken
}

/// The packet of a request, and the memory that the driver adds to it. `ENOMEM` where there is none
/// now.
fn prepare(target: &Target, request: &mut Request<DiskOperations>) -> Result<Prepared> {
    let operation = request.operation();
    if operation == Operation::Command {
        let command = request.data().command.ok_or(EINVAL)?;
        return Ok(Prepared {
            packet: command.packet,
            length: command.length,
        });
    }
    let unit = target.unit.ok_or(EOPNOTSUPP)?;
    let (lba, bytes) = (request.sector() >> unit.block_shift, request.bytes());
    let blocks = (bytes >> 9) >> unit.block_shift;
    let fua = request.is_fua();
    let (cdb, direction, length) = match operation {
        Operation::Read => (Cdb::Read { lba, blocks, fua }, DATA_IN, bytes),
        Operation::Write => (Cdb::Write { lba, blocks, fua }, DATA_OUT, bytes),
        Operation::Flush => (Cdb::SynchronizeCache { lba: 0, blocks: 0 }, DATA_NONE, 0),
        Operation::Discard => {
            let list = UnmapDescriptor::single(lba, blocks);
            let mut memory = DeviceMemory::new(GFP_ATOMIC)?;
            memory.write(&list);
            request.data_mut().memory = Some(memory);
            let cdb = Cdb::Unmap {
                anchor: false,
                parameter_list_length: list.len() as u16,
            };
            (cdb, DATA_OUT, list.len() as u32)
        }
        Operation::Command | Operation::Other => return Err(EOPNOTSUPP),
    };
    let srb = Srb::request(unit.lun, cdb.to_bytes().as_slice(), direction, length);
    Ok(Prepared {
        packet: VstorPacket::execute_srb(&srb),
        length,
    })
}

/// Sends a request's packet. From then on the host has it.
fn send(
    target: &Target,
    request: Request<DiskOperations>,
    prepared: &Prepared,
) -> Queued<DiskOperations> {
    let mut buffer = [0; GpaDirect::buffer_len(MAX_PAGES)];
    let memory = match list_memory(&mut buffer, &request, prepared.length) {
        Ok(memory) => memory,
        Err(error) => return done(request, Err(error)),
    };
    let port = &target.port;
    let channel = target.channels.of(request.tag());
    let payload = prepared.packet.wire_bytes(port.packet_size());
    // In flight before it is sent: the answer may be faster than this function.
    let id = match port.in_flight.insert(request) {
        Ok(id) => id,
        Err(request) => return done(request, Err(EIO)),
    };
    let sent = match (channel.access(), memory) {
        (None, _) => Err(ENODEV),
        (Some(channel), None) => channel.send(payload, id.0, true),
        // SAFETY: The memory is the request's, for which nobody has a Rust reference: pages that the
        // block layer keeps as they are until the request is completed, or `DeviceMemory`, which is kept
        // in the request. It is in flight from `insert` on, and so completed only by the host's answer
        // with this id, or when the channel has lost the host (`Port::end`), or, for `DeviceMemory`,
        // after that was leaked.
        (Some(channel), Some(mut memory)) => unsafe {
            channel.send_gpa_direct(&mut memory, payload, id.0)
        },
    };
    let error = match sent {
        // Who ends the port after this looks through what is in flight after it has said so.
        Ok(()) if !port.is_gone() => return Queued::Taken,
        Ok(()) => ENODEV,
        Err(error) => error,
    };
    match port.in_flight.take(id) {
        // The ring is full.
        Some(request) if error == EAGAIN => return Queued::Busy(request),
        Some(request) => finish(request, Err(error)),
        // Somebody else has completed it.
        None => {}
    }
    Queued::Taken
}

/// The list of a request's memory, in `buffer`; nothing where it has no data.
fn list_memory<'a>(
    buffer: &'a mut [u8],
    request: &Request<DiskOperations>,
    length: u32,
) -> Result<Option<GpaDirect<'a>>> {
    if length == 0 {
        return Ok(None);
    }
    if let Some(memory) = &request.data().memory {
        let pfn = memory.address() / u64::from(PAGE);
        return GpaDirect::new(buffer, length, 0, core::iter::once(pfn)).map(Some);
    }
    let segments = || {
        let pieces = request.segments();
        pieces.map(|piece| (piece.address, piece.length))
    };
    let (first, _) = segments().next().ok_or(EIO)?;
    let offset = (first % u64::from(PAGE)) as u32;
    let has_gap = Cell::new(false);
    let pages = Pages::new(segments(), &has_gap);
    let memory = GpaDirect::new(buffer, length, offset, pages)?;
    // The queue's limits do not allow that.
    match has_gap.get() {
        true => Err(EIO),
        false => Ok(Some(memory)),
    }
}
