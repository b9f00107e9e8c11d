//! Many requests in flight, each completed exactly once; and a long steady run of them.

use super::machine::Machine;
use super::pattern::Pattern;
use super::{Outcome, Scenario};
use crate::cpu::{apic, port, smp};
use crate::hyperv::{self, KernelStorage, REQUESTS};
use crate::{clock, println};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;
use guest_vsc::Error;
use guest_vsc::storage::{Completion, SECTOR_SIZE, StorageError, Token};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "in-flight",
        about: "64 requests in flight, each completes exactly once (seed=, queue.rounds=8)",
        run: in_flight,
    },
    Scenario {
        name: "steady",
        about: "random reads of what `storage` wrote, without a word between STEADY begin and end \
                (disk.lba=0, disk.blocks=256, steady.reads=20000, steady.depth=32, \
                steady.bytes=4096, steady.port=0x510)",
        run: steady,
    },
];

/// A request that was submitted: its name, and which one it is.
type Submitted = (Token, usize);

/// Finds a completed request among the submitted ones and strikes it off.
fn strike(submitted: &mut Vec<Submitted>, token: Token) -> Result<usize, String> {
    let place = submitted.iter().position(|(other, _)| *other == token);
    place
        .map(|place| submitted.swap_remove(place).1)
        .ok_or_else(|| format!("{token:?} was completed, and it is not in flight"))
}

fn in_flight(machine: &mut Machine<'_>) -> Outcome {
    let seed = machine.options.number("seed", 0x5EED)?;
    let rounds = machine.options.number("queue.rounds", 8)?;
    let storage = machine.storage()?;
    let before = storage.channel().bus().stats().bad_completions;
    for round in 0..rounds {
        let seed = seed.wrapping_add(round * REQUESTS as u64);
        all_at_once(storage, seed, true).map_err(|error| format!("write: {error}"))?;
        all_at_once(storage, seed, false).map_err(|error| format!("read: {error}"))?;
    }
    let strays = storage.channel().bus().stats().bad_completions - before;
    if strays > 0 {
        return Err(format!("{strays} completions answered no request"));
    }
    println!("{rounds} times {REQUESTS} writes and {REQUESTS} reads in flight: once each");
    Ok(())
}

/// Fills the driver's table with writes of one block each, or with reads of the same blocks.
fn all_at_once(storage: &KernelStorage, seed: u64, write: bool) -> Outcome {
    let bytes = storage.block_size();
    let sectors = (bytes / SECTOR_SIZE) as u64;
    let content = |request: usize| {
        let mut data = vec![0; bytes];
        Pattern::new(seed.wrapping_add(request as u64)).fill(&mut data);
        data
    };
    let submit = |request: usize| {
        let sector = request as u64 * sectors;
        if write {
            storage.submit_write(sector, content(request))
        } else {
            storage.submit_read(sector, vec![0; bytes])
        }
    };
    let mut submitted = Vec::new();
    for request in 0..REQUESTS {
        let token = submit(request).map_err(|(error, _)| error.to_string())?;
        submitted.push((token, request));
    }
    match submit(REQUESTS) {
        Err((StorageError::Bus(Error::Full), _)) => {}
        other => {
            return Err(format!(
                "request {REQUESTS} should find no place: {other:?}"
            ));
        }
    }
    for _ in 0..REQUESTS {
        let done = storage.wait().map_err(|error| error.to_string())?;
        let request = strike(&mut submitted, done.token)?;
        done.result
            .map_err(|error| format!("request {request}: {error}"))?;
        if done.buffer != content(request) {
            return Err(format!("request {request} has another one's data"));
        }
    }
    match storage.poll() {
        None if storage.in_flight() == 0 => Ok(()),
        None => Err(format!("{} requests are left", storage.in_flight())),
        Some(extra) => Err(format!("{:?} was completed twice", extra.token)),
    }
}

/// Where the window's borders are written, for a host that listens: `host-vsp run --steady-port`.
/// Two exits mark the window more sharply than lines of text, which take two exits a byte.
const MARKER_PORT: u64 = 0x510;
const WINDOW_BEGINS: u8 = 1;
const WINDOW_ENDS: u8 = 2;

/// The numbers of a steady run.
struct Steady {
    reads: u64,
    depth: usize,
    bytes: usize,
    /// First block of the area that is read.
    lba: u64,
    /// The first eight bytes of each piece of `bytes` in that area, all different.
    places: Vec<u64>,
}

fn steady(machine: &mut Machine<'_>) -> Outcome {
    let options = machine.options;
    let seed = options.number("seed", 0x5EED)?;
    let bytes = options.number("steady.bytes", 4096)? as usize;
    let marker = options.number("steady.port", MARKER_PORT)? as u16;
    let mut run = Steady {
        reads: options.number("steady.reads", 20_000)?,
        depth: options
            .number("steady.depth", 32)?
            .clamp(1, REQUESTS as u64) as usize,
        bytes: bytes.max(SECTOR_SIZE).next_multiple_of(SECTOR_SIZE),
        lba: options.number("disk.lba", 0)?,
        places: Vec::new(),
    };
    let storage = machine.storage()?;
    run.learn(storage, options.number("disk.blocks", 256)?)?;
    let buffers: Vec<_> = (0..run.depth).map(|_| vec![0; run.bytes]).collect();
    let mut random = Pattern::new(seed);

    println!("STEADY begin");
    port::write8(marker, WINDOW_BEGINS);
    let (interrupts, timer, start) = (interrupts(), apic::timer_interrupts(), clock::now());
    let result = run.go(storage, buffers, &mut random);
    let took = clock::now() - start;
    port::write8(marker, WINDOW_ENDS);
    println!("STEADY end reads={}", run.reads);

    let longest_wait = result?;
    println!(
        "{} reads of {} bytes, {} in flight, {took:?}, longest wait {longest_wait:?}: \
         {} interrupts, {} of the timer's",
        run.reads,
        run.bytes,
        run.depth,
        self::interrupts() - interrupts,
        apic::timer_interrupts() - timer,
    );
    Ok(())
}

/// Synthetic interrupts on all CPUs.
fn interrupts() -> u64 {
    (0..smp::online()).map(hyperv::interrupts).sum()
}

impl Steady {
    fn sectors(&self) -> u64 {
        (self.bytes / SECTOR_SIZE) as u64
    }

    /// Reads the beginning of each place in `blocks` blocks, to know it again.
    fn learn(&mut self, storage: &KernelStorage, blocks: u64) -> Result<(), String> {
        let mut data = vec![0; self.bytes];
        for place in 0..blocks / self.sectors() {
            storage
                .read_blocks(self.lba + place * self.sectors(), &mut data)
                .map_err(|error| format!("read: {error}"))?;
            let head = u64::from_le_bytes(data[..8].try_into().map_err(|_| "too short")?);
            if self.places.contains(&head) {
                return Err("the places look alike: run `storage` before `steady`".into());
            }
            self.places.push(head);
        }
        if self.places.is_empty() {
            return Err(format!("{blocks} blocks hold no {} bytes", self.bytes));
        }
        Ok(())
    }

    /// Keeps `depth` reads in flight until all are done; nothing is printed or allocated here.
    /// Returns how long the slowest wait for a completion was: a lost interrupt would show.
    fn go(
        &self,
        storage: &KernelStorage,
        buffers: Vec<Vec<u8>>,
        random: &mut Pattern,
    ) -> Result<Duration, String> {
        let mut submitted: Vec<Submitted> = Vec::with_capacity(self.depth);
        let mut submit = |buffer, submitted: &mut Vec<Submitted>| {
            let place = random.next() % self.places.len() as u64;
            let token = storage
                .submit_read(self.lba + place * self.sectors(), buffer)
                .map_err(|(error, _)| error.to_string())?;
            submitted.push((token, place as usize));
            Ok::<_, String>(())
        };
        let mut started = 0;
        let mut longest_wait = Duration::ZERO;
        for buffer in buffers.into_iter().take(self.reads as usize) {
            submit(buffer, &mut submitted)?;
            started += 1;
        }
        while !submitted.is_empty() {
            let asked = clock::now();
            let Completion {
                token,
                buffer,
                result,
            } = storage.wait().map_err(|error| error.to_string())?;
            longest_wait = longest_wait.max(clock::now() - asked);
            let place = strike(&mut submitted, token)?;
            result.map_err(|error| format!("read of place {place}: {error}"))?;
            if buffer[..8] != self.places[place].to_le_bytes() {
                return Err(format!(
                    "a read of place {place} brought another one's data"
                ));
            }
            if started < self.reads {
                submit(buffer, &mut submitted)?;
                started += 1;
            }
        }
        Ok(longest_wait)
    }
}
