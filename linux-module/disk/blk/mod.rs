// SPDX-License-Identifier: GPL-2.0

//! A block device driver's side of blk-mq.
//!
//! The kernel crate's own types move no data yet: their requests say neither what is asked for nor
//! where the data is. These do:
//!
//! - A driver implements [`Operations`]. Its requests come as [`Request`], which is owned: whoever
//!   has it completes it, once, by giving it away.
//! - [`InFlight`] keeps the requests that a device works on, and gives each back once, for the id that
//!   the device answers with. An id that is not in flight gives nothing, whoever made it up.
//! - [`TagSet`] is the room for requests; [`Disk`] is a disk, and [`CommandQueue`] carries the driver's
//!   own commands. Both share the room.
//!
//! C headers: `include/linux/blk-mq.h`, `include/linux/blkdev.h`.

mod disk;
mod in_flight;
mod memory;
mod operations;
mod request;
mod tag_set;
mod workqueue;

pub(crate) use disk::{CommandQueue, Disk, DiskOptions, Limits};
pub(crate) use in_flight::{Id, InFlight};
pub(crate) use memory::DeviceMemory;
pub(crate) use operations::{Expired, Operations, Queued};
pub(crate) use request::{Operation, Request, Tag, TimedOut};
pub(crate) use tag_set::{online_cpus, TagSet};
pub(crate) use workqueue::OrderedQueue;
