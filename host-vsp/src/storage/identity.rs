//! Names of a disk that stay the same over reboots of guest and host.

use vmbus_proto::guid::Guid;

/// Names made from the controller's instance and the LUN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// Serial number for VPD page 80: 34 hexadecimal digits.
    pub(super) serial: String,
    /// For the NAA name in VPD page 83; 60 bits of it are used.
    pub(super) name: u64,
}

impl Identity {
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
    }
}
