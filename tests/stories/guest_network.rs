//! The network of the guest kernel's own driver: an address, an echo, and TCP with hashes of the
//! content, on both sides of passt.

use std::time::Duration;

use anyhow::{Context, ensure};
use bed::l1::Process;
use bed::wire::Stream;
use e2e::{Entry, Story};

use crate::ctl::Ctl;
use crate::guest::{Guest, Vm};
use crate::net::{GUEST, TAP, Tap, install_passt, listening, on_host, open_end};

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("guest_kernel_on_the_users_net", user),
    Entry::new("guest_kernel_on_a_tap", tap),
    Entry::new("guest_kernel_on_a_tap_of_four_queues", queues),
];

/// Bytes that go each way.
const BYTES: u64 = 64 << 20;

/// For one of these transfers, three virtual machines deep.
const TRANSFER: Duration = Duration::from_secs(240);

/// passt gives the guest the address of the interface that leads out of L1.
const USER: &str = "10.9.0.2";

/// Bytes that the guest sends back.
pub(crate) const ECHO: usize = 200_000;

/// The port of the host's that is the guest's port 7.
const FORWARDED: u16 = 7005;

fn user(story: &mut Story) -> anyhow::Result<()> {
    let story = &*story;
    provide_user_net(story)?;
    let (sender, sent) = sender(story, BYTES)?;
    let receiver = receiver(story)?;
    let mut guest = Guest::new(story, "network,tcp-fetch,tcp-push,tcp-echo")
        .option("seed", rand::random::<u64>())
        .option("net.bytes", BYTES)
        .option("net.seconds", TRANSFER.as_secs())
        .args(["--net", &format!("user,forward=tcp:{FORWARDED}:7")])
        .start()?;

    let address = guest.says("by DHCP")?;
    ensure!(address.contains(USER), "the guest's address: {address}");
    ensure!(address.contains("VMBus network"), "{address}");
    guest.says("echoes of")?;
    let fetched = transfer(&mut guest, "fetched: ", BYTES)?;
    sender.finish(TRANSFER)?;
    ensure!(fetched == sent, "sent {sent}, the guest got {fetched}");
    let pushed = transfer(&mut guest, "pushed: ", BYTES)?;
    let received = receiver.finish(TRANSFER)?.stdout_text();
    ensure!(
        received.trim().starts_with(&pushed),
        "the guest sent {pushed}, received {received}"
    );
    echo(story, &mut guest)?;
    guest.pass()?;
    Ok(())
}

/// A net that completes checksums: the guest leaves them to it, and none is wrong for anybody.
fn tap(story: &mut Story) -> anyhow::Result<()> {
    let story = &*story;
    let _tap = Tap::new(story)?;
    let wrong = "awk '/^Tcp: [0-9]/ { print $16 }' /proc/net/snmp";
    let before = on_host(story, wrong)?;
    let (sender, sent) = sender(story, BYTES / 8)?;
    let receiver = receiver(story)?;
    let mut guest = Guest::new(story, "network,tcp-fetch,tcp-push")
        .option("seed", rand::random::<u64>())
        .option("net.bytes", BYTES / 8)
        .option("net.seconds", TRANSFER.as_secs())
        .option("channel.cpu", 1)
        .cpus(2)
        .args(["--net", &format!("tap={TAP},mtu=9000")])
        .start()?;
    let fetched = transfer(&mut guest, "fetched: ", BYTES / 8)?;
    sender.finish(TRANSFER)?;
    ensure!(fetched == sent, "sent {sent}, the guest got {fetched}");
    let pushed = transfer(&mut guest, "pushed: ", BYTES / 8)?;
    let received = receiver.finish(TRANSFER)?.stdout_text();
    ensure!(
        received.trim().starts_with(&pushed),
        "the guest sent {pushed}, received {received}"
    );
    let log = guest.pass()?.stderr_text();
    ensure!(
        log.contains("checksums of TCP are the adapter's affair"),
        "the guest leaves no checksum to the adapter: {log}"
    );
    let after = on_host(story, wrong)?;
    ensure!(
        before == after,
        "wrong checksums: {before} before, {after} after"
    );
    Ok(())
}

/// Many connections at a time over a queue for each of four processors: what was sent comes back, and
/// every queue has its part of it, both ways, counted in the guest and on the host.
fn queues(story: &mut Story) -> anyhow::Result<()> {
    const QUEUES: usize = 4;
    const FLOWS: u64 = 16;
    let story = &*story;
    let bytes = BYTES / 8 / FLOWS;
    let _tap = Tap::with_queues(story)?;
    let ctl = Ctl::new(story);
    // Of each connection a process, which copies what it gets.
    let server = story.l1().command("nc").args(["-ll", "-p", "7003"]);
    let _server = server.args(["-e", "cat"]).spawn()?;
    listening(story, 7003)?;
    let mut guest = Guest::new(story, "network,tcp-flows,tcp-echo")
        .option("seed", rand::random::<u64>())
        .option("net.queues", QUEUES)
        .option("net.flows", FLOWS)
        .option("net.bytes", bytes)
        .option("net.seconds", TRANSFER.as_secs())
        .cpus(QUEUES as u32)
        .args(["--api-socket", ctl.socket()])
        .args(["--net", &format!("tap={TAP},queues={QUEUES},id=lan")])
        .start()?;
    let back = format!("{FLOWS} connections, {bytes} bytes there and back on each: ");
    guest.expect_line_on(Stream::Stderr, &back, TRANSFER)?;
    let in_guest = (0..QUEUES).map(|queue| guest.says(&format!("queue {queue}: ")));
    let in_guest: Vec<_> = in_guest.collect::<anyhow::Result<_>>()?;
    guest.says("sends back what it gets")?;
    let counters = ctl.json(&["counters"])?;
    for (queue, line) in in_guest.iter().enumerate() {
        let (_, counts) = line.split_once(": ").context(line.clone())?;
        let counts = counts.split(|byte: char| !byte.is_ascii_digit());
        let counts: Vec<u64> = counts.filter_map(|word| word.parse().ok()).collect();
        let on_host = ["rx_frames", "tx_frames"].map(|name| {
            let name = format!("lan.queue{queue}.{name}");
            counters["devices"][name].as_u64().unwrap_or_default()
        });
        // Four connections each, and frames of a few KiB at most.
        for (what, in_guest, on_host) in [
            ("received", counts.first(), on_host[0]),
            ("sent", counts.get(1), on_host[1]),
        ] {
            let enough = in_guest.is_some_and(|&count| count > 100) && on_host > 100;
            ensure!(
                enough,
                "queue {queue} has {what} too little:\n{in_guest:?} {line}\n{counters}"
            );
        }
    }
    on_host(
        story,
        &format!("echo enough | nc -w 20 {GUEST} 7 | grep enough"),
    )?;
    guest.pass()?;
    Ok(())
}

/// The guest's log of `scenarios`, in which it sends `bytes` bytes and echoes others.
pub(crate) fn pushed_and_echoed(
    story: &Story,
    scenarios: &str,
    seed: u64,
    bytes: u64,
) -> anyhow::Result<String> {
    provide_user_net(story)?;
    let receiver = receiver(story)?;
    let mut guest = Guest::new(story, scenarios)
        .option("seed", seed)
        .option("net.bytes", bytes)
        .args(["--net", &format!("user,forward=tcp:{FORWARDED}:7")])
        .start()?;
    guest.says("pushed: ")?;
    receiver.finish(TRANSFER)?;
    echo(story, &mut guest)?;
    Ok(guest.pass()?.stderr_text())
}

/// passt, that may ask for echoes like any user.
fn provide_user_net(story: &Story) -> anyhow::Result<()> {
    install_passt(story)?;
    let groups = "echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range";
    on_host(story, groups).map(|_| ())
}

/// Somebody who sends random bytes; their hash.
fn sender(story: &Story, bytes: u64) -> anyhow::Result<(Process, String)> {
    let data = story.file("data");
    on_host(story, &format!("head -c {bytes} /dev/urandom >{data}"))?;
    let hash = on_host(story, &format!("sha256sum <{data}"))?;
    let hash = hash.split(' ').next().unwrap_or_default().to_owned();
    let sender = story.l1().shell(&format!("nc -l -p 7002 <{data}"));
    let sender = sender.spawn()?;
    listening(story, 7002)?;
    Ok((sender, hash))
}

/// Somebody who says the hash of what he is sent.
fn receiver(story: &Story) -> anyhow::Result<Process> {
    let receiver = format!(
        "{} nc -l -p 7001 <&3 | sha256sum",
        open_end(&story.file("end"))
    );
    let receiver = story.l1().shell(&receiver).spawn()?;
    listening(story, 7001)?;
    Ok(receiver)
}

/// Waits until the guest has moved all bytes; their hash.
fn transfer(guest: &mut Vm, what: &str, bytes: u64) -> anyhow::Result<String> {
    let line = guest.expect_line_on(Stream::Stderr, what, TRANSFER);
    let line = line.with_context(|| format!("waiting for {what:?}"))?;
    ensure!(line.contains(&format!("{bytes} bytes")), "{line}");
    let (_, hash) = line.split_once("SHA-256 ").context(line.clone())?;
    Ok(hash.trim().to_owned())
}

/// What is sent to a port of the host's comes back from the guest.
fn echo(story: &Story, guest: &mut Vm) -> anyhow::Result<()> {
    guest.says("sends back what it gets")?;
    let (there, back) = (story.file("there"), story.file("back"));
    on_host(
        story,
        &format!(
            "head -c {ECHO} /dev/urandom >{there}; \
             nc -w 20 127.0.0.1 {FORWARDED} <{there} >{back}; cmp {there} {back}"
        ),
    )?;
    guest.says(&format!("{ECHO} bytes were sent back"))?;
    Ok(())
}
