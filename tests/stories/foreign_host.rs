//! The guest drivers on a host that others wrote: QEMU, with its `vmbus-bridge` on L1's KVM.

use anyhow::{Context, ensure};
use bed::wire::Stream;
use e2e::{Entry, Story};
use rand::RngExt as _;

use crate::guest::NEXT;

pub(crate) const STORIES: &[Entry] = &[Entry::new(
    "vmbus_bridge_and_balloon",
    vmbus_bridge_and_balloon,
)];

/// QEMU's exit status when the kernel says PASS to its `isa-debug-exit`.
const PASS: i32 = 33;

/// Bytes of a page.
const PAGE: u64 = 4096;

/// Hyper-V as QEMU plays it; KVM's own signature would come first without `kvm=off`.
const PROCESSOR: &str = "host,kvm=off,hv-relaxed,hv-vapic,hv-time,hv-vpindex,hv-synic,hv-stimer,\
                         hv-runtime,hv-reset";

/// The guest finds the bus at QEMU's version, leaves it and comes back, and its report to the
/// balloon arrives: QEMU tells of it, in bytes.
fn vmbus_bridge_and_balloon(story: &mut Story) -> anyhow::Result<()> {
    let mut random = rand::rng();
    let [available, committed] = [0; 2].map(|_| random.random_range(1..1_000_000_u64));
    let firmware = story.provide_qemu()?;
    let scenarios = "boot,contact,refusal,reconnect,balloon";
    let command_line = format!(
        "scenario={scenarios} vmbus.expect=4.0 vmbus.unknown=4.9 balloon.available={available} \
         balloon.committed={committed}"
    );
    let mut qemu = story
        .l1()
        .shell("exec \"$@\"")
        .args(["qemu", "qemu-system-x86_64", "-L", firmware])
        .args(["-accel", "kvm", "-cpu", PROCESSOR, "-m", "128M"])
        .args(["-nodefaults", "-display", "none", "-no-reboot", "-S"])
        .args(["-device", "vmbus-bridge,irq=15"])
        .args(["-device", "hv-balloon,status-report=on"])
        .args(["-device", "isa-debug-exit,iobase=0xf4"])
        .args(["-qmp", "stdio", "-serial", "file:/proc/self/fd/2"])
        .args(["-kernel", &story.guest_kernel()?])
        .args(["-append", &command_line])
        .dir(story.dir())
        .spawn()?;
    // Before it starts, so that no event is missed.
    qemu.expect("QMP", NEXT)?;
    for command in ["qmp_capabilities", "cont"] {
        qemu.write(format!("{{\"execute\": \"{command}\"}}\n").as_bytes())?;
        qemu.expect("\"return\"", NEXT)?;
    }

    let contact = qemu.expect_line_on(Stream::Stderr, "VMBus ", NEXT)?;
    ensure!(
        contact.contains("VMBus 4.0, 1 channels offered"),
        "{contact}"
    );
    let agreed = qemu.expect_line_on(Stream::Stderr, "dynamic memory", NEXT)?;
    ensure!(
        agreed.contains("dynamic memory 2.0") && agreed.contains("reports are wanted"),
        "{agreed}"
    );
    let event = qemu.expect_line_on(Stream::Stdout, "HV_BALLOON_STATUS_REPORT", NEXT)?;
    let event: serde_json::Value = serde_json::from_str(&event)?;
    let told = |name: &str| event["data"][name].as_u64();
    ensure!(
        told("available") == Some(available * PAGE) && told("committed") == Some(committed * PAGE),
        "the guest said {available} and {committed} pages, the host heard {event}"
    );
    let output = qemu.finish(NEXT)?;
    let log = output.stderr_text();
    for scenario in scenarios.split(',') {
        let passed = format!("SCENARIO {scenario}: PASS");
        ensure!(log.contains(&passed), "{scenario} did not pass: {output}");
    }
    let status = output.status.code().context("QEMU was killed")?;
    ensure!(status == PASS, "QEMU ended with {status}: {output}");
    Ok(())
}
