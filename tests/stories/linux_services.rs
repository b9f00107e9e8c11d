//! Integration services and the keyboard, as a stock kernel's own drivers see them.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bed::l1::Signal;
use bed::provision::kernel::Series;
use e2e::{Entry, Story};

use crate::ctl::Ctl;
use crate::stock::{COMMAND, Linux, Stock};

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("services_of_6_1", |story| services(story, Series::Linux6_1)),
    Entry::new("services_of_6_12", |story| {
        services(story, Series::Linux6_12)
    }),
    Entry::new("services_of_7", |story| services(story, Series::Linux7)),
    Entry::new("a_guest_that_does_not_shut_down", does_not_shut_down),
];

/// What the kernel runs when the host asks for an orderly shutdown.
const ORDERLY: &str = "#!/bin/sh\necho \"@@ orderly shutdown\" >/dev/console\npoweroff -f\n";

/// The same for a guest that says it will and never does.
const NEVER: &str = "#!/bin/sh\nsleep 1000\n";

/// How far the guest's clock may be from the host's, in seconds: both are asked by way of a
/// console, one after the other.
const SKEW: i64 = 5;

fn boot(story: &Story, series: Series, ctl: &Ctl<'_>, poweroff: &str) -> anyhow::Result<Linux> {
    let mut linux = Stock::new(story, series)
        .program("bin/orderly", poweroff)
        .module("evdev")
        .args(["--api-socket", ctl.socket(), "--shutdown-timeout", "15"])
        .boot()?;
    linux.sh("echo /bin/orderly >/proc/sys/kernel/poweroff_cmd")?;
    ctl.wait_drivers()?;
    Ok(linux)
}

fn services(story: &mut Story, series: Series) -> anyhow::Result<()> {
    let ctl = Ctl::new(story);
    let mut linux = boot(story, series, &ctl, ORDERLY)?;
    beats(&mut linux, &ctl)?;
    tells_the_time(story, &mut linux, &ctl)?;
    types(&mut linux, &ctl)?;
    linux.expect_clean_log()?;

    ctl.call(&["reboot"])?;
    linux.wait_ready()?;
    ctl.wait_drivers()?;
    let up = linux.sh("cut -d. -f1 /proc/uptime")?;
    ensure!(up.parse::<u64>()? < 60, "it has been up for {up} s");
    linux.sh("echo /bin/orderly >/proc/sys/kernel/poweroff_cmd")?;
    linux.expect_clean_log()?;

    linux.signal(Signal::TERM)?;
    linux.says("@@ orderly shutdown")?;
    let output = linux.end()?;
    ensure!(output.status.success(), "after SIGTERM: {output}");
    ensure!(
        output.stderr_text().contains("asked to shut down"),
        "the host does not say what it does: {output}"
    );
    Ok(())
}

/// The heart beats on while the guest has nothing else to do.
fn beats(linux: &mut Linux, ctl: &Ctl<'_>) -> anyhow::Result<()> {
    let version = linux.sh("dmesg | grep -o 'Heartbeat IC version.*'")?;
    ensure!(version == "Heartbeat IC version 3.0", "{version}");
    let guest = ctl.json(&["guest"])?;
    let before = guest["beats"].as_u64().context("no beats")?;
    ctl.wait_guest("the next beat", |guest| {
        guest["beats"].as_u64() >= Some(before + 2)
    })
}

/// A guest whose clock is wrong has the right time after a pause.
fn tells_the_time(story: &Story, linux: &mut Linux, ctl: &Ctl<'_>) -> anyhow::Result<()> {
    linux.sh("date -s @1000000000")?;
    let wrong: i64 = linux.sh("date +%s")?.parse()?;
    ensure!(wrong < 1_000_000_100, "the clock cannot be set: {wrong}");
    ctl.call(&["pause"])?;
    ctl.call(&["resume"])?;
    let begin = Instant::now();
    loop {
        let guest: i64 = linux.sh("date +%s")?.parse()?;
        let host = story.l1().shell("date +%s").run(COMMAND)?.stdout_text();
        let host: i64 = host.trim().parse()?;
        if (host - guest).abs() <= SKEW {
            break;
        }
        ensure!(
            begin.elapsed() < COMMAND,
            "the guest's clock says {guest}, the host's {host}"
        );
        thread::sleep(Duration::from_millis(200));
    }
    ctl.wait_drivers()
}

/// Waits in the guest.
fn wait(linux: &mut Linux, condition: &str) -> anyhow::Result<()> {
    linux.sh(&format!(
        "n=0; until [ {condition} ]; do sleep 0.1; n=$((n+1)); [ $n -lt 200 ] || break; done; \
         [ {condition} ]"
    ))?;
    Ok(())
}

/// What the host types, the input device and the terminal of the guest receive.
fn types(linux: &mut Linux, ctl: &Ctl<'_>) -> anyhow::Result<()> {
    const LINE: &str = "Hello, World: it's 100% #1 [a_b] {c|d} ~/e?";
    wait(linux, "-e /dev/input/event0")?;
    linux.sh(
        "head -n 1 </dev/tty1 >/tmp/line & head -c 24 </dev/input/event0 >/tmp/event & sleep 1",
    )?;
    ctl.call(&["type", LINE])?;
    wait(linux, "-s /tmp/line")?;
    wait(linux, "-s /tmp/event")?;
    let line = linux.sh("cat /tmp/line")?;
    ensure!(line == LINE, "typed {LINE:?}, the terminal has {line:?}");
    // Two times of 8 bytes, then type, code and value of the first event: the scan code of Shift.
    let event = linux.sh("tail -c 8 /tmp/event | hexdump -v -e '8/1 \"%02x\"'")?;
    ensure!(event == "040004002a000000", "the first event is {event:?}");
    Ok(())
}

/// The host's patience ends.
fn does_not_shut_down(story: &mut Story) -> anyhow::Result<()> {
    let ctl = Ctl::new(story);
    let mut linux = boot(story, Series::Linux6_12, &ctl, NEVER)?;
    linux.signal(Signal::TERM)?;
    thread::sleep(Duration::from_secs(5));
    ensure!(linux.sh("echo still here")? == "still here");
    let output = linux.end()?;
    ensure!(output.status.code() == Some(143), "{output}");
    ensure!(
        output
            .stderr_text()
            .contains("did not shut down within 15 s"),
        "the host does not say what it does: {output}"
    );
    Ok(())
}
