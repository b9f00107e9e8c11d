//! Synthetic MSRs (TLFS appendix "Architectural and synthetic MSRs").

/// Identity of the guest's operating system; must be non-zero before the hypercall page.
pub const GUEST_OS_ID: u32 = 0x4000_0000;
/// Address of the hypercall page: bit 0 enables, bits 12.. are the page's frame number.
pub const HYPERCALL: u32 = 0x4000_0001;
/// Index of this virtual processor.
pub const VP_INDEX: u32 = 0x4000_0002;
/// Writing 1 resets the machine.
pub const RESET: u32 = 0x4000_0003;
/// Run time of this virtual processor in 100 ns units.
pub const VP_RUNTIME: u32 = 0x4000_0010;
/// Reference time of the partition in 100 ns units.
pub const TIME_REF_COUNT: u32 = 0x4000_0020;
/// Address of the reference TSC page, with the enable bit 0.
pub const REFERENCE_TSC: u32 = 0x4000_0021;
/// Frequency of the TSC in Hz.
pub const TSC_FREQUENCY: u32 = 0x4000_0022;
/// Frequency of the local APIC's timer in Hz.
pub const APIC_FREQUENCY: u32 = 0x4000_0023;
/// End of interrupt.
pub const EOI: u32 = 0x4000_0070;
/// Address of the VP assist page, with the enable bit 0.
pub const VP_ASSIST_PAGE: u32 = 0x4000_0073;
/// SynIC control: bit 0 enables.
pub const SCONTROL: u32 = 0x4000_0080;
/// SynIC version.
pub const SVERSION: u32 = 0x4000_0081;
/// Address of the event flags page, with the enable bit 0.
pub const SIEFP: u32 = 0x4000_0082;
/// Address of the message page, with the enable bit 0.
pub const SIMP: u32 = 0x4000_0083;
/// End of message: any write lets the hypervisor deliver a pending message.
pub const EOM: u32 = 0x4000_0084;
/// The first of sixteen SINT registers (see [`Sint`](super::synic::Sint)).
pub const SINT0: u32 = 0x4000_0090;
/// Configuration of the first synthetic timer; its count follows, then the next timer.
pub const STIMER0_CONFIG: u32 = 0x4000_00B0;
/// Count of the first synthetic timer.
pub const STIMER0_COUNT: u32 = 0x4000_00B1;
/// First of the five crash parameters.
pub const CRASH_P0: u32 = 0x4000_0100;
/// Crash control: bit 63 reports the crash, bit 62 says that P3 and P4 hold a message.
pub const CRASH_CTL: u32 = 0x4000_0105;
/// Bit of [`CRASH_CTL`]: a crash is reported; in what is read, that it can be.
pub const CRASH_NOTIFY: u64 = 1 << 63;
/// Bit of [`CRASH_CTL`]: the last two parameters are address and length of a message; in what is
/// read, that they can be.
pub const CRASH_MESSAGE: u64 = 1 << 62;

/// Enable bit of the MSRs that hold the address of a page.
pub const PAGE_ENABLE: u64 = 1;
/// The bits of such an MSR that are the address of the page.
pub const PAGE_ADDRESS: u64 = !0xFFF;

/// A guest OS id for open-source systems (bit 63, TLFS "Guest OS identity"): OS type in bits
/// 56-62, `version` in bits 16-47, `build` in bits 0-15.
pub const fn open_source_os_id(os_type: u8, version: u32, build: u16) -> u64 {
    (1 << 63) | ((os_type as u64 & 0x7F) << 56) | ((version as u64) << 16) | build as u64
}
