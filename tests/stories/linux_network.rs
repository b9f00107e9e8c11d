//! The network adapter, as a stock kernel's own driver sees it.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bed::l1::Process;
use bed::provision::Passt;
use bed::provision::kernel::{Kernel, Series};
use e2e::{Entry, Feature, Story};

use crate::ctl::Ctl;
use crate::stock::{COMMAND, Linux, Stock};

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("tap_of_6_1", |story| tap(story, Series::Linux6_1)),
    Entry::new("tap_of_6_12", |story| tap(story, Series::Linux6_12)),
    Entry::new("tap_of_7", |story| tap(story, Series::Linux7)),
    Entry::new("user_of_6_12", |story| user(story, Series::Linux6_12)),
    Entry::new("reloads_of_6_12", |story| reloads(story, Series::Linux6_12)),
];

/// The adapter's address.
const MAC: &str = "02:15:5d:00:00:07";

/// What the host's end of the tap is called, and its address; the guest gets another one of the
/// net.
pub(crate) const TAP: &str = "tap7";
const HOST: &str = "10.7.0.1";
const GUEST: &str = "10.7.0.7";

/// Bytes of a transfer.
const BYTES: u64 = 16 << 20;

/// For one transfer.
const TRANSFER: Duration = Duration::from_secs(120);

/// Within this the guest sees its cable: what it promises, and what the console takes.
const LINK: Duration = Duration::from_secs(3 + 2);

/// What `udhcpc` runs when it has an address.
const DHCP_SCRIPT: &str = "#!/bin/sh\n\
    [ \"$1\" = bound ] || exit 0\n\
    ifconfig \"$interface\" \"$ip\" netmask \"$subnet\"\n\
    [ -z \"$router\" ] || route add default gw \"$router\"\n";

/// Runs a line in L1, which must succeed; what it printed.
pub(crate) fn on_host(story: &Story, line: &str) -> anyhow::Result<String> {
    let output = story.l1().shell(line).run(COMMAND)?;
    ensure!(output.status.success(), "`{line}` on the host: {output}");
    Ok(output.stdout_text().trim().to_owned())
}

/// Loads a module, and what it needs, into L1's kernel.
fn load(story: &Story, name: &str) -> anyhow::Result<()> {
    for module in Kernel::get(Series::Linux6_12)?.modules(&[name])? {
        let path = story.file("module.ko");
        story.l1().put_bytes(&module.bytes, &path)?;
        let name = module.name.replace('-', "_");
        on_host(
            story,
            &format!("[ -d /sys/module/{name} ] || insmod {path}"),
        )?;
    }
    Ok(())
}

/// A tap in L1 with an address and a DHCP server, until this is dropped.
pub(crate) struct Tap<'a> {
    story: &'a Story,
    _dhcp: Process,
}

impl<'a> Tap<'a> {
    pub(crate) fn new(story: &'a Story) -> anyhow::Result<Self> {
        load(story, "tun")?;
        on_host(
            story,
            &format!(
                "mkdir -p /dev/net; [ -c /dev/net/tun ] || mknod /dev/net/tun c 10 200; \
                 tunctl -d {TAP} 2>/dev/null; tunctl -t {TAP} && \
                 ifconfig {TAP} {HOST} netmask 255.255.255.0 up"
            ),
        )?;
        let leases = story.file("leases");
        let config = story.file("udhcpd.conf");
        let text = format!(
            "start {GUEST}\nend {GUEST}\ninterface {TAP}\nlease_file {leases}\n\
             option subnet 255.255.255.0\noption router {HOST}\n"
        );
        story.l1().put_bytes(text.as_bytes(), &config)?;
        on_host(story, &format!(": >{leases}"))?;
        let dhcp = story.l1().command("udhcpd").args(["-f", "-I", HOST]);
        Ok(Self {
            story,
            _dhcp: dhcp.arg(config).spawn()?,
        })
    }

    /// A counter of the interface.
    fn counter(&self, name: &str) -> anyhow::Result<u64> {
        let path = format!("/sys/class/net/{TAP}/statistics/{name}");
        Ok(on_host(self.story, &format!("cat {path}"))?.parse()?)
    }
}

impl Drop for Tap<'_> {
    fn drop(&mut self) {
        // The next story makes it anew where this fails.
        let _ = on_host(self.story, &format!("tunctl -d {TAP}"));
    }
}

fn tap(story: &mut Story, series: Series) -> anyhow::Result<()> {
    let story = &*story;
    let tap = Tap::new(story)?;
    let ctl = Ctl::new(story);
    let mut linux = Stock::new(story, series)
        .program("bin/bound", DHCP_SCRIPT)
        .module("hv_netvsc")
        .args(["--api-socket", ctl.socket()])
        .args(["--net", &format!("tap={TAP},mac={MAC},mtu=9000,id=lan")])
        .boot()?;

    dhcp(&mut linux)?;
    story.proves(series, Feature::Dhcp);
    offloads(story, &mut linux, &tap)?;
    story.proves(series, Feature::Offloads);
    long_frames(story, &mut linux)?;
    story.proves(series, Feature::Mtu9000);
    cable(&mut linux, &ctl)?;
    story.proves(series, Feature::LinkState);
    linux.expect_clean_log()?;
    linux.power_off()?;
    Ok(())
}

/// The net that passt translates to the host's: its own address, and by whom it is reached there.
const USER: &str = "10.9.0.2";
const GATEWAY: &str = "10.9.0.1";

/// Puts passt into L1. It gives up its root directory, which an initramfs cannot do: so it gets the
/// same files by another mount. It gives the guest the address of an interface that leads out.
pub(crate) fn install_passt(story: &Story) -> anyhow::Result<()> {
    load(story, "dummy")?;
    for (local, name) in Passt::get()?.files {
        story.l1().put(local, &format!("/tmp/passt/{name}"))?;
    }
    let start = "#!/bin/sh\n[ \"$1\" = inside ] || exec unshare -m \"$0\" inside \"$@\"\nshift\n\
cd /real && mount --rbind / . && cd /real && mount --move . / &&\n\
exec chroot . /tmp/passt/ld.so --library-path /tmp/passt /tmp/passt/passt \"$@\"\n";
    story.l1().put_bytes(start.as_bytes(), "/bin/passt")?;
    let people = "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n";
    story.l1().put_bytes(people.as_bytes(), "/etc/passwd")?;
    on_host(
        story,
        &format!(
            "chmod 755 /bin/passt; mkdir -p /real; \
             ifconfig lo 127.0.0.1 up; ip link del dummy0 2>/dev/null; \
             ip link add dummy0 type dummy && ifconfig dummy0 {USER} netmask 255.255.255.0 up && \
             route add default gw {GATEWAY} dev dummy0"
        ),
    )?;
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

/// Bulk TCP each way, the content the same; segments leave the guest joined, and no checksum is
/// wrong for anybody.
fn offloads(story: &Story, linux: &mut Linux, tap: &Tap<'_>) -> anyhow::Result<()> {
    let wrong = "awk '/^Tcp: [0-9]/ { print $16 }' /proc/net/snmp";
    let (before, wrong_before) = (
        (tap.counter("rx_packets")?, tap.counter("rx_bytes")?),
        on_host(story, wrong)?,
    );
    to_host(story, linux, HOST)?;
    let packets = tap.counter("rx_packets")? - before.0;
    let bytes = tap.counter("rx_bytes")? - before.1;
    ensure!(
        bytes / packets > 3000,
        "{bytes} bytes came in {packets} frames: they were not joined"
    );
    to_guest(story, linux, HOST)?;
    let wrong_host = on_host(story, wrong)?;
    ensure!(
        wrong_host == wrong_before,
        "wrong checksums on the host: {wrong_host}"
    );
    let wrong_guest = linux.sh(wrong)?;
    ensure!(
        wrong_guest == "0",
        "wrong checksums in the guest: {wrong_guest}"
    );
    Ok(())
}

/// Opens a pipe that has no end as descriptor 3, for a `nc` that only receives: one whose input ends
/// closes its half of the connection, whereupon the other one ends before it has sent all.
pub(crate) fn open_end(pipe: &str) -> String {
    format!("[ -p {pipe} ] || mkfifo {pipe}; exec 3<>{pipe};")
}

/// The guest sends random bytes.
fn to_host(story: &Story, linux: &mut Linux, host: &str) -> anyhow::Result<()> {
    let server = format!(
        "{} nc -l -p 7001 <&3 | sha256sum",
        open_end(&story.file("end"))
    );
    let server = story.l1().shell(&server).spawn()?;
    listening(story, 7001)?;
    linux.sh(&format!("head -c {BYTES} /dev/urandom >/tmp/data"))?;
    let sent = linux.sh("sha256sum </tmp/data")?;
    linux.sh_within(&format!("nc {host} 7001 </tmp/data"), TRANSFER)?;
    let received = server.finish(TRANSFER)?.stdout_text();
    ensure!(received.trim() == sent, "sent {sent}, received {received}");
    Ok(())
}

/// The guest receives random bytes.
fn to_guest(story: &Story, linux: &mut Linux, host: &str) -> anyhow::Result<()> {
    let data = story.file("data");
    on_host(story, &format!("head -c {BYTES} /dev/urandom >{data}"))?;
    let sent = on_host(story, &format!("sha256sum <{data}"))?;
    let server = story
        .l1()
        .shell(&format!("nc -l -p 7002 <{data}"))
        .spawn()?;
    listening(story, 7002)?;
    let receive = format!("{} nc {host} 7002 <&3 | sha256sum", open_end("/tmp/end"));
    let received = linux.sh_within(&receive, TRANSFER)?;
    server.finish(TRANSFER)?;
    ensure!(received == sent, "sent {sent}, received {received}");
    Ok(())
}

/// Waits until somebody in L1 listens at `port`.
pub(crate) fn listening(story: &Story, port: u16) -> anyhow::Result<()> {
    let pattern = format!(":{port:04X} 0{{8}}:0000 0A|:{port:04X} 0{{32}}:0000 0A");
    let line = format!(
        "n=0; until grep -qE '{pattern}' /proc/net/tcp /proc/net/tcp6; do sleep 0.1; \
         n=$((n+1)); [ $n -lt 200 ] || exit 1; done"
    );
    on_host(story, &line).with_context(|| format!("nobody listens at {port}"))?;
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

/// The driver comes and goes, and nothing of the host's is left behind.
fn reloads(story: &mut Story, series: Series) -> anyhow::Result<()> {
    let count = story.count(20, 1000);
    let story = &*story;
    let mut linux = Stock::new(story, series)
        .module("hv_netvsc")
        .args(["--net", &format!("socket={},listen=on", story.file("net"))])
        .boot()?;
    // Each time with other buffers of 16 MiB, and a frame on its way when they go.
    let reload = "rmmod hv_netvsc && insmod /modules/hv_netvsc.ko; n=0; \
                  until [ -e /sys/class/net/eth0 ] || [ $n -ge 100 ]; do sleep 0.1; n=$((n+1)); \
                  done; ifconfig eth0 10.7.1.7 up && \
                  { arping -c 1 -w 1 -I eth0 10.7.1.1 >/dev/null; true; }";
    let held = |story: &Story| {
        on_host(
            story,
            "pid=$(pidof host-vsp); ls /proc/$pid/fd | wc -l; ls /proc/$pid/task | wc -l",
        )
    };
    linux.sh(reload)?;
    let before = held(story)?;
    for _ in 0..count {
        linux.sh(reload)?;
    }
    let after = held(story)?;
    ensure!(
        before == after,
        "files and threads of the host: {before:?} before, {after:?} after {count} reloads"
    );
    story.proves(series, Feature::NetReload);
    linux.expect_clean_log()?;
    linux.power_off()?;
    Ok(())
}
