//! CPUID leaves through which a guest finds Hyper-V (TLFS 2.4).

/// Leaf with the highest hypervisor leaf (EAX) and the vendor signature (EBX, ECX, EDX).
pub const LEAF_VENDOR: u32 = 0x4000_0000;
/// Leaf with the interface signature in EAX.
pub const LEAF_INTERFACE: u32 = 0x4000_0001;
/// Leaf with the version of the hypervisor.
pub const LEAF_VERSION: u32 = 0x4000_0002;
/// Leaf with the privileges of the partition (EAX, EBX) and available features (EDX).
pub const LEAF_FEATURES: u32 = 0x4000_0003;
/// Leaf with recommendations to the guest.
pub const LEAF_HINTS: u32 = 0x4000_0004;
/// Leaf with the limits of the implementation.
pub const LEAF_LIMITS: u32 = 0x4000_0005;
/// Leaf with the hardware features in use.
pub const LEAF_HARDWARE: u32 = 0x4000_0006;
/// Leaf with the nested features.
pub const LEAF_NESTED: u32 = 0x4000_000A;
/// Leaf of the virtualization stack's own vendor signature.
pub const LEAF_STACK_VENDOR: u32 = 0x4000_0080;
/// Leaf of the virtualization stack's interface signature.
pub const LEAF_STACK_INTERFACE: u32 = 0x4000_0081;
/// Leaf of the virtualization stack's properties; zero where it offers none of them.
pub const LEAF_STACK_PROPERTIES: u32 = 0x4000_0082;

/// Vendor signature "Microsoft Hv" as EBX, ECX and EDX hold it.
pub const VENDOR_SIGNATURE: [u32; 3] = [0x7263_694D, 0x666F_736F, 0x7648_2074];
/// Interface signature "Hv#1" in EAX of [`LEAF_INTERFACE`].
pub const INTERFACE_SIGNATURE: u32 = 0x3123_7648;

/// CPUID.1:ECX bit that says a hypervisor is present.
pub const HYPERVISOR_PRESENT: u32 = 1 << 31;

/// Privileges in EAX of [`LEAF_FEATURES`].
pub mod privilege {
    /// The partition may read HV_X64_MSR_VP_RUNTIME.
    pub const VP_RUNTIME: u32 = 1 << 0;
    /// HV_X64_MSR_TIME_REF_COUNT may be read.
    pub const TIME_REF_COUNT: u32 = 1 << 1;
    /// The SynIC MSRs may be used.
    pub const SYNIC: u32 = 1 << 2;
    /// The synthetic timer MSRs may be used.
    pub const SYNTHETIC_TIMERS: u32 = 1 << 3;
    /// The EOI, ICR, TPR and VP assist page MSRs may be used.
    pub const APIC_ACCESS: u32 = 1 << 4;
    /// The guest OS id and hypercall page MSRs may be used.
    pub const HYPERCALL: u32 = 1 << 5;
    /// HV_X64_MSR_VP_INDEX may be read.
    pub const VP_INDEX: u32 = 1 << 6;
    /// HV_X64_MSR_RESET may be written.
    pub const RESET: u32 = 1 << 7;
    /// The reference TSC page may be used.
    pub const REFERENCE_TSC: u32 = 1 << 9;
    /// The TSC and APIC frequency MSRs may be read.
    pub const FREQUENCY: u32 = 1 << 11;
    /// The partition may make its TSC invariant.
    pub const TSC_INVARIANT: u32 = 1 << 15;
    /// EBX: HvPostMessage may be called.
    pub const EBX_POST_MESSAGES: u32 = 1 << 4;
    /// EBX: HvSignalEvent may be called.
    pub const EBX_SIGNAL_EVENTS: u32 = 1 << 5;
}

/// Features in EDX of [`LEAF_FEATURES`].
pub mod feature {
    /// Hypercall input may be passed in XMM registers.
    pub const HYPERCALL_XMM_INPUT: u32 = 1 << 4;
    /// The TSC and APIC frequency MSRs exist.
    pub const FREQUENCY_MSRS: u32 = 1 << 8;
    /// The crash MSRs exist.
    pub const CRASH_MSRS: u32 = 1 << 10;
    /// Hypercall output may be passed in XMM registers.
    pub const HYPERCALL_XMM_OUTPUT: u32 = 1 << 15;
    /// Synthetic timers can raise an interrupt directly, without a message.
    pub const STIMER_DIRECT: u32 = 1 << 19;
}

/// Recommendations in EAX of [`LEAF_HINTS`].
pub mod hint {
    /// Flush remote TLBs by hypercall.
    pub const REMOTE_TLB_FLUSH: u32 = 1 << 2;
    /// Use the EOI, ICR and TPR MSRs instead of the memory-mapped APIC.
    pub const APIC_ACCESS: u32 = 1 << 3;
    /// Use relaxed timing: watchdogs may be fooled by a stopped VM.
    pub const RELAXED_TIMING: u32 = 1 << 5;
    /// Do not use auto-EOI in SINTs.
    pub const DEPRECATE_AUTO_EOI: u32 = 1 << 9;
    /// Send IPIs to several processors by hypercall.
    pub const CLUSTER_IPI: u32 = 1 << 10;
    /// Use the hypercall forms with sparse processor sets.
    pub const EX_PROCESSOR_MASKS: u32 = 1 << 11;
}
