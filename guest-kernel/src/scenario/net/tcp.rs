//! TCP: bulk transfers whose content is hashed, and an echo server.

use super::super::Outcome;
use super::super::machine::Machine;
use super::super::pattern::Pattern;
use super::{Stack, deadline, none_lost, port, server};
use crate::clock::{self, Deadline};
use crate::println;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Write as _;
use core::time::Duration;
use sha2::{Digest, Sha256};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::Ipv4Address;

/// Bytes on their way, each way.
const WINDOW: usize = 256 << 10;

/// A connection is given up when nothing was heard of it for so long.
const SILENCE: Duration = Duration::from_secs(30);

fn socket(window: usize) -> Socket<'static> {
    let buffer = || SocketBuffer::new(vec![0; window]);
    let mut socket = Socket::new(buffer(), buffer());
    socket.set_timeout(Some(SILENCE.into()));
    socket
}

/// Begins a connection to a server.
pub(super) fn begin(
    stack: &mut Stack,
    window: usize,
    server: Ipv4Address,
    port: u16,
) -> Result<SocketHandle, String> {
    let handle = stack.add(socket(window));
    let local = stack.port();
    let (socket, interface) = stack.with_interface::<Socket<'_>>(handle);
    socket
        .connect(interface.context(), (server, port), local)
        .map_err(|error| format!("no connection to {server}:{port}: {error}"))?;
    Ok(handle)
}

/// Connects to a server.
fn connect(
    stack: &mut Stack,
    server: Ipv4Address,
    port: u16,
    deadline: Deadline,
) -> Result<SocketHandle, String> {
    let handle = begin(stack, WINDOW, server, port)?;
    stack.wait("a connection", deadline, |stack| {
        match stack.get::<Socket<'_>>(handle).state() {
            State::SynSent | State::SynReceived => Ok(None),
            State::Closed => Err(format!("nobody listens at {server}:{port}")),
            _ => Ok(Some(handle)),
        }
    })
}

pub(super) fn fetch(machine: &mut Machine<'_>) -> Outcome {
    let port = port(machine, "net.fetch", 7002)?;
    let (server, deadline) = (server(machine)?, deadline(machine)?);
    let stack = machine.network()?;
    let handle = connect(stack, server, port, deadline)?;
    let begin = clock::now();
    let mut hash = Sha256::new();
    let mut bytes = 0;
    stack.wait("the end of what was fetched", deadline, |stack| {
        let socket = stack.get::<Socket<'_>>(handle);
        bytes += take(socket, |data| hash.update(data));
        let end = !socket.may_recv();
        if end {
            ended(socket)?;
            socket.close();
        }
        Ok(end.then_some(()))
    })?;
    say("fetched", bytes, &hash.finalize(), begin);
    finish(stack, handle, deadline)
}

pub(super) fn push(machine: &mut Machine<'_>) -> Outcome {
    let port = port(machine, "net.push", 7001)?;
    let total = machine.options.number("net.bytes", 65536)? as usize;
    let seed = machine.options.number("seed", 0x5EED)?;
    let (server, deadline) = (server(machine)?, deadline(machine)?);
    let stack = machine.network()?;
    let handle = connect(stack, server, port, deadline)?;
    let begin = clock::now();
    let mut pattern = Pattern::new(seed);
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 64 << 10];
    let (mut unsent, mut made) = (0..0, 0);
    stack.wait("room for what was pushed", deadline, |stack| {
        let socket = stack.get::<Socket<'_>>(handle);
        while socket.can_send() {
            if unsent.is_empty() {
                let length = chunk.len().min(total - made);
                if length == 0 {
                    break;
                }
                pattern.fill(&mut chunk[..length]);
                hash.update(&chunk[..length]);
                made += length;
                unsent = 0..length;
            }
            let sent = socket.send_slice(&chunk[unsent.clone()]);
            unsent.start += sent.map_err(|error| format!("the connection broke: {error}"))?;
        }
        if made == total && unsent.is_empty() {
            socket.close();
            return Ok(Some(()));
        }
        ended(socket).map(|()| None)
    })?;
    stack.wait("an acknowledgement of what was pushed", deadline, |stack| {
        Ok(match stack.get::<Socket<'_>>(handle).state() {
            State::FinWait2 | State::TimeWait => Some(()),
            State::Closed => return Err("the connection broke".into()),
            _ => None,
        })
    })?;
    say("pushed", total, &hash.finalize(), begin);
    finish(stack, handle, deadline)
}

pub(super) fn echo(machine: &mut Machine<'_>) -> Outcome {
    let port = port(machine, "net.echo", 7)?;
    let deadline = deadline(machine)?;
    let stack = machine.network()?;
    let mut listener = socket(WINDOW);
    listener
        .listen(port)
        .map_err(|error| format!("port {port} cannot be listened at: {error}"))?;
    let handle = stack.add(listener);
    println!("port {port} sends back what it gets");
    let mut held: Vec<u8> = Vec::new();
    let mut bytes = 0;
    stack.wait("the end of what was echoed", deadline, |stack| {
        let socket = stack.get::<Socket<'_>>(handle);
        if matches!(socket.state(), State::Listen | State::SynReceived) {
            return Ok(None);
        }
        if held.is_empty() {
            bytes += take(socket, |data| held.extend_from_slice(data));
        }
        if socket.can_send() && !held.is_empty() {
            let sent = socket.send_slice(&held);
            held.drain(..sent.map_err(|error| format!("the connection broke: {error}"))?);
        }
        let end = held.is_empty() && !socket.may_recv();
        if end {
            socket.close();
        }
        Ok(end.then_some(()))
    })?;
    println!("{bytes} bytes were sent back");
    finish(stack, handle, deadline)
}

/// Takes all that has come; `each` gets it in pieces.
pub(super) fn take(socket: &mut Socket<'_>, mut each: impl FnMut(&[u8])) -> usize {
    let mut bytes = 0;
    while socket.can_recv() {
        let taken = socket.recv(|data| {
            each(data);
            (data.len(), data.len())
        });
        match taken {
            Ok(length) => bytes += length,
            Err(_) => break,
        }
    }
    bytes
}

/// That the other end has not broken the connection off.
fn ended(socket: &Socket<'_>) -> Outcome {
    match socket.state() {
        State::Closed => Err("the connection broke".into()),
        _ => Ok(()),
    }
}

/// Waits until the connection is over on both sides.
pub(super) fn finish(stack: &mut Stack, handle: SocketHandle, deadline: Deadline) -> Outcome {
    stack.wait("the end of the connection", deadline, |stack| {
        let state = stack.get::<Socket<'_>>(handle).state();
        Ok(matches!(state, State::TimeWait | State::Closed).then_some(()))
    })?;
    stack.remove(handle);
    none_lost(stack)
}

fn say(what: &str, bytes: usize, hash: &[u8], begin: Duration) {
    let mut digits = String::new();
    for byte in hash {
        let _ = write!(digits, "{byte:02x}");
    }
    let took = clock::now().saturating_sub(begin);
    println!("{what}: {bytes} bytes, SHA-256 {digits}");
    println!("it took: {} ms", took.as_millis());
}
