//! What is asked of KVM.
//!
//! `/dev/kvm` may be there and useless: a software KVM, or a kernel without Hyper-V emulation. So
//! the capabilities decide, never the file.

use std::io::ErrorKind;

use kvm_ioctls::Kvm;

use super::Error;

/// The KVM device.
pub const DEVICE: &str = "/dev/kvm";

/// Something that KVM may be able to do.
#[derive(Clone, Copy, Debug)]
pub struct Capability {
    /// Number, for `KVM_CHECK_EXTENSION`.
    pub number: u32,
    /// Name, without `KVM_CAP_`.
    pub name: &'static str,
    /// What it is for.
    pub purpose: &'static str,
    /// Whether no machine runs without it.
    pub required: bool,
}

const fn required(number: u32, name: &'static str, purpose: &'static str) -> Capability {
    Capability {
        number,
        name,
        purpose,
        required: true,
    }
}

const fn optional(number: u32, name: &'static str, purpose: &'static str) -> Capability {
    Capability {
        number,
        name,
        purpose,
        required: false,
    }
}

/// All of them, as `kvm_bindings` numbers them.
pub const ALL: [Capability; 17] = [
    required(
        kvm_bindings::KVM_CAP_IRQCHIP,
        "IRQCHIP",
        "interrupt controllers in the kernel",
    ),
    required(
        kvm_bindings::KVM_CAP_PIT2,
        "PIT2",
        "the timer that kernels calibrate with",
    ),
    required(
        kvm_bindings::KVM_CAP_IRQ_ROUTING,
        "IRQ_ROUTING",
        "routes to the SynIC",
    ),
    required(
        kvm_bindings::KVM_CAP_IRQFD_RESAMPLE,
        "IRQFD_RESAMPLE",
        "end-of-message events",
    ),
    required(
        kvm_bindings::KVM_CAP_IMMEDIATE_EXIT,
        "IMMEDIATE_EXIT",
        "bringing a processor out of the guest",
    ),
    required(kvm_bindings::KVM_CAP_HYPERV, "HYPERV", "Hyper-V's MSRs"),
    required(
        kvm_bindings::KVM_CAP_HYPERV_VP_INDEX,
        "HYPERV_VP_INDEX",
        "Hyper-V's numbers of processors",
    ),
    required(
        kvm_bindings::KVM_CAP_HYPERV_SYNIC2,
        "HYPERV_SYNIC2",
        "the SynIC, VMBus's interrupt controller",
    ),
    required(
        kvm_bindings::KVM_CAP_HYPERV_EVENTFD,
        "HYPERV_EVENTFD",
        "doorbells without an exit",
    ),
    required(
        kvm_bindings::KVM_CAP_HYPERV_CPUID,
        "HYPERV_CPUID",
        "the list of what KVM serves of Hyper-V",
    ),
    required(
        kvm_bindings::KVM_CAP_X86_USER_SPACE_MSR,
        "X86_USER_SPACE_MSR",
        "crash reports and SINT changes",
    ),
    required(
        kvm_bindings::KVM_CAP_X86_MSR_FILTER,
        "X86_MSR_FILTER",
        "crash reports and SINT changes",
    ),
    optional(
        kvm_bindings::KVM_CAP_HYPERV_TLBFLUSH,
        "HYPERV_TLBFLUSH",
        "TLB flush by hypercall",
    ),
    optional(
        kvm_bindings::KVM_CAP_HYPERV_SEND_IPI,
        "HYPERV_SEND_IPI",
        "IPIs by hypercall",
    ),
    optional(
        kvm_bindings::KVM_CAP_HYPERV_ENFORCE_CPUID,
        "HYPERV_ENFORCE_CPUID",
        "holding guests to what CPUID says",
    ),
    optional(
        kvm_bindings::KVM_CAP_TSC_DEADLINE_TIMER,
        "TSC_DEADLINE_TIMER",
        "the local APIC's deadline timer",
    ),
    optional(
        kvm_bindings::KVM_CAP_BINARY_STATS_FD,
        "BINARY_STATS_FD",
        "KVM's own counters",
    ),
];

/// Whether `kvm` can do it.
pub fn has(kvm: &Kvm, capability: u32) -> bool {
    kvm.check_extension_raw(capability.into()) > 0
}

/// Opens KVM; the error says what to do.
pub fn open() -> Result<Kvm, Error> {
    Kvm::new().map_err(|error| {
        let error = std::io::Error::from(error);
        Error::Unusable(match error.kind() {
            ErrorKind::NotFound => format!(
                "there is no {DEVICE}: enable virtualization in the firmware, load the kernel \
                 module kvm_intel or kvm_amd, and in a container pass the device in"
            ),
            ErrorKind::PermissionDenied => format!(
                "no permission to use {DEVICE}: become a member of its group (usually \"kvm\") or \
                 run as root"
            ),
            _ => format!("{DEVICE} cannot be opened: {error}"),
        })
    })
}

/// Opens KVM and makes sure that it has all that is required.
pub fn open_checked() -> Result<Kvm, Error> {
    let kvm = open()?;
    let missing: Vec<_> = ALL
        .iter()
        .filter(|capability| capability.required && !has(&kvm, capability.number))
        .map(|capability| capability.name)
        .collect();
    if missing.is_empty() {
        return Ok(kvm);
    }
    Err(Error::Unusable(format!(
        "{DEVICE} lacks KVM_CAP_{}: use a Linux kernel 5.10 or later with CONFIG_KVM_HYPERV on \
         hardware virtualization (`host-vsp check` tells more)",
        missing.join(", KVM_CAP_")
    )))
}
