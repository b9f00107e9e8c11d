//! Integration services and the keyboard, as a stock kernel's own drivers see them.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bed::l1::Signal;
use bed::provision::kernel::Series;
use e2e::{Entry, Feature, Story};

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

/// Prints what every boot of a kernel chooses anew.
const BOOT: &str = "cat /proc/sys/kernel/random/boot_id";

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
    story.proves(series, Feature::Heartbeat);
    tells_the_time(story, &mut linux, &ctl)?;
    story.proves(series, Feature::TimeSync);
    types(&mut linux, &ctl)?;
    story.proves(series, Feature::Keyboard);
    linux.expect_clean_log()?;

    let before = linux.sh(BOOT)?;
    ctl.call(&["reboot"])?;
    linux.wait_ready()?;
    ctl.wait_drivers()?;
    let after = linux.sh(BOOT)?;
    ensure!(after != before, "it is the same boot: {before}");
    linux.sh("echo /bin/orderly >/proc/sys/kernel/poweroff_cmd")?;
    linux.expect_clean_log()?;
    story.proves(series, Feature::RebootAsked);

    panics(&mut linux, &ctl)?;
    ctl.wait_drivers()?;
    story.proves(series, Feature::CrashReport);
    story.proves(series, Feature::PanicReboots);
    linux.sh("echo /bin/orderly >/proc/sys/kernel/poweroff_cmd")?;

    linux.signal(Signal::TERM)?;
    linux.says("@@ orderly shutdown")?;
    let output = linux.end()?;
    ensure!(output.status.success(), "after SIGTERM: {output}");
    story.proves(series, Feature::ShutdownAsked);
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

/// What the host types, the input device and the terminal of the guest receive.
fn types(linux: &mut Linux, ctl: &Ctl<'_>) -> anyhow::Result<()> {
    const LINE: &str = "Hello, World: it's 100% #1 [a_b] {c|d} ~/e?";
    linux.wait("-e /dev/input/event0")?;
    linux.sh(
        "head -n 1 </dev/tty1 >/tmp/line & head -c 24 </dev/input/event0 >/tmp/event & sleep 1",
    )?;
    // The first letter alone: a reader of the device that is slower than a whole line is told
    // only that it missed something.
    let (first, rest) = LINE.split_at(1);
    ctl.call(&["type", "--no-enter", first])?;
    linux.wait("-s /tmp/event")?;
    // Two times of 8 bytes, then type, code and value of the first event: the scan code of Shift.
    let event = linux.sh("tail -c 8 /tmp/event | hexdump -v -e '8/1 \"%02x\"'")?;
    ensure!(event == "040004002a000000", "the first event is {event:?}");
    ctl.call(&["type", rest])?;
    linux.wait("-s /tmp/line")?;
    let line = linux.sh("cat /tmp/line")?;
    ensure!(line == LINE, "typed {LINE:?}, the terminal has {line:?}");
    Ok(())
}

/// The guest panics: the host says what the guest said, and the machine starts again.
fn panics(linux: &mut Linux, ctl: &Ctl<'_>) -> anyhow::Result<()> {
    let guest = ctl.json(&["guest"])?;
    ensure!(guest["crashes"] == 0 && guest["crash"].is_null(), "{guest}");
    linux.type_line("echo 1 >/proc/sys/kernel/panic; echo c >/proc/sysrq-trigger")?;
    linux.host_says("the guest reports that it crashed")?;
    linux.host_says("sysrq triggered crash")?;
    linux.wait_ready()?;
    let guest = ctl.json(&["guest"])?;
    let message = guest["crash"]["message"].as_str().unwrap_or_default();
    ensure!(
        guest["crashes"].as_u64() >= Some(1)
            && message.contains("Kernel panic")
            && guest["crash"]["parameters"].as_array().map(Vec::len) == Some(5),
        "{guest}"
    );
    let counters = ctl.json(&["counters"])?;
    ensure!(
        counters["devices"]["guest.crashes"] == guest["crashes"],
        "{counters}"
    );
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
