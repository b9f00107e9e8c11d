//! Counters: how often and why processors returned to this process, and what KVM itself counts.
//!
//! The product's promise is that steady I/O costs no return from `KVM_RUN`. So each return is
//! counted by its reason, in relaxed atomics, and a [`Snapshot`] puts them beside KVM's own
//! statistics: all exits of the guest, also those that the kernel handles alone. The difference
//! of two snapshots is the cost of a window of time.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::kvm::statistics::Statistics;

/// Why a processor returned from `KVM_RUN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Return {
    /// It read an I/O port.
    PortIn,
    /// It wrote an I/O port.
    PortOut,
    /// It touched memory that is not there.
    Mmio,
    /// It wrote a SynIC register.
    Synic,
    /// It called HvPostMessage.
    PostMessage,
    /// It called HvSignalEvent for a connection without a doorbell.
    SignalEvent,
    /// It made another hypercall that KVM does not know.
    Hypercall,
    /// It accessed an MSR that is served here.
    Msr,
    /// A signal or a kick brought it out, for a message or a pause.
    Interrupted,
    /// It asked for a reset, or crashed.
    SystemEvent,
    /// It took a triple fault.
    Shutdown,
    /// Anything else.
    Other,
}

impl Return {
    const ALL: [(Self, &'static str); 12] = [
        (Self::PortIn, "port_in"),
        (Self::PortOut, "port_out"),
        (Self::Mmio, "mmio"),
        (Self::Synic, "synic"),
        (Self::PostMessage, "post_message"),
        (Self::SignalEvent, "signal_event"),
        (Self::Hypercall, "hypercall"),
        (Self::Msr, "msr"),
        (Self::Interrupted, "interrupted"),
        (Self::SystemEvent, "system_event"),
        (Self::Shutdown, "shutdown"),
        (Self::Other, "other"),
    ];
}

/// A counter that counts something of a device.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Counts one.
    pub fn count(&self) {
        self.add(1);
    }

    /// Counts `number`.
    pub fn add(&self, number: u64) {
        // Relaxed: a statistic orders nothing.
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    /// What it has counted.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All counters of one machine.
#[derive(Debug)]
pub struct Counters {
    start: Instant,
    returns: Vec<[AtomicU64; Return::ALL.len()]>,
    named: Mutex<BTreeMap<String, Counter>>,
    kvm: OnceLock<Vec<Statistics>>,
}

impl Counters {
    /// Counters for `cpus` processors, all zero.
    pub fn new(cpus: u32) -> Self {
        Self {
            start: Instant::now(),
            returns: (0..cpus).map(|_| Default::default()).collect(),
            named: Mutex::default(),
            kvm: OnceLock::new(),
        }
    }

    /// The counter `name`, made at the first call: by convention `device.what`.
    pub fn counter(&self, name: &str) -> Counter {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        named.entry(name.to_owned()).or_default().clone()
    }

    /// Processor `cpu` returned from `KVM_RUN`.
    pub(crate) fn returned(&self, cpu: u32, reason: Return) {
        if let Some(counter) = self
            .returns
            .get(cpu as usize)
            .and_then(|all| all.get(reason as usize))
        {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Where KVM's own statistics come from, one per processor.
    pub(crate) fn attach(&self, statistics: Vec<Statistics>) {
        // A machine attaches once; a second set could only be the same.
        let _ = self.kvm.set(statistics);
    }

    /// All counters now.
    pub fn snapshot(&self) -> Snapshot {
        let returns = Return::ALL.map(|(reason, name)| {
            let sum = self
                .returns
                .iter()
                .map(|all| all[reason as usize].load(Ordering::Relaxed))
                .sum();
            (name, sum)
        });
        let named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kvm = BTreeMap::new();
        for statistics in self.kvm.get().into_iter().flatten() {
            for (name, value) in statistics.read() {
                *kvm.entry(name).or_insert(0) += value;
            }
        }
        Snapshot {
            elapsed: self.start.elapsed(),
            returns_total: returns.iter().map(|(_, value)| value).sum(),
            returns: returns.into_iter().collect(),
            devices: named
                .iter()
                .map(|(name, counter)| (name.clone(), counter.get()))
                .collect(),
            kvm,
        }
    }
}

/// The values of all counters at one time, or over a window of time.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// Time since the machine was made, or length of the window, in seconds and nanoseconds.
    pub elapsed: Duration,
    /// Returns from `KVM_RUN`: userspace exits.
    pub returns_total: u64,
    /// Returns from `KVM_RUN` by reason.
    pub returns: BTreeMap<&'static str, u64>,
    /// Counters of devices.
    pub devices: BTreeMap<String, u64>,
    /// KVM's statistics, summed over the processors; empty where the kernel has none.
    pub kvm: BTreeMap<String, u64>,
}

impl Snapshot {
    /// What was counted since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        fn less<K: Ord + Clone>(
            now: &BTreeMap<K, u64>,
            then: &BTreeMap<K, u64>,
        ) -> BTreeMap<K, u64> {
            now.iter()
                .map(|(name, value)| {
                    let before = then.get(name).copied().unwrap_or(0);
                    (name.clone(), value.saturating_sub(before))
                })
                .collect()
        }
        Self {
            elapsed: self.elapsed.saturating_sub(earlier.elapsed),
            returns_total: self.returns_total.saturating_sub(earlier.returns_total),
            returns: less(&self.returns, &earlier.returns),
            devices: less(&self.devices, &earlier.devices),
            kvm: less(&self.kvm, &earlier.kvm),
        }
    }

    /// One line of JSON, `{"counters":"<name>",…}`.
    pub fn json(&self, name: &str) -> String {
        #[derive(Serialize)]
        struct Line<'a> {
            counters: &'a str,
            seconds: f64,
            returns_total: u64,
            returns: &'a BTreeMap<&'static str, u64>,
            devices: &'a BTreeMap<String, u64>,
            kvm: &'a BTreeMap<String, u64>,
        }
        let line = Line {
            counters: name,
            seconds: self.elapsed.as_secs_f64(),
            returns_total: self.returns_total,
            returns: &self.returns,
            devices: &self.devices,
            kvm: &self.kvm,
        };
        // Maps of strings to numbers always have a JSON form.
        serde_json::to_string(&line).unwrap_or_default()
    }
}

/// A table, without what is zero.
impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:32} {:>12}",
            "returns from KVM_RUN", self.returns_total
        )?;
        for (name, value) in self.returns.iter().filter(|(_, value)| **value != 0) {
            writeln!(f, "  {name:30} {value:>12}")?;
        }
        writeln!(f, "devices")?;
        for (name, value) in self.devices.iter().filter(|(_, value)| **value != 0) {
            writeln!(f, "  {name:30} {value:>12}")?;
        }
        writeln!(f, "KVM's own counters")?;
        if self.kvm.is_empty() {
            writeln!(f, "  (this kernel has no binary statistics)")?;
        }
        for (name, value) in self.kvm.iter().filter(|(_, value)| **value != 0) {
            writeln!(f, "  {name:30} {value:>12}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_place() {
        for (index, (reason, _)) in Return::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }

    #[test]
    fn a_window_is_the_difference_of_two_snapshots() {
        let counters = Counters::new(2);
        let requests = counters.counter("disk.requests");
        counters.returned(0, Return::PortOut);
        requests.count();
        let begin = counters.snapshot();
        counters.returned(1, Return::PortOut);
        counters.returned(1, Return::Msr);
        counters.counter("disk.requests").add(4);
        let window = counters.snapshot().since(&begin);
        assert_eq!(window.returns_total, 2);
        assert_eq!(window.returns["port_out"], 1);
        assert_eq!(window.devices["disk.requests"], 4);
        let json: serde_json::Value = serde_json::from_str(&window.json("steady")).unwrap();
        assert_eq!(json["counters"], "steady");
        assert_eq!(json["returns"]["msr"], 1);
    }
}
