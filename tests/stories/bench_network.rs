//! Our network adapter against QEMU's virtio-net: the same stock Linux in the same L1, one after
//! the other at the same tap.
//!
//! Not a story: nothing here passes or fails by a number. Both machines are looked at from L1, whose
//! clock, tap and KVM are the same for both; only what a guest has received is the guest's own count.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, ensure};
use bed::guest_initramfs;
use bed::l1::Process;
use bed::provision::kernel::{Kernel, Series};
use e2e::{Entry, Story};

use crate::net::{DHCP_SCRIPT, HOST, TAP, Tap, listening, on_host, tools};
use crate::stock::{Linux, Stock};

pub(crate) const STORIES: &[Entry] = &[Entry::new("network", network)];

const SERIES: Series = Series::Linux6_12;

/// How often each machine is measured, in turns.
const ROUNDS: usize = 2;

/// Seconds of a measurement.
const SECONDS: u32 = 5;

/// For a measurement, with all there is to it.
const MEASUREMENT: Duration = Duration::from_secs(90);

const MAC: &str = "02:15:5d:00:00:09";

/// What is measured: its name, options of `iperf3`, whether the guest receives, and whether frames
/// count or bytes.
const MEASUREMENTS: [(&str, &str, bool, bool); 4] = [
    ("TCP to the host", "", false, false),
    ("TCP to the guest", "-R", true, false),
    ("UDP of 64 bytes to the host", "-u -b 0 -l 64", false, true),
    (
        "UDP of 64 bytes to the guest",
        "-u -b 0 -l 64 -R",
        true,
        true,
    ),
];

/// Which machine.
#[derive(Clone, Copy)]
enum Machine {
    Ours,
    Qemu,
}

/// What L1 and the guest have counted.
#[derive(Clone, Copy, Default)]
struct Counts {
    /// Seconds.
    time: f64,
    frames: f64,
    bytes: f64,
    /// Exits of the machine's processors.
    exits: f64,
    /// Frames that both directions had.
    both: f64,
}

/// What was measured: units of what counts per second, and exits per unit.
#[derive(Clone, Copy, Default)]
struct Figures {
    rate: f64,
    exits: f64,
}

fn network(story: &mut Story) -> anyhow::Result<()> {
    let story = &*story;
    let _tap = Tap::new(story)?;
    story.provide_net_tools()?;
    let _server = story.l1().command("iperf3").arg("-s").spawn()?;
    listening(story, 5201)?;
    let mut figures = [[Figures::default(); 2]; MEASUREMENTS.len()];
    for round in 0..ROUNDS {
        for (at, machine) in [Machine::Ours, Machine::Qemu].into_iter().enumerate() {
            eprintln!("round {} of {ROUNDS}, machine {} of 2", round + 1, at + 1);
            let mut linux = boot(story, machine)?;
            for (measurement, figures) in MEASUREMENTS.iter().zip(&mut figures) {
                let found = measure(story, &mut linux, measurement)?;
                figures[at].rate += found.rate / ROUNDS as f64;
                figures[at].exits += found.exits / ROUNDS as f64;
            }
            linux.power_off()?;
        }
    }
    println!("{}", table(&figures)?);
    Ok(())
}

/// Boots the guest, and brings its net up.
fn boot(story: &Story, machine: Machine) -> anyhow::Result<Linux> {
    let tools = tools()?;
    let mut linux = match machine {
        Machine::Ours => {
            let mut stock = Stock::new(story, SERIES)
                .program("bin/bound", DHCP_SCRIPT)
                .module("hv_netvsc")
                .args(["--net", &format!("tap={TAP},mac={MAC}")]);
            for (path, bytes) in &tools {
                stock = stock.file(path, bytes);
            }
            stock.boot()?
        }
        Machine::Qemu => {
            let mut files: Vec<(&str, &[u8])> = vec![("bin/bound", DHCP_SCRIPT.as_bytes())];
            files.extend(
                tools
                    .iter()
                    .map(|(path, bytes)| (path.as_str(), &bytes[..])),
            );
            let kernel = Kernel::get(SERIES)?;
            let modules = ["virtio_pci", "virtio_net"];
            let initramfs = guest_initramfs::build(&kernel, &modules, &files)?;
            let path = story.file("initramfs");
            story.l1().put_bytes(&initramfs, &path)?;
            Linux::of(qemu(story, &path)?)?
        }
    };
    linux.sh("ifconfig lo 127.0.0.1 up; ifconfig eth0 up")?;
    linux.sh("udhcpc -i eth0 -n -q -s /bin/bound")?;
    Ok(linux)
}

/// Starts QEMU: the same processors and memory, a console, and the adapter.
fn qemu(story: &Story, initramfs: &str) -> anyhow::Result<Process> {
    let firmware = story.provide_qemu()?;
    let command = story.l1().command("/bin/qemu-system-x86_64");
    let command = command
        .args([
            "-L", firmware, "-machine", "q35", "-accel", "kvm", "-cpu", "host",
        ])
        .args(["-smp", "2", "-m", "512M", "-nodefaults", "-display", "none"])
        .args(["-audio", "none", "-no-reboot", "-serial", "stdio"])
        .args(["-kernel", &story.kernel_of(SERIES)?, "-initrd", initramfs])
        .args(["-append", "console=ttyS0 quiet"])
        .arg("-netdev")
        .arg(format!(
            "tap,id=net,ifname={TAP},script=no,downscript=no,vhost=off"
        ))
        .arg("-device")
        .arg(format!("virtio-net-pci,netdev=net,mac={MAC},romfile="));
    Ok(command.spawn()?)
}

/// Runs `iperf3`, and counts.
fn measure(
    story: &Story,
    linux: &mut Linux,
    &(name, options, to_guest, in_frames): &(&'static str, &str, bool, bool),
) -> anyhow::Result<Figures> {
    let before = counts(story, linux, to_guest)?;
    let line = format!("iperf3 -c {HOST} -t {SECONDS} {options} >/tmp/iperf 2>&1");
    linux.sh_within(&line, MEASUREMENT).context(name)?;
    let after = counts(story, linux, to_guest)?;
    let time = after.time - before.time;
    let bytes = after.bytes - before.bytes;
    let frames = after.frames - before.frames;
    let exits = after.exits - before.exits;
    ensure!(frames > 0.0 && time > 0.0, "{name}: nothing has come");
    Ok(if in_frames {
        Figures {
            rate: frames / time,
            exits: exits / (after.both - before.both),
        }
    } else {
        let mebibytes = bytes / f64::from(1 << 20);
        Figures {
            rate: mebibytes / time,
            exits: exits / mebibytes,
        }
    })
}

/// Counts what has come to the host, or to the guest.
fn counts(story: &Story, linux: &mut Linux, to_guest: bool) -> anyhow::Result<Counts> {
    // There is one machine at a time.
    let line = format!(
        "cd /sys/class/net/{TAP}/statistics; set -- /sys/kernel/debug/kvm/*-*; \
         [ $# = 1 ] || {{ echo \"several machines: $*\" >&2; exit 1; }}; \
         echo $(cut -d' ' -f1 /proc/uptime) $(cat rx_packets rx_bytes tx_packets $1/exits)"
    );
    let guest = linux.sh("cd /sys/class/net/eth0/statistics; echo $(cat rx_packets rx_bytes)")?;
    let host = on_host(story, &line)?;
    let numbers = |text: &str| -> anyhow::Result<Vec<f64>> {
        let numbers = text.split_whitespace().map(str::parse);
        numbers
            .collect::<Result<_, _>>()
            .with_context(|| text.to_owned())
    };
    let ([time, to_host, to_host_bytes, _, exits], [received, received_bytes]) =
        (&numbers(&host)?[..], &numbers(&guest)?[..])
    else {
        anyhow::bail!("not the numbers: {host:?}, {guest:?}");
    };
    let (frames, bytes) = if to_guest {
        (*received, *received_bytes)
    } else {
        (*to_host, *to_host_bytes)
    };
    Ok(Counts {
        time: *time,
        frames,
        bytes,
        exits: *exits,
        both: to_host + received,
    })
}

/// The figures for people.
fn table(figures: &[[Figures; 2]]) -> anyhow::Result<String> {
    let mut text = String::new();
    writeln!(text, "| what | unit | netvsp | virtio-net | ratio |")?;
    writeln!(text, "|---|---|---|---|---|")?;
    for ((name, _, _, in_frames), [ours, theirs]) in MEASUREMENTS.iter().zip(figures) {
        let (rate, exits) = if *in_frames {
            ("frames/s", "exits/frame")
        } else {
            ("MiB/s", "exits/MiB")
        };
        for (unit, ours, theirs) in [
            (rate, ours.rate, theirs.rate),
            (exits, ours.exits, theirs.exits),
        ] {
            let ratio = ours / theirs;
            writeln!(
                text,
                "| {name} | {unit} | {ours:.2} | {theirs:.2} | {ratio:.2} |"
            )?;
        }
    }
    Ok(text)
}
