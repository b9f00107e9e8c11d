//! What a shell cannot ask in a stock Linux guest: started there by a story.
//!
//! ```text
//! l2-probe clock COUNT    read the monotonic clock COUNT times, as programs and drivers do
//! l2-probe unix PATH      carry standard input to the socket, and what it answers back
//! ```

use std::env;
use std::io;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["clock", count] => count.parse().map_or(ExitCode::from(2), clock),
        ["unix", path] => match talk(path) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{path}: {error}");
                ExitCode::FAILURE
            }
        },
        _ => ExitCode::from(2),
    }
}

/// Says to the socket at `path` all that comes in, and prints all that it answers.
fn talk(path: &str) -> io::Result<()> {
    let socket = UnixStream::connect(path)?;
    io::copy(&mut io::stdin().lock(), &mut &socket)?;
    io::copy(&mut &socket, &mut io::stdout().lock())?;
    Ok(())
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
