//! Time synchronization: the host tells the guest what time it is.
//!
//! A message names a moment twice: by the host's wall clock and, since version 4.0, by the guest's
//! own reference counter (TLFS 12.4, MSR TIME_REF_COUNT), so that the way of the message costs no
//! accuracy. [`FLAG_SYNC`] asks the guest to set its clock; [`FLAG_SAMPLE`] only lets it know. The
//! host sends the first after each start and pause of the guest, the second every five seconds.

use core::time::Duration;

use zerocopy::little_endian::U64;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Version;
use crate::guid::Guid;

/// Class of the service (Linux `HV_TS_GUID`).
pub const CLASS: Guid = Guid::new(0x9527e630, 0xd0ae, 0x497b, 0xadce, 0xe80ab0175caf);

/// The instance that Hyper-V offers.
pub const INSTANCE: Guid = Guid::new(0x2dd1ce17, 0x079e, 0x403c, 0xb352, 0xa1921ee207ee);

/// The first version with [`ReferencedTime`]; those before have [`Time`].
pub const VERSION_REFERENCED: Version = Version::new(4, 0);

/// Versions of the service.
pub const VERSIONS: &[Version] = &[Version::new(1, 0), Version::new(3, 0), VERSION_REFERENCED];

/// `flags`: the guest shall set its clock (Linux `ICTIMESYNCFLAG_SYNC`).
pub const FLAG_SYNC: u8 = 1;
/// `flags`: for the guest's information (Linux `ICTIMESYNCFLAG_SAMPLE`).
pub const FLAG_SAMPLE: u8 = 2;

/// The beginning of the year 1970 on the wall clock of these messages, which counts units of
/// 100 ns since the beginning of the year 1601, in UTC.
pub const UNIX_EPOCH: u64 = 116_444_736_000_000_000;

/// Units of 100 ns in a second.
const UNITS_PER_SECOND: u64 = 10_000_000;

/// A time on the wall clock of these messages, from the time since the beginning of the year
/// 1970; as late as the clock can say where it is later.
pub fn wall_clock(since_unix_epoch: Duration) -> u64 {
    // Not by `as_nanos`: kernels have no division of 128 bits.
    let units = u64::from(since_unix_epoch.subsec_nanos() / 100);
    since_unix_epoch
        .as_secs()
        .saturating_mul(UNITS_PER_SECOND)
        .saturating_add(units)
        .saturating_add(UNIX_EPOCH)
}

/// The time since the beginning of the year 1970 that this wall clock shows; `None` where it is
/// earlier.
pub fn since_unix_epoch(wall_clock: u64) -> Option<Duration> {
    let units = wall_clock.checked_sub(UNIX_EPOCH)?;
    let nanoseconds = ((units % UNITS_PER_SECOND) as u32).saturating_mul(100);
    Some(Duration::new(units / UNITS_PER_SECOND, nanoseconds))
}

/// Body of a request before version 4.0 (Linux `struct ictimesync_data`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Time {
    /// The host's time, in units of 100 ns since 1601.
    pub host_time: U64,
    /// Zero.
    pub guest_time: U64,
    /// Zero: the host does not measure how long messages take.
    pub round_trip_time: U64,
    /// [`FLAG_SYNC`] or [`FLAG_SAMPLE`].
    pub flags: u8,
    /// Zero.
    pub reserved: [u8; 7],
}
const _: () = assert!(size_of::<Time>() == 32);

/// Body of a request since version 4.0 (Linux `struct ictimesync_ref_data`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ReferencedTime {
    /// The host's time, in units of 100 ns since 1601.
    pub host_time: U64,
    /// What the guest's reference counter was at that moment, in units of 100 ns.
    pub reference_time: U64,
    /// [`FLAG_SYNC`] or [`FLAG_SAMPLE`].
    pub flags: u8,
    /// NTP's leap indicator: 0, no warning.
    pub leap_indicator: u8,
    /// NTP's stratum: 0, not known.
    pub stratum: u8,
    /// Zero.
    pub reserved: [u8; 5],
}
const _: () = assert!(size_of::<ReferencedTime>() == 24);

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes as _;

    #[test]
    fn the_wall_clock() {
        assert_eq!(wall_clock(Duration::ZERO), UNIX_EPOCH);
        assert_eq!(wall_clock(Duration::new(1, 200)), UNIX_EPOCH + 10_000_002);
        assert_eq!(wall_clock(Duration::MAX), u64::MAX);
        assert_eq!(since_unix_epoch(UNIX_EPOCH), Some(Duration::ZERO));
        assert_eq!(since_unix_epoch(UNIX_EPOCH - 1), None);
        let later = Duration::new(1_790_000_000, 123_456_700);
        assert_eq!(since_unix_epoch(wall_clock(later)), Some(later));
        assert!(since_unix_epoch(u64::MAX).is_some());
        // From 1601 to 1970 there are 369 years, 89 of them with a day more.
        assert_eq!(UNIX_EPOCH / 10_000_000, (369 * 365 + 89) * 86_400);
    }

    #[test]
    fn in_bytes() {
        let time = ReferencedTime {
            host_time: 0x0102.into(),
            reference_time: 0x0304.into(),
            flags: FLAG_SYNC,
            leap_indicator: 0,
            stratum: 0,
            reserved: [0; 5],
        };
        let bytes = [
            2, 1, 0, 0, 0, 0, 0, 0, 4, 3, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(time.as_bytes(), bytes);
    }
}
