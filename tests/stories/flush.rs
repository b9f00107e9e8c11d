//! A flush of the guest is an `fdatasync` of the host, as the host's kernel sees it.

use anyhow::ensure;
use e2e::{Entry, Story};

use crate::disk::{Disk, Task};
use crate::guest::Guest;
use crate::trace::{Trace, descriptor, threads};

pub(crate) const STORIES: &[Entry] = &[Entry::new("reaches_fdatasync", reaches_fdatasync)];

/// Blocks of the disk.
const BLOCKS: u64 = 4096;

/// A system call on the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Read,
    Write,
    Sync,
    Synced,
}

/// The guest writes, flushes once and reads back. So the kernel has to see writes, then one
/// `fdatasync` of this very file that succeeds, and only after its end the reads.
fn reaches_fdatasync(story: &mut Story) -> anyhow::Result<()> {
    let trace = Trace::begin(
        story,
        &[
            ("syscalls/sys_enter_preadv2", ""),
            ("syscalls/sys_enter_pwritev2", ""),
            ("syscalls/sys_enter_fdatasync", ""),
            ("syscalls/sys_exit_fdatasync", ""),
        ],
    )?;
    let mut disk = Disk::create(story, "disk", BLOCKS)?;
    let task = Task::random(0, BLOCKS);
    // The console keeps the guest waiting while we look.
    let guest = Guest::new(story, "storage,console")
        .disk(&disk.path)
        .args(["--console", "stdio"]);
    let mut vm = task.tell(guest).start()?;
    vm.console_says("hello from the guest")?;
    let fd = format!("{:x}", descriptor(story.l1(), &vm, &disk.path)?);
    let threads = threads(story.l1(), &vm)?;
    let events = trace.events()?;
    let calls: Vec<Call> = events
        .iter()
        .filter(|event| threads.contains_key(&event.thread))
        .filter_map(|event| {
            let arguments = |name| event.what.strip_prefix(name)?.strip_prefix("(fd: ");
            let on_image = |name| {
                let fd_and_more = arguments(name).unwrap_or_default();
                fd_and_more.split([',', ')']).next() == Some(&fd)
            };
            match () {
                () if on_image("sys_preadv2") => Some(Call::Read),
                () if on_image("sys_pwritev2") => Some(Call::Write),
                () if on_image("sys_fdatasync") => Some(Call::Sync),
                () if event.what == "sys_fdatasync -> 0x0" => Some(Call::Synced),
                () => None,
            }
        })
        .collect();
    let mut kinds = calls.clone();
    kinds.dedup();
    ensure!(
        kinds == [Call::Write, Call::Sync, Call::Synced, Call::Read],
        "the kernel saw {calls:?} of descriptor {fd}: {events:?}"
    );
    let syncs = calls.iter().filter(|call| **call == Call::Sync).count();
    ensure!(syncs == 1, "one flush became {syncs}: {calls:?}");
    vm.write(b"thank you\n")?;
    vm.pass()?;
    trace.end()?;
    task.expect(&mut disk);
    disk.verify(story)
}
