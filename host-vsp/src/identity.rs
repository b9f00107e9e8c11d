//! What the guest's processors say of themselves: CPUID.
//!
//! Hyper-V's identity is complete or not there at all. A guest that finds "Microsoft Hv" relies on
//! everything the leaves announce, so each announced bit is the intersection of what this machine
//! stands for and what KVM says it serves (`KVM_GET_SUPPORTED_HV_CPUID`), and a few bits must
//! never appear:
//!
//! - EBX of the features leaf holds nothing but the two VMBus hypercalls. Bit 0 (create
//!   partitions) and bit 12 (CPU management) make Linux believe that it is the root partition,
//!   which finds no VMBus; bit 20 wants a hypercall that nobody answers here.
//! - No guest-idle MSR (EAX bit 10), which KVM lists nowhere but some hosts have; no debugger, no
//!   re-enlightenment, no enlightened VMCS: KVM may list these, this machine stands for none.
//! - The invariant TSC only where the processor has one.
//! - No virtualization within: the state of a guest's own guests would outlive a reset.
//!
//! All leaves up to the maximum are given explicitly, zero where unused: Linux reads 0x40000082
//! without looking at the maximum, and KVM answers unknown leaves with other leaves' values on
//! some processors.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use vmbus_proto::hv::cpuid::{
    HYPERVISOR_PRESENT, INTERFACE_SIGNATURE, LEAF_FEATURES, LEAF_HINTS, LEAF_INTERFACE,
    LEAF_LIMITS, LEAF_STACK_PROPERTIES, LEAF_VENDOR, LEAF_VERSION, VENDOR_SIGNATURE, feature, hint,
    privilege,
};

/// Privileges this machine stands for.
const PRIVILEGES: u32 = privilege::VP_RUNTIME
    | privilege::TIME_REF_COUNT
    | privilege::SYNIC
    | privilege::SYNTHETIC_TIMERS
    | privilege::APIC_ACCESS
    | privilege::HYPERCALL
    | privilege::VP_INDEX
    | privilege::RESET
    | privilege::REFERENCE_TSC
    | privilege::FREQUENCY
    | privilege::TSC_INVARIANT;

/// Privileges without which no known guest brings up VMBus.
const REQUIRED_PRIVILEGES: u32 =
    privilege::SYNIC | privilege::HYPERCALL | privilege::VP_INDEX | privilege::TIME_REF_COUNT;

/// Features this machine stands for.
const FEATURES: u32 = feature::HYPERCALL_XMM_INPUT
    | feature::FREQUENCY_MSRS
    | feature::CRASH_MSRS
    | feature::STIMER_DIRECT;

/// Recommendations this machine makes where KVM serves what they lead to.
const HINTS: u32 = hint::REMOTE_TLB_FLUSH
    | hint::APIC_ACCESS
    | hint::RELAXED_TIMING
    | hint::DEPRECATE_AUTO_EOI
    | hint::CLUSTER_IPI
    | hint::EX_PROCESSOR_MASKS;

/// Spin this often before telling the hypervisor of a long wait: never.
const NEVER_NOTIFY: u32 = u32::MAX;

/// Version the guest is told: 10.0, build 20348, as the first host that spoke VMBus 5.3.
const BUILD: u32 = 20348;
/// Major version in bits 16-31, minor in bits 0-15.
const VERSION: u32 = 10 << 16;

/// The leaf with the APM features; EDX bit 8 says that the TSC is invariant.
const LEAF_POWER: u32 = 0x8000_0007;
const POWER_TSC_INVARIANT: u32 = 1 << 8;

/// Leaf 1: ECX bit 24, the local APIC's TSC-deadline mode.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1: ECX bit 5, Intel's virtualization.
const VMX: u32 = 1 << 5;
/// Leaf 0x80000001: ECX bit 2, AMD's virtualization.
const SVM: u32 = 1 << 2;
/// Leaf 1: EDX bit 28, several logical processors in the package.
const MULTI_THREADING: u32 = 1 << 28;

/// KVM lacks something without which a guest does not get as far as VMBus.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "KVM does not serve the Hyper-V privileges {missing:#x} that guests need; \
     use a kernel with CONFIG_KVM_HYPERV"
)]
pub struct MissingPrivileges {
    /// Bits of EAX in leaf 0x40000003.
    pub missing: u32,
}

/// One processor among its siblings.
#[derive(Clone, Copy, Debug)]
pub struct Processor {
    /// Index, which is also its APIC id and its VP index.
    pub index: u32,
    /// Number of processors: that many cores in one package.
    pub count: u32,
    /// Whether the local APIC in KVM has the TSC-deadline mode.
    pub tsc_deadline: bool,
}

/// The CPUID entries of `processor`, from what KVM supports on this host: `supported` of
/// `KVM_GET_SUPPORTED_CPUID` and `hyperv` of `KVM_GET_SUPPORTED_HV_CPUID`.
pub fn cpuid(
    supported: &[kvm_cpuid_entry2],
    hyperv: &[kvm_cpuid_entry2],
    processor: Processor,
) -> Result<Vec<kvm_cpuid_entry2>, MissingPrivileges> {
    let invariant = supported
        .iter()
        .any(|entry| entry.function == LEAF_POWER && entry.edx & POWER_TSC_INVARIANT != 0);
    let mut entries: Vec<_> = supported
        .iter()
        // KVM's own paravirtual leaves: a guest that found them would look no further.
        .filter(|entry| !(0x4000_0000..0x4001_0000).contains(&entry.function))
        .filter(|entry| !is_topology(entry.function))
        .copied()
        .map(|entry| personal(entry, processor))
        .collect();
    entries.extend(topology(supported, processor));
    entries.extend(hyperv_leaves(hyperv, invariant)?);
    Ok(entries)
}

/// Leaves that list the package's levels and are written anew.
fn is_topology(function: u32) -> bool {
    matches!(function, 0xB | 0x1F | 0x8000_0026)
}

/// Bits of an APIC id that number the cores of a package.
fn core_bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

/// `entry` as this processor shows it.
fn personal(mut entry: kvm_cpuid_entry2, processor: Processor) -> kvm_cpuid_entry2 {
    let Processor { index, count, .. } = processor;
    match entry.function {
        0x1 => {
            entry.ebx = (entry.ebx & 0xFFFF) | (count.min(255) << 16) | (index << 24);
            entry.ecx |= HYPERVISOR_PRESENT;
            set(&mut entry.ecx, VMX, false);
            set(&mut entry.ecx, TSC_DEADLINE, processor.tsc_deadline);
            set(&mut entry.edx, MULTI_THREADING, count > 1);
        }
        // Intel caches: nobody shares but the last level, which all cores share.
        0x4 if entry.eax & 0x1F != 0 => {
            let shared = if (entry.eax >> 5) & 7 >= 3 {
                count - 1
            } else {
                0
            };
            entry.eax = (entry.eax & 0x3FFF)
                | (shared.min(0xFFF) << 14)
                | (((1 << core_bits(count)) - 1u32).min(0x3F) << 26);
        }
        0x8000_0001 => set(&mut entry.ecx, SVM, false),
        // AMD: cores in the package, less one, and the bits of the APIC id they take.
        0x8000_0008 => {
            entry.ecx = (entry.ecx & !0xF0FF) | (count - 1).min(0xFF) | (core_bits(count) << 12);
        }
        0x8000_001D if entry.eax & 0x1F != 0 => {
            let shared = if (entry.eax >> 5) & 7 >= 3 {
                count - 1
            } else {
                0
            };
            entry.eax = (entry.eax & 0x3FFF) | (shared.min(0xFFF) << 14);
        }
        // AMD: extended APIC id; core id with one thread each; one node.
        0x8000_001E => {
            entry.eax = index;
            entry.ebx = index & 0xFF;
            entry.ecx = 0;
        }
        _ => {}
    }
    entry
}

/// The levels of the package: one thread per core, all cores in one package.
fn topology(supported: &[kvm_cpuid_entry2], processor: Processor) -> Vec<kvm_cpuid_entry2> {
    const THREAD_LEVEL: u32 = 1 << 8;
    const CORE_LEVEL: u32 = 2 << 8;
    let Processor { index, count, .. } = processor;
    let level = |function, number: u32, shift, processors, kind| kvm_cpuid_entry2 {
        function,
        index: number,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: kind | number,
        edx: index,
        ..Default::default()
    };
    [0xB, 0x1F]
        .into_iter()
        .filter(|leaf| supported.iter().any(|entry| entry.function == *leaf))
        .flat_map(|leaf| {
            [
                level(leaf, 0, 0, 1, THREAD_LEVEL),
                level(leaf, 1, core_bits(count), count, CORE_LEVEL),
                level(leaf, 2, 0, 0, 0),
            ]
        })
        .collect()
}

fn hyperv_leaves(
    hyperv: &[kvm_cpuid_entry2],
    invariant_tsc: bool,
) -> Result<Vec<kvm_cpuid_entry2>, MissingPrivileges> {
    let kvm = |function: u32| {
        hyperv
            .iter()
            .find(|entry| entry.function == function)
            .copied()
            .unwrap_or_default()
    };
    let served = kvm(LEAF_FEATURES);
    let missing = REQUIRED_PRIVILEGES & !served.eax;
    if missing != 0 {
        return Err(MissingPrivileges { missing });
    }
    let mut privileges = PRIVILEGES & served.eax;
    let mut features = FEATURES & served.edx;
    if !invariant_tsc {
        privileges &= !privilege::TSC_INVARIANT;
    }
    // Two halves of one promise: the frequency MSRs.
    let frequencies =
        privileges & privilege::FREQUENCY != 0 && features & feature::FREQUENCY_MSRS != 0;
    set(&mut privileges, privilege::FREQUENCY, frequencies);
    set(&mut features, feature::FREQUENCY_MSRS, frequencies);
    // Timers in message mode would share VMBus's message slot, and newer Linux takes no other
    // than direct ones.
    let timers =
        privileges & privilege::SYNTHETIC_TIMERS != 0 && features & feature::STIMER_DIRECT != 0;
    set(&mut privileges, privilege::SYNTHETIC_TIMERS, timers);
    set(&mut features, feature::STIMER_DIRECT, timers);

    let limits = kvm(LEAF_LIMITS);
    Ok((LEAF_VENDOR..=LEAF_STACK_PROPERTIES)
        .map(|function| {
            let [eax, ebx, ecx, edx] = match function {
                LEAF_VENDOR => [
                    LEAF_STACK_PROPERTIES,
                    VENDOR_SIGNATURE[0],
                    VENDOR_SIGNATURE[1],
                    VENDOR_SIGNATURE[2],
                ],
                LEAF_INTERFACE => [INTERFACE_SIGNATURE, 0, 0, 0],
                LEAF_VERSION => [BUILD, VERSION, 0, 0],
                LEAF_FEATURES => [
                    privileges,
                    privilege::EBX_POST_MESSAGES | privilege::EBX_SIGNAL_EVENTS,
                    0,
                    features,
                ],
                LEAF_HINTS => [HINTS & kvm(LEAF_HINTS).eax, NEVER_NOTIFY, 0, 0],
                LEAF_LIMITS => [limits.eax, limits.ebx, limits.ecx, 0],
                _ => [0; 4],
            };
            kvm_cpuid_entry2 {
                function,
                eax,
                ebx,
                ecx,
                edx,
                ..Default::default()
            }
        })
        .collect())
}

/// Sets or clears `bit`.
fn set(register: &mut u32, bit: u32, on: bool) {
    if on {
        *register |= bit;
    } else {
        *register &= !bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, eax: u32, ebx: u32, ecx: u32, edx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32) -> kvm_cpuid_entry2 {
        *entries
            .iter()
            .find(|entry| entry.function == function)
            .unwrap()
    }

    const ONE: Processor = Processor {
        index: 0,
        count: 1,
        tsc_deadline: true,
    };

    /// A KVM that lists every bit there is, also those that must not reach the guest.
    fn all_of_hyperv() -> Vec<kvm_cpuid_entry2> {
        vec![
            entry(
                0x4000_0000,
                0x4000_0082,
                0x7263_694D,
                0x666F_736F,
                0x7648_2074,
            ),
            entry(LEAF_FEATURES, !0, !0, !0, !0),
            entry(LEAF_HINTS, !0, !0, !0, !0),
            entry(LEAF_LIMITS, 1024, 64, 0, 0),
            entry(0x4000_0006, !0, !0, !0, !0),
            entry(0x4000_000A, !0, !0, !0, !0),
            entry(0x4000_0082, !0, !0, !0, !0),
        ]
    }

    #[test]
    fn every_leaf_is_there_once_and_the_unused_are_zero() {
        let entries = cpuid(&[], &all_of_hyperv(), ONE).unwrap();
        for function in 0x4000_0000..=0x4000_0082u32 {
            assert_eq!(entries.iter().filter(|e| e.function == function).count(), 1);
        }
        for unused in [0x4000_0006, 0x4000_000A, 0x4000_0080, 0x4000_0082] {
            let leaf = find(&entries, unused);
            assert_eq!([leaf.eax, leaf.ebx, leaf.ecx, leaf.edx], [0; 4]);
        }
        let vendor = find(&entries, LEAF_VENDOR);
        assert_eq!(vendor.eax, 0x4000_0082);
        let signature: Vec<u8> = [vendor.ebx, vendor.ecx, vendor.edx]
            .iter()
            .flat_map(|register| register.to_le_bytes())
            .collect();
        assert_eq!(signature, b"Microsoft Hv");
    }

    #[test]
    fn forbidden_bits_never_pass() {
        let supported = [entry(LEAF_POWER, 0, 0, 0, POWER_TSC_INVARIANT)];
        let entries = cpuid(&supported, &all_of_hyperv(), ONE).unwrap();
        let features = find(&entries, LEAF_FEATURES);
        assert_eq!(
            features.ebx, 0b11_0000,
            "the two VMBus hypercalls and nothing else"
        );
        assert_eq!(features.eax & 1 << 10, 0, "guest idle");
        assert_eq!(features.eax & 1 << 13, 0, "re-enlightenment");
        assert_eq!(features.eax, PRIVILEGES);
        assert_eq!(features.edx, FEATURES);
        assert_eq!(find(&entries, LEAF_HINTS).eax, HINTS);
    }

    #[test]
    fn the_tsc_is_invariant_only_where_both_say_so() {
        let privileges = |supported: &[kvm_cpuid_entry2], hyperv: &[kvm_cpuid_entry2]| {
            find(&cpuid(supported, hyperv, ONE).unwrap(), LEAF_FEATURES).eax
        };
        let invariant = [entry(LEAF_POWER, 0, 0, 0, POWER_TSC_INVARIANT)];
        let mut without = all_of_hyperv();
        without[1].eax &= !privilege::TSC_INVARIANT;
        let bit = privilege::TSC_INVARIANT;
        assert_ne!(privileges(&invariant, &all_of_hyperv()) & bit, 0);
        assert_eq!(privileges(&[], &all_of_hyperv()) & bit, 0);
        assert_eq!(privileges(&invariant, &without) & bit, 0);
    }

    #[test]
    fn nothing_is_announced_that_kvm_does_not_serve() {
        let mut poor = all_of_hyperv();
        poor[1].eax = REQUIRED_PRIVILEGES | privilege::SYNTHETIC_TIMERS | privilege::FREQUENCY;
        poor[1].edx = 0;
        poor[2].eax = 0;
        let entries = cpuid(&[], &poor, ONE).unwrap();
        let features = find(&entries, LEAF_FEATURES);
        assert_eq!(features.eax, REQUIRED_PRIVILEGES);
        assert_eq!(features.edx, 0);
        assert_eq!(find(&entries, LEAF_HINTS).eax, 0);
    }

    #[test]
    fn a_kvm_without_synic_is_refused() {
        let mut without = all_of_hyperv();
        without[1].eax &= !privilege::SYNIC;
        let error = cpuid(&[], &without, ONE).unwrap_err();
        assert_eq!(error.missing, privilege::SYNIC);
    }

    #[test]
    fn processors_number_themselves_and_kvm_s_signature_is_gone() {
        let supported = [
            entry(1, 0, 0x0900_0800, VMX, 0),
            entry(0x8000_0001, 0, 0, SVM | 1, 0),
            entry(0xB, 0, 0, 0, 0),
            entry(0x4000_0000, 0, 0x4B4D_564B, 0, 0),
            entry(0x4000_0001, 7, 0, 0, 0),
            entry(0x4000_0100, 7, 0, 0, 0),
        ];
        let third = Processor {
            index: 2,
            count: 3,
            tsc_deadline: true,
        };
        let entries = cpuid(&supported, &all_of_hyperv(), third).unwrap();
        let first = find(&entries, 1);
        assert_eq!(first.ebx, 0x0203_0800);
        assert_eq!(first.ecx, HYPERVISOR_PRESENT | TSC_DEADLINE);
        assert_eq!(find(&entries, 0x8000_0001).ecx, 1);
        assert_ne!(first.edx & MULTI_THREADING, 0);
        let levels: Vec<_> = entries.iter().filter(|e| e.function == 0xB).collect();
        assert_eq!(levels.len(), 3);
        assert!(levels.iter().all(|level| level.edx == 2));
        assert_eq!((levels[1].eax, levels[1].ebx), (2, 3));
        assert_eq!(find(&entries, 0x4000_0001).eax, INTERFACE_SIGNATURE);
        assert!(!entries.iter().any(|e| e.function == 0x4000_0100));
    }
}
