//! Where a machine runs: on this machine's KVM, or in the bed.

use std::time::Duration;

use bed::l1::{L1, Setup};
use clap::ValueEnum;

/// Where to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Where {
    /// Here if a trial machine runs here, else in the bed
    Auto,
    /// On this machine's KVM
    Host,
    /// In QEMU's software emulation
    Bed,
}

/// `KVM_CAP_HYPERV_SYNIC2`, `…_EVENTFD` and `…_CPUID`: without them KVM is no Hyper-V.
const CAPABILITIES: [(u64, &str); 3] = [
    (148, "HYPERV_SYNIC2"),
    (154, "HYPERV_EVENTFD"),
    (167, "HYPERV_CPUID"),
];

/// For the trial; a machine with a KVM of its own takes a second.
const TRIAL: Duration = Duration::from_secs(20);

/// A place that was chosen.
#[derive(Debug)]
pub(crate) struct Place {
    /// Runs commands there.
    pub(crate) l1: L1,
    /// It is this machine: its files are there, too.
    pub(crate) here: bool,
    /// Why this one.
    pub(crate) reason: String,
}

/// Opens the place; `bed` says what the bed is like where it is that.
pub(crate) fn open(choice: Where, bed: Setup) -> anyhow::Result<Place> {
    let reason = if choice == Where::Bed {
        "the bed, as asked".into()
    } else {
        let l1 = L1::on_this_machine()?;
        match (trial(&l1), choice) {
            (Ok(()), _) => {
                return Ok(Place {
                    l1,
                    here: true,
                    reason: "this machine's KVM".into(),
                });
            }
            (Err(reason), Where::Host) => {
                anyhow::bail!("this machine can't host: {reason:#}; use `--where bed`")
            }
            (Err(reason), _) => format!("the bed, because here {reason:#}"),
        }
    };
    Ok(Place {
        l1: bed.boot()?,
        here: false,
        reason,
    })
}

/// Whether a machine runs here: first what KVM says of itself, then a guest that must pass.
fn trial(here: &L1) -> anyhow::Result<()> {
    for (number, name) in CAPABILITIES {
        match here.kvm_extension(number) {
            Ok(0) => anyhow::bail!("KVM lacks {name} ({number})"),
            Ok(_) => {}
            Err(bed::Error::InL1(reason)) => anyhow::bail!(reason),
            Err(error) => return Err(error.into()),
        }
    }
    let [host_vsp, guest_kernel] =
        [bed::cargo::host_vsp()?, bed::cargo::guest_kernel()?].map(|it| it.display().to_string());
    let run = here
        .command(&host_vsp)
        .args([
            "run",
            "--kernel",
            &guest_kernel,
            "--cmdline",
            "scenario=boot",
        ])
        .args(["--memory", "128M", "--cpus", "1"])
        .run(TRIAL)?;
    anyhow::ensure!(
        run.status.success(),
        "a trial machine failed: {}",
        run.status
    );
    Ok(())
}
