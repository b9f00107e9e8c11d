//! Finding Hyper-V, and calling it.
//!
//! A guest recognises the hypervisor by CPUID, says who it is (the guest OS id MSR), gives a page
//! for the hypercall instruction, and then calls. VMBus needs two calls: HvPostMessage sends a
//! channel message and takes its input from memory, HvSignalEvent rings a channel's doorbell and
//! takes it from registers, so that it costs no more than the exit.
//!
//! Both are stations on the way of a packet: after [`channel`](crate::channel) comes the doorbell
//! here, and then the hypervisor.
#![expect(unsafe_code, reason = "privileged instructions through `Hal`")]

use core::fmt;
use core::marker::PhantomData;
use core::time::Duration;

use vmbus_proto::hv::cpuid::{self, privilege};
use vmbus_proto::hv::hypercall::{
    POST_MESSAGE, PostMessageInput, SIGNAL_EVENT, Status, control, signal_event_operand,
};
use vmbus_proto::hv::msr;
use vmbus_proto::hv::synic::{MESSAGE_PAYLOAD, MESSAGE_TYPE_CHANNEL};
use zerocopy::IntoBytes;

use crate::arch;
use crate::clock::{Deadline, ReferenceClock};
use crate::error::Error;
use crate::hal::Hal;
use crate::shared::Dma;
use crate::sync::IrqMutex;

/// What a machine lacks for VMBus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Missing {
    /// No hypervisor: CPUID.1:ECX bit 31 is clear.
    Hypervisor,
    /// A hypervisor with another signature than "Microsoft Hv".
    HyperV {
        /// Its signature.
        vendor: [u8; 12],
    },
    /// Hyper-V's signature, but not the CPUID leaves that say what it offers; the highest leaf.
    Leaves(u32),
    /// The interface is not "Hv#1".
    Interface(u32),
    /// The partition may not set up hypercalls.
    HypercallMsrs,
    /// The partition may not read its processors' indices.
    VpIndex,
    /// The partition may not use the SynIC.
    Synic,
    /// The partition may not read the reference time.
    ReferenceTime,
    /// The hypervisor did not enable the hypercall page.
    HypercallPage,
    /// The hypervisor takes no crash reports; VMBus works without.
    CrashMsrs,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hypervisor => f.write_str("this machine has no hypervisor"),
            Self::HyperV { vendor } => write!(
                f,
                "the hypervisor is \"{}\", not \"Microsoft Hv\"",
                vendor.escape_ascii()
            ),
            Self::Leaves(highest) => {
                write!(f, "the hypervisor's CPUID leaves end at {highest:#x}")
            }
            Self::Interface(signature) => {
                write!(f, "the hypervisor's interface is {signature:#x}, not Hv#1")
            }
            Self::HypercallMsrs => f.write_str("no privilege for the hypercall MSRs"),
            Self::VpIndex => f.write_str("no privilege for the VP index MSR"),
            Self::Synic => f.write_str("no privilege for the SynIC"),
            Self::ReferenceTime => f.write_str("no privilege for the reference time MSR"),
            Self::HypercallPage => f.write_str("the hypercall page could not be enabled"),
            Self::CrashMsrs => f.write_str("the hypervisor takes no crash reports"),
        }
    }
}

impl core::error::Error for Missing {}

/// What the hypervisor offers, from CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Privileges: EAX of leaf 0x40000003, see [`cpuid::privilege`].
    pub privileges: u32,
    /// Features: EDX of leaf 0x40000003, see [`cpuid::feature`].
    pub features: u32,
    /// Recommendations: EAX of leaf 0x40000004, see [`cpuid::hint`].
    pub hints: u32,
}

/// Looks for Hyper-V and for the privileges that VMBus needs.
///
/// # Errors
/// Says what is missing, the first thing first.
pub fn detect<H: Hal>() -> Result<Features, Missing> {
    if H::cpuid(1).ecx & cpuid::HYPERVISOR_PRESENT == 0 {
        return Err(Missing::Hypervisor);
    }
    let vendor = H::cpuid(cpuid::LEAF_VENDOR);
    let signature = [vendor.ebx, vendor.ecx, vendor.edx];
    if signature != cpuid::VENDOR_SIGNATURE {
        let vendor = zerocopy::transmute!(signature.map(u32::to_le));
        return Err(Missing::HyperV { vendor });
    }
    if vendor.eax < cpuid::LEAF_LIMITS {
        return Err(Missing::Leaves(vendor.eax));
    }
    let interface = H::cpuid(cpuid::LEAF_INTERFACE).eax;
    if interface != cpuid::INTERFACE_SIGNATURE {
        return Err(Missing::Interface(interface));
    }
    let leaf = H::cpuid(cpuid::LEAF_FEATURES);
    for (bit, missing) in [
        (privilege::HYPERCALL, Missing::HypercallMsrs),
        (privilege::VP_INDEX, Missing::VpIndex),
        (privilege::SYNIC, Missing::Synic),
        (privilege::TIME_REF_COUNT, Missing::ReferenceTime),
    ] {
        if leaf.eax & bit == 0 {
            return Err(missing);
        }
    }
    Ok(Features {
        privileges: leaf.eax,
        features: leaf.edx,
        hints: H::cpuid(cpuid::LEAF_HINTS).eax,
    })
}

/// The bits of a register that names a page which are ours to write: address and enable bit.
pub(crate) const PAGE_BITS: u64 = msr::PAGE_ADDRESS | msr::PAGE_ENABLE;

/// Writes the `bits` of a register as in `value`, and preserves the others, as the TLFS demands of
/// reserved ones.
///
/// # Safety
/// The register can be read, and takes the value; see [`Hal::wrmsr`].
pub(crate) unsafe fn change_msr<H: Hal>(register: u32, bits: u64, value: u64) {
    // SAFETY: the caller's promise; reading a synthetic register has no effect.
    let before = unsafe { H::rdmsr(register) };
    // SAFETY: the caller's promise.
    unsafe { H::wrmsr(register, before & !bits | value & bits) };
}

/// Who we say we are: an open-source system of no registered type.
const GUEST_OS_ID: u64 = msr::open_source_os_id(0x7F, 1, 0);

/// The hypervisor, ready for calls.
pub(crate) struct Hypervisor<H: Hal> {
    features: Features,
    /// Input page of HvPostMessage.
    input: IrqMutex<H, Dma<H>>,
    clock: ReferenceClock<H>,
    hal: PhantomData<fn() -> H>,
}

impl<H: Hal> Hypervisor<H> {
    /// Finds the hypervisor and sets up its hypercall page.
    pub(crate) fn new() -> Result<Self, Error> {
        let features = detect::<H>()?;
        let input = Dma::new(1).ok_or(Error::OutOfMemory)?;
        let page = H::code_to_phys(arch::hypercall_page()) & msr::PAGE_ADDRESS;
        // SAFETY: the privilege for these registers was checked. The page is this crate's own and
        // meant for the hypervisor's code.
        unsafe { H::wrmsr(msr::GUEST_OS_ID, GUEST_OS_ID) };
        // SAFETY: as above.
        unsafe { change_msr::<H>(msr::HYPERCALL, PAGE_BITS, page | msr::PAGE_ENABLE) };
        // SAFETY: reading it has no effect.
        let enabled = unsafe { H::rdmsr(msr::HYPERCALL) };
        if enabled & msr::PAGE_ENABLE == 0 || enabled & msr::PAGE_ADDRESS != page {
            return Err(Missing::HypercallPage.into());
        }
        Ok(Self {
            features,
            input: IrqMutex::new(input),
            clock: ReferenceClock::new(&features),
            hal: PhantomData,
        })
    }

    pub(crate) fn features(&self) -> &Features {
        &self.features
    }

    pub(crate) fn clock(&self) -> &ReferenceClock<H> {
        &self.clock
    }

    pub(crate) fn deadline(&self, timeout: Duration) -> Deadline<'_, H> {
        Deadline::new(&self.clock, timeout)
    }

    /// Posts one channel message, once.
    pub(crate) fn post_message(&self, connection_id: u32, message: &[u8]) -> Status {
        let mut payload = [0; MESSAGE_PAYLOAD];
        for (to, from) in payload.iter_mut().zip(message) {
            *to = *from;
        }
        let input = PostMessageInput {
            connection_id: connection_id.into(),
            reserved: 0.into(),
            message_type: MESSAGE_TYPE_CHANNEL.into(),
            payload_size: (message.len().min(MESSAGE_PAYLOAD) as u32).into(),
            payload,
        };
        self.input.with(|page| {
            page.write(0, input.as_bytes());
            // SAFETY: the hypercall page is enabled; the call reads 256 bytes of the input page.
            let result = unsafe { H::hypercall(control(POST_MESSAGE, false), page.paddr(), 0) };
            Status::from_result(result)
        })
    }

    /// Rings a doorbell.
    pub(crate) fn signal_event(&self, connection_id: u32) -> Status {
        let operand = signal_event_operand(connection_id, 0);
        // SAFETY: the hypercall page is enabled; the fast form touches no memory.
        Status::from_result(unsafe { H::hypercall(control(SIGNAL_EVENT, true), operand, 0) })
    }
}

impl<H: Hal> Drop for Hypervisor<H> {
    fn drop(&mut self) {
        // SAFETY: with `self` the last caller goes; both registers take zero.
        unsafe { change_msr::<H>(msr::HYPERCALL, PAGE_BITS, 0) };
        // SAFETY: as above.
        unsafe { H::wrmsr(msr::GUEST_OS_ID, 0) };
    }
}
