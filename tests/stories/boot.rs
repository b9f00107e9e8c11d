//! Both ways into the guest, with one processor and with several.

use anyhow::ensure;
use e2e::{Entry, Story};

use crate::guest::Guest;

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("pvh_1_cpu", |story| boot(story, "pvh", 1)),
    Entry::new("pvh_2_cpus", |story| boot(story, "pvh", 2)),
    Entry::new("linux64_1_cpu", |story| boot(story, "linux64", 1)),
    Entry::new("linux64_2_cpus", |story| boot(story, "linux64", 2)),
    Entry::new("8_cpus", |story| boot(story, "pvh", 8)),
];

/// Each processor comes up and is woken by its own timer; and all of that once more after VMBus
/// was set up on every one of them.
fn boot(story: &mut Story, entry: &str, cpus: u32) -> anyhow::Result<()> {
    let log = Guest::new(story, "boot,contact,boot")
        .cpus(cpus)
        .args(["--boot", entry])
        .run()?;
    let entered = match entry {
        "pvh" => "entered by: PVH, 32-bit entry",
        _ => "entered by: Linux boot protocol, 64-bit entry",
    };
    let running = format!("CPUs: {cpus} running");
    let interrupted = format!("{cpus} CPUs took a timer interrupt each");
    for line in [entered, &running, &interrupted, "\"Microsoft Hv\""] {
        ensure!(log.contains(line), "the guest did not say {line:?}: {log}");
    }
    Ok(())
}
