//! Tells the stories with libtest-mimic, two at a time, each in an L1 of the pool.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use bed::l1::L1;
use libtest_mimic::{Arguments, Failed, Trial};

use crate::pool::{BED_DEATHS_ALLOWED, Pool};
use crate::record::{Proof, Record};
use crate::story::{self, Story};

/// Stories told at once; each L1 keeps one core busy.
const WORKERS: usize = 2;

/// So many of the longest stories are named after a run.
const LONGEST: usize = 20;

/// A story and its name.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    name: &'static str,
    tell: fn(&mut Story) -> anyhow::Result<()>,
}

impl Entry {
    /// A story.
    pub const fn new(name: &'static str, tell: fn(&mut Story) -> anyhow::Result<()>) -> Self {
        Self { name, tell }
    }
}

/// The name of a topic and its stories.
pub type Topic = (&'static str, &'static [Entry]);

/// Runs the stories of `topics` that the command line asks for; the `main` of the test target.
pub fn run(topics: &[Topic]) -> ExitCode {
    // The record is the test command's; a soak may take days, and proves nothing else.
    tell_all(topics, !story::is_soak())
}

/// The same for what is measured and proves nothing.
pub fn measure(topics: &[Topic]) -> ExitCode {
    tell_all(topics, false)
}

fn tell_all(topics: &[Topic], recorded: bool) -> ExitCode {
    let mut arguments = Arguments::from_args();
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
    arguments.test_threads.get_or_insert(WORKERS.min(cores));
    let pool = Arc::new(Pool::default());
    let told = Arc::new(Mutex::new(Told::default()));
    let mut all = BTreeSet::new();
    let mut trials = Vec::new();
    for (topic, stories) in topics {
        for entry in *stories {
            let name = format!("{topic}::{}", entry.name);
            all.insert(name.clone());
            let (pool, told) = (Arc::clone(&pool), Arc::clone(&told));
            trials.push(Trial::test(name.clone(), move || {
                let begin = Instant::now();
                let result = tell(&pool, *entry);
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                told.took.push((begin.elapsed(), name.clone()));
                told.names.insert(name.clone());
                let proofs = result.map_err(|error| Failed::from(format!("{error:#}")))?;
                told.passed.insert(name, proofs);
                Ok(())
            }));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if pool.deaths() > 0 {
        println!(
            "the bed's L1 died {} time(s); {BED_DEATHS_ALLOWED} allowed",
            pool.deaths()
        );
    }
    let told = std::mem::take(&mut *told.lock().unwrap_or_else(PoisonError::into_inner));
    told.print_longest();
    if recorded
        && !arguments.list
        && let Err(error) = Record::update(all, &told.names, told.passed)
    {
        eprintln!("error: the record of what was proven: {error:#}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

/// What came of the stories of this run.
#[derive(Default)]
struct Told {
    names: BTreeSet<String>,
    passed: BTreeMap<String, BTreeSet<Proof>>,
    took: Vec<(Duration, String)>,
}

impl Told {
    /// Where the time went: whoever has to make the run shorter begins with these.
    fn print_longest(&self) {
        let mut took: Vec<_> = self.took.iter().collect();
        took.sort();
        println!("\nthe longest stories:");
        for (time, name) in took.iter().rev().take(LONGEST) {
            println!("{:6.1} s  {name}", time.as_secs_f64());
        }
    }
}

/// Tells one story, and once more if the bed died under it.
fn tell(pool: &Pool, entry: Entry) -> anyhow::Result<BTreeSet<Proof>> {
    let mut error = match tell_once(pool, entry) {
        Err(error) if is_bed_death(&error) => error,
        told => return told,
    };
    let deaths = pool.count_death();
    eprintln!(
        "{}: the bed died, telling it once more: {error:#}",
        entry.name
    );
    if deaths <= BED_DEATHS_ALLOWED {
        match tell_once(pool, entry) {
            Err(again) if is_bed_death(&again) => {
                pool.count_death();
                error = again;
            }
            told => return told,
        }
    }
    Err(error.context("the bed died too often"))
}

fn tell_once(pool: &Pool, entry: Entry) -> anyhow::Result<BTreeSet<Proof>> {
    let mut story = Story::begin(pool.take()?)?;
    let told = catch_unwind(AssertUnwindSafe(|| (entry.tell)(&mut story)))
        .unwrap_or_else(|panic| Err(anyhow!("{}", panic_text(panic.as_ref()))));
    let Err(error) = told else {
        let (l1, proofs) = story.end()?;
        // What the story has seen holds, whatever has come of its L1.
        if l1.check().is_ok() {
            pool.give_back(l1);
        }
        return Ok(proofs);
    };
    // After a failure the L1 is not used again, whatever state it is in.
    Err(explain(error, story.l1()))
}

/// Adds to the error of a story what its processes printed last; or finds that it was the bed.
fn explain(error: anyhow::Error, l1: &L1) -> anyhow::Error {
    if is_bed_death(&error) {
        return error;
    }
    if let Err(died) = l1.check() {
        return anyhow::Error::new(died).context(format!("after: {error:#}"));
    }
    let trail = l1.take_trail().join("");
    anyhow!("{error:#}\n{trail}")
}

fn is_bed_death(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| matches!(cause.downcast_ref(), Some(bed::Error::BedDied { .. })))
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("the story panicked")
}
