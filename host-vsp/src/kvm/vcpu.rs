//! One virtual processor, and its state as a value.
//!
//! A reset of the machine puts back the state the processor had when it was made: everything KVM
//! can tell of it is read once and written again. What the boot processor starts with comes on
//! top, from [`crate::boot`].

use std::sync::{Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_debugregs, kvm_enable_cap, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vmbus_proto::hv::msr;
use vmbus_proto::hv::synic::SINT_COUNT;

use super::statistics::Statistics;
use super::{Context as _, Error, capabilities, ioctls};
use crate::identity;

/// IA32_TSC: runs on through a reset, so that all processors' stay equal.
const MSR_TSC: u32 = 0x10;
/// What makes a processor's TSC the one that all processors of the VM share: to KVM, a host that
/// writes 0 asks for that. After a triple fault on AMD it is needed, as KVM forgets to give the
/// hardware the offset again, and the guest's timers would be late by the host's uptime.
const TSC_SHARED: u64 = 0;
/// IA32_MISC_ENABLE with fast string operations.
const MSR_MISC_ENABLE: (u32, u64) = (0x1A0, 1);
/// IA32_MTRR_DEF_TYPE: MTRRs enabled, all memory write-back.
const MSR_MTRR_DEF_TYPE: (u32, u64) = (0x2FF, 1 << 11 | 6);
/// The other MTRRs, of which KVM's list says nothing: variable ranges, then the fixed ones.
const MSR_MTRRS: [u32; 27] = [
    0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207, 0x208, 0x209, 0x20A, 0x20B, 0x20C,
    0x20D, 0x20E, 0x20F, 0x250, 0x258, 0x259, 0x268, 0x269, 0x26A, 0x26B, 0x26C, 0x26D, 0x26E,
    0x26F,
];
/// Synthetic timers per processor.
const TIMERS: u32 = 4;

/// Offsets and values of the local APIC's LINT registers: the PIC's output on LINT0, NMI on LINT1.
const APIC_LVT: [(usize, u32); 2] = [(0x350, 7 << 8), (0x360, 4 << 8)];

/// A processor that no thread runs, or the thread's own.
#[derive(Debug)]
pub struct Vcpu {
    fd: Mutex<VcpuFd>,
    initial: State,
}

/// What a processor is made of.
#[derive(Debug)]
struct State {
    regs: kvm_regs,
    sregs: kvm_sregs,
    xcrs: Option<kvm_xcrs>,
    xsave: kvm_xsave,
    debug: kvm_debugregs,
    msrs: Vec<kvm_msr_entry>,
    lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
    mp: kvm_mp_state,
}

impl Vcpu {
    /// Makes processor `processor` with the Hyper-V identity and an active SynIC.
    pub(crate) fn new(kvm: &Kvm, vm: &VmFd, processor: identity::Processor) -> Result<Self, Error> {
        let fd = vm
            .create_vcpu(processor.index.into())
            .context("making a processor")?;
        // Before any interrupt is routed to it: KVM skips inactive SynICs silently.
        let synic = kvm_enable_cap {
            cap: kvm_bindings::KVM_CAP_HYPERV_SYNIC2,
            ..Default::default()
        };
        fd.enable_cap(&synic).context("enabling the SynIC")?;
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .context("reading CPUID")?;
        let hyperv = ioctls::supported_hyperv_cpuid(&fd).context("reading Hyper-V's CPUID")?;
        let entries = identity::cpuid(supported.as_slice(), hyperv.as_slice(), processor)?;
        let cpuid = CpuId::from_entries(&entries).map_err(|_| {
            Error::Unusable("this processor has too many CPUID leaves for KVM".into())
        })?;
        fd.set_cpuid2(&cpuid).context("setting CPUID")?;
        if capabilities::has(kvm, kvm_bindings::KVM_CAP_HYPERV_ENFORCE_CPUID) {
            let mut enforce = kvm_enable_cap {
                cap: kvm_bindings::KVM_CAP_HYPERV_ENFORCE_CPUID,
                ..Default::default()
            };
            enforce.args[0] = 1;
            fd.enable_cap(&enforce)
                .context("enforcing Hyper-V's CPUID")?;
        }
        let list = kvm.get_msr_index_list().context("listing MSRs")?;
        let initial = State::read(&fd, list.as_slice(), has_xcrs(kvm))?;
        Ok(Self {
            fd: Mutex::new(fd),
            initial,
        })
    }

    /// The processor, for whoever may run or change it now.
    pub fn lock(&self) -> MutexGuard<'_, VcpuFd> {
        self.fd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// KVM's statistics of it, where the kernel has them.
    pub(super) fn statistics(&self) -> Option<Statistics> {
        ioctls::statistics_file(&self.lock())
            .and_then(Statistics::new)
            .ok()
    }

    /// Its TSC now, where it can be read.
    pub(super) fn tsc(&self) -> Option<u64> {
        read_msr(&self.lock(), MSR_TSC).map(|entry| entry.data)
    }

    /// Back to the state it was made in.
    pub fn reset(&self) -> Result<(), Error> {
        self.initial.write(&self.lock())
    }

    /// Makes `enter` change the system registers and name the general ones.
    pub fn start<E: From<Error>>(
        &self,
        enter: impl FnOnce(&mut kvm_sregs) -> Result<kvm_regs, E>,
    ) -> Result<(), E> {
        let fd = self.lock();
        let mut sregs = fd.get_sregs().context("reading system registers")?;
        let regs = enter(&mut sregs)?;
        fd.set_sregs(&sregs).context("setting system registers")?;
        fd.set_regs(&regs).context("setting registers")?;
        Ok(())
    }
}

fn has_xcrs(kvm: &Kvm) -> bool {
    capabilities::has(kvm, kvm_bindings::KVM_CAP_XCRS)
}

/// Every MSR that is part of a processor's state.
fn msr_indices(listed: &[u32]) -> Vec<u32> {
    // KVM lists one MSR for each of these groups.
    let sints = (0..SINT_COUNT as u32).map(|sint| msr::SINT0 + sint);
    let timers = (0..TIMERS * 2).map(|register| msr::STIMER0_CONFIG + register);
    let pages = [msr::SCONTROL, msr::SIEFP, msr::SIMP];
    let mut indices: Vec<u32> = listed
        .iter()
        .copied()
        .filter(|index| *index != MSR_TSC)
        .collect();
    indices.extend(sints.chain(timers).chain(pages));
    indices.extend(MSR_MTRRS);
    indices.extend([MSR_MISC_ENABLE.0, MSR_MTRR_DEF_TYPE.0]);
    indices.sort_unstable();
    indices.dedup();
    indices
}

impl State {
    fn read(fd: &VcpuFd, msrs: &[u32], xcrs: bool) -> Result<Self, Error> {
        let mut state = Self {
            regs: fd.get_regs().context("reading registers")?,
            sregs: fd.get_sregs().context("reading system registers")?,
            xcrs: if xcrs {
                Some(fd.get_xcrs().context("reading XCR0")?)
            } else {
                None
            },
            xsave: fd.get_xsave().context("reading the FPU")?,
            debug: fd.get_debug_regs().context("reading debug registers")?,
            msrs: msr_indices(msrs)
                .into_iter()
                .filter_map(|index| read_msr(fd, index))
                .collect(),
            lapic: fd.get_lapic().context("reading the local APIC")?,
            events: fd.get_vcpu_events().context("reading pending events")?,
            mp: fd.get_mp_state().context("reading the run state")?,
        };
        // SCONTROL: some kernels start with the SynIC disabled although it is active.
        let ours = [MSR_MISC_ENABLE, MSR_MTRR_DEF_TYPE, (msr::SCONTROL, 1)];
        for (index, data) in ours {
            for entry in state.msrs.iter_mut().filter(|entry| entry.index == index) {
                entry.data = data;
            }
        }
        for (offset, value) in APIC_LVT {
            for (place, byte) in state.lapic.regs[offset..]
                .iter_mut()
                .zip(value.to_le_bytes())
            {
                *place = byte as i8;
            }
        }
        Ok(state)
    }

    fn write(&self, fd: &VcpuFd) -> Result<(), Error> {
        fd.set_sregs(&self.sregs)
            .context("setting system registers")?;
        fd.set_regs(&self.regs).context("setting registers")?;
        if let Some(xcrs) = &self.xcrs {
            fd.set_xcrs(xcrs).context("setting XCR0")?;
        }
        ioctls::set_xsave(fd, &self.xsave).context("setting the FPU")?;
        fd.set_debug_regs(&self.debug)
            .context("setting debug registers")?;
        write_msrs(fd, &self.msrs)?;
        write_msr(fd, MSR_TSC, TSC_SHARED)?;
        fd.set_lapic(&self.lapic)
            .context("setting the local APIC")?;
        fd.set_vcpu_events(&self.events)
            .context("setting pending events")?;
        fd.set_mp_state(self.mp).context("setting the run state")
    }
}

/// An MSR's value, `None` where it cannot be read.
fn read_msr(fd: &VcpuFd, index: u32) -> Option<kvm_msr_entry> {
    let mut msrs = Msrs::from_entries(&[kvm_msr_entry {
        index,
        ..Default::default()
    }])
    .ok()?;
    let count = fd.get_msrs(&mut msrs).ok()?;
    if count == 1 {
        msrs.as_slice().first().copied()
    } else {
        None
    }
}

/// Writes all MSRs that can be written: some are read-only and refuse their own value.
fn write_msrs(fd: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), Error> {
    let mut rest = entries;
    while !rest.is_empty() {
        let msrs = Msrs::from_entries(rest).map_err(|_| Error::Call {
            what: "setting MSRs",
            error: std::io::ErrorKind::InvalidInput.into(),
        })?;
        let written = fd.set_msrs(&msrs).context("setting MSRs")?;
        if let Some(refused) = rest.get(written) {
            tracing::trace!(index = refused.index, "MSR keeps its value over a reset");
        }
        rest = rest.get(written + 1..).unwrap_or_default();
    }
    Ok(())
}

/// Writes one MSR on the host's behalf.
pub(super) fn write_msr(fd: &VcpuFd, index: u32, data: u64) -> Result<(), Error> {
    write_msrs(
        fd,
        &[kvm_msr_entry {
            index,
            data,
            ..Default::default()
        }],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_synic_s_registers_are_state_and_the_tsc_is_not() {
        let indices = msr_indices(&[MSR_TSC, 0x4000_0080, 0x1A0]);
        assert!(!indices.contains(&MSR_TSC));
        for wanted in [
            msr::SINT0,
            msr::SINT0 + 15,
            msr::SIMP,
            msr::STIMER0_CONFIG + 7,
            0x1A0,
        ] {
            assert_eq!(indices.iter().filter(|index| **index == wanted).count(), 1);
        }
    }
}
