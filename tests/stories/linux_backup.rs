//! Key-value pairs and file systems that stand still, with Debian's own daemons in the guest.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bed::provision::hyperv_daemons;
use bed::provision::kernel::{Kernel, Series};
use e2e::{Entry, Feature, Story};
use serde_json::Value;

use crate::ctl::Ctl;
use crate::stock::{COMMAND, Linux, Stock, make_disk};

pub(crate) const STORIES: &[Entry] = &[Entry::new("daemons_of_6_12", daemons)];

const SERIES: Series = Series::Linux6_12;

fn daemons(story: &mut Story) -> anyhow::Result<()> {
    let ctl = Ctl::new(story);
    let disk = make_disk(story)?;
    let files = hyperv_daemons()?;
    let mut stock = Stock::new(story, SERIES)
        .module("ext4")
        .module("dummy")
        .disk(&disk)
        .args(["--api-socket", ctl.socket()]);
    for (path, bytes) in &files {
        stock = stock.file(path, bytes);
    }
    let mut linux = stock.boot()?;
    linux.sh("mkdir -p /var/lib /var/opt /etc && echo Europa >/etc/hostname")?;
    nobody_there(&ctl)?;

    linux.sh("daemon hv_kvp_daemon >/tmp/kvp 2>&1 & echo $! >/tmp/kvp.pid")?;
    linux.sh("daemon hv_vss_daemon >/tmp/vss 2>&1 & echo $! >/tmp/vss.pid")?;
    linux.wait_disk()?;
    linux
        .sh("mke2fs -F /dev/sda >/dev/null && mount -t ext4 /dev/sda /mnt && echo 1 >/mnt/file")?;
    ctl.wait_guest("the pairs", |guest| {
        guest["kvp"] == true && guest["vss"] == true
    })?;
    the_guest_describes_itself(&mut linux, &ctl)?;
    story.proves(SERIES, Feature::Kvp);
    a_pair_for_the_guest(&mut linux, &ctl)?;
    story.proves(SERIES, Feature::Vss);

    frozen_until_thawed(&mut linux, &ctl)?;
    frozen_for_a_second(&mut linux, &ctl)?;
    frozen_for_a_command(story, &mut linux, &ctl)?;
    linux.expect_clean_log()?;

    linux.sh("kill -9 $(cat /tmp/kvp.pid) $(cat /tmp/vss.pid)")?;
    for words in [&["kvp", "list"][..], &["freeze"]] {
        // Refused, or not answered in time, as the guest's driver has it.
        let refused = ctl.refused(words)?;
        ensure!(refused.trim_end().lines().count() == 1, "{refused}");
    }
    linux.sh("umount /mnt")?;
    linux.power_off()?;
    Ok(())
}

/// Without the daemons, a sentence and no waiting.
fn nobody_there(ctl: &Ctl<'_>) -> anyhow::Result<()> {
    for (words, daemon) in [
        (&["kvp", "list"][..], "hv_kvp_daemon"),
        (&["kvp", "set", "a", "b"], "hv_kvp_daemon"),
        (&["freeze"], "hv_vss_daemon"),
    ] {
        let begin = Instant::now();
        let refused = ctl.refused(words)?;
        ensure!(
            refused.contains(daemon) && refused.trim_end().lines().count() == 1,
            "{words:?} without a daemon: {refused}"
        );
        ensure!(begin.elapsed() < Duration::from_secs(30), "{words:?} waits");
    }
    let refused = ctl.refused(&["thaw"])?;
    ensure!(refused.contains("are not frozen"), "{refused}");
    Ok(())
}

/// What the guest's daemon says is what the guest says.
fn the_guest_describes_itself(linux: &mut Linux, ctl: &Ctl<'_>) -> anyhow::Result<()> {
    linux.sh("ip link add dummy0 type dummy; ip addr add 192.0.2.77/24 dev dummy0; ip link set dummy0 up")?;
    let pairs = ctl.json(&["kvp", "list"])?;
    let value = |key: &str| {
        let pairs = pairs.as_array()?;
        let pair = pairs.iter().find(|pair| pair["key"] == key)?;
        pair["value"].as_str()
    };
    let version = value("OSVersion").with_context(|| format!("no OSVersion: {pairs}"))?;
    let release = Kernel::get(SERIES)?.version();
    // The daemon leaves out what Debian calls its builds.
    ensure!(
        !version.is_empty() && release.starts_with(version),
        "OSVersion is {version:?} on {release}"
    );
    let build = value("OSBuildNumber").with_context(|| format!("no OSBuildNumber: {pairs}"))?;
    ensure!(build == release, "OSBuildNumber is {build:?} on {release}");
    let addresses = value("NetworkAddressIPv4").unwrap_or_default();
    ensure!(
        addresses.contains("192.0.2.77"),
        "the guest's addresses are {addresses:?}: {pairs}"
    );
    let one = ctl.json(&["kvp", "get", "OSBuildNumber"])?;
    ensure!(one["value"] == build, "{one}");
    let missing = ctl.refused(&["kvp", "get", "OSColour"])?;
    ensure!(missing.contains("no key \"OSColour\""), "{missing}");
    Ok(())
}

/// The host writes, the guest reads; and the other way round.
fn a_pair_for_the_guest(linux: &mut Linux, ctl: &Ctl<'_>) -> anyhow::Result<()> {
    const POOL: &str = "/var/lib/hyperv/.kvp_pool_0";
    // A record: 512 bytes of key, 2048 of value; each ends with its first zero.
    let read = format!(
        "head -c 512 {POOL} | tr '\\0' '\\n' | head -n 1; \
         tail -c +513 {POOL} | tr '\\0' '\\n' | head -n 1"
    );
    ctl.call(&["kvp", "set", "role", "grün & 2nd"])?;
    let pool = linux.sh(&read)?;
    ensure!(pool == "role\ngrün & 2nd", "the guest has {pool:?}");
    ctl.call(&["kvp", "set", "role", "other"])?;
    let pair = ctl.json(&["kvp", "get", "--pool", "external", "role"])?;
    ensure!(pair["value"] == "other", "{pair}");
    let pool = linux.sh(&read)?;
    ensure!(pool == "role\nother", "the guest has {pool:?}");
    ctl.call(&["kvp", "delete", "role"])?;
    let missing = ctl.refused(&["kvp", "delete", "role"])?;
    ensure!(missing.contains("no key \"role\""), "{missing}");
    let pool = linux.sh(&read)?;
    ensure!(pool.trim().is_empty(), "the guest has {pool:?}");
    // A record of the guest's own pool.
    linux.sh(
        "printf mood | dd of=/var/lib/hyperv/.kvp_pool_1 bs=512 conv=sync 2>/dev/null; \
         printf good | dd bs=2048 conv=sync 2>/dev/null >>/var/lib/hyperv/.kvp_pool_1",
    )?;
    let pairs = ctl.json(&["kvp", "list", "--pool", "guest"])?;
    ensure!(
        pairs[0]["key"] == "mood" && pairs[0]["value"] == "good",
        "{pairs}"
    );
    let long = "v".repeat(1024);
    let refused = ctl.refused(&["kvp", "set", "k", &long])?;
    ensure!(refused.contains("a value 1023"), "{refused}");
    Ok(())
}

/// Writes in the background, and notes when that is done.
fn write(linux: &mut Linux, text: &str) -> anyhow::Result<()> {
    let command = format!("(echo {text} >/mnt/file && sync /mnt/file; echo {text} >/tmp/wrote) &");
    linux.sh(&command).map(drop)
}

fn wrote(linux: &mut Linux, text: &str) -> anyhow::Result<bool> {
    let last = linux.sh("cat /tmp/wrote 2>/dev/null; true")?;
    Ok(last == text)
}

fn is_frozen(ctl: &Ctl<'_>) -> anyhow::Result<bool> {
    let guest = ctl.json(&["guest"])?;
    guest["frozen"].as_bool().context("no `frozen`")
}

/// Each side sees that a write waits for the thaw.
fn frozen_until_thawed(linux: &mut Linux, ctl: &Ctl<'_>) -> anyhow::Result<()> {
    ctl.call(&["freeze", "--seconds", "300"])?;
    ensure!(is_frozen(ctl)?, "the host does not know");
    let refused = ctl.refused(&["freeze"])?;
    ensure!(refused.contains("stand still already"), "{refused}");
    write(linux, "thawed")?;
    thread::sleep(Duration::from_secs(3));
    ensure!(!wrote(linux, "thawed")?, "a write went through");
    ctl.call(&["thaw"])?;
    linux.wait("thawed = \"$(cat /tmp/wrote)\"")?;
    ensure!(!is_frozen(ctl)?, "the host does not know");
    let refused = ctl.refused(&["thaw"])?;
    ensure!(refused.contains("are not frozen"), "{refused}");
    Ok(())
}

/// Nobody thaws, so the machine does; and where a client dies that held a freeze.
fn frozen_for_a_second(linux: &mut Linux, ctl: &Ctl<'_>) -> anyhow::Result<()> {
    ctl.call(&["freeze", "--seconds", "2"])?;
    write(linux, "late")?;
    linux.wait("late = \"$(cat /tmp/wrote)\"")?;
    linux.host_says("stood still long enough")?;

    let client = ctl.begin(&["freeze", "--seconds", "300", "--", "sleep", "300"])?;
    ctl.wait_guest("the freeze", |guest| guest["frozen"] == true)?;
    write(linux, "orphan")?;
    thread::sleep(Duration::from_secs(2));
    ensure!(!wrote(linux, "orphan")?, "a write went through");
    // Dropped, it is killed.
    drop(client);
    linux.wait("orphan = \"$(cat /tmp/wrote)\"")?;
    ensure!(!is_frozen(ctl)?, "the host does not know");
    Ok(())
}

/// The way it is used: a copy of the image, of one moment.
fn frozen_for_a_command(story: &Story, linux: &mut Linux, ctl: &Ctl<'_>) -> anyhow::Result<()> {
    write(linux, "copied")?;
    linux.wait("copied = \"$(cat /tmp/wrote)\"")?;
    let (disk, copy) = (story.file("disk.img"), story.file("copy.img"));
    ctl.call(&["freeze", "--seconds", "60", "--", "cp", &disk, &copy])?;
    ensure!(!is_frozen(ctl)?, "it is not thawed");
    let found = story.l1().command("grep").args(["-c", "copied", &copy]);
    let found = found.run(COMMAND)?;
    ensure!(found.status.success(), "the copy has no `copied`: {found}");
    // The command's own exit code comes through.
    let failed = ctl.output(&["freeze", "--", "sh", "-c", "exit 7"])?;
    ensure!(failed.status.code() == Some(7), "{failed}");
    // A copy that was not done in time is none.
    let late = ctl.output(&["freeze", "--seconds", "1", "--", "sleep", "4"])?;
    ensure!(
        !late.status.success() && late.stderr_text().contains("--seconds"),
        "{late}"
    );
    let guest: Value = ctl.json(&["guest"])?;
    ensure!(guest["frozen"] == false, "{guest}");
    Ok(())
}
