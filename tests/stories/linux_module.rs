//! Our modules in a stock Linux on `host-vsp`.

use anyhow::ensure;
use bed::linux_module::NAMES;
use bed::provision::kernel::Series;
use e2e::{Entry, Story};

use crate::stock::{Linux, Stock};

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("loads_by_alias", by_alias),
    Entry::new("loads_by_path", by_path),
];

/// What the kernel says of any module that its builder has not signed.
pub(crate) const TAINTED: [&str; 2] = ["loading out-of-tree module", "module verification failed"];

/// In a Debian nobody but udev loads what the host's offers ask for; each module goes again.
fn by_alias(story: &mut Story) -> anyhow::Result<()> {
    let root = story.debian_root()?;
    let stock = Stock::new(story, Series::Linux7).debian(&root);
    let mut linux = stock.our_modules().args(["--console", "pty"]).boot()?;
    linux.wait("-c /dev/vmbus-console0")?;
    linux.sh("grep -q ^vmbus_console /proc/modules")?;
    for name in NAMES {
        linux.sh(&format!("modprobe {name}"))?;
        let path = linux.sh(&format!("modinfo -n {name}"))?;
        ensure!(path.contains("/updates/"), "{name} is {path}");
    }
    goes(&mut linux)?;
    linux.power_off()?;
    story.check_debian_root(&root)
}

/// Elsewhere they are loaded by hand, and are no more trouble to get rid of.
fn by_path(story: &mut Story) -> anyhow::Result<()> {
    let stock = Stock::new(story, Series::Linux7).our_modules();
    let mut linux = stock.boot()?;
    for _ in 0..story.count(3, 200) {
        for name in NAMES {
            linux.sh(&format!("insmod /modules/{name}.ko"))?;
        }
        goes(&mut linux)?;
    }
    linux.power_off()?;
    Ok(())
}

/// Both modules are there and go, and the kernel has nothing to say.
fn goes(linux: &mut Linux) -> anyhow::Result<()> {
    for name in NAMES {
        linux.sh(&format!("rmmod {name}"))?;
        linux.sh(&format!("! grep -q ^{name} /proc/modules"))?;
    }
    linux.expect_clean_log_but(&TAINTED)
}
