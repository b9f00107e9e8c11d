//! Our modules on a host that lies: whatever it says, the kernel has nothing to say, and they go.

use std::time::Duration;

use anyhow::{Context, ensure};
use bed::linux_module::NAMES;
use bed::provision::kernel::Series;
use e2e::{Entry, Story};

use crate::linux_module::TAINTED;
use crate::stock::{Linux, Stock};

pub(crate) const STORIES: &[Entry] = &[Entry::new("a_host_that_lies", lies)];

/// What is said of a device whose answers are errors.
const ERRORS: [&str; 4] = [
    "I/O error",
    "failed with error",
    "is of no use",
    "packets that meant nothing",
];

/// Looks for both devices for a while, then uses what there is. A program that the device fails begins
/// again; what matters is that each ends when it is told to.
const TRAFFIC: &str = "n=0; until [ -b /dev/vmd0 -a -c /dev/vmbus-console0 ] || [ $n = 80 ]; do sleep 0.1; n=$((n+1)); done; \
    for work in 'cat /dev/vmd0 >/dev/null' 'cat /dev/zero >/dev/vmd0' \
        'cat /dev/vmbus-console0 >/dev/null' 'cat /dev/zero >/dev/vmbus-console0' \
        'echo 1 >/proc/sys/vm/drop_caches'; do \
        (end=$(($(date +%s) + 6)); while [ $(date +%s) -lt $end ]; do timeout 3 sh -c \"$work\"; sleep 0.1; done) >/dev/null 2>&1 & \
    done; wait; ls -d /dev/vmd0 /dev/vmbus-console0 2>/dev/null | wc -l";

/// For the traffic, and for requests that a lie has made wait.
const LIMIT: Duration = Duration::from_secs(300);

fn lies(story: &mut Story) -> anyhow::Result<()> {
    let seed = rand::random();
    lied_to(story, seed).with_context(|| format!("with the lies of --seed {seed}"))
}

fn lied_to(story: &Story, seed: u64) -> anyhow::Result<()> {
    let stock = Stock::new(story, Series::Linux7).our_modules();
    let mut linux = stock.lied_to(seed).boot()?;
    let rounds = story.count(3, 40);
    let mut there = 0;
    for _ in 0..rounds {
        there += round(&mut linux)?;
    }
    // Lies may take the disk from the guest, but not each time; nothing takes the console.
    ensure!(
        there > rounds,
        "there were {there} devices at the ends of {rounds} rounds"
    );
    let expected = [&TAINTED[..], &ERRORS].concat();
    linux.expect_clean_log_but(&expected)?;
    linux.power_off()?;
    Ok(())
}

/// Loads the modules, uses the devices while they are lied to, and unloads them. Returns how many
/// devices there were.
fn round(linux: &mut Linux) -> anyhow::Result<u64> {
    for name in NAMES {
        linux.sh(&format!("insmod /modules/{name}.ko"))?;
    }
    let there = linux.sh_within(TRAFFIC, LIMIT)?;
    for name in NAMES {
        linux.sh_within(&format!("rmmod {name}"), LIMIT)?;
    }
    there.trim().parse().with_context(|| there.clone())
}
