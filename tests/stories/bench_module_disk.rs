//! `vmbus_disk` against the kernel's own `hv_storvsc`: the same disk of the same controller in the same
//! guest, in turns.
//!
//! Not a story: nothing here passes or fails by a number.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Context;
use e2e::{Entry, Story};

use crate::linux_disks::on_host;
use crate::linux_module_disk::{SCSI1, boot};
use crate::stock::Linux;

pub(crate) const STORIES: &[Entry] = &[Entry::new("module_disk", module_disk)];

/// How often each driver is measured, in turns.
const ROUNDS: usize = 3;

/// For a measurement of five seconds, with all there is to it.
const MEASUREMENT: Duration = Duration::from_secs(90);

/// What is measured: its name, and options of `fio`.
const MEASUREMENTS: [(&str, &str); 5] = [
    (
        "4 KiB random reads, one at a time",
        "--rw=randread --bs=4k --iodepth=1",
    ),
    (
        "4 KiB random reads, 32 in flight",
        "--rw=randread --bs=4k --iodepth=32",
    ),
    (
        "4 KiB random writes, 32 in flight",
        "--rw=randwrite --bs=4k --iodepth=32",
    ),
    (
        "512 KiB reads in order, 8 in flight",
        "--rw=read --bs=512k --iodepth=8",
    ),
    (
        "512 KiB writes in order, 8 in flight",
        "--rw=write --bs=512k --iodepth=8",
    ),
];

/// Requests per second, and microseconds of the guest's processors for each.
#[derive(Clone, Copy, Default)]
struct Figures {
    rate: f64,
    cpu: f64,
}

fn module_disk(story: &mut Story) -> anyhow::Result<()> {
    let root = story.debian_root()?;
    on_host(story, "head -c 64m /dev/urandom >measured.img")?;
    let disk = format!("path={}/measured.img,controller=scsi1", story.dir());
    let mut linux = boot(story, &root, &["--disk", &disk])?;
    linux.sh("modprobe vmbus_disk")?;
    let mut figures = [[Figures::default(); 2]; MEASUREMENTS.len()];
    for round in 0..ROUNDS {
        for (at, driver) in ["vmbus_disk", "hv_storvsc"].into_iter().enumerate() {
            eprintln!("round {} of {ROUNDS}, {driver}", round + 1);
            let disk = bind(&mut linux, driver)?;
            for ((_, options), figures) in MEASUREMENTS.iter().zip(&mut figures) {
                let found = measure(&mut linux, &disk, options)?;
                figures[at].rate += found.rate / ROUNDS as f64;
                figures[at].cpu += found.cpu / ROUNDS as f64;
            }
        }
    }
    linux.power_off()?;
    println!("{}", table(&figures)?);
    Ok(())
}

/// Gives the controller to a driver; the disk's name.
fn bind(linux: &mut Linux, driver: &str) -> anyhow::Result<String> {
    linux.sh(&format!(
        "cd /sys/bus/vmbus; echo {SCSI1} >devices/{SCSI1}/driver/unbind; \
         echo {driver} >devices/{SCSI1}/driver_override; \
         [ -e devices/{SCSI1}/driver ] || echo {SCSI1} >drivers/{driver}/bind; cd /; n=0; \
         until ls -d /sys/bus/vmbus/devices/{SCSI1}/block/* \
         /sys/bus/vmbus/devices/{SCSI1}/host*/target*/*/block/* 2>/dev/null | grep -q .; \
         do sleep 0.1; n=$((n+1)); [ $n -lt 300 ] || break; done; udevadm settle"
    ))?;
    linux.sh(&format!(
        "basename $(ls -d /sys/bus/vmbus/devices/{SCSI1}/block/* \
         /sys/bus/vmbus/devices/{SCSI1}/host*/target*/*/block/* 2>/dev/null)"
    ))
}

fn measure(linux: &mut Linux, disk: &str, options: &str) -> anyhow::Result<Figures> {
    // The same for both: neither has a scheduler of its own.
    linux.sh(&format!("echo none >/sys/block/{disk}/queue/scheduler"))?;
    let report = linux.sh_within(
        &format!(
            "fio --name=m --filename=/dev/{disk} --size=64M --direct=1 --ioengine=libaio \
             --time_based --ramp_time=1 --runtime=5 {options} --output-format=json"
        ),
        MEASUREMENT,
    )?;
    let start = report.find('{').context("no report")?;
    let report: serde_json::Value = serde_json::from_str(&report[start..])?;
    let job = &report["jobs"][0];
    let number = |pointer: &str| job.pointer(pointer)?.as_f64();
    let rate = number("/read/iops").zip(number("/write/iops"));
    let cpu = number("/usr_cpu").zip(number("/sys_cpu"));
    let (rate, cpu) = rate.zip(cpu).context("no figures")?;
    let rate = rate.0 + rate.1;
    Ok(Figures {
        rate,
        // Per cent of a second.
        cpu: (cpu.0 + cpu.1) * 1e4 / rate,
    })
}

fn table(figures: &[[Figures; 2]]) -> anyhow::Result<String> {
    let mut table =
        String::from("| what | unit | vmbus_disk | hv_storvsc | ratio |\n|---|---|---|---|---|\n");
    for ((what, _), [ours, theirs]) in MEASUREMENTS.iter().zip(figures) {
        for (unit, ours, theirs) in [
            ("requests/s", ours.rate, theirs.rate),
            ("µs of fio's processor/request", ours.cpu, theirs.cpu),
        ] {
            let ratio = ours / theirs;
            writeln!(
                table,
                "| {what} | {unit} | {ours:.1} | {theirs:.1} | {ratio:.2} |"
            )?;
        }
    }
    Ok(table)
}
