//! What a guest hears of its host besides disks and consoles, with the kernel of this project.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use e2e::{Entry, Story};

use crate::ctl::Ctl;
use crate::guest::Guest;

pub(crate) const STORIES: &[Entry] = &[Entry::new("keys_time_crash_and_shutdown", everything)];

/// The bed's clocks agree to this.
const TOLERANCE: Duration = Duration::from_secs(120);

/// A line is typed, the time is told, a crash is heard of, and the guest ends as it is asked to.
fn everything(story: &mut Story) -> anyhow::Result<()> {
    let ctl = Ctl::new(story);
    let scenarios = "keyboard,host-time,crash-report,host-shutdown";
    let mut guest = Guest::new(story, scenarios)
        .args(["--api-socket", ctl.socket()])
        .start()?;
    guest.says("KEYBOARD READY")?;
    ctl.call(&["type", "Hi"])?;
    // H with Shift, i, Enter.
    guest.says("typed: 2a 23 a3 aa 17 97 1c 9c")?;

    let line = guest.says("the host's time is")?;
    let mut words = line.split(' ');
    let seconds = words.nth(4).context("no time")?.parse()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let said = Duration::from_secs(seconds);
    ensure!(said.abs_diff(now) < TOLERANCE, "{said:?} is not {now:?}");

    guest.says("the guest reports that it crashed")?;
    guest.says("guest-kernel: a crash, as the command line asked")?;
    guest.says("LISTENING")?;
    ctl.wait_guest("a beat", |guest| guest["heartbeat"] == "Alive")?;
    ctl.call(&["shutdown"])?;
    guest.says("the host asks for PowerOff")?;
    guest.pass()?;
    Ok(())
}
