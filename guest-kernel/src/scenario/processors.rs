//! One disk, used by every CPU at once: a channel for each, and each with its interrupts.

use super::machine::Machine;
use super::pattern::Pattern;
use super::{Outcome, Scenario};
use crate::clock::{self, Deadline};
use crate::cpu::{self, smp};
use crate::hyperv::{self, KernelStorage};
use crate::println;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;
use guest_vsc::Error;
use guest_vsc::storage::{Completion, SECTOR_SIZE, StorageError, Token};
use spin::Mutex;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "processors",
    about: "requests of all sizes from every CPU, each over its own channel, each done once \
            (seed=, disk.channels=1, processors.requests=50000, processors.depth=8)",
    run: processors,
}];

/// Bytes of a place on the disk, for one request at a time.
const PLACE: usize = 64 << 10;

/// Lengths of requests, in sectors: mostly short ones.
const LENGTHS: [usize; 8] = [1, 1, 1, 2, 4, 8, 8, 32];

/// How long a CPU sleeps at most before it looks whether others have finished.
const NAP: Duration = Duration::from_millis(100);

/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(300);

/// A place, and what was written to it.
#[derive(Clone, Copy)]
struct Place {
    number: usize,
    seed: u64,
    bytes: usize,
}

impl Place {
    fn sector(self) -> u64 {
        (self.number * (PLACE / SECTOR_SIZE)) as u64
    }

    fn content(self) -> impl Iterator<Item = u64> {
        (0..self.bytes as u64 / 8).map(move |word| self.seed.wrapping_add(word))
    }
}

/// What the CPUs share.
struct Work {
    storage: Arc<KernelStorage>,
    seed: u64,
    wanted: u64,
    depth: usize,
    progress: Mutex<Progress>,
}

struct Progress {
    free: Vec<Place>,
    in_flight: Vec<(Token, Place, bool)>,
    issued: u64,
    done: u64,
    failure: Option<String>,
}

static WORK: Mutex<Option<Arc<Work>>> = Mutex::new(None);

fn processors(machine: &mut Machine<'_>) -> Outcome {
    let options = machine.options;
    let seed = options.number("seed", 0x5EED)?;
    let wanted = options.number("processors.requests", 50_000)?;
    let depth = options.number("processors.depth", 8)? as usize;
    let cpus = smp::online();
    let storage = Arc::clone(machine.shared_storage()?);
    let places = cpus * depth * 2;
    if storage.capacity() < (places * PLACE / SECTOR_SIZE) as u64 {
        return Err(format!("the disk is too small for {places} places"));
    }
    let channels = storage.controller().channels().count();
    let free = (0..places).map(|number| Place {
        number,
        seed: 0,
        bytes: 0,
    });
    let work = Arc::new(Work {
        storage,
        seed,
        wanted,
        depth,
        progress: Mutex::new(Progress {
            free: free.collect(),
            in_flight: Vec::with_capacity(places),
            issued: 0,
            done: 0,
            failure: None,
        }),
    });
    let before: Vec<u64> = (0..cpus).map(hyperv::interrupts).collect();
    let strays = work.storage.channel().bus().stats().bad_completions;
    let start = clock::now();
    *WORK.lock() = Some(Arc::clone(&work));
    for cpu in 1..cpus {
        smp::start_on(cpu, take_part);
    }
    take_part();
    let deadline = Deadline::after(LIMIT);
    for cpu in 1..cpus {
        if !smp::wait_for(cpu, deadline) {
            return Err(format!("CPU {cpu} does not finish"));
        }
    }
    *WORK.lock() = None;
    let took = clock::now() - start;
    let progress = work.progress.lock();
    if let Some(failure) = &progress.failure {
        return Err(failure.clone());
    }
    let left = (progress.in_flight.len(), work.storage.in_flight());
    let strays = work.storage.channel().bus().stats().bad_completions - strays;
    if (progress.done, progress.issued, left, strays) != (wanted, wanted, (0, 0), 0) {
        return Err(format!(
            "{} of {} requests were done, {left:?} are in flight, {strays} answers to none",
            progress.done, progress.issued
        ));
    }
    println!("{wanted} requests on {cpus} CPUs over {channels} channels, once each: {took:?}");
    for (cpu, before) in before.into_iter().enumerate() {
        println!(
            "CPU {cpu} was interrupted {} times",
            hyperv::interrupts(cpu) - before
        );
    }
    Ok(())
}

/// What each CPU does, until all is done.
fn take_part() {
    let Some(work) = WORK.lock().clone() else {
        return;
    };
    if let Err(failure) = work.take_part() {
        work.progress.lock().failure.get_or_insert(failure);
    }
}

impl Work {
    fn take_part(&self) -> Result<(), String> {
        let text = |error: StorageError| error.to_string();
        let mut disk = self
            .storage
            .controller()
            .unit(self.storage.lun())
            .map_err(text)?;
        disk.set_timeout(NAP);
        let mut random = Pattern::new(self.seed.wrapping_add(cpu::index() as u64));
        let deadline = Deadline::after(LIMIT);
        loop {
            if !self.goes_on()? {
                return Ok(());
            }
            let mut own = 0;
            while own < self.depth && self.submit(&mut random)? {
                own += 1;
            }
            match disk.wait() {
                Ok(done) => self.check(done)?,
                Err(Error::Timeout(_)) if !deadline.passed() => {}
                Err(error) => return Err(error.to_string()),
            }
            // What has come besides, without a sleep.
            while let Some(done) = disk.poll() {
                self.check(done)?;
            }
        }
    }

    /// Whether something is left to do.
    fn goes_on(&self) -> Result<bool, String> {
        let progress = self.progress.lock();
        match &progress.failure {
            Some(_) => Err("another CPU has failed".into()),
            None => Ok(progress.done < self.wanted),
        }
    }

    /// Sends a request; `false` where there is none to send, or no room for it.
    fn submit(&self, random: &mut Pattern) -> Result<bool, String> {
        let mut place = {
            let mut progress = self.progress.lock();
            if progress.issued == self.wanted || progress.free.is_empty() {
                return Ok(false);
            }
            progress.issued += 1;
            let at = (random.next() % progress.free.len() as u64) as usize;
            progress.free.swap_remove(at)
        };
        let is_write = place.bytes == 0 || random.next().is_multiple_of(3);
        if is_write {
            let sectors = LENGTHS[(random.next() % LENGTHS.len() as u64) as usize];
            place.bytes = sectors * SECTOR_SIZE;
            place.seed = random.next();
        }
        let mut buffer = vec![0; place.bytes];
        if is_write {
            for (to, word) in buffer.chunks_exact_mut(8).zip(place.content()) {
                to.copy_from_slice(&word.to_le_bytes());
            }
        }
        // Under the lock, so that nobody takes the completion before it is known.
        let mut progress = self.progress.lock();
        let submitted = match is_write {
            true => self.storage.submit_write(place.sector(), buffer),
            false => self.storage.submit_read(place.sector(), buffer),
        };
        match submitted {
            Ok(token) => progress.in_flight.push((token, place, is_write)),
            Err((StorageError::Bus(Error::Full), _)) => {
                // Nobody knows what the place holds where it was to be written.
                place.bytes = if is_write { 0 } else { place.bytes };
                progress.issued -= 1;
                progress.free.push(place);
                return Ok(false);
            }
            Err((error, _)) => return Err(error.to_string()),
        }
        Ok(true)
    }

    /// Takes a completion, whoever's request it was.
    fn check(&self, done: Completion<Vec<u8>>) -> Result<(), String> {
        let (place, is_write) = {
            let mut progress = self.progress.lock();
            let mut all = progress.in_flight.iter();
            let at = all.position(|(token, ..)| *token == done.token);
            let at = at.ok_or_else(|| format!("{:?} was not in flight", done.token))?;
            let (_, place, is_write) = progress.in_flight.swap_remove(at);
            (place, is_write)
        };
        let number = place.number;
        done.result
            .map_err(|error| format!("place {number}: {error}"))?;
        let words = done.buffer.chunks_exact(8);
        let mut words = words.zip(place.content());
        if done.buffer.len() != place.bytes
            || !is_write && !words.all(|(bytes, word)| *bytes == word.to_le_bytes())
        {
            return Err(format!("place {number} has another one's data"));
        }
        let mut progress = self.progress.lock();
        progress.done += 1;
        progress.free.push(place);
        Ok(())
    }
}
