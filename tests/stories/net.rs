//! Nets in L1 for stories: taps, passt, Debian's tools, and who is at the other end of a transfer.

use std::time::Duration;

use anyhow::{Context, ensure};
use bed::l1::Process;
use bed::provision::Carried;
use bed::provision::kernel::{Kernel, Series};
use e2e::Story;

use crate::stock::{COMMAND, Linux, carried};

/// What the host's end of the tap is called, and its address; the guest gets another one of the
/// net.
pub(crate) const TAP: &str = "tap7";
pub(crate) const HOST: &str = "10.7.0.1";
pub(crate) const GUEST: &str = "10.7.0.7";

/// Bytes of a transfer.
const BYTES: u64 = 4 << 20;

/// For one transfer.
pub(crate) const TRANSFER: Duration = Duration::from_secs(120);

/// What `udhcpc` runs when it has an address.
pub(crate) const DHCP_SCRIPT: &str = "#!/bin/sh\n\
    [ \"$1\" = bound ] || exit 0\n\
    ifconfig \"$interface\" \"$ip\" netmask \"$subnet\"\n\
    [ -z \"$router\" ] || route add default gw \"$router\"\n";

/// Debian's tools for nets, for a guest whose root is an initramfs: paths, and what is there.
pub(crate) fn tools() -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut files = carried(&Carried::net_tools()?)?;
    files.push(("etc/passwd".into(), b"root:x:0:0::/:/bin/sh\n".to_vec()));
    Ok(files)
}

/// Runs a line in L1, which must succeed; what it printed.
pub(crate) fn on_host(story: &Story, line: &str) -> anyhow::Result<String> {
    let output = story.l1().shell(line).run(COMMAND)?;
    ensure!(output.status.success(), "`{line}` on the host: {output}");
    Ok(output.stdout_text().trim().to_owned())
}

/// Loads a module, and what it needs, into L1's kernel.
pub(crate) fn load(story: &Story, name: &str) -> anyhow::Result<()> {
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
    /// A tap of one queue.
    pub(crate) fn new(story: &'a Story) -> anyhow::Result<Self> {
        Self::made_by(story, &format!("tunctl -t {TAP}"))
    }

    /// A tap of several queues.
    pub(crate) fn with_queues(story: &'a Story) -> anyhow::Result<Self> {
        story.provide(&Carried::iproute()?, IPROUTE)?;
        let line = format!("{IPROUTE}/ip.sh tuntap add {TAP} mode tap multi_queue");
        Self::made_by(story, &line)
    }

    fn made_by(story: &'a Story, line: &str) -> anyhow::Result<Self> {
        load(story, "tun")?;
        on_host(
            story,
            &format!(
                "mkdir -p /dev/net; [ -c /dev/net/tun ] || mknod /dev/net/tun c 10 200; \
                 ifconfig lo 127.0.0.1 up; ip link del {TAP} 2>/dev/null; {line} && \
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
    pub(crate) fn counter(&self, name: &str) -> anyhow::Result<u64> {
        let path = format!("/sys/class/net/{TAP}/statistics/{name}");
        Ok(on_host(self.story, &format!("cat {path}"))?.parse()?)
    }
}

/// What the host has lost on the way to the tap, for a failure; and how long its queue is.
pub(crate) fn tap_losses(story: &Story) -> anyhow::Result<String> {
    let line = format!(
        "cd /sys/class/net/{TAP}; grep . statistics/*dropped statistics/*errors tx_queue_len"
    );
    on_host(story, &line)
}

impl Drop for Tap<'_> {
    fn drop(&mut self) {
        // The next story makes it anew where this fails.
        let _ = on_host(self.story, &format!("ip link del {TAP}"));
    }
}

/// Where Debian's `ip` is in L1.
const IPROUTE: &str = "/tmp/iproute";

/// Where passt is in L1.
const PASST: &str = "/tmp/passt";

/// The net that passt translates to the host's: its own address, and by whom it is reached there.
pub(crate) const USER: &str = "10.9.0.2";
pub(crate) const GATEWAY: &str = "10.9.0.1";

/// Runs passt. It gives up its root directory, which nobody can whose root is an initramfs: so it
/// gets the same files by another mount, which it sees in the place of the first.
const PASST_SCRIPT: &str = r#"#!/bin/sh
[ "$1" = inside ] || exec unshare -m "$0" inside "$@"
shift
cd /real && mount --rbind / . && cd /real && mount --move . / &&
exec chroot . DIR/ld-linux-x86-64.so.2 --library-path DIR DIR/passt "$@"
"#;

/// Puts passt into L1. It gives the guest the address of an interface that leads out.
pub(crate) fn install_passt(story: &Story) -> anyhow::Result<()> {
    load(story, "dummy")?;
    story.provide(&Carried::passt()?, PASST)?;
    let script = PASST_SCRIPT.replace("DIR", PASST);
    story.l1().put_bytes(script.as_bytes(), "/bin/passt")?;
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

/// Opens a pipe that has no end as descriptor 3, for a `nc` that only receives: one whose input ends
/// closes its half of the connection, whereupon the other one ends before it has sent all.
pub(crate) fn open_end(pipe: &str) -> String {
    format!("[ -p {pipe} ] || mkfifo {pipe}; exec 3<>{pipe};")
}

/// The guest sends random bytes.
pub(crate) fn to_host(story: &Story, linux: &mut Linux, host: &str) -> anyhow::Result<()> {
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
pub(crate) fn to_guest(story: &Story, linux: &mut Linux, host: &str) -> anyhow::Result<()> {
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
