//! The terminal that the process was started from, while a guest has it.

use std::io::{self, IsTerminal as _};

use rustix::termios::{OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};

/// The key that stops the machine: Ctrl-].
const STOP_KEY: u8 = 0x1D;

/// Gives every key to the guest while it lives, and restores the terminal when dropped.
///
/// Ctrl-C reaches the guest like any other key. One key does not: Ctrl-] sends SIGINT to this
/// process, which stops the machine in an orderly way.
pub struct GuestTerminal {
    before: Termios,
}

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
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for GuestTerminal {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(io::stdin(), OptionalActions::Now, &self.before) {
            tracing::warn!(%error, "the terminal could not be restored; `stty sane` does it");
        }
    }
}
