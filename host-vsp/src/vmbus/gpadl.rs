//! The GPADLs a guest has established, and those whose messages are still coming.
#![warn(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vmbus_proto::PAGE_SIZE;
use vmbus_proto::gpa::GpaRanges;
use vmbus_proto::message::{GpadlBodyHeader, GpadlHeaderHeader};

use super::lent::{LentTable, TableHandle};
use crate::memory::GuestMemory;

/// Most GPADLs at a time, complete or not. Windows and Linux have a handful for each channel.
pub const MAX_GPADLS: usize = 8192;

/// Most pages in all GPADLs together, announced or there: 1280 MiB, which is what Hyper-V allows
/// too.
pub const MAX_PAGES: usize = 1280 * 256;

/// Why a GPADL was not established.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpadlError {
    /// The handle is zero or in use, or the ranges cannot be.
    Invalid,
    /// There are too many GPADLs or pages.
    TooMany,
    /// A body for a GPADL that has no header, or was complete.
    Unknown,
}

/// One established GPADL: page lists by range.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Gpadl {
    /// The channel it was established on.
    pub relid: u32,
    /// Its ranges.
    pub ranges: Vec<GpadlRange>,
    /// The guest asked to have it back while a channel's rings were in it.
    pub teardown_requested: bool,
}

/// One range of a GPADL.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GpadlRange {
    /// Length in bytes.
    pub byte_count: u32,
    /// Offset into the first page in bytes.
    pub byte_offset: u32,
    /// Guest physical addresses of the pages, all RAM.
    pub pages: Arc<[u64]>,
}

impl Gpadl {
    fn page_count(&self) -> usize {
        self.ranges.iter().map(|range| range.pages.len()).sum()
    }

    /// Puts it where devices find it. Those know buffers of one range that begins with its first
    /// page, as guests make them.
    fn lend(&self, handle: u32, table: &LentTable) {
        if let [range] = self.ranges.as_slice()
            && range.byte_offset == 0
        {
            table.lend(handle, range.byte_count as usize, &range.pages);
        }
    }
}

/// A GPADL whose messages are still coming.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Partial {
    relid: u32,
    range_count: u16,
    range_bytes: u16,
    /// Pages its header announced.
    pages: usize,
    bytes: Vec<u8>,
}

/// All GPADLs of a guest.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Gpadls {
    partial: BTreeMap<u32, Partial>,
    established: BTreeMap<u32, Gpadl>,
    /// Pages in the established ones, and announced by the others: what is remembered of a GPADL
    /// is at most twice its pages' list, so this bounds all of it.
    pages: usize,
    /// What devices see of the established ones.
    #[serde(skip)]
    table: TableHandle,
}

/// A GPADL came to its end, well or badly: what GPADL_CREATED has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The channel.
    pub relid: u32,
    /// The handle.
    pub gpadl: u32,
    /// Whether it is established.
    pub result: Result<(), GpadlError>,
}

impl Gpadls {
    /// Begins a GPADL; the outcome, if this was all of it.
    pub fn header(
        &mut self,
        header: &GpadlHeaderHeader,
        ranges: &[u8],
        memory: &dyn GuestMemory,
    ) -> Option<Outcome> {
        let (relid, gpadl) = (header.relid.get(), header.gpadl.get());
        let fail = |error| {
            Some(Outcome {
                relid,
                gpadl,
                result: Err(error),
            })
        };
        let in_use = self.partial.contains_key(&gpadl) || self.established.contains_key(&gpadl);
        let Some(announced) = announced_pages(header).filter(|_| gpadl != 0 && !in_use) else {
            return fail(GpadlError::Invalid);
        };
        let pages = self.pages.saturating_add(announced);
        if self.len() >= MAX_GPADLS || pages > MAX_PAGES {
            return fail(GpadlError::TooMany);
        }
        self.pages = pages;
        let partial = Partial {
            relid,
            range_count: header.range_count.get(),
            range_bytes: header.range_bytes.get(),
            pages: announced,
            bytes: Vec::new(),
        };
        self.partial.insert(gpadl, partial);
        self.append(gpadl, ranges, memory)
    }

    /// Goes on with a GPADL; the outcome, if this was the rest of it.
    ///
    /// # Errors
    /// [`GpadlError::Unknown`] where no header announced it.
    pub fn body(
        &mut self,
        header: &GpadlBodyHeader,
        pfns: &[u8],
        memory: &dyn GuestMemory,
    ) -> Result<Option<Outcome>, GpadlError> {
        let gpadl = header.gpadl.get();
        if !self.partial.contains_key(&gpadl) {
            return Err(GpadlError::Unknown);
        }
        Ok(self.append(gpadl, pfns, memory))
    }

    fn append(&mut self, gpadl: u32, bytes: &[u8], memory: &dyn GuestMemory) -> Option<Outcome> {
        let partial = self.partial.get_mut(&gpadl)?;
        let left = usize::from(partial.range_bytes).saturating_sub(partial.bytes.len());
        // Messages may be padded beyond the list; and one without progress would never end.
        let taken = bytes.get(..left.min(bytes.len()))?;
        partial.bytes.extend_from_slice(taken);
        if taken.len() < left && !taken.is_empty() {
            return None;
        }
        let partial = self.partial.remove(&gpadl)?;
        self.pages = self.pages.saturating_sub(partial.pages);
        let relid = partial.relid;
        let result = self.establish(gpadl, &partial, memory);
        Some(Outcome {
            relid,
            gpadl,
            result,
        })
    }

    fn establish(
        &mut self,
        gpadl: u32,
        partial: &Partial,
        memory: &dyn GuestMemory,
    ) -> Result<(), GpadlError> {
        let list = GpaRanges::parse(u32::from(partial.range_count), &partial.bytes)
            .filter(|list| list.encoded_len() == usize::from(partial.range_bytes))
            .ok_or(GpadlError::Invalid)?;
        let mut ranges = Vec::new();
        for range in list.iter() {
            let pages: Option<Arc<[u64]>> = range
                .pfns
                .iter()
                .map(|pfn| {
                    let gpa = pfn.get().checked_mul(PAGE_SIZE as u64)?;
                    memory.slice(gpa, PAGE_SIZE).map(|_| gpa)
                })
                .collect();
            ranges.push(GpadlRange {
                byte_count: range.byte_count,
                byte_offset: range.byte_offset,
                // A range without pages would cost us memory and the guest nothing.
                pages: pages
                    .filter(|pages| !pages.is_empty())
                    .ok_or(GpadlError::Invalid)?,
            });
        }
        let new = Gpadl {
            relid: partial.relid,
            ranges,
            teardown_requested: false,
        };
        // No more than were announced, and there was room for those.
        self.pages = self.pages.saturating_add(new.page_count());
        new.lend(gpadl, &self.table.0);
        self.established.insert(gpadl, new);
        Ok(())
    }

    /// The table in which devices find the established ones.
    pub(super) fn table(&self) -> &Arc<LentTable> {
        // A state that was saved comes without it.
        for (&handle, gpadl) in &self.established {
            gpadl.lend(handle, &self.table.0);
        }
        &self.table.0
    }

    /// The established GPADL `gpadl`.
    pub fn get(&self, gpadl: u32) -> Option<&Gpadl> {
        self.established.get(&gpadl)
    }

    /// Notes that the guest wants `gpadl` back as soon as its channel is closed.
    pub fn request_teardown(&mut self, gpadl: u32) {
        if let Some(found) = self.established.get_mut(&gpadl) {
            found.teardown_requested = true;
        }
    }

    /// Forgets the established GPADL `gpadl`; whether there was one. When this returns, no device
    /// uses its memory.
    pub fn remove(&mut self, gpadl: u32) -> bool {
        let Some(old) = self.established.remove(&gpadl) else {
            return false;
        };
        self.table.0.take_back(gpadl);
        self.pages = self.pages.saturating_sub(old.page_count());
        true
    }

    /// Forgets all of channel `relid`.
    pub fn remove_channel(&mut self, relid: u32) {
        let pages = &mut self.pages;
        self.partial.retain(|_, partial| {
            let stays = partial.relid != relid;
            if !stays {
                *pages = pages.saturating_sub(partial.pages);
            }
            stays
        });
        let gone: Vec<u32> = self
            .established
            .iter()
            .filter(|(_, gpadl)| gpadl.relid == relid)
            .map(|(&handle, _)| handle)
            .collect();
        for handle in gone {
            self.remove(handle);
        }
    }

    /// Number of GPADLs, complete or not.
    pub fn len(&self) -> usize {
        self.partial.len().saturating_add(self.established.len())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Pages in all GPADLs, complete or not.
    pub fn pages(&self) -> usize {
        self.pages
    }
}

/// Pages in the list that a header announces; `None` where no list can be like that: each range
/// has a header of eight bytes and a page at least, and each page takes eight bytes.
fn announced_pages(header: &GpadlHeaderHeader) -> Option<usize> {
    let ranges = usize::from(header.range_count.get());
    let words = usize::from(header.range_bytes.get()).checked_div(8)?;
    let pages = words.checked_sub(ranges)?;
    (ranges != 0 && pages >= ranges).then_some(pages)
}
