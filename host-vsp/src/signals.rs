//! Signals: how the command is stopped from outside.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use host_vsp::ic::{Shutdown, ShutdownKind};
use host_vsp::machine::Handle;
use host_vsp::output::Output;
use host_vsp::terminal;
use signal_hook::consts::{SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

/// Exit status of a command that a signal stopped, before the signal's number is added.
pub const SIGNALLED: u8 = 128;

/// How long a guest's driver may take to say that it will shut down.
const WORD: Duration = Duration::from_secs(5);

/// What signals act on.
#[derive(Clone)]
pub struct Obedience {
    /// The machine.
    pub handle: Handle,
    /// How the guest is asked to shut down, where it can be.
    pub shutdown: Option<Shutdown>,
    /// How long it may take.
    pub patience: Duration,
    /// The signal that stopped the machine.
    pub stopped_by: Arc<AtomicI32>,
    /// Where to say what happens.
    pub stderr: Output,
}

impl Obedience {
    /// Has a thread do what signals ask for.
    ///
    /// The first SIGTERM asks the guest to shut down, if it listens. Where it does not, does not
    /// want to or takes too long, and for each other signal, the machine stops. A signal
    /// after that ends the process, whatever hangs.
    pub fn begin(self, mut signals: Signals) -> io::Result<()> {
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                let mut asked = false;
                for signal in &mut signals {
                    if signal == SIGUSR1 {
                        let counters = self.handle.counters().snapshot().json("now");
                        self.say(&counters);
                    } else if signal == SIGTERM && !asked && self.can_ask() {
                        asked = true;
                        let asker = self.clone();
                        let thread = std::thread::Builder::new().name("shutdown".into());
                        if thread.spawn(move || asker.ask(signal)).is_err() {
                            self.stop(signal);
                        }
                    } else if !self.stop(signal) {
                        terminal::restore();
                        std::process::exit(i32::from(SIGNALLED) + signal);
                    }
                }
            })?;
        Ok(())
    }

    fn say(&self, text: &str) {
        let _ = writeln!(self.stderr.clone(), "{text}");
    }

    fn can_ask(&self) -> bool {
        let listens = self.shutdown.as_ref().is_some_and(Shutdown::is_ready);
        listens && !self.patience.is_zero() && self.stopped_by.load(Ordering::SeqCst) == 0
    }

    /// Asks the guest, waits, and stops the machine if it is still there then. The process ends
    /// with the machine, and this thread with it.
    fn ask(&self, signal: i32) {
        let begin = Instant::now();
        self.say("host-vsp: the guest is asked to shut down; another signal stops it at once");
        let word = self
            .shutdown
            .as_ref()
            .map(|shutdown| shutdown.request(ShutdownKind::PowerOff, WORD.min(self.patience)));
        let reason = match word {
            Some(Ok(())) => {
                std::thread::sleep(self.patience.saturating_sub(begin.elapsed()));
                format!("it did not shut down within {} s", self.patience.as_secs())
            }
            Some(Err(error)) => error.to_string(),
            None => return,
        };
        if self.stop(signal) {
            self.say(&format!("host-vsp: the guest is stopped: {reason}"));
        }
    }

    /// Stops the machine; false where that has been done before.
    fn stop(&self, signal: i32) -> bool {
        let before =
            self.stopped_by
                .compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst);
        if before.is_ok() {
            self.handle.stop();
        }
        before.is_ok()
    }
}
