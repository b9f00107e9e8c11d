// SPDX-License-Identifier: GPL-2.0

//! Commands of the driver's own: the conversation with the controller, and with its units.

use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::time::delay::fsleep;
use kernel::time::{msecs_to_jiffies, Delta};
use vmbus_proto::scsi::Cdb;
use vmbus_proto::storvsp::{
    status, ChannelProperties, Operation as Wire, ProtocolVersion, Srb, VstorPacket, DATA_IN,
    DATA_NONE,
};

use crate::blk::{CommandQueue, DeviceMemory};
use crate::operations::{Command, DiskOperations};
use crate::outcome::{outcome, Outcome};
use crate::port::Port;
use crate::scan::Scan;

/// How long a command may take, in milliseconds.
const TIMEOUT: u32 = 30_000;

/// How often a command is sent, where the unit has news each time, or cannot take it.
const ATTEMPTS: u32 = 5;

/// How long a command waits that the unit cannot take.
const LATER: Delta = Delta::from_millis(200);

/// Who carries commands out.
pub(crate) struct Commands {
    pub(crate) queue: CommandQueue<DiskOperations>,
    /// Nothing is sent any more when it is stopped.
    pub(crate) scan: Arc<Scan>,
}

/// Whether the host has said nothing, or was not asked: it is not to be asked the next thing then.
pub(crate) fn is_silence(error: Error) -> bool {
    error == ETIMEDOUT || error == ECANCELED
}

impl Commands {
    /// The conversation that begins every use of a controller; returns what it says of itself.
    pub(crate) fn initialize(&self, port: &Port) -> Result<ChannelProperties> {
        self.expect_done(&VstorPacket::request(Wire::BeginInitialization))?;
        let version = self.agree()?;
        port.set_version(version);
        let properties = self
            .expect_done(&VstorPacket::request(Wire::QueryProperties))?
            .properties();
        self.expect_done(&VstorPacket::request(Wire::EndInitialization))?;
        Ok(properties)
    }

    /// Asks for sub-channels. Returns how many there will be: a controller that gives none can be used
    /// without.
    pub(crate) fn create_sub_channels(&self, count: u16) -> Result<usize> {
        let answer = self.ask(&VstorPacket::create_sub_channels(count))?;
        match answer.status.get() {
            status::SUCCESS => Ok(count.into()),
            _ => Ok(0),
        }
    }

    /// The newest version that the host speaks, too.
    fn agree(&self) -> Result<ProtocolVersion> {
        for version in ProtocolVersion::NEWEST_FIRST {
            let packet = VstorPacket::query_protocol_version(version as u16);
            if self.ask(&packet)?.status.get() == status::SUCCESS {
                return Ok(version);
            }
        }
        Err(EPROTO)
    }

    fn expect_done(&self, packet: &VstorPacket) -> Result<VstorPacket> {
        let answer = self.ask(packet)?;
        match answer.status.get() {
            status::SUCCESS => Ok(answer),
            _ => Err(EPROTO),
        }
    }

    fn ask(&self, packet: &VstorPacket) -> Result<VstorPacket> {
        self.execute(packet, 0).map(|(answer, _)| answer)
    }

    /// Sends a SCSI command to a unit, again while that has news; the data goes to `data`. Returns how
    /// many bytes.
    ///
    /// # Errors
    /// `ETIMEDOUT` where the host does not answer, `ECANCELED` where the driver is to stop, and what the
    /// unit says.
    pub(crate) fn scsi(&self, lun: u8, cdb: Cdb, data: &mut [u8]) -> Result<usize> {
        let length = data.len().min(DeviceMemory::SIZE) as u32;
        let direction = if length == 0 { DATA_NONE } else { DATA_IN };
        let srb = Srb::request(lun, cdb.to_bytes().as_slice(), direction, length);
        let packet = VstorPacket::execute_srb(&srb);
        for _ in 0..ATTEMPTS {
            let (answer, memory) = self.execute(&packet, length)?;
            match outcome(&answer, length) {
                Outcome::Done(moved) => {
                    let data = data.get_mut(..moved as usize).unwrap_or_default();
                    return Ok(memory.map_or(0, |memory| memory.read(data)));
                }
                Outcome::Again => {}
                Outcome::Busy => fsleep(LATER),
                Outcome::Failed(error) => return Err(error),
            }
        }
        Err(EIO)
    }

    /// The same for what a unit need not have: no bytes then. But a host's silence says nothing about it.
    pub(crate) fn scsi_optional(&self, lun: u8, cdb: Cdb, data: &mut [u8]) -> Result<usize> {
        match self.scsi(lun, cdb, data) {
            Err(error) if !is_silence(error) => Ok(0),
            moved => moved,
        }
    }

    /// Sends a packet, with `length` bytes of memory, and waits for the answer.
    fn execute(
        &self,
        packet: &VstorPacket,
        length: u32,
    ) -> Result<(VstorPacket, Option<DeviceMemory>)> {
        if self.scan.is_stopped() {
            return Err(ECANCELED);
        }
        let memory = match length {
            0 => None,
            _ => Some(DeviceMemory::new(GFP_KERNEL)?),
        };
        let (result, (answer, memory)) = self.queue.execute(
            msecs_to_jiffies(TIMEOUT) as u32,
            |kept| {
                kept.command = Some(Command {
                    packet: *packet,
                    length,
                });
                kept.answer = None;
                kept.memory = memory;
            },
            |kept| (kept.answer.take(), kept.memory.take()),
        )?;
        result?;
        Ok((answer.ok_or(EIO)?, memory))
    }
}
