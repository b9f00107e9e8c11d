//! The CMOS clock: what time it is, for kernels that ask at boot.
//!
//! Linux reads it even where ACPI says that there is none, and waits for seconds if nobody
//! answers. It tells UTC and nothing more: no alarm, no interrupt, no memory, and it cannot be
//! set. That is why the ACPI tables still say that there is none.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Port that selects a register; bit 7 masks NMIs on a PC, and nothing here.
pub const INDEX_PORT: u16 = 0x70;
/// Port that reads the selected register.
pub const DATA_PORT: u16 = 0x71;

/// Register B: 24 hours a day, numbers in BCD.
const STATUS_B: u8 = 0x02;
/// Register D: the clock has power.
const STATUS_D: u8 = 0x80;
const SECONDS_PER_DAY: u64 = 86_400;

/// The clock.
#[derive(Debug, Default)]
pub struct Rtc {
    index: AtomicU8,
}

impl Rtc {
    /// The guest selects a register.
    pub fn select(&self, index: u8) {
        self.index.store(index & 0x7F, Ordering::Relaxed);
    }

    /// The selected register, now.
    pub fn read(&self) -> u8 {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        register(self.index.load(Ordering::Relaxed), now.as_secs())
    }
}

/// The value of register `index` at `now`, in seconds since 1970.
fn register(index: u8, now: u64) -> u8 {
    let (days, second) = (now / SECONDS_PER_DAY, now % SECONDS_PER_DAY);
    let (year, month, day) = date(days);
    let number = match index {
        0x00 => second % 60,
        0x02 => second / 60 % 60,
        0x04 => second / 3600,
        // 1 is Sunday; 1970 began on a Thursday.
        0x06 => (days + 4) % 7 + 1,
        0x07 => day,
        0x08 => month,
        0x09 => year % 100,
        0x32 => year / 100,
        0x0B => return STATUS_B,
        0x0D => return STATUS_D,
        _ => return 0,
    };
    ((number / 10 % 10) << 4 | (number % 10)) as u8
}

/// Year, month and day of day `days` since 1970.
fn date(days: u64) -> (u64, u64, u64) {
    const DAYS_OF_400_YEARS: u64 = 146_097;
    // Years that begin in March end with the day that comes and goes.
    let since_march_0000 = days + 719_468;
    let era = since_march_0000 / DAYS_OF_400_YEARS;
    let day = since_march_0000 % DAYS_OF_400_YEARS;
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let january_or_later = month >= 10;
    let month = if january_or_later {
        month - 9
    } else {
        month + 3
    };
    (era * 400 + year + u64::from(january_or_later), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(date(11_016), (2000, 2, 29));
        assert_eq!(date(11_017), (2000, 3, 1));
        assert_eq!(date(19_722), (2023, 12, 31));
        assert_eq!(date(47_540), (2100, 2, 28));
        assert_eq!(date(47_541), (2100, 3, 1));
    }

    #[test]
    fn registers_hold_bcd() {
        // 2026-11-23 06:29:13, a Monday.
        let now = 1_795_415_353;
        let values = [0x00, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09, 0x32].map(|i| register(i, now));
        assert_eq!(values, [0x13, 0x29, 0x06, 2, 0x23, 0x11, 0x26, 0x20]);
        assert_eq!(
            register(0x0A, now) & 0x80,
            0,
            "never in the middle of an update"
        );
    }
}
