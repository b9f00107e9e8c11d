//! The devices that scenarios use, whoever drives them.

use crate::clock::Deadline;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::time::Instant;
use vmbus_proto::scsi::Sense;

/// A disk: blocks, read and written in order.
pub(crate) trait Disk {
    /// What this is, for the log.
    fn name(&self) -> String;

    /// The number of blocks.
    fn blocks(&self) -> u64;

    /// Bytes of a block.
    fn block_bytes(&self) -> usize;

    /// Whether writes are refused.
    fn is_read_only(&self) -> bool;

    /// Reads whole blocks from block `lba` on.
    fn read(&mut self, lba: u64, buffer: &mut [u8]) -> Result<(), DiskError>;

    /// Writes whole blocks from block `lba` on.
    fn write(&mut self, lba: u64, data: &[u8]) -> Result<(), DiskError>;

    /// Returns when everything written is on stable storage.
    fn flush(&mut self) -> Result<(), DiskError>;
}

/// A console: bytes, in order.
pub(crate) trait Console {
    /// What this is, for the log.
    fn name(&self) -> String;

    /// Sends all of `bytes`.
    fn send(&mut self, bytes: &[u8]) -> Result<(), String>;

    /// Waits for at least one byte and returns how many there are now; 0 at the deadline.
    fn receive(&mut self, buffer: &mut [u8], deadline: Deadline) -> Result<usize, String>;
}

/// A network adapter, as the stack uses it.
pub(crate) trait Nic {
    /// What this is, for the log.
    fn name(&self) -> String;

    /// Its address.
    fn mac(&self) -> [u8; 6];

    /// Frames received and sent in each of its queues, where its driver counts them.
    fn queues(&self) -> Vec<(u64, u64)> {
        Vec::new()
    }

    /// The stack's interface over it.
    fn interface(&mut self, config: Config, now: Instant) -> Interface;

    /// Has the stack take frames that came, and send what it would.
    fn poll(&mut self, now: Instant, interface: &mut Interface, sockets: &mut SocketSet<'_>);

    /// Sleeps until there may be something to do for the stack, at the longest for `longest`.
    fn rest(&mut self, longest: Duration) -> Result<(), String>;

    /// What should not have happened to its frames, if anything.
    fn troubles(&self) -> Option<String>;
}

/// Why a disk did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DiskError {
    /// The disk refused, in SCSI's terms.
    Sense(Sense),
    /// Anything else, in words.
    Other(String),
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sense(Sense { key, asc, ascq }) => {
                write!(f, "{key:?}, sense {:02x}/{asc:02x}/{ascq:02x}", *key as u8)
            }
            Self::Other(reason) => f.write_str(reason),
        }
    }
}
