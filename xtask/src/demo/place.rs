//! Where the demo's machine runs: on this machine's KVM, or in the bed.

use std::time::Duration;

use bed::l1::L1;
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

/// The programs that the demo brings.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) host_vsp: String,
    pub(crate) guest_kernel: String,
}

/// Opens the place, with the programs put there, and says why this one.
pub(crate) fn open(choice: Where, dir: &str) -> anyhow::Result<(L1, Programs)> {
    if choice != Where::Bed {
        let here = L1::on_this_machine()?;
        let programs = bring(&here, dir)?;
        match (trial(&here, &programs), choice) {
            (Ok(()), _) => {
                println!("place:     this machine's KVM");
                return Ok((here, programs));
            }
            (Err(reason), Where::Host) => {
                anyhow::bail!("this machine can't host: {reason:#}; use `--where bed`")
            }
            (Err(reason), _) => println!("place:     the bed, because here {reason:#}"),
        }
    } else {
        println!("place:     the bed, as asked");
    }
    let bed = L1::boot()?;
    let programs = bring(&bed, dir)?;
    Ok((bed, programs))
}

fn bring(place: &L1, dir: &str) -> anyhow::Result<Programs> {
    let programs = Programs {
        host_vsp: format!("{dir}/host-vsp"),
        guest_kernel: format!("{dir}/guest-kernel"),
    };
    place.put(bed::cargo::host_vsp()?, &programs.host_vsp)?;
    place.put(bed::cargo::guest_kernel()?, &programs.guest_kernel)?;
    Ok(programs)
}

/// Whether a machine runs there: first what KVM says of itself, then a guest that must pass.
fn trial(place: &L1, programs: &Programs) -> anyhow::Result<()> {
    for (number, name) in CAPABILITIES {
        match place.kvm_extension(number) {
            Ok(0) => anyhow::bail!("KVM lacks {name} ({number})"),
            Ok(_) => {}
            Err(bed::Error::InL1(reason)) => anyhow::bail!(reason),
            Err(error) => return Err(error.into()),
        }
    }
    let run = place
        .command(&programs.host_vsp)
        .args([
            "run",
            "--kernel",
            &programs.guest_kernel,
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
