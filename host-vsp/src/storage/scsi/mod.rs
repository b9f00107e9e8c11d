//! The SCSI target: a table of disks, and commands that become answers or transfers.
//!
//! Nothing here waits or touches a file: what a command needs from a backend is returned as an
//! [`Io`] for the engine. Every refusal has its sense data.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod disc;
mod dvd;
mod responses;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use vmbus_proto::scsi::{Cdb, Sense, opcode, status, unmap_descriptors};
use vmbus_proto::storvsp::{DATA_IN, DATA_OUT, Srb, srb_status};

pub(super) use dvd::{Drive, DriveState};

use super::backend::Backend;
use super::block::BlockSize;
use super::buffer::GuestBuffer;
use super::identity::Identity;
use super::io::Io;

/// Most blocks of one VERIFY: the most that its 10-byte form can say.
const MAX_VERIFY_BLOCKS: u32 = 0xffff;

/// Most descriptors of one UNMAP.
pub(super) const MAX_UNMAP_DESCRIPTORS: usize = 256;

/// Disks and drives by LUN, all on path 0, target 0.
#[derive(Default)]
pub(super) struct Target {
    units: BTreeMap<u8, Unit>,
    drives: BTreeMap<u8, Drive>,
    /// LUNs that had a disk, which the guest may not have missed yet.
    gaps: BTreeSet<u8>,
    /// Commands so far.
    commands: u64,
}

/// One disk.
pub(super) struct Unit {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) block_size: BlockSize,
    pub(super) identity: Identity,
    /// What the guest has to be told instead of the next command's result.
    attention: Option<Sense>,
}

impl Unit {
    /// A disk with nothing to tell.
    pub(super) fn new(
        backend: Arc<dyn Backend>,
        block_size: BlockSize,
        identity: Identity,
    ) -> Self {
        Self {
            backend,
            block_size,
            identity,
            attention: None,
        }
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// A value of [`srb_status`], without flags.
    pub(super) srb_status: u8,
    /// A value of [`status`].
    pub(super) scsi_status: u8,
    /// Bytes moved.
    pub(super) moved: u32,
    /// Why it failed.
    pub(super) sense: Option<Sense>,
}

impl Outcome {
    /// Done, with this many bytes moved.
    pub(super) fn good(moved: u32) -> Self {
        Self {
            srb_status: srb_status::SUCCESS,
            scsi_status: status::GOOD,
            moved,
            sense: None,
        }
    }

    /// The device refused or failed.
    pub(super) fn check(sense: Sense) -> Self {
        Self {
            srb_status: srb_status::ERROR,
            scsi_status: status::CHECK_CONDITION,
            moved: 0,
            sense: Some(sense),
        }
    }

    /// The SRB itself cannot be: its lengths, ranges or direction are wrong.
    pub(super) fn invalid() -> Self {
        let refused = Self::check(Sense::INVALID_FIELD_IN_CDB);
        Self {
            srb_status: srb_status::INVALID_REQUEST,
            ..refused
        }
    }

    /// There is no such logical unit.
    fn no_unit() -> Self {
        let refused = Self::check(Sense::LU_NOT_SUPPORTED);
        Self {
            srb_status: srb_status::INVALID_LUN,
            ..refused
        }
    }
}

/// What to do for a request.
pub(super) enum Step {
    /// It is done.
    Done(Outcome),
    /// It needs the disk.
    Transfer {
        /// The disk.
        backend: Arc<dyn Backend>,
        /// What to do with it.
        io: Io,
        /// What it is for, to tell what became of it by [`Transfer::outcome`].
        transfer: Transfer,
    },
}

/// A transfer on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Transfer {
    /// Bytes that move when it succeeds.
    length: u32,
    /// What is reported when it fails.
    failure: Sense,
}

impl Transfer {
    /// What became of it.
    pub(super) fn outcome(self, result: &io::Result<()>) -> Outcome {
        match result {
            Ok(()) => Outcome::good(self.length),
            // The guest can free space and go on; a broken medium it would give up.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                Outcome::check(Sense::SPACE_ALLOCATION_FAILED)
            }
            Err(_) => Outcome::check(self.failure),
        }
    }
}

impl Target {
    /// Adds a disk; says whether the LUN was free.
    pub(super) fn insert(&mut self, lun: u8, unit: Unit) -> bool {
        let is_free = self.is_free(lun);
        if is_free {
            self.units.insert(lun, unit);
        }
        is_free
    }

    /// Whether a LUN has no disk, and a guest knows.
    pub(super) fn is_free(&self, lun: u8) -> bool {
        !self.luns().any(|used| used == lun) && !self.gaps.contains(&lun)
    }

    /// LUNs with a disk or drive.
    pub(super) fn luns(&self) -> impl Iterator<Item = u8> {
        self.units.keys().chain(self.drives.keys()).copied()
    }

    /// Adds a drive; says whether the LUN was free.
    pub(super) fn insert_drive(&mut self, lun: u8, drive: Drive) -> bool {
        let is_free = self.is_free(lun);
        if is_free {
            self.drives.insert(lun, drive);
        }
        is_free
    }

    /// The drive at a LUN.
    pub(super) fn drive(&mut self, lun: u8) -> Option<&mut Drive> {
        self.drives.get_mut(&lun)
    }

    /// Removes a drive.
    pub(super) fn remove_drive(&mut self, lun: u8) -> Option<Drive> {
        let drive = self.drives.remove(&lun)?;
        self.gaps.insert(lun);
        Some(drive)
    }

    /// What each drive remembers, by LUN.
    pub(super) fn drive_states(&self) -> Vec<(u8, DriveState)> {
        let drives = self.drives.iter();
        drives.map(|(&lun, drive)| (lun, drive.state())).collect()
    }

    /// Takes up what [`drive_states`](Self::drive_states) gave.
    pub(super) fn restore_drives(&mut self, states: Vec<(u8, DriveState)>) {
        for (lun, state) in states {
            if let Some(drive) = self.drive(lun) {
                drive.restore(state);
            }
        }
    }

    /// Removes a disk.
    pub(super) fn remove(&mut self, lun: u8) -> Option<Unit> {
        let unit = self.units.remove(&lun)?;
        self.gaps.insert(lun);
        Some(unit)
    }

    /// Whether a guest knows of all disks and drives that were removed.
    pub(super) fn has_no_gaps(&self) -> bool {
        self.gaps.is_empty()
    }

    /// Commands that guests have given so far.
    pub(super) fn commands(&self) -> u64 {
        self.commands
    }

    /// The blocks of a disk, and the size of one.
    pub(super) fn backend(&self, lun: u8) -> Option<(Arc<dyn Backend>, BlockSize)> {
        let unit = self.units.get(&lun)?;
        Some((Arc::clone(&unit.backend), unit.block_size))
    }

    /// Serial number of a disk or drive.
    pub(super) fn serial(&self, lun: u8) -> Option<String> {
        let of_unit = self.units.get(&lun).map(|unit| &unit.identity);
        let of_drive = self.drives.get(&lun).map(|drive| &drive.identity);
        Some(of_unit.or(of_drive)?.serial.clone())
    }

    /// The disk has another size; says whether it is still there.
    pub(super) fn capacity_changed(&mut self, lun: u8, backend: &Arc<dyn Backend>) -> bool {
        match self.units.get_mut(&lun) {
            Some(unit) if Arc::ptr_eq(&unit.backend, backend) => {
                unit.attention = Some(Sense::CAPACITY_CHANGED);
                true
            }
            _ => false,
        }
    }

    /// There is a guest that knows nothing yet.
    pub(super) fn forget(&mut self) {
        self.gaps.clear();
        for unit in self.units.values_mut() {
            unit.attention = None;
        }
        self.drives.values_mut().for_each(Drive::forget);
    }

    /// What the guest has not been told yet: LUNs of disks whose size has changed, and gaps.
    pub(super) fn news(&self) -> (Vec<u8>, Vec<u8>) {
        let grown = self.units.iter();
        let grown = grown.filter(|(_, unit)| unit.attention.is_some());
        let grown = grown.map(|(&lun, _)| lun).collect();
        (grown, self.gaps.iter().copied().collect())
    }

    /// Takes up what [`news`](Self::news) gave.
    pub(super) fn restore_news(&mut self, (grown, gaps): (Vec<u8>, Vec<u8>)) {
        for lun in grown {
            if let Some(unit) = self.units.get_mut(&lun) {
                unit.attention = Some(Sense::CAPACITY_CHANGED);
            }
        }
        self.gaps = gaps.into_iter().collect();
    }

    /// Makes all that was written durable, waiting for it.
    pub(super) fn flush_all(&self) {
        for (lun, unit) in &self.units {
            if !unit.backend.read_only()
                && let Err(error) = unit.backend.flush()
            {
                tracing::error!(lun, %error, "the disk could not be flushed at the end");
            }
        }
    }

    /// Begins the command in `srb`, whose data is in or goes to `buffer`.
    pub(super) fn start(&mut self, srb: &Srb, buffer: GuestBuffer) -> Step {
        self.commands = self.commands.wrapping_add(1);
        let Some(cdb) = srb.cdb() else {
            return Step::Done(Outcome::invalid());
        };
        let here = srb.path_id == 0 && srb.target_id == 0;
        let is_report_luns = cdb.first() == Some(&opcode::REPORT_LUNS);
        if here
            && !is_report_luns
            && let Some(drive) = self.drives.get_mut(&srb.lun)
        {
            return drive.start(cdb, Request { srb, buffer });
        }
        let mut unit = if here {
            self.units.get_mut(&srb.lun)
        } else {
            None
        };
        let cdb = match (Cdb::parse(cdb), &mut unit) {
            (Ok(cdb), _) => cdb,
            (Err(error), Some(_)) => return Step::Done(Outcome::check(error.into())),
            (Err(_), None) => return Step::Done(Outcome::no_unit()),
        };
        // These work whatever there is to tell, and do not tell it (SAM-5 5.14).
        let is_inquiry = matches!(cdb, Cdb::Inquiry { .. } | Cdb::ReportLuns { .. });
        if let Some(unit) = &mut unit
            && !is_inquiry
            && !matches!(cdb, Cdb::RequestSense { .. })
            && let Some(sense) = unit.attention.take()
        {
            return Step::Done(Outcome::check(sense));
        }
        if unit.is_none() && here && !is_inquiry {
            // The guest learns it now.
            self.gaps.remove(&srb.lun);
        }
        let request = Request { srb, buffer };
        match (cdb, unit) {
            (
                Cdb::ReportLuns {
                    select,
                    allocation_length,
                },
                _,
            ) => {
                let mut luns: Vec<u8> = if here {
                    self.luns().collect()
                } else {
                    Vec::new()
                };
                luns.sort_unstable();
                request.data_in(responses::report_luns(select, &luns), allocation_length)
            }
            (_, Some(unit)) => unit.start(cdb, request),
            // Linux takes a failed INQUIRY for one that succeeded, so it has to be told in the
            // data that there is nothing.
            (
                Cdb::Inquiry {
                    page: None,
                    allocation_length,
                },
                None,
            ) => request.data_in(Ok(responses::no_unit()), allocation_length.into()),
            (_, None) => Step::Done(Outcome::no_unit()),
        }
    }
}

/// A request's SRB and data.
struct Request<'a> {
    srb: &'a Srb,
    buffer: GuestBuffer,
}

impl Request<'_> {
    /// Answers with data, cut at the allocation length and the guest's buffer.
    fn data_in(self, data: Result<Vec<u8>, Sense>, allocation_length: u32) -> Step {
        let data = match data {
            Ok(data) => data,
            Err(sense) => return Step::Done(Outcome::check(sense)),
        };
        let length = data
            .len()
            .min(usize::try_from(allocation_length).unwrap_or(usize::MAX));
        if length != 0 && self.srb.data_in == DATA_OUT {
            return Step::Done(Outcome::invalid());
        }
        let moved = self.buffer.fill(data.get(..length).unwrap_or(&data));
        Step::Done(Outcome::good(u32::try_from(moved).unwrap_or(u32::MAX)))
    }
}

fn done(result: Result<(), Sense>) -> Step {
    Step::Done(result.map_or_else(Outcome::check, |()| Outcome::good(0)))
}

impl Unit {
    /// Number of blocks.
    fn blocks(&self) -> u64 {
        let size = self.backend.size();
        size.checked_div(self.block_size.bytes().into())
            .unwrap_or(0)
    }

    fn start(&self, cdb: Cdb, request: Request<'_>) -> Step {
        match cdb {
            Cdb::TestUnitReady | Cdb::PreventAllowMediumRemoval => done(Ok(())),
            Cdb::RequestSense {
                descriptor,
                allocation_length,
            } => {
                // Sense is delivered with its command, so none is ever left to ask for.
                let data = if descriptor {
                    Sense::NONE.to_descriptor().to_vec()
                } else {
                    Sense::NONE.to_fixed().to_vec()
                };
                request.data_in(Ok(data), allocation_length.into())
            }
            Cdb::Inquiry {
                page,
                allocation_length,
            } => request.data_in(responses::inquiry(self, page), allocation_length.into()),
            Cdb::ModeSense {
                allocation_length, ..
            } => request.data_in(responses::mode_sense(self, cdb), allocation_length.into()),
            Cdb::ReadCapacity10 => request.data_in(Ok(responses::capacity_10(self)), u32::MAX),
            Cdb::ReadCapacity16 { allocation_length } => {
                request.data_in(Ok(responses::capacity_16(self)), allocation_length)
            }
            // The target has answered it before it looked for a unit.
            Cdb::ReportLuns { .. } => done(Err(Sense::INVALID_OPCODE)),
            Cdb::Read { lba, blocks, .. } => self.read(lba, blocks, request),
            Cdb::Write { lba, blocks, fua } => self.write(lba, blocks, fua, request),
            Cdb::Verify { compare: true, .. } => done(Err(Sense::INVALID_FIELD_IN_CDB)),
            Cdb::Verify { blocks, .. } if blocks > MAX_VERIFY_BLOCKS => {
                done(Err(Sense::INVALID_FIELD_IN_CDB))
            }
            Cdb::Verify { lba, blocks, .. } => match self.place(lba, blocks.into()) {
                Ok((offset, length)) => self.transfer(
                    Io::Verify { offset, length },
                    0,
                    Sense::UNRECOVERED_READ_ERROR,
                ),
                Err(sense) => done(Err(sense)),
            },
            Cdb::SynchronizeCache { lba, blocks } => match self.place(lba, blocks.into()) {
                // A file is flushed as a whole, so the range only has to be right.
                Ok(_) => self.flush(),
                Err(sense) => done(Err(sense)),
            },
            Cdb::StartStopUnit {
                load_eject: true, ..
            } => {
                // There is nothing to take out.
                done(Err(Sense::INVALID_FIELD_IN_CDB))
            }
            // A unit that stops writes its cache first.
            Cdb::StartStopUnit { start: false, .. } => self.flush(),
            Cdb::StartStopUnit { .. } => done(Ok(())),
            Cdb::Unmap {
                anchor,
                parameter_list_length,
            } => self.unmap(anchor, parameter_list_length, &request),
        }
    }

    /// Offset and length in bytes of `blocks` from `lba` on.
    fn place(&self, lba: u64, blocks: u64) -> Result<(u64, u64), Sense> {
        let end = lba.checked_add(blocks).ok_or(Sense::LBA_OUT_OF_RANGE)?;
        if end > self.blocks() {
            return Err(Sense::LBA_OUT_OF_RANGE);
        }
        // Both are at most the disk's size in blocks, whose bytes fit.
        Ok((
            lba.saturating_mul(self.block_size.bytes().into()),
            blocks.saturating_mul(self.block_size.bytes().into()),
        ))
    }

    fn transfer(&self, io: Io, length: u32, failure: Sense) -> Step {
        let backend = Arc::clone(&self.backend);
        Step::Transfer {
            backend,
            io,
            transfer: Transfer { length, failure },
        }
    }

    fn flush(&self) -> Step {
        if self.backend.read_only() {
            // Nothing was written.
            return done(Ok(()));
        }
        self.transfer(Io::Flush, 0, Sense::WRITE_ERROR)
    }

    fn read(&self, lba: u64, blocks: u32, request: Request<'_>) -> Step {
        let (offset, length) = match self.place(lba, blocks.into()) {
            Ok(place) => place,
            Err(sense) => return done(Err(sense)),
        };
        let Request { srb, mut buffer } = request;
        let Some(length) = fit(length, &buffer, srb.data_in != DATA_OUT) else {
            return Step::Done(Outcome::invalid());
        };
        if length == 0 {
            return done(Ok(()));
        }
        // FUA asks for what is on the medium. The page cache and the file agree, and what a
        // power failure would take was never promised.
        buffer.truncate(usize::try_from(length).unwrap_or(usize::MAX));
        self.transfer(
            Io::Read { offset, buffer },
            length,
            Sense::UNRECOVERED_READ_ERROR,
        )
    }

    fn write(&self, lba: u64, blocks: u32, fua: bool, request: Request<'_>) -> Step {
        let (offset, length) = match self.place(lba, blocks.into()) {
            Ok(place) => place,
            Err(sense) => return done(Err(sense)),
        };
        if self.backend.read_only() {
            return done(Err(Sense::WRITE_PROTECTED));
        }
        let Request { srb, mut buffer } = request;
        let Some(length) = fit(length, &buffer, srb.data_in != DATA_IN) else {
            return Step::Done(Outcome::invalid());
        };
        if length == 0 {
            return done(Ok(()));
        }
        buffer.truncate(usize::try_from(length).unwrap_or(usize::MAX));
        self.transfer(
            Io::Write {
                offset,
                buffer,
                durable: fua,
            },
            length,
            Sense::WRITE_ERROR,
        )
    }

    fn unmap(&self, anchor: bool, length: u16, request: &Request<'_>) -> Step {
        if !self.backend.can_unmap() && !self.backend.read_only() {
            return done(Err(Sense::INVALID_OPCODE));
        }
        if self.backend.read_only() {
            return done(Err(Sense::WRITE_PROTECTED));
        }
        if anchor {
            return done(Err(Sense::INVALID_FIELD_IN_CDB));
        }
        if length == 0 {
            return done(Ok(()));
        }
        if request.srb.data_in == DATA_IN {
            return Step::Done(Outcome::invalid());
        }
        let Some(list) = request.buffer.copy(length.into()) else {
            return Step::Done(Outcome::invalid());
        };
        match self.unmap_places(&list) {
            Ok(places) if places.is_empty() => Step::Done(Outcome::good(length.into())),
            Ok(places) => self.transfer(Io::Unmap(places), length.into(), Sense::WRITE_ERROR),
            Err(sense) => done(Err(sense)),
        }
    }

    fn unmap_places(&self, list: &[u8]) -> Result<Vec<(u64, u64)>, Sense> {
        let descriptors = unmap_descriptors(list).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        if descriptors.len() > MAX_UNMAP_DESCRIPTORS {
            return Err(Sense::INVALID_FIELD_IN_PARAMETERS);
        }
        let mut places = Vec::with_capacity(descriptors.len());
        for descriptor in descriptors {
            let place = self.place(descriptor.lba.get(), descriptor.blocks.get().into())?;
            if place.1 != 0 {
                places.push(place);
            }
        }
        Ok(places)
    }
}

/// `length` where it fits the buffer, and the direction is right or there is nothing to move.
fn fit(length: u64, buffer: &GuestBuffer, direction: bool) -> Option<u32> {
    let fits = length <= buffer.len() as u64 && (direction || length == 0);
    u32::try_from(length).ok().filter(|_| fits)
}
