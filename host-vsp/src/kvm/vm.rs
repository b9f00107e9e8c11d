//! The VM: memory, interrupt controllers, processors, and the routes between them.

use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;

use kvm_bindings::{
    KVM_IRQ_ROUTING_HV_SINT, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY, KvmIrqRouting, kvm_enable_cap,
    kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_hv_sint,
    kvm_irq_routing_irqchip, kvm_irqchip, kvm_pit_config, kvm_pit_state2,
};
use kvm_ioctls::{Kvm, MsrExitReason, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags};
use vm_memory::GuestMemoryMmap;
use vmbus_proto::hv::msr;
use vmbus_proto::hv::synic::VMBUS_SINT;
use vmm_sys_util::eventfd::EventFd;

use super::ioctls::{Kicker, VmMemory};
use super::synic::{Kick, Synic};
use super::vcpu::Vcpu;
use super::{Context as _, Error, capabilities};
use crate::counters::Counters;
use crate::hv::Doorbells;
use crate::{identity, layout};

/// The VMBus SINT's register: writes to it are served here, to see when it is unmasked.
pub const MSR_VMBUS_SINT: u32 = msr::SINT0 + VMBUS_SINT as u32;

/// A VM, ready to be reset and started.
pub struct Vm {
    memory: VmMemory,
    vcpus: Vec<Vcpu>,
    kickers: Arc<Vec<Kicker>>,
    synic: Arc<Synic>,
    chips: Vec<kvm_irqchip>,
    pit: kvm_pit_state2,
}

impl Vm {
    /// Makes a VM of `cpus` processors that runs in `memory`.
    pub fn new(
        kvm: &Kvm,
        memory: Arc<GuestMemoryMmap<()>>,
        cpus: u32,
        counters: &Counters,
    ) -> Result<Self, Error> {
        let fd = kvm.create_vm().context("making the VM")?;
        fd.set_tss_address(layout::KVM_TSS as usize)
            .context("placing KVM's own pages")?;
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .context("placing KVM's own page")?;
        fd.create_irq_chip()
            .context("making the interrupt controllers")?;
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        fd.create_pit2(pit).context("making the timer")?;
        take_msrs(&fd).context("taking the crash MSRs")?;
        let memory = VmMemory::new(fd, memory).context("giving memory to the VM")?;
        let fd = &memory.fd;

        let tsc_deadline = capabilities::has(kvm, kvm_bindings::KVM_CAP_TSC_DEADLINE_TIMER);
        let vcpus = (0..cpus)
            .map(|index| {
                Vcpu::new(
                    kvm,
                    fd,
                    identity::Processor {
                        index,
                        count: cpus,
                        tsc_deadline,
                    },
                )
            })
            .collect::<Result<Vec<_>, _>>()?;
        let kickers = vcpus
            .iter()
            .map(|vcpu| Kicker::new(&vcpu.lock()))
            .collect::<io::Result<Vec<_>>>()
            .context("mapping a processor's page")?;
        let kickers = Arc::new(kickers);
        counters.attach(vcpus.iter().filter_map(Vcpu::statistics).collect());

        let of_synic = Arc::clone(&kickers);
        let kick: Kick = Arc::new(move |vp| {
            if let Some(kicker) = of_synic.get(vp as usize) {
                kicker.kick();
            }
        });
        let synic =
            Synic::new(memory.memory().clone(), cpus, kick).context("making the SynIC's events")?;

        // After every processor's SynIC is active, or its acknowledges would go nowhere.
        let routes = KvmIrqRouting::from_entries(&routes(cpus)).map_err(|_| {
            Error::Unusable(format!(
                "{cpus} processors need more interrupt routes than KVM has"
            ))
        })?;
        fd.set_gsi_routing(&routes).context("routing interrupts")?;
        for vp in 0..cpus {
            if let Some((line, acknowledge)) = synic.lines(vp) {
                fd.register_irqfd_with_resample(line, acknowledge, sint_gsi(vp))
                    .context("connecting the SynIC's interrupt")?;
            }
        }

        let chips = [
            KVM_IRQCHIP_PIC_MASTER,
            KVM_IRQCHIP_PIC_SLAVE,
            KVM_IRQCHIP_IOAPIC,
        ]
        .into_iter()
        .map(|chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            fd.get_irqchip(&mut chip)
                .context("reading an interrupt controller")?;
            Ok(chip)
        })
        .collect::<Result<Vec<_>, Error>>()?;
        let pit = fd.get_pit2().context("reading the timer")?;
        Ok(Self {
            vcpus,
            kickers,
            synic,
            chips,
            pit,
            memory,
        })
    }

    /// Raises interrupt `gsi` whenever `event` is rung.
    pub fn connect(&self, event: &EventFd, gsi: u32) -> Result<(), Error> {
        self.memory
            .fd
            .register_irqfd(event, gsi)
            .context("connecting an interrupt")
    }

    /// Its memory.
    pub fn memory(&self) -> &VmMemory {
        &self.memory
    }

    /// Its processors; the first one boots.
    pub fn vcpus(&self) -> &[Vcpu] {
        &self.vcpus
    }

    /// What brings its processors' threads out of the guest.
    pub fn kickers(&self) -> &[Kicker] {
        &self.kickers
    }

    /// Its SynICs.
    pub fn synic(&self) -> &Arc<Synic> {
        &self.synic
    }

    /// Everything but memory as when it was made. No processor may be running.
    pub fn reset(&self) -> Result<(), Error> {
        self.synic.reset();
        for chip in &self.chips {
            self.memory
                .fd
                .set_irqchip(chip)
                .context("resetting an interrupt controller")?;
        }
        self.memory
            .fd
            .set_pit2(&self.pit)
            .context("resetting the timer")?;
        self.vcpus.iter().try_for_each(Vcpu::reset)
    }
}

impl Doorbells for Vm {
    fn register(&self, connection_id: u32, event: &EventFd) -> io::Result<()> {
        self.memory
            .hyperv_eventfd(connection_id, Some(event.as_raw_fd()))
    }

    fn unregister(&self, connection_id: u32) -> io::Result<()> {
        self.memory.hyperv_eventfd(connection_id, None)
    }
}

/// The interrupt number whose route is the VMBus SINT of `vp`.
fn sint_gsi(vp: u32) -> u32 {
    layout::IOAPIC_PINS + vp
}

/// A PC's routes, pin for pin, and one to each processor's VMBus SINT.
fn routes(cpus: u32) -> Vec<kvm_irq_routing_entry> {
    let chip = |gsi: u32, irqchip, pin| kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            irqchip: kvm_irq_routing_irqchip { irqchip, pin },
        },
        ..Default::default()
    };
    /// The pin of the first PIC that the second one is wired to.
    const CASCADE: u32 = 2;
    let first = (0..8)
        .filter(|gsi| *gsi != CASCADE)
        .map(|gsi| chip(gsi, KVM_IRQCHIP_PIC_MASTER, gsi));
    let second = (8..16).map(|gsi| chip(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - 8));
    let ioapic = (0..layout::IOAPIC_PINS).map(|gsi| chip(gsi, KVM_IRQCHIP_IOAPIC, gsi));
    let sints = (0..cpus).map(|vcpu| kvm_irq_routing_entry {
        gsi: sint_gsi(vcpu),
        type_: KVM_IRQ_ROUTING_HV_SINT,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            hv_sint: kvm_irq_routing_hv_sint {
                vcpu,
                sint: VMBUS_SINT.into(),
            },
        },
        ..Default::default()
    });
    first.chain(second).chain(ioapic).chain(sints).collect()
}

/// Takes the crash MSRs, and writes to the VMBus SINT, to this process.
///
/// KVM's own crash MSRs forget that a crash can carry a message. A SINT that was masked may have
/// lost an interrupt, and KVM reports no write to it.
fn take_msrs(fd: &kvm_ioctls::VmFd) -> Result<(), kvm_ioctls::Error> {
    let mut exits = kvm_enable_cap {
        cap: kvm_bindings::KVM_CAP_X86_USER_SPACE_MSR,
        ..Default::default()
    };
    exits.args[0] = MsrExitReason::Filter.bits().into();
    fd.enable_cap(&exits)?;
    // A clear bit takes the MSR.
    let none = [0];
    let crash = MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base: msr::CRASH_P0,
        msr_count: msr::CRASH_CTL - msr::CRASH_P0 + 1,
        bitmap: &none,
    };
    let sint = MsrFilterRange {
        flags: MsrFilterRangeFlags::WRITE,
        base: MSR_VMBUS_SINT,
        msr_count: 1,
        bitmap: &none,
    };
    fd.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[crash, sint])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_processor_has_its_own_route_and_none_is_a_pin_s() {
        let routes = routes(255);
        let mut sints: Vec<_> = routes
            .iter()
            .filter(|route| route.type_ == KVM_IRQ_ROUTING_HV_SINT)
            .collect();
        assert!(sints.iter().all(|route| route.gsi >= layout::IOAPIC_PINS));
        sints.dedup_by_key(|route| route.gsi);
        assert_eq!(sints.len(), 255);
        assert!(KvmIrqRouting::from_entries(&routes).is_ok());
    }
}
