//! The terminal that the process was started from, while a guest has it.

use std::io::{self, IsTerminal as _};
use std::sync::{Mutex, PoisonError};

use rustix::termios::{OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};

/// The key that stops the machine: Ctrl-].
const STOP_KEY: u8 = 0x1D;

/// How the terminal was before it was taken.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Gives every key to the guest while it lives, and restores the terminal when dropped.
///
/// Ctrl-C reaches the guest like any other key. One key does not: Ctrl-] sends SIGINT to this
/// process, which stops the machine in an orderly way.
pub struct GuestTerminal(());

impl GuestTerminal {
    /// Takes the terminal on stdin; `None` where stdin is none.
    pub fn take() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        raw.local_modes |= rustix::termios::LocalModes::ISIG;
        raw.special_codes[SpecialCodeIndex::VINTR] = STOP_KEY;
        // 0 switches a key off.
        raw.special_codes[SpecialCodeIndex::VQUIT] = 0;
        raw.special_codes[SpecialCodeIndex::VSUSP] = 0;
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let taken = Self(());
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(taken))
    }
}

impl Drop for GuestTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Restores the terminal if it is taken, for those who end the process without dropping anything.
pub fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before
        && let Err(error) = tcsetattr(io::stdin(), OptionalActions::Now, &before)
    {
        tracing::warn!(%error, "the terminal could not be restored; `stty sane` does it");
    }
}
