//! The API of a running machine: `host-vsp ctl` and raw requests at its socket, while the guest
//! works.

use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use bed::provision::kernel::Series;
use e2e::{Entry, Feature, Story};
use serde_json::Value;

use crate::ctl::Ctl;
use crate::stock::{COMMAND, Linux, Stock, make_disk};

pub(crate) const STORIES: &[Entry] = &[Entry::new("a_machine_under_load", under_load)];

const SERIES: Series = Series::Linux6_12;

/// Writes and reads back, a megabyte at a time, until it is told to stop; says what is wrong.
const LOAD: &str = r#"#!/bin/sh
turn=0
while [ -e /tmp/go ]; do
    head -c 1048576 /dev/urandom >/tmp/data
    dd if=/tmp/data of=/dev/sda bs=64k seek=$((turn % 16 * 16)) conv=fsync 2>/dev/null || echo "turn $turn: write"
    echo 3 >/proc/sys/vm/drop_caches
    dd if=/dev/sda bs=64k skip=$((turn % 16 * 16)) count=16 2>/dev/null | cmp - /tmp/data || echo "turn $turn: read"
    turn=$((turn+1))
    echo $turn >/tmp/turn
done
"#;

/// Pauses under load, and how long each lasts.
const PAUSES: u64 = 5;
const PAUSE: Duration = Duration::from_millis(500);

/// Longer than a processor may stand still before Linux's watchdogs complain.
const LONG_PAUSE: Duration = Duration::from_secs(25);

fn under_load(story: &mut Story) -> anyhow::Result<()> {
    let ctl = Ctl::new(story);
    let disk = make_disk(story)?;
    let mut linux = Stock::new(story, SERIES)
        .program("bin/load", LOAD)
        .disk(&disk)
        .args(["--api-socket", ctl.socket()])
        .boot()?;
    linux.wait_disk()?;
    describes_itself(&ctl, &disk)?;

    linux.sh("touch /tmp/go; load >/tmp/complaints 2>&1 &")?;
    linux.wait("-e /tmp/turn")?;
    for _ in 0..story.count(PAUSES, 20 * PAUSES) {
        pause(&ctl, PAUSE)?;
        thread::sleep(PAUSE);
    }
    pause(&ctl, LONG_PAUSE)?;
    let before = wakeups(&ctl)?;
    let turn = linux.sh("cat /tmp/turn")?;
    linux.wait(&format!("\"$(cat /tmp/turn)\" != {turn}"))?;
    let after = wakeups(&ctl)?;
    ensure!(
        after > before,
        "a turn of the load took wakeups from {before} to {after}"
    );
    linux.sh("rm /tmp/go; wait")?;
    let complaints = linux.sh("cat /tmp/complaints")?;
    ensure!(complaints.is_empty(), "under pauses: {complaints}");
    linux.expect_clean_log()?;
    story.proves(SERIES, Feature::Pause);

    raw_requests(story, &ctl)?;
    ends_when_asked(story, linux, &ctl)
}

/// What it is, as it was made.
fn describes_itself(ctl: &Ctl<'_>, disk: &str) -> anyhow::Result<()> {
    let info = ctl.json(&["info"])?;
    let config = &info["config"];
    ensure!(
        info["state"] == "Running"
            && info["memory_actual_size"] == 512 << 20
            && config["cpus"]["boot_vcpus"] == 2
            && config["disks"][0]["path"] == disk
            && config["disks"][0]["lun"] == 0,
        "{info}"
    );
    let text = config["payload"]["cmdline"].as_str().unwrap_or_default();
    ensure!(text.contains("console=ttyS0"), "{info}");
    Ok(())
}

/// Returns from `KVM_RUN` and exits so far: what moves as long as a processor runs.
fn movement(ctl: &Ctl<'_>) -> anyhow::Result<(u64, u64)> {
    let counters = ctl.json(&["counters"])?;
    let value = |pointer| {
        let value = counters.pointer(pointer).and_then(Value::as_u64);
        value.with_context(|| format!("no {pointer}: {counters}"))
    };
    Ok((value("/returns_total")?, value("/kvm/exits")?))
}

/// How often guests have woken up the workers of channels.
fn wakeups(ctl: &Ctl<'_>) -> anyhow::Result<u64> {
    let counters = ctl.json(&["counters"])?;
    let devices = counters["devices"].as_object().context("no devices")?;
    let all = devices
        .iter()
        .filter(|(name, _)| name.ends_with(".wakeups"));
    all.map(|(name, count)| count.as_u64().with_context(|| name.clone()))
        .sum()
}

/// Nothing moves for as long as the machine is paused.
fn pause(ctl: &Ctl<'_>, time: Duration) -> anyhow::Result<()> {
    ctl.call(&["pause"])?;
    let info = ctl.json(&["info"])?;
    ensure!(info["state"] == "Paused", "{info}");
    let again = ctl.refused(&["pause"])?;
    ensure!(again.contains("paused"), "{again}");
    let before = movement(ctl)?;
    thread::sleep(time);
    let after = movement(ctl)?;
    ensure!(before == after, "paused, and {before:?} became {after:?}");
    for what in [&["shutdown"][..], &["remove-device", "scsi0"]] {
        let asked = ctl.refused(what)?;
        ensure!(asked.contains("resume it first"), "{asked}");
    }
    ctl.call(&["resume"])?;
    let again = ctl.refused(&["resume"])?;
    ensure!(again.contains("paused"), "{again}");
    Ok(())
}

/// A request as `curl` would send it; status and body.
fn request(
    story: &Story,
    ctl: &Ctl<'_>,
    method: &str,
    name: &str,
    body: &str,
) -> anyhow::Result<(u16, String)> {
    let length = body.len();
    let request = format!(
        "{method} /api/v1/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    let answer = bytes(story, ctl, request.as_bytes())?;
    let (head, body) = answer.split_once("\r\n\r\n").context(answer.clone())?;
    let status = head.split(' ').nth(1).context(head.to_owned())?;
    Ok((status.parse()?, body.to_owned()))
}

/// Sends bytes as they are; all that comes back.
fn bytes(story: &Story, ctl: &Ctl<'_>, bytes: &[u8]) -> anyhow::Result<String> {
    let talk = story.l1().command(&story.probe()?);
    let talk = talk.args(["unix", ctl.socket()]);
    let talk = talk.spawn()?;
    talk.write(bytes)?;
    // The probe's own end of the socket stays open until the server closes.
    talk.close_stdin()?;
    Ok(talk.finish(COMMAND)?.stdout_text())
}

fn raw_requests(story: &Story, ctl: &Ctl<'_>) -> anyhow::Result<()> {
    let (status, body) = request(story, ctl, "GET", "openapi.json", "")?;
    ensure!(status == 200, "{status} {body}");
    let description: Value = serde_json::from_str(&body).context("openapi.json")?;
    let paths = description["paths"].as_object().context("no paths")?;
    for call in ["vm.info", "vm.pause", "vm.kvp-set", "vm.freeze"] {
        let path = format!("/api/v1/{call}");
        ensure!(paths.contains_key(&path), "{path} is not described");
    }
    let (status, body) = request(story, ctl, "GET", "vm.info", "")?;
    let info: Value = serde_json::from_str(&body)?;
    ensure!(
        status == 200 && info["state"] == "Running",
        "{status} {body}"
    );
    for (method, name, body, wanted, word) in [
        ("GET", "vm.dance", "", 404, "no such call"),
        ("GET", "vm.pause", "", 405, "another method"),
        ("PUT", "vm.add-disk", "{", 400, "JSON"),
        ("PUT", "vm.add-disk", r#"{"path":"/none"}"#, 400, "/none"),
        ("PUT", "vm.remove-device", r#"{"id":"moon"}"#, 404, "moon"),
        (
            "PUT",
            "vm.resize-disk",
            r#"{"id":"disk0","desired_size":1}"#,
            400,
            "disk",
        ),
        ("PUT", "vm.freeze", r#"{"seconds":100000}"#, 400, "600"),
        (
            "PUT",
            "vm.kvp-get",
            r#"{"key":"a","pool":"x"}"#,
            400,
            "External",
        ),
        ("PUT", "vm.resume", "", 409, "paused"),
        ("PUT", "vm.thaw", "", 409, "not frozen"),
    ] {
        let (status, answer) = request(story, ctl, method, name, body)?;
        let problem: Value = serde_json::from_str(&answer).context(answer.clone())?;
        let sentence = problem["error"].as_str().context(answer.clone())?;
        ensure!(
            status == wanted && sentence.contains(word) && !sentence.contains('\n'),
            "{method} {name} {body}: {status} {sentence}"
        );
    }
    let nonsense = bytes(story, ctl, b"\0\x01 what?\r\n\r\n")?;
    ensure!(nonsense.starts_with("HTTP/1.1 400"), "{nonsense}");
    let info = ctl.json(&["info"])?;
    ensure!(info["state"] == "Running", "{info}");
    Ok(())
}

/// A guest that has nobody to ask is reset and powered off, and the machine ends well.
fn ends_when_asked(story: &Story, mut linux: Linux, ctl: &Ctl<'_>) -> anyhow::Result<()> {
    let (status, body) = request(story, ctl, "PUT", "vm.reset", "")?;
    ensure!(status == 204 && body.is_empty(), "{status} {body}");
    linux.wait_ready()?;
    linux.sh("echo /bin/poweroff -f >/proc/sys/kernel/poweroff_cmd; true")?;
    ctl.wait_drivers()?;
    let (status, body) = request(story, ctl, "PUT", "vm.shutdown", "")?;
    ensure!(status == 204 && body.is_empty(), "{status} {body}");
    let output = linux.end()?;
    ensure!(output.status.success(), "vm.shutdown: {output}");
    Ok(())
}
