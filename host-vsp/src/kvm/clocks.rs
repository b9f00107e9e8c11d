//! Clocks that stand still while the machine is paused.
//!
//! A guest has two: Hyper-V's reference time, which KVM derives from its own clock of the VM, and
//! the TSC of each processor. Both go on from where they were, so that no timer of the guest
//! finds itself late and no watchdog barks; what the time of day is now, the guest learns from the
//! time synchronization service.

use kvm_bindings::kvm_clock_data;

use super::vm::Vm;
use super::{Context as _, Error, ioctls};

/// The guest's clocks at the time it was paused.
#[derive(Clone, Copy, Debug)]
pub struct StoppedClocks {
    /// KVM's clock of the VM, in nanoseconds.
    clock: u64,
    /// The first processor's TSC.
    tsc: Option<u64>,
}

impl Vm {
    /// Reads the clocks. No processor may be running.
    pub fn stop_clocks(&self) -> Result<StoppedClocks, Error> {
        // The TSC first: the reference time must not go back against it.
        let tsc = self.vcpus().first().and_then(|vcpu| vcpu.tsc());
        let clock = self.memory().fd.get_clock().context("reading the clock")?;
        Ok(StoppedClocks {
            clock: clock.clock,
            tsc,
        })
    }

    /// Has the clocks go on from there. No processor may be running.
    pub fn start_clocks(&self, stopped: &StoppedClocks) -> Result<(), Error> {
        let now = self.vcpus().first().and_then(|vcpu| vcpu.tsc());
        if let (Some(then), Some(now)) = (stopped.tsc, now) {
            let away = now.wrapping_sub(then);
            for vcpu in self.vcpus() {
                let fd = vcpu.lock();
                // The same for all, so that what they differ by stays.
                let set = ioctls::tsc_offset(&fd)
                    .and_then(|offset| ioctls::set_tsc_offset(&fd, offset.wrapping_sub(away)));
                if let Err(error) = set {
                    tracing::debug!(%error, "TSCs have run on while the machine was paused");
                    break;
                }
            }
        }
        // After the TSC: KVM makes the reference TSC page from both.
        let clock = kvm_clock_data {
            clock: stopped.clock,
            ..Default::default()
        };
        self.memory()
            .fd
            .set_clock(&clock)
            .context("setting the clock")
    }
}
