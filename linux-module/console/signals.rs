// SPDX-License-Identifier: GPL-2.0

//! Waiting for the host, and who has the device open.

use kernel::{
    new_poll_condvar,
    new_spinlock_irq,
    prelude::*,
    sync::{
        poll::PollCondVar,
        CondVarTimeoutResult,
        SpinLockIrq, //
    }, //
};
use vmbus::{
    Access,
    Callback,
    Handler, //
};

/// Told of the host's signals; readers and writers wait here.
#[pin_data]
pub(crate) struct Signals {
    #[pin]
    state: SpinLockIrq<State>,
    #[pin]
    changed: PollCondVar,
}

#[derive(Default)]
struct State {
    /// Signals so far.
    count: u64,
    /// Whether the device has gone.
    gone: bool,
    /// Whether a file is open for reading.
    reader: bool,
    /// Whether a file is open for writing.
    writer: bool,
}

impl Signals {
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            state <- new_spinlock_irq!(State::default()),
            changed <- new_poll_condvar!(),
        })
    }

    /// Takes the part of the one reader, of the one writer, or both.
    pub(crate) fn enter(&self, reader: bool, writer: bool) -> Result {
        let mut state = self.state.lock();
        if state.gone {
            return Err(ENODEV);
        }
        if (reader && state.reader) || (writer && state.writer) {
            return Err(EBUSY);
        }
        state.reader |= reader;
        state.writer |= writer;
        Ok(())
    }

    /// Gives back what [`Self::enter`] took.
    pub(crate) fn leave(&self, reader: bool, writer: bool) {
        let mut state = self.state.lock();
        state.reader &= !reader;
        state.writer &= !writer;
    }

    /// Whether the device has gone.
    pub(crate) fn is_gone(&self) -> bool {
        self.state.lock().gone
    }

    /// The number of signals so far. Who finds nothing to do after asking for it waits with
    /// [`Self::wait`].
    pub(crate) fn count(&self) -> u64 {
        self.state.lock().count
    }

    /// Waits for a signal after the first `count`, or for the end of the device.
    pub(crate) fn wait(&self, count: u64) -> Result {
        let mut state = self.state.lock();
        while state.count == count && !state.gone {
            if self.changed.wait_interruptible(&mut state) {
                return Err(ERESTARTSYS);
            }
        }
        Ok(())
    }

    /// Lets others run for a moment, before somebody looks again who has nothing to wait for.
    pub(crate) fn pause(&self) -> Result {
        let mut state = self.state.lock();
        match self.changed.wait_interruptible_timeout(&mut state, 1) {
            CondVarTimeoutResult::Signal { .. } => Err(ERESTARTSYS),
            _ => Ok(()),
        }
    }

    /// What is to be polled.
    pub(crate) fn changed(&self) -> &PollCondVar {
        &self.changed
    }

    /// The device has gone: nobody waits any more.
    pub(crate) fn end(&self) {
        self.state.lock().gone = true;
        self.changed.notify_all();
    }
}

impl Handler for Signals {
    // A reader takes packets when it wants them; till then they stay in the ring, and stop the host.
    const CALLBACK: Callback = Callback::Direct;

    fn signalled(&self, _channel: &Access<'_>) {
        {
            let mut state = self.state.lock();
            state.count = state.count.wrapping_add(1);
        }
        self.changed.notify_all();
    }
}
