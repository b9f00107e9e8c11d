//! What `/dev/vmbus-console0` promises to a program that does not want to wait: one reader and one writer,
//! `EAGAIN` instead of waiting, `poll` that says when to come back, and a hang-up at the end.
//!
//! The story is the other end: it answers [`QUESTION`] with [`ANSWER`], reads nothing until this has
//! said "full after N bytes", then reads all of it, and takes the console away when this has said "room
//! again".

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use bed::pattern::Pattern;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// What the guest says first, and what it wants to hear then.
const QUESTION: &[u8] = b"is anybody there?\n";
const ANSWER: &[u8] = b"the host is\n";

/// Of what fills the console.
const SEED: u64 = 7;

/// `O_NONBLOCK` of x86-64.
const NONBLOCK: i32 = 0o4_000;

/// How long the other end may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// Nobody has taken anything for so long: everything is full.
const STANDSTILL: Duration = Duration::from_secs(5);

/// More than all buffers on the way together.
const TOO_MUCH: usize = 16 << 20;

pub(crate) fn keeps_promises(path: &str) -> Result<String, String> {
    let open = |read, write| {
        OpenOptions::new()
            .read(read)
            .write(write)
            .custom_flags(NONBLOCK)
            .open(path)
    };
    let mut console = open(true, true).map_err(|error| format!("{path}: {error}"))?;
    for (read, write) in [(true, false), (false, true), (true, true)] {
        let second = open(read, write).map(drop);
        expect("a second open", &second, Errno::BUSY)?;
    }
    let mut bytes = [0; 4096];
    expect("a read of nothing", &console.read(&mut bytes), Errno::AGAIN)?;
    ready(&console, Duration::ZERO, PollFlags::OUT)?;

    write_all(&mut console, QUESTION)?;
    ready(&console, PATIENCE, PollFlags::IN)?;
    let read = console
        .read(&mut bytes)
        .map_err(|error| error.to_string())?;
    if bytes.get(..read) != Some(ANSWER) {
        return Err(format!("read {read} bytes that are no answer"));
    }

    let filled = fill(&mut console)?;
    println!("full after {filled} bytes");
    ready(&console, Duration::ZERO, PollFlags::empty())?;
    ready(&console, PATIENCE, PollFlags::OUT)?;
    println!("room again");

    ready(&console, PATIENCE, PollFlags::HUP)?;
    match console.read(&mut bytes) {
        Ok(0) => {}
        other => return Err(format!("after the hang-up, read says {other:?}")),
    }
    expect("a write after it", &console.write(b"gone"), Errno::IO)?;
    Ok("hung up".into())
}

/// Fails unless `result` is the error `errno`.
fn expect<T>(what: &str, result: &std::io::Result<T>, errno: Errno) -> Result<(), String> {
    match result {
        Err(error) if error.raw_os_error() == Some(errno.raw_os_error()) => Ok(()),
        Err(error) => Err(format!("{what}: {error}, not {errno}")),
        Ok(_) => Err(format!("{what}: success, not {errno}")),
    }
}

/// Waits until `wanted` is among what `console` is ready for; with no patience, it must be ready for just
/// that.
fn ready(console: &File, patience: Duration, wanted: PollFlags) -> Result<(), String> {
    let events = match wanted {
        // Nobody asks for a hang-up: it comes by itself.
        PollFlags::HUP => PollFlags::empty(),
        PollFlags::IN | PollFlags::OUT if !patience.is_zero() => wanted,
        _ => PollFlags::IN | PollFlags::OUT,
    };
    let mut asked = [PollFd::new(console, events)];
    let limit = Timespec::try_from(patience).map_err(|error| error.to_string())?;
    poll(&mut asked, Some(&limit)).map_err(|error| error.to_string())?;
    let found = asked[0].revents();
    let enough = if patience.is_zero() {
        found == wanted
    } else {
        found.contains(wanted)
    };
    if enough {
        return Ok(());
    }
    Err(format!("poll says {found:?} instead of {wanted:?}"))
}

fn write_all(console: &mut File, bytes: &[u8]) -> Result<(), String> {
    console.write_all(bytes).map_err(|error| error.to_string())
}

/// Writes until nothing has room any more, whatever the other end's program takes on its own; how many
/// bytes had.
fn fill(console: &mut File) -> Result<usize, String> {
    let bytes = Pattern::new(SEED).take(TOO_MUCH);
    let mut written = 0;
    while let Some(rest @ [_, ..]) = bytes.get(written..) {
        match console.write(rest) {
            Ok(length) => written += length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if ready(console, STANDSTILL, PollFlags::OUT).is_err() {
                    return Ok(written);
                }
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    Err(format!("{TOO_MUCH} bytes have room"))
}
