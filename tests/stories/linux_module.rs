//! Our modules in a stock Linux on `host-vsp`.

use anyhow::ensure;
use bed::linux_module::NAMES;
use bed::provision::kernel::Series;
use e2e::{Entry, Story};

use crate::linux_module_console;
use crate::net::on_host;
use crate::stock::{COMMAND, Linux, Stock};

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("loads_by_alias", by_alias),
    Entry::new("loads_by_path", by_path),
];

/// What the kernel says of any module that its builder has not signed.
pub(crate) const TAINTED: [&str; 2] = ["loading out-of-tree module", "module verification failed"];

/// A login on the console, as the modules' README has it.
const LOGIN: &str = include_str!("../../linux-module/console/vmbus-console-login.service");

/// In a Debian nobody but udev loads what the host's offers ask for; a whole session lives on the
/// console; each module goes again.
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
    logs_in(story, &mut linux)?;
    goes(&mut linux)?;
    linux.power_off()?;
    story.check_debian_root(&root)
}

/// Somebody at the host's end logs in, runs commands at a terminal of the guest, and out.
fn logs_in(story: &Story, linux: &mut Linux) -> anyhow::Result<()> {
    let pty = linux_module_console::pty(linux)?;
    let at_host = |reader: &str| story.l1().shell(&format!("{reader} <{pty}")).spawn();
    // As one line, for `printf` between single quotes.
    let unit = LOGIN.replace('\'', "'\\''").replace('\n', "\\n");
    let name = "vmbus-console-login";
    linux.sh(&format!(
        "printf '{unit}' >/run/systemd/system/{name}.service && \
         systemctl daemon-reload && systemctl start {name}"
    ))?;
    // Not `cat`: busybox's has the kernel move the bytes, which keeps the last ones till more come.
    let mut screen = at_host("dd bs=4096 2>/dev/null")?;
    let types = |line: &str| on_host(story, &format!("printf '{line}\\n' >{pty}"));
    screen.expect("login: ", COMMAND)?;
    types("root")?;
    screen.expect(":~# ", COMMAND)?;
    types("tty; echo $((6*7)) is the answer; exit")?;
    screen.expect("/dev/pts/", COMMAND)?;
    screen.expect("42 is the answer", COMMAND)?;
    // The next one, please.
    screen.expect("login: ", COMMAND)?;
    linux.sh(&format!("systemctl stop {name}"))?;
    Ok(())
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
