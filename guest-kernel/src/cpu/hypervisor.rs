//! Who runs this machine? CPUID says.

use core::arch::x86_64::__cpuid;
use core::fmt;
use vmbus_proto::hv::cpuid::{
    HYPERVISOR_PRESENT, LEAF_FEATURES, LEAF_VENDOR, VENDOR_SIGNATURE, feature, privilege,
};

/// The hypervisor's signature of twelve bytes, in three registers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Signature([u32; 3]);

impl Signature {
    /// What Hyper-V, and whoever claims to be compatible with it, calls itself.
    pub(crate) const HYPERV: Self = Self(VENDOR_SIGNATURE);

    /// Asks CPUID; `None` on a machine without a hypervisor.
    pub(crate) fn read() -> Option<Self> {
        if __cpuid(1).ecx & HYPERVISOR_PRESENT == 0 {
            return None;
        }
        let leaf = __cpuid(LEAF_VENDOR);
        Some(Self([leaf.ebx, leaf.ecx, leaf.edx]))
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.map(u32::to_le_bytes);
        write!(f, "\"{}\"", bytes.as_flattened().escape_ascii())
    }
}

/// Whether this is Hyper-V with the MSR that tells the TSC's frequency.
pub(crate) fn has_frequency_msrs() -> bool {
    if Signature::read() != Some(Signature::HYPERV) || __cpuid(LEAF_VENDOR).eax < LEAF_FEATURES {
        return false;
    }
    let features = __cpuid(LEAF_FEATURES);
    features.eax & privilege::FREQUENCY != 0 && features.edx & feature::FREQUENCY_MSRS != 0
}
