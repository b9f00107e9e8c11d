//! This moment on the host's clock and on the guest's.
//!
//! The guest's reference counter is KVM's clock of the VM, in other units, whether the guest reads
//! it from the MSR or computes it from the TSC page. KVM gives that clock and the host's time as
//! of the same instant where the host's TSC is good; else they are read one after the other.

use std::time::{Duration, SystemTime};

use kvm_bindings::KVM_CLOCK_REALTIME;

use super::vm::Vm;
use crate::ic::{Clock, Moment};

/// Nanoseconds in a unit of the reference counter.
const REFERENCE_UNIT: u64 = 100;

impl Clock for Vm {
    fn now(&self) -> Option<Moment> {
        let clock = self.memory().fd.get_clock().ok()?;
        let host = if clock.flags & KVM_CLOCK_REALTIME != 0 {
            Duration::from_nanos(clock.realtime)
        } else {
            SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .ok()?
        };
        Some(Moment {
            host,
            reference: clock.clock / REFERENCE_UNIT,
        })
    }
}
