//! Many connections at a time, each with bytes both ways: what the queues of an adapter are for.

use super::super::Outcome;
use super::super::machine::Machine;
use super::super::pattern::Pattern;
use super::{Stack, deadline, port, server, tcp};
use crate::clock;
use crate::println;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, State};

/// Bytes of each connection on their way, each way.
const WINDOW: usize = 32 << 10;

/// Bytes that have to come back over a connection before the next one begins: a simple server takes
/// them one at a time, and few wait.
const GREETING: usize = 64;

/// What goes one way of a connection.
struct Bytes {
    pattern: Pattern,
    made: Vec<u8>,
    /// Of those that were made, the ones that are done.
    done: usize,
}

impl Bytes {
    fn new(seed: u64) -> Self {
        Self {
            pattern: Pattern::new(seed),
            made: Vec::new(),
            done: 0,
        }
    }

    /// The next ones.
    fn next(&mut self) -> &[u8] {
        if self.done == self.made.len() {
            self.made.resize(4096, 0);
            self.pattern.fill(&mut self.made);
            self.done = 0;
        }
        &self.made[self.done..]
    }

    /// Whether `bytes` are the next ones, which are done then.
    fn are(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let next = self.next();
            let length = next.len().min(bytes.len());
            if next[..length] != bytes[..length] {
                return false;
            }
            self.done += length;
            bytes = &bytes[length..];
        }
        true
    }
}

/// A connection whose other end sends back what it gets.
struct Flow {
    handle: SocketHandle,
    there: Bytes,
    sent: usize,
    back: Bytes,
    received: usize,
}

impl Flow {
    /// Moves what can be moved of the first `bytes` bytes; says whether all have come back.
    fn go_on(&mut self, stack: &mut Stack, bytes: usize) -> Result<bool, String> {
        let socket = stack.get::<Socket<'_>>(self.handle);
        while self.sent < bytes && socket.can_send() {
            let next = self.there.next();
            let length = next.len().min(bytes - self.sent);
            let sent = socket.send_slice(&next[..length]);
            let sent = sent.map_err(|error| format!("the connection broke: {error}"))?;
            self.there.done += sent;
            self.sent += sent;
        }
        let mut good = true;
        self.received += tcp::take(socket, |bytes| good &= self.back.are(bytes));
        if !good || self.received > self.sent {
            return Err("what came back is not what was sent".into());
        }
        if self.received < bytes && socket.state() == State::Closed {
            let (sent, received) = (self.sent, self.received);
            return Err(format!(
                "the connection broke: {sent} bytes sent, {received} came back"
            ));
        }
        Ok(self.received == bytes)
    }
}

pub(super) fn flows(machine: &mut Machine<'_>) -> Outcome {
    let port = port(machine, "net.echoes", 7003)?;
    let count = machine.options.number("net.flows", 16)?;
    let bytes = machine.options.number("net.bytes", 65536)? as usize;
    let seed = machine.options.number("seed", 0x5EED)?;
    let (server, deadline) = (server(machine)?, deadline(machine)?);
    let stack = machine.network()?;
    let mut flows = vec![];
    for number in 0..count {
        let seed = seed.wrapping_add(number);
        let mut flow = Flow {
            handle: tcp::begin(stack, WINDOW, server, port)?,
            there: Bytes::new(seed),
            sent: 0,
            back: Bytes::new(seed),
            received: 0,
        };
        let greeting = GREETING.min(bytes);
        stack.wait("what was sent first", deadline, |stack| {
            Ok(flow.go_on(stack, greeting)?.then_some(()))
        })?;
        flows.push(flow);
    }
    let begin = clock::now();
    stack.wait("all that was to come back", deadline, |stack| {
        let mut done = true;
        for (number, flow) in flows.iter_mut().enumerate() {
            let all = flow.go_on(stack, bytes);
            done &= all.map_err(|error| format!("connection {number}: {error}"))?;
        }
        Ok(done.then_some(()))
    })?;
    let took = clock::now() - begin;
    println!("{count} connections, {bytes} bytes there and back on each: {took:?}");
    for (queue, (received, sent)) in stack.nic.queues().into_iter().enumerate() {
        println!("queue {queue}: {received} frames received, {sent} sent");
    }
    for flow in &flows {
        stack.get::<Socket<'_>>(flow.handle).close();
    }
    for flow in &flows {
        tcp::finish(stack, flow.handle, deadline)?;
    }
    Ok(())
}
