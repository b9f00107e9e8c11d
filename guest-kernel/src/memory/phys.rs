//! Reading what firmware and the loader left in memory.
#![expect(
    unsafe_code,
    reason = "an address out of a table becomes a pointer here, and only here"
)]

use super::IDENTITY_END;
use zerocopy::FromBytes;

/// A copy of the `T` at a physical address of any alignment, or `None` outside the identity map.
///
/// Meant for memory that no Rust object owns: boot structures and ACPI tables.
pub(crate) fn read<T: FromBytes>(address: u64) -> Option<T> {
    let end = address.checked_add(size_of::<T>() as u64)?;
    if address == 0 || end > IDENTITY_END {
        return None;
    }
    // SAFETY: the range is inside the identity map, so it is mapped and readable; T may be made of
    // any bytes; a read does not disturb an owner, if the table that gave the address was wrong.
    Some(unsafe { core::ptr::read_unaligned(address as *const T) })
}
