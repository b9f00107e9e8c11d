//! The console: bytes both ways.

use super::machine::Machine;
use super::pattern::Pattern;
use super::{Outcome, Scenario};
use crate::clock::Deadline;
use crate::devices::Console;
use crate::println;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use core::time::Duration;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "console",
        about: "says hello, waits for a line, echoes it (seed=, console.seconds=30)",
        run,
    },
    Scenario {
        name: "console-bulk",
        about: "sends console.bytes=65536 of pattern seed=, then expects as many of seed + 1",
        run: bulk,
    },
];

/// A longer line is cut.
const LINE_BYTES: usize = 4096;

fn run(machine: &mut Machine<'_>) -> Outcome {
    let seed = machine.options.number("seed", 0x5EED)?;
    let limit = machine.options.seconds("console.seconds", 30)?;
    let console = machine.console()?;
    println!("{}", console.name());
    console.send(format!("hello from the guest, seed {seed:#x}\r\n").as_bytes())?;
    let line = receive_line(console, limit)?;
    println!("console received: {line}");
    console.send(format!("echo: {line}\r\n").as_bytes())
}

/// Waits for a line's end, carriage return or line feed; the bytes before it, printable or escaped.
fn receive_line(console: &mut dyn Console, limit: Duration) -> Result<String, String> {
    let deadline = Deadline::after(limit);
    let mut line: heapless::Vec<u8, LINE_BYTES> = heapless::Vec::new();
    let mut buffer = [0; 1];
    loop {
        if console.receive(&mut buffer, deadline)? == 0 {
            return Err(format!(
                "no whole line came within {limit:?}, only \"{}\"",
                line.escape_ascii()
            ));
        }
        let [byte] = buffer;
        if matches!(byte, b'\r' | b'\n') || line.push(byte).is_err() {
            return Ok(format!("{}", line.escape_ascii()));
        }
    }
}

/// The host has to read while it is written to: no side stores it all.
fn bulk(machine: &mut Machine<'_>) -> Outcome {
    let seed = machine.options.number("seed", 0x5EED)?;
    let bytes = machine.options.number("console.bytes", 65_536)? as usize & !7;
    let limit = machine.options.seconds("console.seconds", 30)?;
    let console = machine.console()?;

    let mut data = vec![0; bytes];
    Pattern::new(seed).fill(&mut data);
    // Odd sizes, so that packets of all lengths meet the ring's end.
    for part in data.chunks(1001) {
        console.send(part)?;
    }
    println!("{bytes} bytes sent, waiting for as many");

    let deadline = Deadline::after(limit);
    let mut found = vec![0; bytes];
    let mut filled = 0;
    while filled < bytes {
        match console.receive(&mut found[filled..], deadline)? {
            0 => return Err(format!("only {filled} bytes came within {limit:?}")),
            more => filled += more,
        }
    }
    Pattern::new(seed.wrapping_add(1)).fill(&mut data);
    match data
        .iter()
        .zip(&found)
        .position(|(expected, found)| expected != found)
    {
        None => Ok(()),
        Some(byte) => Err(format!("byte {byte} that came is not the pattern's")),
    }
}
