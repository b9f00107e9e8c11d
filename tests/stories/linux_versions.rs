//! Every version of VMBus that a stock kernel speaks, by its own limit `hv_vmbus.max_version`.
//!
//! A boot each: where the timers are in direct mode, as here and on current Hyper-V, unloading
//! `hv_vmbus` takes the kernel's only tick away, so that one boot cannot try them all.

use anyhow::ensure;
use bed::provision::kernel::Series;
use e2e::{Entry, Feature, Story};

use crate::stock::{Stock, expect_on_host, make_disk, write_and_verify};

/// 5.3 is what the kernels choose by themselves: see the topic `linux`.
pub(crate) const STORIES: &[Entry] = &[
    Entry::new("limited_to_2_4", |story| {
        limited(story, 2, 4, Feature::Vmbus2_4)
    }),
    Entry::new("limited_to_3_0", |story| {
        limited(story, 3, 0, Feature::Vmbus3_0)
    }),
    Entry::new("limited_to_4_0", |story| {
        limited(story, 4, 0, Feature::Vmbus4_0)
    }),
    Entry::new("limited_to_4_1", |story| {
        limited(story, 4, 1, Feature::Vmbus4_1)
    }),
    Entry::new("limited_to_5_0", |story| {
        limited(story, 5, 0, Feature::Vmbus5_0)
    }),
    Entry::new("limited_to_5_1", |story| {
        limited(story, 5, 1, Feature::Vmbus5_1)
    }),
    Entry::new("limited_to_5_2", |story| {
        limited(story, 5, 2, Feature::Vmbus5_2)
    }),
];

/// What Linux says at 2.4, where no host has known of backups: it has no use for that service.
const NO_BACKUP: &[&str] = &[
    "'Backup (volume snapshot)' not supported on this host version",
    "probe failed for device 2450ee40-33bf-4fbd-892e-9fb06e9214cf",
];

fn limited(story: &mut Story, major: u32, minor: u32, feature: Feature) -> anyhow::Result<()> {
    let disk = make_disk(story)?;
    let limit = (major << 16) | minor;
    let mut linux = Stock::new(story, Series::Linux6_12)
        .disk(&disk)
        .append(&format!("hv_vmbus.max_version={limit:#x}"))
        .boot()?;
    let found = linux.sh("dmesg | sed -n 's/.*Vmbus version:\\([0-9.]*\\).*/\\1/p'")?;
    ensure!(
        found == format!("{major}.{minor}"),
        "version {found} with the limit {limit:#x}"
    );
    let sum = write_and_verify(&mut linux)?;
    linux.expect_clean_log_but(if major == 2 { NO_BACKUP } else { &[] })?;
    linux.power_off()?;
    story.proves(Series::Linux6_12, feature);
    expect_on_host(story, &disk, &sum)
}
