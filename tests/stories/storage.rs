//! What the guest writes is what the file holds when the machine has ended.

use anyhow::{Context, ensure};
use bed::pattern::Pattern;
use e2e::{Entry, Story};
use rand::RngExt;

use crate::disk::{BLOCK, Disk, Task};
use crate::guest::{Guest, NEXT};

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("the_file_holds_what_was_written", what_was_written),
    Entry::new("64_in_flight_each_exactly_once", in_flight),
    Entry::new("buffers_at_odd_offsets", odd_buffers),
    Entry::new("beyond_2_tib", beyond_2_tib),
    Entry::new("two_disks", two_disks),
    Entry::new("two_machines", two_machines),
    Entry::new("each_cpu_is_interrupted", each_cpu_is_interrupted),
    Entry::new("every_cpu_at_once", every_cpu_at_once),
];

/// Blocks of the disks here.
const BLOCKS: u64 = 8192;

fn what_was_written(story: &mut Story) -> anyhow::Result<()> {
    let mut disk = Disk::create(story, "disk", BLOCKS)?;
    let task = Task::random(0, BLOCKS);
    let log = task
        .tell(Guest::new(story, "storage"))
        .disk(&disk.path)
        .run()?;
    let seen = format!("{BLOCKS} blocks of {BLOCK} bytes\n");
    ensure!(
        log.replace('\r', "").contains(&seen),
        "the guest sees another disk: {log}"
    );
    task.expect(&mut disk);
    disk.verify(story)
}

/// Each round fills the driver's table with writes and then with reads; the file keeps the last.
fn in_flight(story: &mut Story) -> anyhow::Result<()> {
    const REQUESTS: u64 = 64;
    let rounds = story.count(30, 500);
    let seed: u64 = rand::random();
    let mut disk = Disk::create(story, "disk", BLOCKS)?;
    let log = Guest::new(story, "in-flight")
        .option("seed", seed)
        .option("queue.rounds", rounds)
        .cpus(2)
        .disk(&disk.path)
        .run()?;
    let told =
        format!("{rounds} times {REQUESTS} writes and {REQUESTS} reads in flight: once each");
    ensure!(log.contains(&told), "the guest did not say {told:?}: {log}");
    for request in 0..REQUESTS {
        let seed = seed.wrapping_add((rounds - 1) * REQUESTS + request);
        disk.expect(&mut Pattern::new(seed), request, 1);
    }
    disk.verify(story)
}

/// Buffers of these lengths, in blocks, are each written from eight misalignments to one place.
fn odd_buffers(story: &mut Story) -> anyhow::Result<()> {
    const LENGTHS: [usize; 6] = [1, 2, 9, 64, 257, 1100];
    const OFFSETS: usize = 8;
    let (seed, lba) = (rand::random(), rand::rng().random_range(0..BLOCKS - 1100));
    let mut disk = Disk::create(story, "disk", BLOCKS)?;
    let log = Guest::new(story, "odd-buffers")
        .option("seed", seed)
        .option("disk.lba", lba)
        .disk(&disk.path)
        .run()?;
    ensure!(
        log.contains("48 buffers, all misalignments: equal"),
        "the guest tried others: {log}"
    );
    let mut pattern = Pattern::new(seed);
    for length in LENGTHS {
        for _ in 0..OFFSETS {
            disk.expect(&mut pattern, lba, length);
        }
    }
    disk.verify(story)
}

/// A sparse file with more blocks than 32 bits can count.
fn beyond_2_tib(story: &mut Story) -> anyhow::Result<()> {
    const BORDER: u64 = 1 << 32;
    const COUNT: u64 = 24;
    let seed: u64 = rand::random();
    let blocks = BORDER + rand::rng().random_range(1000..1_000_000);
    let (path, size) = (story.file("large"), blocks * BLOCK as u64);
    let in_l1 = |line: &str| -> anyhow::Result<Vec<u8>> {
        let output = story.l1().shell(line).dir(story.dir()).run(NEXT)?;
        ensure!(output.status.success(), "{line}: {output}");
        Ok(output.stdout)
    };
    in_l1(&format!("truncate -s {size} large"))?;
    let log = Guest::new(story, "beyond-2tib,beyond-end")
        .option("seed", seed)
        .disk(&path)
        .run()?;
    let last = blocks - COUNT;
    let places = [0, last % BORDER, BORDER - COUNT / 2, BORDER + COUNT, last];
    let told = format!("{COUNT} blocks at each of {places:?}: written");
    ensure!(log.contains(&told), "the guest did not say {told:?}: {log}");
    for (at, lba) in (0..).zip(places) {
        let found = in_l1(&format!(
            "dd if=large bs={BLOCK} skip={lba} count={COUNT} 2>&-"
        ))?;
        let expected = Pattern::new(seed.wrapping_add(at)).take(COUNT as usize * BLOCK);
        ensure!(found == expected, "blocks {lba}+{COUNT} are wrong");
    }
    // Nothing else was written: what is allocated is a few pages at each place.
    let stat = in_l1("stat -c '%s %b' large")?;
    let stat = String::from_utf8(stat)?;
    let (bytes, allocated) = stat.trim().split_once(' ').context("output of stat")?;
    ensure!(
        bytes == size.to_string(),
        "it had {size} bytes, now {bytes}"
    );
    ensure!(
        allocated.parse::<u64>()? <= places.len() as u64 * (COUNT + 16),
        "{allocated} blocks are allocated"
    );
    Ok(())
}

/// The guest goes from one to the other and back; each keeps its own.
fn two_disks(story: &mut Story) -> anyhow::Result<()> {
    let mut disks = [
        Disk::create(story, "first", BLOCKS)?,
        Disk::create(story, "second", BLOCKS / 2)?,
    ];
    let task = Task::random(0, BLOCKS / 2 - 3000);
    let log = task
        .tell(Guest::new(story, "two-disks"))
        .disk(&disks[0].path)
        .disk(&disks[1].path)
        .run()?;
    for (unit, blocks) in [(0, BLOCKS), (1, BLOCKS / 2)] {
        let seen = format!("unit {unit}: {blocks} blocks");
        ensure!(log.matches(&seen).count() == 2, "not twice {seen:?}: {log}");
    }
    for turn in 0..4 {
        let written = Task {
            seed: task.seed.wrapping_add(turn),
            lba: task.lba + turn * task.blocks,
            ..task
        };
        written.expect(&mut disks[turn as usize % 2]);
    }
    disks.iter().try_for_each(|disk| disk.verify(story))
}

/// Two machines at work at the same time: each writes to a disk of its own, and both have another
/// one to read.
fn two_machines(story: &mut Story) -> anyhow::Result<()> {
    let shared = Disk::create(story, "shared", BLOCKS)?;
    let mut own = [
        Disk::create(story, "first", BLOCKS)?,
        Disk::create(story, "second", BLOCKS)?,
    ];
    let tasks = [Task::random(0, BLOCKS), Task::random(0, BLOCKS)];
    let mut machines = Vec::new();
    for (disk, task) in own.iter().zip(tasks) {
        let guest = Guest::new(story, "storage,console,steady")
            .disk(&disk.path)
            .disk(&format!("{},readonly=on", shared.path))
            .args(["--console", "stdio"]);
        machines.push(task.tell(guest).start()?);
    }
    // None goes on before both are here.
    for vm in &mut machines {
        vm.console_says("hello from the guest")?;
    }
    for vm in &machines {
        vm.write(b"go on\n")?;
    }
    for vm in machines {
        vm.pass()?;
    }
    for (disk, task) in own.iter_mut().zip(tasks) {
        task.expect(disk);
        disk.verify(story)?;
    }
    shared.verify(story)
}

/// The channel is moved from processor to processor, and each of them gets its interrupts.
fn each_cpu_is_interrupted(story: &mut Story) -> anyhow::Result<()> {
    const CPUS: u32 = 4;
    let mut disk = Disk::create(story, "disk", BLOCKS)?;
    let task = Task::random(0, BLOCKS);
    let log = task
        .tell(Guest::new(story, "retarget,storage"))
        .cpus(CPUS)
        .disk(&disk.path)
        .run()?;
    for cpu in 0..CPUS {
        let told = format!("100 reads interrupted CPU {cpu} ");
        let line = log.lines().find_map(|line| line.strip_prefix(&told));
        let times: u32 = line
            .and_then(|rest| rest.split(' ').next()?.parse().ok())
            .with_context(|| format!("the guest did not say {told:?}: {log}"))?;
        // One read at a time, so each is an interrupt of its own, but for a completion that is
        // already there when the guest looks.
        ensure!(times > 50, "CPU {cpu} was interrupted {times} times: {log}");
    }
    task.expect(&mut disk);
    disk.verify(story)
}

/// All CPUs use one disk at the same time, each over a channel of its own.
fn every_cpu_at_once(story: &mut Story) -> anyhow::Result<()> {
    const CPUS: u32 = 4;
    const REQUESTS: u64 = 50_000;
    let disk = Disk::create(story, "disk", BLOCKS)?;
    let log = Guest::new(story, "processors")
        .option("seed", rand::random::<u64>())
        .option("disk.channels", CPUS)
        .option("processors.requests", REQUESTS)
        .cpus(CPUS)
        .disk(&disk.path)
        .run()?;
    let told = format!("{REQUESTS} requests on {CPUS} CPUs over {CPUS} channels, once each: ");
    ensure!(log.contains(&told), "the guest did not say {told:?}: {log}");
    for cpu in 0..CPUS {
        let told = format!("CPU {cpu} was interrupted ");
        let line = log.lines().find_map(|line| line.strip_prefix(&told));
        let times: u64 = line
            .and_then(|rest| rest.split(' ').next()?.parse().ok())
            .with_context(|| format!("the guest did not say {told:?}: {log}"))?;
        ensure!(
            times > 100,
            "CPU {cpu} was interrupted {times} times: {log}"
        );
    }
    Ok(())
}
