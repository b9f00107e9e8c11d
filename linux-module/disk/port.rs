// SPDX-License-Identifier: GPL-2.0

//! This side's end of a controller's channels: what is in flight, and what the host says.

use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, AtomicFlag, Full, Relaxed};
use kernel::sync::Arc;
use vmbus::{Access, Callback, Handler};
use vmbus_proto::packet::{Packet, PacketKind};
use vmbus_proto::storvsp::{Operation as Wire, ProtocolVersion, VstorPacket};

use crate::blk::{Id, InFlight, OrderedQueue};
use crate::operations::{finish, DiskOperations};
use crate::scan::Scan;

/// Requests in flight at a time, of all units, in each hardware queue.
pub(crate) const DEPTH: u16 = 128;

/// One end of all channels of a controller.
pub(crate) struct Port {
    /// What the host works on.
    pub(crate) in_flight: InFlight<DiskOperations>,
    /// The host has taken the device back: it works on nothing any more.
    gone: AtomicFlag,
    /// Bytes of a packet, as of the version that was agreed on.
    packet_size: Atomic<u32>,
    /// Packets that meant nothing: no answer to anything in flight, and no news.
    strays: Atomic<u64>,
    scan: Arc<Scan>,
    scans: OrderedQueue,
}

impl Port {
    /// An end of `queues` hardware queues that asks for `scan` when the host says that the units have
    /// changed.
    pub(crate) fn new(queues: u16, scan: Arc<Scan>) -> Result<Self> {
        Ok(Self {
            in_flight: InFlight::new(queues, DEPTH)?,
            gone: AtomicFlag::new(false),
            packet_size: Atomic::new(ProtocolVersion::V5_1.packet_size() as u32),
            strays: Atomic::new(0),
            scan,
            scans: OrderedQueue::new(c"vmbus_disk")?,
        })
    }

    /// Bytes of a packet.
    pub(crate) fn packet_size(&self) -> usize {
        self.packet_size.load(Relaxed) as usize
    }

    /// The version was agreed on.
    pub(crate) fn set_version(&self, version: ProtocolVersion) {
        self.packet_size
            .store(version.packet_size() as u32, Relaxed);
    }

    /// Whether the host has taken the device back.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Relaxed)
    }

    /// The host has taken the device back: what is in flight fails, and what comes later.
    ///
    /// Only for when the host does not touch the requests' memory any more.
    pub(crate) fn end(&self) {
        // Whoever puts a request in flight later sees the flag.
        self.gone.xchg(true, Full);
        for request in self.in_flight.take_all() {
            finish(request, Err(ENODEV));
        }
    }

    /// Packets that meant nothing.
    pub(crate) fn strays(&self) -> u64 {
        self.strays.load(Relaxed)
    }

    /// Waits for a look at the units that is under way or was asked for.
    pub(crate) fn flush_scans(&self) {
        self.scans.flush();
    }

    /// The units may have changed.
    pub(crate) fn request_scan(&self) {
        // Where one waits already, that will see it.
        let _ = self.scans.queue().enqueue(self.scan.clone());
    }

    /// Takes a packet; says whether it meant something.
    fn take(&self, packet: &Packet<'_>) -> bool {
        let Some(said) = VstorPacket::parse(packet.payload) else {
            return false;
        };
        match (packet.kind, said.operation()) {
            (PacketKind::Completion, Some(Wire::CompleteIo)) => {
                let request = self.in_flight.take(Id(packet.transaction_id));
                let is_known = request.is_some();
                if let Some(request) = request {
                    DiskOperations::answered(self, request, said);
                }
                is_known
            }
            (PacketKind::InBand, Some(Wire::EnumerateBus | Wire::RemoveDevice)) => {
                self.request_scan();
                true
            }
            _ => false,
        }
    }
}

/// The end of one channel. The host may answer over any.
pub(crate) struct ChannelEnd(pub(crate) Arc<Port>);

impl Handler for ChannelEnd {
    const CALLBACK: Callback = Callback::Batched;

    fn signalled(&self, channel: &Access<'_>) {
        let Some(mut packets) = channel.packets() else {
            return;
        };
        while let Some(packet) = packets.read() {
            if !packet.is_ok_and(|packet| self.0.take(&packet)) {
                self.0.strays.fetch_add(1, Relaxed);
            }
        }
    }
}
