//! Two machines that talk to each other, by a socket between them and by a bridge of the host's.

use anyhow::ensure;
use bed::provision::kernel::Series;
use e2e::{Entry, Feature, Story};

use crate::net::{TRANSFER, load, on_host, open_end};
use crate::stock::{Linux, Stock};

pub(crate) const STORIES: &[Entry] = &[Entry::new("two_of_6_12", two_machines)];

const SERIES: Series = Series::Linux6_12;

/// The bridge, and a tap for each machine.
const BRIDGE: &str = "br8";
const TAPS: [&str; 2] = ["tap81", "tap82"];

/// Bytes of a transfer.
const BYTES: u64 = 4 << 20;

fn two_machines(story: &mut Story) -> anyhow::Result<()> {
    let story = &*story;
    for module in ["tun", "bridge"] {
        load(story, module)?;
    }
    on_host(
        story,
        "mkdir -p /dev/net; [ -c /dev/net/tun ] || mknod /dev/net/tun c 10 200",
    )?;
    remove_bridge(story);
    on_host(
        story,
        &format!("brctl addbr {BRIDGE}; ifconfig {BRIDGE} up"),
    )?;
    for tap in TAPS {
        on_host(
            story,
            &format!("tunctl -t {tap} && brctl addif {BRIDGE} {tap} && ifconfig {tap} up"),
        )?;
    }
    let socket = story.file("wire");
    let mut machines = Vec::new();
    for (number, listen) in [(1, ",listen=on"), (2, "")] {
        let linux = Stock::new(story, SERIES)
            .cpus(1)
            .module("hv_netvsc")
            .args(["--net", &format!("socket={socket}{listen}")])
            .args(["--net", &format!("tap={}", TAPS[number - 1])])
            .boot()?;
        machines.push(linux);
    }
    let [mut first, mut second] =
        <[Linux; 2]>::try_from(machines).map_err(|_| anyhow::anyhow!("there are two machines"))?;
    for (number, linux) in [(1, &mut first), (2, &mut second)] {
        linux.sh(&format!(
            "ifconfig eth0 10.8.0.{number} netmask 255.255.255.0 up; \
             ifconfig eth1 10.8.1.{number} netmask 255.255.255.0 up"
        ))?;
    }
    for net in ["10.8.0", "10.8.1"] {
        first.sh(&format!("ping -c 2 -w 20 {net}.2"))?;
        transfer(&mut first, &mut second, &format!("{net}.2"))?;
        transfer(&mut second, &mut first, &format!("{net}.1"))?;
    }
    story.proves(SERIES, Feature::TwoMachines);
    for mut linux in [first, second] {
        linux.expect_clean_log()?;
        linux.power_off()?;
    }
    remove_bridge(story);
    Ok(())
}

/// Removes what a story has left, if it has.
fn remove_bridge(story: &Story) {
    let taps = TAPS
        .map(|tap| format!("tunctl -d {tap} 2>/dev/null; "))
        .concat();
    // Where there is none, there is nothing to remove; where it stays, making it fails.
    let _ = on_host(
        story,
        &format!("{taps} ifconfig {BRIDGE} down 2>/dev/null; brctl delbr {BRIDGE} 2>/dev/null"),
    );
}

/// Random bytes go from one machine to the other, which has the address `to`.
fn transfer(from: &mut Linux, into: &mut Linux, to: &str) -> anyhow::Result<()> {
    into.sh(&format!(
        "rm -f /tmp/sum; {} (nc -l -p 7005 <&3 | sha256sum >/tmp/sum &); \
         n=0; until grep -q :1B5D /proc/net/tcp /proc/net/tcp6; do sleep 0.1; n=$((n+1)); \
         [ $n -lt 200 ] || exit 1; done",
        open_end("/tmp/end")
    ))?;
    from.sh(&format!("head -c {BYTES} /dev/urandom >/tmp/data"))?;
    let sent = from.sh("sha256sum </tmp/data")?;
    from.sh_within(&format!("nc {to} 7005 </tmp/data"), TRANSFER)?;
    into.wait("-s /tmp/sum")?;
    let received = into.sh("cat /tmp/sum")?;
    ensure!(received == sent, "sent {sent}, received {received}");
    Ok(())
}
