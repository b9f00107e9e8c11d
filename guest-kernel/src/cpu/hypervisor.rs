//! Who runs this machine? CPUID says.

use core::arch::x86_64::__cpuid;
use core::fmt;

/// The first leaf of the hypervisor's range.
const LEAF: u32 = 0x4000_0000;
/// The leaf of Hyper-V's features.
const FEATURES_LEAF: u32 = 0x4000_0003;

/// The hypervisor's twelve-byte signature.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Signature([u8; 12]);

impl Signature {
    /// What Hyper-V, and whoever claims to be compatible with it, calls itself.
    pub(crate) const HYPERV: Self = Self(*b"Microsoft Hv");

    /// Asks CPUID; `None` on a machine without a hypervisor.
    pub(crate) fn read() -> Option<Self> {
        if __cpuid(1).ecx & 1 << 31 == 0 {
            return None;
        }
        let leaf = __cpuid(LEAF);
        let mut signature = [0; 12];
        for (bytes, register) in signature
            .chunks_exact_mut(4)
            .zip([leaf.ebx, leaf.ecx, leaf.edx])
        {
            bytes.copy_from_slice(&register.to_le_bytes());
        }
        Some(Self(signature))
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.trim_ascii_end().escape_ascii())
    }
}

/// Whether this is Hyper-V with the MSRs that tell the TSC's and the APIC's frequency.
pub(crate) fn has_frequency_msrs() -> bool {
    if Signature::read() != Some(Signature::HYPERV) || __cpuid(LEAF).eax < FEATURES_LEAF {
        return false;
    }
    let features = __cpuid(FEATURES_LEAF);
    features.eax & 1 << 11 != 0 && features.edx & 1 << 8 != 0
}
