//! Can this machine host? One screen that says so, and what to do where it cannot.
//!
//! Every line is a [`Finding`]. The last one is a trial: a VM with an active SynIC that runs a few
//! instructions, because capabilities alone do not prove that anything runs.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use crate::identity::Processor;
use crate::kvm::capabilities::{self, DEVICE};
use crate::kvm::ioctls::{HypervExit, Kicker, VmMemory, hyperv_exit};
use crate::kvm::vcpu::Vcpu;
use crate::layout;

/// How long the trial may take.
const TRIAL_LIMIT: Duration = Duration::from_secs(10);

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub what: String,
    /// Whether it is there.
    pub present: bool,
    /// Whether no machine runs without it.
    pub required: bool,
    /// What it is for, or what to do.
    pub note: String,
}

impl Finding {
    fn required(what: &str, present: bool, note: &str, remedy: &str) -> Self {
        let note = if present { note } else { remedy };
        Self {
            what: what.into(),
            present,
            required: true,
            note: note.into(),
        }
    }
}

/// All findings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// In the order in which they matter.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether a machine can run here.
    pub fn can_host(&self) -> bool {
        self.findings
            .iter()
            .all(|finding| finding.present || !finding.required)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            let mark = match (finding.present, finding.required) {
                (true, _) => "yes",
                (false, true) => "NO",
                (false, false) => "no",
            };
            writeln!(f, "{mark:>4}  {:28} {}", finding.what, finding.note)?;
        }
        f.write_str(if self.can_host() {
            "This machine can host."
        } else {
            "This machine cannot host: see the lines marked NO."
        })
    }
}

/// Looks at this machine.
pub fn check() -> Report {
    let mut findings = processor(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default());
    let kvm = match capabilities::open() {
        Ok(kvm) => {
            findings.push(Finding::required(DEVICE, true, "may be used", ""));
            kvm
        }
        Err(error) => {
            findings.push(Finding::required(DEVICE, false, "", &error.to_string()));
            return Report { findings };
        }
    };
    for capability in capabilities::ALL {
        let present = capabilities::has(&kvm, capability.number);
        let note = if present || !capability.required {
            capability.purpose.to_owned()
        } else {
            format!(
                "{}: needs Linux 5.10 or later with CONFIG_KVM_HYPERV",
                capability.purpose
            )
        };
        findings.push(Finding {
            what: format!("KVM_CAP_{}", capability.name),
            present,
            required: capability.required,
            note,
        });
    }
    // Where something is missing, the trial can tell nothing new.
    if findings
        .iter()
        .all(|finding| finding.present || !finding.required)
    {
        let outcome = trial(kvm);
        let remedy = outcome
            .as_ref()
            .err()
            .map(String::as_str)
            .unwrap_or_default();
        findings.push(Finding::required(
            "trial VM",
            outcome.is_ok(),
            "a guest enabled its SynIC and reached a port",
            remedy,
        ));
    }
    Report { findings }
}

/// What the processor says of itself, in the words of `/proc/cpuinfo`.
fn processor(cpuinfo: &str) -> Vec<Finding> {
    let flags: Vec<&str> = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("flags"))
        .and_then(|line| line.split_once(':'))
        .map(|(_, flags)| flags.split_whitespace().collect())
        .unwrap_or_default();
    let has = |flag: &str| flags.contains(&flag);
    let virtualization = has("vmx") || has("svm");
    vec![
        Finding::required(
            "64-bit processor",
            has("lm"),
            "",
            "a 64-bit x86 processor is needed",
        ),
        Finding::required(
            "hardware virtualization",
            virtualization,
            if has("svm") { "AMD-V" } else { "Intel VT-x" },
            "enable Intel VT-x or AMD-V in the firmware, or nested virtualization in the \
             hypervisor around this machine",
        ),
        Finding::required(
            "NX (DEP)",
            has("nx"),
            "",
            "enable the execute-disable bit in the firmware",
        ),
    ]
}

/// Real-mode code for the trial.
#[rustfmt::skip]
const TRIAL_CODE: [u8; 22] = [
    0x66, 0xB9, 0x80, 0x00, 0x00, 0x40, // mov ecx, 0x40000080 (SCONTROL)
    0x66, 0xB8, 0x01, 0x00, 0x00, 0x00, // mov eax, 1
    0x66, 0x31, 0xD2,                   // xor edx, edx
    0x0F, 0x30,                         // wrmsr
    0xB0, TRIAL_BYTE,                   // mov al, TRIAL_BYTE
    0xE6, TRIAL_PORT,                   // out TRIAL_PORT, al
    0xF4,                               // hlt
];
const TRIAL_ADDRESS: u64 = 0x1000;
const TRIAL_PORT: u8 = 0x10;
const TRIAL_BYTE: u8 = 0x42;

/// Runs the trial VM; the error says what went wrong.
fn trial(kvm: Kvm) -> Result<(), String> {
    let (done, outcome) = channel();
    let (started, kicker) = channel();
    std::thread::Builder::new()
        .name("trial".into())
        .spawn(move || {
            // Nobody may wait any more.
            let _ = done.send(run_trial(&kvm, |kicker| {
                let _ = started.send(kicker);
            }));
        })
        .map_err(|error| format!("no thread for it: {error}"))?;
    match outcome.recv_timeout(TRIAL_LIMIT) {
        Ok(outcome) => outcome,
        Err(RecvTimeoutError::Timeout) => {
            if let Ok(kicker) = kicker.try_recv() {
                let kicker: Arc<Kicker> = kicker;
                kicker.kick();
            }
            Err("its guest runs, but gets nowhere: this KVM cannot run ordinary guests".into())
        }
        Err(RecvTimeoutError::Disconnected) => Err("its thread failed".into()),
    }
}

fn run_trial(kvm: &Kvm, started: impl FnOnce(Arc<Kicker>)) -> Result<(), String> {
    let failed = |what: &'static str| move |error| format!("{what}: {error}");
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), layout::MIB as usize)])
        .map_err(|error| format!("no memory for it: {error}"))?;
    memory
        .write_slice(&TRIAL_CODE, GuestAddress(TRIAL_ADDRESS))
        .map_err(|error| error.to_string())?;
    let vm = kvm.create_vm().map_err(failed("KVM makes no VM"))?;
    vm.set_tss_address(layout::KVM_TSS as usize)
        .map_err(failed("KVM takes no TSS"))?;
    vm.create_irq_chip()
        .map_err(failed("KVM makes no interrupt controller"))?;
    let vm = VmMemory::new(vm, Arc::new(memory)).map_err(failed("KVM takes no memory"))?;
    let alone = Processor {
        index: 0,
        count: 1,
        tsc_deadline: false,
    };
    let vcpu = Vcpu::new(kvm, &vm.fd, alone).map_err(|error| error.to_string())?;
    let mut vcpu = vcpu.lock();

    let mut sregs = vcpu.get_sregs().map_err(failed("KVM tells no registers"))?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs)
        .map_err(failed("KVM takes no registers"))?;
    let mut regs = vcpu.get_regs().map_err(failed("KVM tells no registers"))?;
    regs.rip = TRIAL_ADDRESS;
    regs.rflags = 2;
    vcpu.set_regs(&regs)
        .map_err(failed("KVM takes no registers"))?;

    let kicker =
        Arc::new(Kicker::new(&vcpu).map_err(|error| format!("no signal for it: {error}"))?);
    kicker.attach();
    started(Arc::clone(&kicker));
    let mut enabled = false;
    loop {
        kicker.enter();
        let exit = vcpu.run();
        kicker.leave();
        match exit {
            Ok(VcpuExit::Hyperv) => {
                let exit = hyperv_exit(vcpu.get_kvm_run());
                enabled |= matches!(exit, HypervExit::Synic { control: 1, .. });
            }
            Ok(VcpuExit::IoOut(port, [TRIAL_BYTE])) if port == u16::from(TRIAL_PORT) => {
                return if enabled {
                    Ok(())
                } else {
                    Err("its guest ran, but KVM did not report its SynIC".into())
                };
            }
            Ok(other) => return Err(format!("its guest ended in {other:?}")),
            Err(error) => return Err(format!("its guest does not run: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_judged_by_its_flags() {
        let good = processor("processor\t: 0\nflags\t\t: fpu nx lm svm\nbugs\t: none\n");
        assert!(good.iter().all(|finding| finding.present));
        let poor = processor("flags\t\t: fpu lm vmxish\n");
        let missing: Vec<_> = poor
            .iter()
            .filter(|finding| !finding.present)
            .map(|f| f.what.as_str())
            .collect();
        assert_eq!(missing, ["hardware virtualization", "NX (DEP)"]);
    }

    #[test]
    fn only_what_is_required_decides() {
        let mut report = Report::default();
        report.findings.push(Finding {
            what: "a".into(),
            present: false,
            required: false,
            note: String::new(),
        });
        assert!(report.can_host());
        report
            .findings
            .push(Finding::required("b", false, "", "buy one"));
        assert!(!report.can_host());
        let screen = report.to_string();
        assert!(screen.contains("NO  b") && screen.contains("buy one") && screen.ends_with("NO."));
    }
}
