//! What a shell cannot ask in a stock Linux guest: started there by a story.
//!
//! ```text
//! l2-probe clock COUNT           read the monotonic clock COUNT times, as programs and drivers do
//! l2-probe unix PATH             carry standard input to the socket, and what it answers back
//! l2-probe write-durably PATH    write one block, durable by itself
//! l2-probe write DISK SEED BLOCKS FIRST COUNT
//!                                write numbered blocks, each synced and then reported
//! l2-probe verify DISK SEED BLOCKS LAST
//!                                find all up to LAST again
//! l2-probe console PATH          what the console's device promises, told in console.rs
//! ```

mod console;

use std::env;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bed::numbered::{BLOCK, Sequence};

/// `O_DIRECT` of x86-64: past the page cache.
const DIRECT: i32 = 0o40_000;

/// `O_DSYNC` of x86-64: a write returns when it is durable.
const DSYNC: i32 = 0o10_000;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["clock", count] => count.parse().map_or(ExitCode::from(2), clock),
        ["unix", path] => say(path, talk(path)),
        ["write-durably", path] => say(path, write_durably(path)),
        ["write", disk, seed, blocks, first, count] => numbers([seed, blocks, first, count])
            .map_or(ExitCode::from(2), |it| {
                let [seed, blocks, first, count] = it;
                verdict(write(disk, Sequence { seed, blocks }, first, count))
            }),
        ["verify", disk, seed, blocks, last] => {
            numbers([seed, blocks, last]).map_or(ExitCode::from(2), |it| {
                let [seed, blocks, last] = it;
                verdict(verify(disk, Sequence { seed, blocks }, last))
            })
        }
        ["console", path] => verdict(console::keeps_promises(path)),
        _ => ExitCode::from(2),
    }
}

/// Ends well, or with the reason why `path` was of no use.
fn say(path: &str, result: io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{path}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Says to the socket at `path` all that comes in, and prints all that it answers.
fn talk(path: &str) -> io::Result<()> {
    let socket = UnixStream::connect(path)?;
    io::copy(&mut io::stdin().lock(), &mut &socket)?;
    io::copy(&mut &socket, &mut io::stdout().lock())?;
    Ok(())
}

fn numbers<const N: usize>(texts: [&str; N]) -> Option<[u64; N]> {
    let numbers: Vec<u64> = texts.iter().map_while(|text| text.parse().ok()).collect();
    numbers.try_into().ok()
}

fn verdict(result: Result<String, String>) -> ExitCode {
    match result {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(text) => {
            println!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn open(disk: &str, flags: i32) -> Result<File, String> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(disk)
        .map_err(|error| format!("{disk}: {error}"))
}

/// A block where direct I/O takes it: at a multiple of its size.
struct Aligned(Vec<u8>);

impl Aligned {
    fn new() -> Self {
        Self(vec![0; 2 * BLOCK])
    }

    fn block(&mut self) -> io::Result<&mut [u8; BLOCK]> {
        let at = self.0.as_ptr().align_offset(BLOCK);
        let block = self.0.get_mut(at..).and_then(|rest| rest.first_chunk_mut());
        block.ok_or_else(|| io::Error::other("no aligned memory"))
    }
}

/// Writes `count` blocks from number `first` on, by turns with a flush after the write and with a
/// write that is durable itself; each is reported when it is on the disk.
fn write(disk: &str, sequence: Sequence, first: u64, count: u64) -> Result<String, String> {
    let plain = open(disk, DIRECT)?;
    let durable = open(disk, DIRECT | DSYNC)?;
    let mut memory = Aligned::new();
    for number in first..first + count {
        let one = |memory: &mut Aligned| {
            let block = memory.block()?;
            sequence.fill(number, block);
            let at = sequence.place(number) * BLOCK as u64;
            if number.is_multiple_of(2) {
                return durable.write_all_at(block, at);
            }
            plain.write_all_at(block, at)?;
            plain.sync_data()
        };
        one(&mut memory).map_err(|error| format!("failed {number}: {error}"))?;
        println!("synced {number}");
    }
    Ok(format!("wrote {count}"))
}

fn verify(disk: &str, sequence: Sequence, last: u64) -> Result<String, String> {
    let file = open(disk, DIRECT)?;
    let mut memory = Aligned::new();
    let places = sequence.verify(last, |place| {
        let block = memory.block()?;
        file.read_exact_at(block, place * BLOCK as u64)?;
        Ok(*block)
    })?;
    Ok(format!("found {places}"))
}

/// Reads the clock `count` times and prints how long that took; fails if it ever went back or
/// stood still for all of it.
fn clock(count: u32) -> ExitCode {
    let begin = Instant::now();
    let mut last = begin;
    for _ in 0..count {
        let now = Instant::now();
        // `Instant` itself orders only what the system's clock says.
        if now < last {
            println!("the clock went back by {:?}", last - now);
            return ExitCode::FAILURE;
        }
        last = now;
    }
    let elapsed = last - begin;
    println!("{count} reads in {elapsed:?}");
    if elapsed == Duration::ZERO {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// One write of one block, as a database makes it.
fn write_durably(path: &str) -> io::Result<()> {
    let file = open(path, DIRECT | DSYNC).map_err(io::Error::other)?;
    let mut memory = Aligned::new();
    let block = memory.block()?;
    block.fill(0x5a);
    file.write_all_at(block, 0)
}
