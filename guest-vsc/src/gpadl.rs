//! GPADLs: telling the host about guest pages, and taking them back.

use core::sync::atomic::Ordering;

use vmbus_proto::PAGE_SIZE;
use vmbus_proto::message::{GpadlTeardown, Message, gpadl::announce};

use crate::bus::{Expected, Slot, Turn, VmBus};
use crate::error::{Error, Waited};
use crate::hal::Hal;

/// How long a host that has rescinded a channel gets to acknowledge its teardown, at most.
const RESCINDED_TIMEOUT: core::time::Duration = core::time::Duration::from_secs(1);

impl<H: Hal> VmBus<'_, H> {
    /// Makes a GPADL of whole pages for the channel in `slot` and returns its handle. The pages
    /// have to be lent from before this call until [`teardown_gpadl`](Self::teardown_gpadl).
    pub(crate) fn create_gpadl(
        &self,
        turn: &Turn<'_>,
        slot: &Slot<H>,
        pfns: impl ExactSizeIterator<Item = u64>,
    ) -> Result<u32, Error> {
        let relid = slot.relid();
        let gpadl = self.next_gpadl();
        let byte_count = pfns
            .len()
            .checked_mul(PAGE_SIZE)
            .and_then(|bytes| u32::try_from(bytes).ok())
            .ok_or(Error::TooLong)?;
        let messages = announce(relid, gpadl, byte_count, pfns).ok_or(Error::TooLong)?;
        self.expect(turn, Expected::keyed(Waited::GpadlCreated, relid, gpadl));
        for message in messages {
            self.post(&message)?;
        }
        // A rescinded channel does not end this wait: the pages' fate hangs on the answer.
        self.answer(turn, Waited::GpadlCreated, None, self.deadline())?
            .success()?;
        Ok(gpadl)
    }

    /// Takes a GPADL's pages back from the host. When this returns without error the host does
    /// not use them any more.
    pub(crate) fn teardown_gpadl(
        &self,
        turn: &Turn<'_>,
        slot: &Slot<H>,
        gpadl: u32,
    ) -> Result<(), Error> {
        let body = GpadlTeardown {
            relid: slot.relid().into(),
            gpadl: gpadl.into(),
        };
        let timeout = if slot.is_rescinded() {
            self.timeout().min(RESCINDED_TIMEOUT)
        } else {
            self.timeout()
        };
        let expected = Expected::keyed(Waited::GpadlTorndown, gpadl, 0);
        let question = Message::GpadlTeardown(body);
        match self.ask(turn, &question, expected, None, timeout) {
            // Rescinding was the host's own word that it has done with the channel.
            Err(Error::Timeout(Waited::GpadlTorndown)) if slot.is_rescinded() => Ok(()),
            answer => answer.map(|_| ()),
        }
    }

    fn next_gpadl(&self) -> u32 {
        loop {
            let handle = self.next_gpadl.fetch_add(1, Ordering::Relaxed);
            if handle != 0 {
                return handle;
            }
        }
    }
}
