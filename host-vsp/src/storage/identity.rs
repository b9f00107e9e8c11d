//! Names of a disk that stay the same over reboots of guest and host.

use vmbus_proto::guid::Guid;

/// Most characters of a serial number.
pub(super) const MAX_SERIAL: usize = 64;

/// Whether a guest can be shown this serial number: printable ASCII, and not too much of it.
pub(super) fn is_serial(text: &str) -> bool {
    let is_printable = |c: u8| c.is_ascii_graphic() || c == b' ';
    (1..=MAX_SERIAL).contains(&text.len()) && text.trim() == text && text.bytes().all(is_printable)
}

/// What a disk is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// Serial number for VPD page 80.
    pub(super) serial: String,
    /// For the NAA name in VPD page 83; 60 bits of it are used.
    pub(super) name: u64,
}

impl Identity {
    /// The serial number somebody chose, and a name made from it.
    pub(super) fn chosen(serial: String) -> Self {
        let name = fnv1a(serial.bytes());
        Self { serial, name }
    }

    /// Names made from the controller's instance and the LUN: 34 hexadecimal digits, and a hash.
    pub(super) fn new(instance: Guid, lun: u8) -> Self {
        let text = instance.to_string();
        let digits = text.chars().filter(|&c| c != '-');
        Self {
            serial: digits.chain(format!("{lun:02x}").chars()).collect(),
            name: fnv1a(instance.0.iter().copied().chain([lun])),
        }
    }
}

/// FNV-1a, 64 bits: stable, unlike the standard library's hashes, and spread well enough for a
/// handful of disks.
fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_and_differ() {
        // FNV's published vector for "foobar".
        assert_eq!(fnv1a(b"foobar".iter().copied()), 0x8594_4171_f739_67e8);
        let instance = Guid::new(0x01234567, 0x89ab, 0xcdef, 0x0011, 0x223344556677);
        let first = Identity::new(instance, 0);
        assert_eq!(first.serial, "0123456789abcdef001122334455667700");
        assert_eq!(first, Identity::new(instance, 0));
        let second = Identity::new(instance, 1);
        assert_ne!(first.name << 4, second.name << 4);
        assert_ne!(first.serial, second.serial);
        let chosen = Identity::chosen("WD-42".into());
        assert_eq!(chosen, Identity::chosen("WD-42".into()));
        assert_ne!(chosen.name << 4, Identity::chosen("WD-43".into()).name << 4);
    }

    #[test]
    fn serials_can_be_shown() {
        for good in ["a", "WD 42.x", &"x".repeat(MAX_SERIAL)] {
            assert!(is_serial(good), "{good:?}");
        }
        for bad in ["", " ", "a ", "a\n", "\u{e4}", &"x".repeat(MAX_SERIAL + 1)] {
            assert!(!is_serial(bad), "{bad:?}");
        }
    }
}
