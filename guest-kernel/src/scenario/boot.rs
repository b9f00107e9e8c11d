//! The machine itself: clock, interrupts, heap, page frames, every CPU.

use super::machine::Machine;
use super::{Outcome, Scenario};
use crate::clock::{self, Deadline};
use crate::cpu::{self, smp};
use crate::memory::{PAGE, frames};
use crate::println;
use alloc::format;
use alloc::vec;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use core::time::Duration;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "boot",
    about: "clock, interrupts, memory on every CPU (cpus=N: there must be N)",
    run,
}];

fn run(machine: &mut Machine<'_>) -> Outcome {
    memory()?;
    let online = smp::online();
    let wanted = machine.options.number("cpus", online as u64)?;
    if online as u64 != wanted {
        return Err(format!("{online} CPUs run, and there should be {wanted}"));
    }
    for index in 0..online {
        interrupts(index)?;
    }
    println!("{online} CPUs took a timer interrupt each");
    Ok(())
}

fn memory() -> Outcome {
    let mut heap = vec![0xA5_u8; 3 * PAGE as usize];
    heap[PAGE as usize] = 0;
    if heap.iter().filter(|&&byte| byte == 0).count() != 1 {
        return Err("the heap does not keep what is written to it".into());
    }
    let (first, _) = frames::take(3).ok_or("there are no page frames")?;
    let (second, _) = frames::take(3).ok_or("there are too few page frames")?;
    if first % PAGE != 0 || first.abs_diff(second) < 3 * PAGE {
        return Err(format!(
            "frames overlap or are misaligned: {first:#x}, {second:#x}"
        ));
    }
    Ok(())
}

/// The CPU that finished [`sleep_a_little`] last, plus 1.
static SLEPT: AtomicUsize = AtomicUsize::new(0);

/// Has a CPU woken up by its own timer.
fn interrupts(cpu: usize) -> Outcome {
    const LIMIT: Duration = Duration::from_secs(10);
    SLEPT.store(0, Relaxed);
    let before = clock::now();
    if !smp::run_on(cpu, sleep_a_little, Deadline::after(LIMIT)) {
        return Err(format!(
            "CPU {cpu} did not wake up from its timer within {LIMIT:?}"
        ));
    }
    let slept = clock::now() - before;
    match SLEPT.load(Relaxed).checked_sub(1) {
        Some(who) if who == cpu && slept >= NAP => Ok(()),
        who => Err(format!(
            "CPU {cpu} was to sleep {NAP:?}; {who:?} slept {slept:?}"
        )),
    }
}

const NAP: Duration = Duration::from_millis(20);

fn sleep_a_little() {
    cpu::wait_until(Deadline::after(NAP), || false);
    SLEPT.store(cpu::index() + 1, Relaxed);
}
