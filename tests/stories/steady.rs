//! Steady I/O makes no exits to userspace: `host-vsp`'s counters say so, and the kernel agrees.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use bed::l1::Signal;
use e2e::{Entry, Story};
use serde::Deserialize;

use crate::disk::{Disk, Task};
use crate::guest::Guest;
use crate::trace::{Event, Trace, threads};

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("no_userspace_exits_1_cpu", |story| steady(story, 1)),
    Entry::new("no_userspace_exits_2_cpus", |story| steady(story, 2)),
];

/// Blocks of the disk.
const BLOCKS: u64 = 8192;

/// The port at which the guest brackets the window, and how the kernel traces that.
const PORT: &str = "0x510";

/// A line of counters as `host-vsp` prints it, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Counters {
    /// Returns from `KVM_RUN`.
    returns_total: u64,
    returns: BTreeMap<String, u64>,
    /// KVM's own counters.
    kvm: BTreeMap<String, u64>,
}

impl Counters {
    fn parse(line: &str) -> anyhow::Result<Self> {
        serde_json::from_str(line).with_context(|| format!("counters: {line}"))
    }
}

/// Whatever `host-vsp` counts is held against the kernel's tracepoint: everything up to a moment
/// when the guest waits (many exits: boot, log, disk), and then the window of the run.
fn steady(story: &mut Story, cpus: u32) -> anyhow::Result<()> {
    const DEPTH: u64 = 32;
    let reads = story.count(10_000, 100_000);
    let trace = Trace::begin(
        story,
        &[
            ("kvm/kvm_userspace_exit", ""),
            ("kvm/kvm_pio", &format!("port == {PORT}")),
        ],
    )?;
    let mut disk = Disk::create(story, "disk", BLOCKS)?;
    let task = Task::random(0, BLOCKS);
    let guest = Guest::new(story, "storage,console,steady")
        .option("steady.reads", reads)
        .option("steady.depth", DEPTH)
        .option("steady.port", PORT)
        .cpus(cpus)
        .disk(&disk.path)
        .args(["--console", "stdio", &format!("--steady-port={PORT}")]);
    let mut vm = task.tell(guest).start()?;
    vm.console_says("hello from the guest")?;
    let threads = threads(story.l1(), &vm)?;
    let is_processor = |event: &&Event| {
        let name = threads.get(&event.thread);
        name.is_some_and(|name| name.starts_with("vcpu"))
    };

    // The guest waits at the console now: nothing happens between the two looks.
    vm.signal(Signal::USR1)?;
    let so_far = Counters::parse(&vm.says("{\"counters\":\"now\"")?)?;
    let events = trace.events()?;
    let seen = exits(events.iter().filter(is_processor));
    ensure!(
        so_far.returns_total == seen && seen > 100,
        "before the run, host-vsp counts {} returns and the kernel {seen}: {:?}",
        so_far.returns_total,
        so_far.returns
    );

    vm.write(b"go on\n")?;
    let window = Counters::parse(&vm.says("{\"counters\":\"window\"")?)?;
    let log = vm.pass()?.stderr_text();
    let told = format!("{reads} reads of 4096 bytes, {DEPTH} in flight");
    ensure!(log.contains(&told), "the guest did not say {told:?}: {log}");

    let events = trace.events()?;
    trace.end()?;
    let events: Vec<&Event> = events.iter().filter(is_processor).collect();
    let borders: Vec<usize> = (0..events.len())
        .filter(|at| events[*at].what.starts_with("kvm_pio: "))
        .collect();
    let [begin, end] = borders[..] else {
        anyhow::bail!("the kernel saw {} accesses to port {PORT}", borders.len());
    };
    // The access that begins the window is inside, by both counts.
    let inside = &events[begin..end];
    let seen = exits(inside.iter().copied());
    ensure!(
        window.returns_total == seen,
        "in the window, host-vsp counts {} returns and the kernel {seen}: {:?}, {inside:?}",
        window.returns_total,
        window.returns
    );
    let per_read = seen as f64 / reads as f64;
    ensure!(
        format!("{per_read:.2}") == "0.00",
        "{per_read:.4} exits to userspace per read: {:?}",
        window.returns
    );
    // The guest did run in there: KVM itself had exits to handle.
    let all = window.kvm.get("exits").copied().unwrap_or_default();
    ensure!(all > reads / DEPTH, "KVM counts only {all} exits");
    task.expect(&mut disk);
    disk.verify(story)
}

/// Returns from `KVM_RUN`, for whatever reason.
fn exits<'a>(events: impl Iterator<Item = &'a Event>) -> u64 {
    events
        .filter(|event| event.what.starts_with("kvm_userspace_exit: "))
        .count() as u64
}
