//! VMBus contact: every version, refusals, good-bye and contact again.

use anyhow::ensure;
use e2e::{Entry, Story};

use crate::disk::{Disk, Task};
use crate::guest::Guest;

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("at_5_3", |story| at(story, "5.3")),
    Entry::new("at_5_2", |story| at(story, "5.2")),
    Entry::new("at_5_1", |story| at(story, "5.1")),
    Entry::new("at_5_0", |story| at(story, "5.0")),
    Entry::new("at_4_1", |story| at(story, "4.1")),
    Entry::new("at_4_0", |story| at(story, "4.0")),
    Entry::new("at_3_0", |story| at(story, "3.0")),
    Entry::new("at_2_4", |story| at(story, "2.4")),
    Entry::new("unknown_version_is_refused", |story| refused(story, "9.9")),
    Entry::new("version_6_0_is_refused", |story| refused(story, "6.0")),
    Entry::new("connect_unload_connect", connect_unload_connect),
];

/// The guest asks for `version` first, gets it, and a disk works over it.
fn at(story: &mut Story, version: &str) -> anyhow::Result<()> {
    let mut disk = Disk::create(story, "disk", 2048)?;
    let task = Task::random(0, 2048);
    let guest = Guest::new(story, "contact,storage")
        .option("vmbus.max_version", version)
        .option("vmbus.expect", version)
        .disk(&disk.path)
        .verbose();
    let log = task.tell(guest).run()?;
    for words in [
        &format!("VMBus {version}, "),
        "offer: relid 1, class ba6163d9-",
    ] {
        ensure!(log.contains(words), "not {words:?}: {log}");
    }
    expect_talk(&log, &[&accepted(version), "unload"])?;
    task.expect(&mut disk);
    disk.verify(story)
}

/// The guest asks for `version` and is refused; nothing is lost by that.
fn refused(story: &mut Story, version: &str) -> anyhow::Result<()> {
    let mut disk = Disk::create(story, "disk", 2048)?;
    let task = Task::random(0, 2048);
    let guest = Guest::new(story, "contact,refusal,contact,storage")
        .option("vmbus.unknown", version)
        .option("vmbus.expect", "5.3")
        .disk(&disk.path)
        .verbose();
    let log = task.tell(guest).run()?;
    let told = format!("VMBus {version} was refused");
    ensure!(log.contains(&told), "the guest did not say {told:?}: {log}");
    let refused = format!("contact refused version={version}");
    let accepted = accepted("5.3");
    expect_talk(&log, &[&accepted, "unload", &refused, &accepted, "unload"])?;
    task.expect(&mut disk);
    disk.verify(story)
}

/// The disk is used, closed, and after three connections used again.
fn connect_unload_connect(story: &mut Story) -> anyhow::Result<()> {
    let mut disk = Disk::create(story, "disk", 2048)?;
    let task = Task::random(0, 2048);
    let guest = Guest::new(story, "storage,reconnect,storage")
        .cpus(2)
        .disk(&disk.path)
        .verbose();
    let log = task.tell(guest).run()?;
    let accepted = accepted("5.3");
    expect_talk(&log, &[accepted.as_str(), "unload"].repeat(4))?;
    task.expect(&mut disk);
    disk.verify(story)
}

fn accepted(version: &str) -> String {
    format!("contact accepted version={version}")
}

/// Compares what the host tells of contact and unload with `expected`.
fn expect_talk(log: &str, expected: &[&str]) -> anyhow::Result<()> {
    let talk: Vec<&str> = log
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("INFO "))
        .filter(|line| line.starts_with("contact ") || *line == "unload")
        .collect();
    ensure!(
        talk == expected,
        "the host tells of {talk:?} instead of {expected:?}: {log}"
    );
    Ok(())
}
