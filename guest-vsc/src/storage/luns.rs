//! The units of a controller: which there are, and what has become of them.

use vmbus_proto::scsi::{Cdb, ReportLuns};

use super::blocking::Address;
use super::{Controller, Data, StorageError};
use crate::buffer::Buffer;
use crate::hal::Hal;

/// A set of logical units, by their numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Luns([u64; 4]);

/// What has become of a unit since another look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitChange {
    /// There was none of this number.
    Added(u8),
    /// There is none any more.
    Removed(u8),
}

impl Luns {
    fn insert(&mut self, lun: u8) {
        if let Some(word) = self.0.get_mut(usize::from(lun / 64)) {
            *word |= 1 << (lun % 64);
        }
    }

    /// Whether there is one of this number.
    pub fn contains(&self, lun: u8) -> bool {
        let word = self.0.get(usize::from(lun / 64));
        word.is_some_and(|word| word >> (lun % 64) & 1 != 0)
    }

    /// Their numbers, the lowest first.
    pub fn iter(&self) -> impl Iterator<Item = u8> + '_ {
        (0..=u8::MAX).filter(|lun| self.contains(*lun))
    }

    /// What one has to do to these to come to `later` ones.
    pub fn changes_to(&self, later: &Self) -> impl Iterator<Item = UnitChange> {
        let (before, after) = (*self, *later);
        (0..=u8::MAX).filter_map(
            move |lun| match (before.contains(lun), after.contains(lun)) {
                (false, true) => Some(UnitChange::Added(lun)),
                (true, false) => Some(UnitChange::Removed(lun)),
                _ => None,
            },
        )
    }
}

/// Units that are looked at one by one where the controller has no list of them.
const PROBED: u8 = 64;

/// Bytes of a list of 256 units.
const LIST: usize = 8 + 8 * 256;

/// Asks a controller which units there are.
pub(super) fn scan<H: Hal, B: Buffer>(
    controller: &Controller<'_, H, B>,
) -> Result<Luns, StorageError> {
    let mut luns = Luns::default();
    let mut data = [0; LIST];
    let cdb = Cdb::ReportLuns {
        select: 0,
        allocation_length: data.len() as u32,
    };
    match controller.with_attention(address(controller, 0), &cdb, &mut Data::In(&mut data)) {
        Ok(moved) => {
            let list = data.get(..moved as usize).unwrap_or_default();
            if let Some(list) = ReportLuns::parse(list) {
                list.for_each(|lun| luns.insert(lun));
                return Ok(luns);
            }
        }
        // The list is asked of unit 0, which there may be none of.
        Err(StorageError::Device(_) | StorageError::Status { .. }) => {}
        Err(error) => return Err(error),
    }
    for lun in 0..PROBED {
        if is_there(controller, lun)? {
            luns.insert(lun);
        }
    }
    Ok(luns)
}

fn address<H: Hal, B: Buffer>(controller: &Controller<'_, H, B>, lun: u8) -> Address {
    Address {
        lun,
        timeout: controller.timeout,
    }
}

/// Whether a unit says what it is.
fn is_there<H: Hal, B: Buffer>(
    controller: &Controller<'_, H, B>,
    lun: u8,
) -> Result<bool, StorageError> {
    let mut data = [0; 36];
    let cdb = Cdb::Inquiry {
        page: None,
        allocation_length: data.len() as u16,
    };
    match controller.with_attention(address(controller, lun), &cdb, &mut Data::In(&mut data)) {
        // The upper bits of the first byte: a unit of that kind could be there, and is not.
        Ok(moved) => Ok(moved > 0 && data[0] >> 5 == 0),
        Err(StorageError::Device(_) | StorageError::Status { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    #[test]
    fn what_comes_and_goes_is_told() {
        let of = |luns: &[u8]| {
            let mut set = Luns::default();
            luns.iter().for_each(|lun| set.insert(*lun));
            set
        };
        let (before, after) = (of(&[0, 3, 255]), of(&[0, 64, 255]));
        assert_eq!(before.iter().collect::<Vec<_>>(), [0, 3, 255]);
        assert!(after.contains(64) && !after.contains(63));
        let changes: Vec<_> = before.changes_to(&after).collect();
        assert_eq!(changes, [UnitChange::Removed(3), UnitChange::Added(64)]);
        assert_eq!(before.changes_to(&before).count(), 0);
    }
}
