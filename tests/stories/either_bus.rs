//! One kernel with one implementation of its memory for both crates' drivers: over virtio in plain
//! QEMU, and over VMBus on `host-vsp`, it says the same.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bed::cargo;
use bed::provision::Qemu;
use e2e::{Entry, Story};
use rand::RngExt as _;

use crate::disk::Disk;
use crate::guest::{Guest, NEXT};
use crate::guest_network;

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("virtio_and_vmbus_say_the_same", virtio_and_vmbus),
    Entry::new("virtio_and_vmbus_send_the_same", virtio_and_vmbus_network),
];

/// Blocks of the disks here.
const BLOCKS: u64 = 8192;

/// What the kernel is to do.
const SCENARIOS: &str = "storage,odd-buffers";

/// QEMU's exit status when the kernel says PASS to its `isa-debug-exit`.
const PASS: i32 = 33;

fn virtio_and_vmbus(story: &mut Story) -> anyhow::Result<()> {
    let seed: u64 = rand::random();
    let image = tempfile::NamedTempFile::new()?;
    image.as_file().set_len(BLOCKS * 512)?;
    let image = format!("if=none,id=disk,format=raw,file={}", image.path().display());
    let devices = ["-device", "virtio-blk-pci,drive=disk", "-drive", &image];
    let over_virtio = kernel_in_plain_qemu(&format!("scenario={SCENARIOS} seed={seed}"), &devices)?;
    let disk = Disk::create(story, "disk", BLOCKS)?;
    let over_vmbus = Guest::new(story, SCENARIOS)
        .option("seed", seed)
        .disk(&disk.path)
        .run()?;
    let (virtio, vmbus) = (told(&over_virtio), told(&over_vmbus));
    ensure!(
        over_virtio.contains("virtio disk: ") && over_vmbus.contains("VMBus disk, "),
        "these are not the two buses: {over_virtio}{over_vmbus}"
    );
    // A line at the begin and the end of each scenario, and what the two say of the disk.
    ensure!(
        virtio.len() >= 7 && virtio == vmbus,
        "over virtio: {over_virtio}, over VMBus: {over_vmbus}"
    );
    Ok(())
}

/// Bytes that the guest sends, and gets sent back.
const BYTES: u64 = 1 << 20;

fn virtio_and_vmbus_network(story: &mut Story) -> anyhow::Result<()> {
    const SCENARIOS: &str = "network,tcp-push,tcp-echo";
    let seed: u64 = rand::random();
    let (server, forwarded) = (TcpListener::bind("127.0.0.1:0")?, free_port()?);
    let push = server.local_addr()?.port();
    let received = thread::spawn(move || receive(&server));
    let echoed = thread::spawn(move || echo(forwarded));
    let net = format!("user,id=net,hostfwd=tcp:127.0.0.1:{forwarded}-:7");
    let devices = ["-netdev", &net, "-device", "virtio-net-pci,netdev=net"];
    let options = format!("scenario={SCENARIOS} seed={seed} net.bytes={BYTES}");
    let over_virtio = kernel_in_plain_qemu(&format!("{options} net.push={push}"), &devices)?;
    let joined = |thread: thread::JoinHandle<io::Result<u64>>| match thread.join() {
        Ok(result) => result,
        Err(_) => Err(io::Error::other("it panicked")),
    };
    ensure!(joined(received)? == BYTES, "{over_virtio}");
    joined(echoed).context("the echo over virtio")?;

    let over_vmbus = guest_network::pushed_and_echoed(story, SCENARIOS, seed, BYTES)?;
    let (virtio, vmbus) = (told(&over_virtio), told(&over_vmbus));
    ensure!(
        over_virtio.contains("virtio network: ") && over_vmbus.contains("VMBus network, "),
        "these are not the two buses: {over_virtio}{over_vmbus}"
    );
    // A line at the begin and the end of each scenario, and what they say of the net.
    ensure!(
        virtio.len() >= 10 && virtio == vmbus,
        "over virtio: {over_virtio}, over VMBus: {over_vmbus}"
    );
    Ok(())
}

/// A port that nobody listens at.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Takes one connection, and all that it brings; how much that was.
fn receive(server: &TcpListener) -> io::Result<u64> {
    server.set_nonblocking(true)?;
    let mut stream = retry(|| server.accept())?.0;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(NEXT))?;
    io::copy(&mut stream, &mut io::sink())
}

/// Sends something to `port`, as soon as the guest is behind it, until it comes back.
fn echo(port: u16) -> io::Result<u64> {
    let mut sent = vec![0; guest_network::ECHO];
    rand::rng().fill(sent.as_mut_slice());
    retry(|| {
        // QEMU takes connections before there is anybody in the guest to have them.
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(NEXT))?;
        stream.set_write_timeout(Some(NEXT))?;
        let mut back = Vec::new();
        let mut writer = stream.try_clone()?;
        let sent = &sent;
        thread::scope(|scope| {
            scope.spawn(move || {
                writer
                    .write_all(sent)
                    .and_then(|()| writer.shutdown(Shutdown::Write))
            });
            stream.read_to_end(&mut back)
        })?;
        match back == *sent {
            true => Ok(back.len() as u64),
            false => Err(io::Error::other("something else came back")),
        }
    })
}

/// Does it again until it is done.
fn retry<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let end = Instant::now() + NEXT;
    loop {
        match attempt() {
            Err(_) if Instant::now() < end => thread::sleep(Duration::from_millis(50)),
            outcome => return outcome,
        }
    }
}

/// What the scenarios say, without what differs: the names that the two buses have for their
/// devices, the addresses of the two nets, and times.
fn told(log: &str) -> Vec<String> {
    let lines = log.lines().map(str::trim_end);
    let lines = lines
        .skip_while(|line| !line.starts_with("SCENARIO "))
        .take_while(|line| !line.starts_with("GUEST-KERNEL"));
    let lines = lines.filter(|line| !line.starts_with("it took: "));
    let nameless = lines.map(|line| match line.split_once(": ") {
        Some((_, what)) if line.contains(" blocks of ") => what.to_owned(),
        Some(_) if line.contains(" by DHCP") => "an address by DHCP".to_owned(),
        _ => line.to_owned(),
    });
    nameless.collect()
}

/// Runs the kernel in QEMU without a hypervisor's identity, on this machine, with `devices`; returns
/// its log.
fn kernel_in_plain_qemu(command_line: &str, devices: &[&str]) -> anyhow::Result<String> {
    let kernel = cargo::guest_kernel()?.display().to_string();
    plain_qemu(&[devices, &["-kernel", &kernel, "-append", command_line]].concat())
}

/// Runs QEMU on this machine until the kernel in it says that it has passed; returns its log.
pub(crate) fn plain_qemu(arguments: &[&str]) -> anyhow::Result<String> {
    let mut command: Command = Qemu::get()?.command();
    command
        .args(["-machine", "q35", "-accel", "tcg", "-m", "128M"])
        .args(["-display", "none", "-monitor", "none", "-no-reboot"])
        .args(["-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4"])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut qemu = command.spawn().context("starting QEMU")?;
    let end = Instant::now() + NEXT;
    // Its log is shorter than a pipe, so nobody has to read it meanwhile.
    while qemu.try_wait()?.is_none() {
        if Instant::now() > end {
            qemu.kill()?;
            let output = qemu.wait_with_output()?;
            let said = String::from_utf8_lossy(&output.stdout);
            bail!("QEMU has not ended within {NEXT:?}: {said}");
        }
        thread::sleep(Duration::from_millis(50));
    }
    let output = qemu.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.code() == Some(PASS),
        "QEMU ended with {}: {said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(said)
}
