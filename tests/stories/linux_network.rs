//! The network adapter, as a stock kernel's own driver sees it.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bed::l1::Signal;
use bed::provision::kernel::Series;
use bed::wire::Stream;
use e2e::{Entry, Feature, Story};

use crate::ctl::Ctl;
use crate::held::held;
use crate::net::{
    DHCP_SCRIPT, GATEWAY, GUEST, HOST, TAP, TRANSFER, Tap, USER, install_passt, listening, on_host,
    open_end, tap_losses, to_guest, to_host, tools,
};
use crate::stock::{COMMAND, Linux, Stock};

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("tap_of_6_1", |story| tap(story, Series::Linux6_1)),
    Entry::new("tap_of_6_12", |story| tap(story, Series::Linux6_12)),
    Entry::new("tap_of_7", |story| tap(story, Series::Linux7)),
    Entry::new("queues_of_6_12", |story| queues(story, Series::Linux6_12)),
    Entry::new("user_of_6_12", |story| user(story, Series::Linux6_12)),
    Entry::new("reloads_of_6_12", |story| reloads(story, Series::Linux6_12)),
];

/// The adapter's address.
const MAC: &str = "02:15:5d:00:00:07";

/// Within this the guest sees its cable: what it promises, and what the console takes.
const LINK: Duration = Duration::from_secs(3 + 2);

fn tap(story: &mut Story, series: Series) -> anyhow::Result<()> {
    let story = &*story;
    let tap = Tap::new(story)?;
    let ctl = Ctl::new(story);
    let tools = tools()?;
    let mut stock = Stock::new(story, series)
        .program("bin/bound", DHCP_SCRIPT)
        .module("hv_netvsc")
        .args(["--api-socket", ctl.socket()])
        .args(["--net", &format!("tap={TAP},mac={MAC},mtu=9000,id=lan")]);
    for (path, bytes) in &tools {
        stock = stock.file(path, bytes);
    }
    not_for_others(story)?;
    let mut linux = stock.boot()?;

    dhcp(&mut linux)?;
    story.proves(series, Feature::Dhcp);
    offloads(story, &mut linux, &tap)?;
    story.proves(series, Feature::Offloads);
    joined(story, &mut linux, &ctl)?;
    story.proves(series, Feature::JoinedSegments);
    streams(story, &mut linux, &ctl)?;
    story.proves(series, Feature::Iperf);
    checksums_in_software(story, &mut linux)?;
    story.proves(series, Feature::ChecksumsInSoftware);
    long_frames(story, &mut linux)?;
    story.proves(series, Feature::Mtu9000);
    cable(&mut linux, &ctl)?;
    story.proves(series, Feature::LinkState);
    linux.expect_clean_log()?;
    linux.power_off()?;
    Ok(())
}

/// passt in L1: an address, TCP both ways by way of the host's sockets, and a port of the host's
/// that is the guest's.
fn user(story: &mut Story, series: Series) -> anyhow::Result<()> {
    let story = &*story;
    install_passt(story)?;
    let mut linux = Stock::new(story, series)
        .program("bin/bound", DHCP_SCRIPT)
        .module("hv_netvsc")
        .args(["--net", &format!("user,mac={MAC},forward=tcp:7003:7004")])
        .boot()?;
    linux.sh("ifconfig lo 127.0.0.1 up; ifconfig eth0 up")?;
    linux.sh("udhcpc -i eth0 -n -q -s /bin/bound")?;
    let address = linux.sh("ip -4 addr show dev eth0")?;
    ensure!(address.contains(USER), "{address}");
    to_host(story, &mut linux, GATEWAY)?;
    to_guest(story, &mut linux, GATEWAY)?;

    let listen = format!(
        "{} (nc -l -p 7004 <&3 >/tmp/said &); sleep 1",
        open_end("/tmp/end")
    );
    linux.sh(&listen)?;
    on_host(story, "echo forwarded | nc -w 20 127.0.0.1 7003")?;
    let said = linux.sh("n=0; until [ -s /tmp/said ]; do sleep 0.1; n=$((n+1)); [ $n -lt 200 ] || break; done; cat /tmp/said")?;
    ensure!(said == "forwarded", "the guest got {said:?}");
    linux.expect_clean_log()?;
    linux.power_off()?;
    Ok(())
}

/// An address, and somebody to talk to.
fn dhcp(linux: &mut Linux) -> anyhow::Result<()> {
    let mac = linux.sh("cat /sys/class/net/eth0/address")?;
    ensure!(mac == MAC, "the adapter's address is {mac}");
    linux.sh("ifconfig lo 127.0.0.1 up; ifconfig eth0 up")?;
    linux.sh("udhcpc -i eth0 -n -q -s /bin/bound")?;
    let address = linux.sh("ip -4 addr show dev eth0")?;
    ensure!(address.contains(GUEST), "{address}");
    linux.sh(&format!("ping -c 3 -w 20 {HOST}"))?;
    Ok(())
}

/// A tap of root's is no other user's.
fn not_for_others(story: &Story) -> anyhow::Result<()> {
    let (program, kernel) = (story.host_vsp_program()?, story.stock_kernel()?);
    let line = format!(
        "chmod 666 /dev/net/tun /dev/kvm; \
         grep -q ^tester: /etc/passwd 2>/dev/null || \
         echo 'tester:x:1000:1000::/:/bin/sh' >>/etc/passwd; \
         su tester -c '{program} run --kernel {kernel} --net tap={TAP}'"
    );
    let output = story.l1().shell(&line).run(COMMAND)?;
    let said = output.stderr_text();
    ensure!(
        output.status.code() == Some(1)
            && said.trim_end().lines().count() == 1
            && said.contains("belongs to another user"),
        "somebody else's tap: {output}"
    );
    Ok(())
}

/// How many TCP segments with a wrong checksum have come in.
const WRONG_CHECKSUMS: &str = "awk '/^Tcp: [0-9]/ { print $16 }' /proc/net/snmp";

/// Bulk TCP each way, the content the same; segments leave the guest joined, and no checksum is
/// wrong for anybody.
fn offloads(story: &Story, linux: &mut Linux, tap: &Tap<'_>) -> anyhow::Result<()> {
    let features = linux.sh("ethtool -k eth0")?;
    for feature in [
        "rx-checksumming: on",
        "tx-checksumming: on",
        "scatter-gather: on",
        "tcp-segmentation-offload: on",
    ] {
        ensure!(features.contains(feature), "no {feature}: {features}");
    }
    let (before, wrong_before) = (
        (tap.counter("rx_packets")?, tap.counter("rx_bytes")?),
        on_host(story, WRONG_CHECKSUMS)?,
    );
    to_host(story, linux, HOST)?;
    let packets = tap.counter("rx_packets")? - before.0;
    let bytes = tap.counter("rx_bytes")? - before.1;
    ensure!(
        bytes / packets > 3000,
        "{bytes} bytes came in {packets} frames: they were not joined"
    );
    to_guest(story, linux, HOST)?;
    let wrong_host = on_host(story, WRONG_CHECKSUMS)?;
    ensure!(
        wrong_host == wrong_before,
        "wrong checksums on the host: {wrong_host}"
    );
    let wrong_guest = linux.sh(WRONG_CHECKSUMS)?;
    ensure!(
        wrong_guest == "0",
        "wrong checksums in the guest: {wrong_guest}"
    );
    Ok(())
}

/// A guest that wants segments joined gets long frames with what it asks for; one that does not
/// gets none that is longer than its MTU, although the tap has them joined. Linux begins without,
/// whatever it shows: it takes note of a change only.
fn joined(story: &Story, linux: &mut Linux, ctl: &Ctl<'_>) -> anyhow::Result<()> {
    let given = || -> anyhow::Result<u64> {
        let counters = ctl.json(&["counters"])?;
        let count = counters["devices"]["lan.queue0.rx_joined"].as_u64();
        count.with_context(|| format!("no counter: {counters}"))
    };
    let received = "cd /sys/class/net/eth0/statistics; echo $(cat rx_bytes rx_packets)";
    for (wish, are_joined) in [("off", false), ("on", true)] {
        linux.sh(&format!("ethtool -K eth0 lro {wish}"))?;
        let shown = linux.sh("ethtool -k eth0 | grep ^large-receive-offload")?;
        ensure!(shown.ends_with(&format!(": {wish}")), "{shown}");
        let before = (numbers(&linux.sh(received)?)?, given()?);
        to_guest(story, linux, HOST)?;
        let after = (numbers(&linux.sh(received)?)?, given()?);
        let [bytes, frames] = [0, 1].map(|at| after.0[at] - before.0[at]);
        let joined = after.1 - before.1;
        ensure!(
            if are_joined {
                joined > 0 && bytes > 3000 * frames
            } else {
                joined == 0 && bytes <= 1514 * frames
            },
            "{wish}: {bytes} bytes in {frames} frames, {joined} of them in pieces"
        );
    }
    let wrong = linux.sh(WRONG_CHECKSUMS)?;
    ensure!(wrong == "0", "wrong checksums in the guest: {wrong}");
    linux.sh("ethtool -K eth0 lro off")?;
    Ok(())
}

/// Debian's `iperf3` both ways with one stream and with many; next to nothing is sent twice.
fn streams(story: &Story, linux: &mut Linux, ctl: &Ctl<'_>) -> anyhow::Result<()> {
    story.provide_net_tools()?;
    let _server = story.l1().command("iperf3").arg("-s").spawn()?;
    listening(story, 5201)?;
    // Segments sent, and those sent again.
    let sent = "awk '/^Tcp: [0-9]/ { print $12, $13 }' /proc/net/snmp";
    let guest_before = numbers(&linux.sh(sent)?)?;
    let host_before = numbers(&on_host(story, sent)?)?;
    let mut retransmits = Vec::new();
    for options in ["-P 1", "-P 8", "-P 1 -R", "-P 8 -R"] {
        iperf(linux, ctl, options)?;
        let all = [linux.sh(sent)?, on_host(story, sent)?];
        retransmits.push(format!("{options}: {} and {}", all[0], all[1]));
    }
    for (whose, before, after) in [
        ("guest", guest_before, numbers(&linux.sh(sent)?)?),
        ("host", host_before, numbers(&on_host(story, sent)?)?),
    ] {
        let [segments, again] = [after[0] - before[0], after[1] - before[1]];
        if segments <= 1000 || again * 1000 >= segments {
            let (lost, counters) = (tap_losses(story)?, ctl.call(&["counters"])?);
            anyhow::bail!(
                "the {whose} has sent {segments} segments, {again} of them again; guest and host \
                 had sent, and again, after {retransmits:?}\n{lost}\n{counters}"
            );
        }
    }
    Ok(())
}

/// What is to be seen of the adapter's rings in the guest, for a failure.
const RINGS: &str = "for d in /sys/class/net/eth0/device/channels/*; do echo $d; cd $d; \
    grep . out_mask in_mask read_avail write_avail interrupts events cpu; done; \
    ethtool -S eth0 | grep -v ': 0'; cat /tmp/iperf";

/// Runs `iperf3` in the guest, to the server in L1. How long it takes is the machine's affair. It
/// looks whether it has sent all at the end of each interval only.
fn iperf(linux: &mut Linux, ctl: &Ctl<'_>, options: &str) -> anyhow::Result<()> {
    let line = format!("timeout 60 iperf3 -c {HOST} -n 16M -f m {options} >/tmp/iperf 2>&1");
    if let Err(error) = linux.sh_within(&line, TRANSFER) {
        let counters = ctl.call(&["counters"])?;
        let rings = linux.sh(RINGS)?;
        anyhow::bail!("{error:#}\n{rings}\n{counters}");
    }
    let received = linux.sh("grep receiver /tmp/iperf | tail -1")?;
    ensure!(
        received.contains("MBytes"),
        "iperf3 {options}: {received:?}"
    );
    Ok(())
}

/// Numbers between spaces: two of them.
fn numbers(text: &str) -> anyhow::Result<[u64; 2]> {
    let numbers: Result<Vec<u64>, _> = text.split_whitespace().map(str::parse).collect();
    let numbers = numbers.with_context(|| text.to_owned())?;
    <[u64; 2]>::try_from(numbers).map_err(|_| anyhow::anyhow!("not two numbers: {text:?}"))
}

/// A guest that computes checksums and cuts segments itself: whoever looks at the tap sees right
/// checksums, and no frame above the MTU.
fn checksums_in_software(story: &Story, linux: &mut Linux) -> anyhow::Result<()> {
    linux.sh("ethtool -K eth0 tx off tso off gso off")?;
    let seen = story.file("seen");
    let mut dump = story
        .l1()
        .command("tcpdump")
        .args(["-i", TAP, "-Z", "root", "-U", "-w", &seen])
        .arg(format!("src host {GUEST} and tcp"))
        .spawn()?;
    dump.expect_line_on(Stream::Stderr, "listening on", COMMAND)?;
    to_host(story, linux, HOST)?;
    dump.signal(Signal::INT)?;
    dump.wait(COMMAND)?;
    let count = |options: &str| -> anyhow::Result<u64> {
        let line = format!("tcpdump -Z root -nr {seen} {options} 2>/dev/null | wc -l");
        Ok(on_host(story, &line)?.parse()?)
    };
    let right = count("-vv | grep 'Flags.*cksum.*(correct)'")?;
    let wrong = count("-vv | grep 'cksum.*incorrect'")?;
    let long = count("greater 1515")?;
    ensure!(
        right > 1000 && wrong == 0 && long == 0,
        "{right} frames have a right checksum, {wrong} a wrong one; {long} are above the MTU"
    );
    linux.sh("ethtool -K eth0 tx on tso on gso on")?;
    Ok(())
}

/// An MTU of 9000 is another channel with other buffers; frames of that length go both ways.
fn long_frames(story: &Story, linux: &mut Linux) -> anyhow::Result<()> {
    on_host(story, &format!("ifconfig {TAP} mtu 9000"))?;
    linux.sh("ifconfig eth0 mtu 9000")?;
    let up = format!("ifconfig eth0 {GUEST} netmask 255.255.255.0 up");
    linux.sh(&up)?;
    let mtu = linux.sh("cat /sys/class/net/eth0/mtu")?;
    ensure!(mtu == "9000", "the MTU is {mtu}");
    let ping = format!("ping -c 3 -w 20 -s 8972 {HOST}");
    linux.sh(&ping)?;
    // In one frame each, or these would not fit.
    let fragments = linux.sh("awk '/^Ip: [0-9]/ { print $20 }' /proc/net/snmp")?;
    ensure!(fragments == "0", "{fragments} fragments were made");
    Ok(())
}

/// The host pulls the cable and plugs it in.
fn cable(linux: &mut Linux, ctl: &Ctl<'_>) -> anyhow::Result<()> {
    for (link, carrier) in [("down", "0"), ("up", "1")] {
        // A guest delays changes that follow each other within two seconds.
        thread::sleep(Duration::from_secs(2));
        ctl.call(&["set-link", "lan", link])?;
        let begin = Instant::now();
        loop {
            let now = linux.sh("cat /sys/class/net/eth0/carrier")?;
            if now == carrier {
                break;
            }
            ensure!(
                begin.elapsed() < LINK,
                "{link}: the guest's carrier is {now}"
            );
        }
    }
    linux.sh(&format!("ping -c 1 -w 20 {HOST}"))?;
    Ok(())
}

/// A channel for each of four processors, all with traffic, counted in the guest and on the host.
fn queues(story: &mut Story, series: Series) -> anyhow::Result<()> {
    let story = &*story;
    let _tap = Tap::with_queues(story)?;
    let ctl = Ctl::new(story);
    let tools = tools()?;
    let mut stock = Stock::new(story, series)
        .cpus(4)
        .program("bin/bound", DHCP_SCRIPT)
        .module("hv_netvsc")
        .args(["--api-socket", ctl.socket()])
        .args(["--net", &format!("tap={TAP},mac={MAC},queues=4,id=lan")]);
    for (path, bytes) in &tools {
        stock = stock.file(path, bytes);
    }
    let mut linux = stock.boot()?;
    dhcp(&mut linux)?;
    // Linux uses half of its processors unless it is told.
    linux.sh("ethtool -L eth0 combined 4")?;
    linux.sh(&format!("ifconfig eth0 {GUEST} netmask 255.255.255.0 up"))?;
    let channels = linux.sh("ethtool -l eth0 | grep Combined: | tail -1")?;
    ensure!(channels.ends_with('4'), "{channels}");

    story.provide_net_tools()?;
    let _server = story.l1().command("iperf3").arg("-s").spawn()?;
    listening(story, 5201)?;
    iperf(&mut linux, &ctl, "-P 8")?;
    iperf(&mut linux, &ctl, "-P 8 -R")?;
    to_host(story, &mut linux, HOST)?;
    to_guest(story, &mut linux, HOST)?;
    let statistics = linux.sh("ethtool -S eth0")?;
    let counters = ctl.json(&["counters"])?;
    for (in_guest, on_host) in [("tx_queue", "tx_frames"), ("rx_queue", "rx_frames")] {
        let busy = (0..4).filter(|queue| {
            let name = format!("{in_guest}_{queue}_packets: ");
            let line = statistics
                .lines()
                .find_map(|it| it.trim().strip_prefix(&name));
            line.is_some_and(|count| count.parse::<u64>().is_ok_and(|count| count > 100))
        });
        let busy = busy.count();
        let served = (0..4).filter(|queue| {
            let count = counters["devices"][format!("lan.queue{queue}.{on_host}")].as_u64();
            count.is_some_and(|count| count > 100)
        });
        let served = served.count();
        ensure!(
            busy > 1 && served > 1,
            "{in_guest}: {busy} busy in the guest, {served} on the host\n{statistics}\n{counters}"
        );
    }
    story.proves(series, Feature::NetQueues);
    linux.expect_clean_log()?;
    linux.power_off()?;
    Ok(())
}

/// The driver comes and goes, and nothing of the host's is left behind.
fn reloads(story: &mut Story, series: Series) -> anyhow::Result<()> {
    let count = story.count(20, 1000);
    let story = &*story;
    let ctl = Ctl::new(story);
    let mut linux = Stock::new(story, series)
        .module("hv_netvsc")
        .args(["--api-socket", ctl.socket()])
        .args(["--net", &format!("socket={},listen=on", story.file("net"))])
        .boot()?;
    // Each time with other buffers of 16 MiB, and frames on their way when they go.
    let reload = "rmmod hv_netvsc && insmod /modules/hv_netvsc.ko; n=0; \
                  until [ -e /sys/class/net/eth0 ] || [ $n -ge 300 ]; do sleep 0.1; n=$((n+1)); \
                  done; ifconfig eth0 10.7.1.7 up && \
                  { arping -c 9 -w 1 -I eth0 10.7.1.1 >/dev/null 2>&1 & }";
    // The allocator has its fill before.
    for _ in 0..5 {
        linux.sh(reload)?;
    }
    let (before, memory_before) = held(story, &ctl)?;
    let mut trend = Vec::new();
    for number in 1..=count {
        linux.sh(reload)?;
        if number % (count / 4) == 0 {
            trend.push(held(story, &ctl)?.1);
        }
    }
    let (after, memory_after) = held(story, &ctl)?;
    ensure!(
        before == after,
        "files, threads, GPADLs and their pages: {before:?} before, {after:?} after {count} reloads"
    );
    ensure!(
        memory_after < memory_before + 1024,
        "{memory_before} KiB before, {trend:?} in the course of {count} reloads"
    );
    story.proves(series, Feature::NetReload);
    linux.expect_clean_log()?;
    linux.power_off()?;
    Ok(())
}
