// SPDX-License-Identifier: GPL-2.0

//! Further channels of a device.
//!
//! A device grants them when its driver asks by the device's own protocol, and then the host offers them
//! one by one, at its leisure. The kernel opens each while it takes the offer, as only so long the host
//! cannot take it back. They close with the first channel.

use kernel::{
    new_condvar,
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        CondVar,
        CondVarTimeoutResult,
        Mutex, //
    },
    time::Jiffies, //
};

use crate::{
    channel::{
        Channel,
        End,
        Handler,
        Options, //
    },
    ffi::{
        Opened,
        Port, //
    }, //
};

/// What a device's first channel knows of the further ones.
#[pin_data]
pub(crate) struct SubChannels<H: Handler> {
    #[pin]
    state: Mutex<State<H>>,
    /// One was offered.
    #[pin]
    offered: CondVar,
}

struct State<H: Handler> {
    /// While somebody waits for offers.
    wanted: Option<Wanted<H>>,
    /// The ends of all that the kernel was told to open. It may call them until the first channel has
    /// closed.
    ends: KVec<Arc<End<H>>>,
}

/// What somebody waits for.
struct Wanted<H: Handler> {
    options: Options,
    /// For those to come, the next one last.
    handlers: KVec<H>,
    /// Offers that have come, of use or not.
    come: usize,
    opened: KVec<Arc<End<H>>>,
}

impl<H: Handler> SubChannels<H> {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            state <- new_mutex!(State {
                wanted: None,
                ends: KVec::new(),
            }),
            offered <- new_condvar!(),
        })
    }

    /// The host offers the channel of `port`, which is valid during this call and from then on as long
    /// as it is open.
    pub(crate) fn offer(&self, port: Port) {
        let mut state = self.state.lock();
        let State { wanted, ends } = &mut *state;
        // One that comes too late is nobody's.
        let Some(wanted) = wanted else {
            return;
        };
        wanted.come += 1;
        // Whoever waits sees how many are of use.
        let _ = wanted.open(port, ends);
        self.offered.notify_all();
    }

    /// Nobody wants offers any more; waits for one that is being opened. Returns those that were.
    pub(crate) fn stop(&self) -> KVec<Arc<End<H>>> {
        let wanted = self.state.lock().wanted.take();
        wanted.map_or_else(KVec::new, |wanted| wanted.opened)
    }
}

impl<H: Handler> Wanted<H> {
    fn open(&mut self, port: Port, ends: &mut KVec<Arc<End<H>>>) -> Result {
        let handler = self.handlers.pop().ok_or(ENOSPC)?;
        let end = Arc::pin_init(End::new(port, Ok::<_, Error>(handler)), GFP_KERNEL)?;
        self.opened.reserve(1, GFP_KERNEL)?;
        ends.push(end.clone(), GFP_KERNEL)?;
        Opened::open_sub_channel(&end, &self.options)?;
        Ok(self.opened.push(end, GFP_KERNEL)?)
    }
}

impl<H: Handler> Channel<H> {
    /// Asks the device for further channels by `ask`, which says how many it grants, and opens those
    /// that the host then offers, one for each of `handlers` at most. Waits until they have come, for
    /// `timeout` or until there is a signal for the process; but for as long as it takes where the host is
    /// to answer the opening of one, as the kernel does everywhere. Returns what has come: there may be
    /// fewer, or none.
    ///
    /// Each has rings and a processor of its own, and closes with this channel, on which this is to be
    /// called once.
    ///
    /// May sleep.
    ///
    /// # Errors
    /// Those of `ask`; `EINVAL` as for [`Channel::open`], `ENODEV` where this channel is not open any
    /// more, `ENOMEM`.
    pub fn open_sub_channels(
        &self,
        options: &Options,
        handlers: KVec<H>,
        mut timeout: Jiffies,
        ask: impl FnOnce() -> Result<usize>,
    ) -> Result<KVec<Self>> {
        options.check()?;
        let sub_channels = self.end().sub_channels();
        let most = handlers.len();
        sub_channels.state.lock().wanted = Some(Wanted {
            options: *options,
            handlers,
            come: 0,
            opened: KVec::new(),
        });
        let granted = self
            .access()
            .map(|channel| channel.take_sub_channels::<H>())
            .ok_or(ENODEV)
            .and_then(|()| ask());
        let granted = granted.inspect_err(|_| drop(sub_channels.stop()))?;
        let mut state = sub_channels.state.lock();
        let is_short = |state: &State<H>| {
            let come = state.wanted.as_ref().map(|wanted| wanted.come);
            come.is_some_and(|come| come < granted.min(most))
        };
        while is_short(&state) {
            let waited = sub_channels
                .offered
                .wait_interruptible_timeout(&mut state, timeout);
            match waited {
                CondVarTimeoutResult::Woken { jiffies } => timeout = jiffies,
                CondVarTimeoutResult::Timeout | CondVarTimeoutResult::Signal { .. } => break,
            }
        }
        drop(state);
        let opened = sub_channels.stop();
        let mut channels = KVec::with_capacity(opened.len(), GFP_KERNEL)?;
        for end in opened {
            channels.push(self.sub_channel(end), GFP_KERNEL)?;
        }
        Ok(channels)
    }
}
