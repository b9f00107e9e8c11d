//! Contact with the host: which version to speak, the offers, and good-bye.

use core::sync::atomic::Ordering;
use core::time::Duration;

use vmbus_proto::PAGE_SIZE;
use vmbus_proto::hv::hypercall::Status;
use vmbus_proto::message::{
    CONNECTION_ID_CONTACT, CONNECTION_ID_MESSAGE, InitiateContact, Message,
};
use vmbus_proto::version::Version;

use super::{Expected, Slot, Turn, VmBus};
use crate::error::{Error, Waited};
use crate::hal::Hal;
use crate::shared::Dma;

/// Which versions to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versions {
    /// Every version this crate speaks from this one down, newest first.
    UpTo(Version),
    /// This one, known or not.
    Exactly(Version),
}

/// How to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Which versions to try.
    pub versions: Versions,
    /// How long to wait for each of the host's answers, up to about an hour.
    pub timeout: Duration,
}

impl Default for Options {
    /// The newest version the host speaks; ten seconds for each answer.
    fn default() -> Self {
        Self {
            versions: Versions::UpTo(Version::V5_3),
            timeout: Duration::from_secs(10),
        }
    }
}

/// The connection.
pub(super) struct Link<H: Hal> {
    /// Version and connection id for messages, while connected.
    up: Option<(Version, u32)>,
    /// The legacy interrupt page and two monitor pages, while the host knows them.
    pages: Option<Dma<H>>,
}

/// Pages that INITIATE_CONTACT names: the interrupt page, then two monitor pages.
const CONTACT_PAGES: usize = 3;

/// Offset of the guest-to-host half in the legacy interrupt page, in bytes.
const SEND_INTERRUPTS: usize = PAGE_SIZE / 2;

impl<H: Hal> Link<H> {
    pub(super) const fn down() -> Self {
        Self {
            up: None,
            pages: None,
        }
    }

    pub(super) fn version(&self) -> Option<Version> {
        self.up.map(|(version, _)| version)
    }

    pub(super) fn message_connection_id(&self) -> Option<u32> {
        self.up.map(|(_, id)| id)
    }

    /// Sets a channel's bit in the legacy interrupt page, for channels that share an event port.
    pub(super) fn set_interrupt_bit(&self, relid: u32) {
        let byte = (relid / u32::BITS).saturating_mul(size_of::<u32>() as u32);
        let word = SEND_INTERRUPTS.saturating_add(byte as usize);
        if let Some(pages) = &self.pages
            && let Some(bits) = pages.u32_at(word)
        {
            bits.fetch_or(1 << (relid % u32::BITS), Ordering::AcqRel);
        }
    }
}

impl<H: Hal> VmBus<'_, H> {
    /// Connects: negotiates a version and collects the offers. The host will send its messages to
    /// the processor that runs this, whose SynIC is enabled. Waits for the host.
    ///
    /// # Errors
    /// [`Error::VersionRefused`] where the host speaks no version that was tried;
    /// [`Error::Timeout`] where it is silent. The bus is not connected then and may try again.
    pub fn connect(&self, options: &Options) -> Result<Version, Error> {
        self.set_timeout(options.timeout);
        let turn = self.turn()?;
        if self.version().is_some() {
            return Err(Error::AlreadyConnected);
        }
        let vp = self.vp_index(H::current_cpu()).ok_or(Error::TooManyCpus)?;
        let pages = Dma::new(CONTACT_PAGES).ok_or(Error::OutOfMemory)?;
        let (version, message_id) = self.negotiate(&turn, options.versions, vp, &pages)?;
        self.link.with(|link| {
            link.up = Some((version, message_id));
            link.pages = Some(pages);
        });

        let expected = Expected::plain(Waited::Offers);
        let timeout = self.timeout();
        if let Err(error) = self.ask(&turn, &Message::RequestOffers, expected, None, timeout) {
            // The first error is the one to report.
            let _ = self.say_good_bye(&turn);
            return Err(error);
        }
        Ok(version)
    }

    /// Offers versions to the host until it takes one.
    fn negotiate(
        &self,
        turn: &Turn<'_>,
        versions: Versions,
        vp: u32,
        pages: &Dma<H>,
    ) -> Result<(Version, u32), Error> {
        let (highest, versions) = match versions {
            Versions::Exactly(version) => (version, &[version][..]),
            Versions::UpTo(version) => (version, &Version::SUPPORTED[..]),
        };
        let mut refusal = Error::VersionRefused(highest);
        // Until the host has said no to each of them, it may use the pages.
        pages.lend();
        for &version in versions.iter().filter(|version| **version <= highest) {
            refusal = match self.contact(turn, version, vp, pages)? {
                Contact::Accepted(id) => return Ok((version, id)),
                Contact::Refused => Error::VersionRefused(version),
                Contact::NoPort => Error::Hypercall(Status::INVALID_CONNECTION_ID),
            };
        }
        pages.reclaim();
        Err(refusal)
    }

    /// Offers one version to the host.
    fn contact(
        &self,
        turn: &Turn<'_>,
        version: Version,
        vp: u32,
        pages: &Dma<H>,
    ) -> Result<Contact, Error> {
        let own_port = version >= Version::V5_0;
        let page = |n: u64| {
            pages
                .paddr()
                .saturating_add(n.saturating_mul(PAGE_SIZE as u64))
        };
        let mut body = InitiateContact::new(version, vp);
        if !own_port {
            body.interrupt_page_or_target = page(0).into();
        }
        body.monitor_page1 = page(1).into();
        body.monitor_page2 = page(2).into();

        self.expect(turn, Expected::plain(Waited::Version));
        let port = if own_port {
            CONNECTION_ID_CONTACT
        } else {
            CONNECTION_ID_MESSAGE
        };
        let message = Message::InitiateContact(body).encode();
        match self.post_to(port, &message, true) {
            // Here that is an answer: the host is older than the version.
            Err(Error::Hypercall(Status::INVALID_CONNECTION_ID)) => return Ok(Contact::NoPort),
            posted => posted?,
        }
        let answer = self.answer(turn, Waited::Version, None, self.deadline())?;
        let [supported, state, ..] = answer.status.to_le_bytes();
        match (supported, state) {
            (0, _) => Ok(Contact::Refused),
            (_, 0) if own_port => Ok(Contact::Accepted(answer.value)),
            (_, 0) => Ok(Contact::Accepted(CONNECTION_ID_MESSAGE)),
            (_, state) => Err(Error::ConnectionRefused(state)),
        }
    }

    /// Ends the connection; [`connect`](Self::connect) may be called again. All channels have to
    /// be closed. Waits for the host.
    ///
    /// # Errors
    /// [`Error::ChannelsOpen`] changes nothing. With [`Error::Timeout`] the connection is ended
    /// on our side all the same.
    pub fn unload(&self) -> Result<(), Error> {
        let turn = self.turn()?;
        if self.version().is_none() {
            return Err(Error::NotConnected);
        }
        if self.slots.iter().any(Slot::is_used) {
            return Err(Error::ChannelsOpen);
        }
        self.say_good_bye(&turn)
    }

    pub(super) fn say_good_bye(&self, turn: &Turn<'_>) -> Result<(), Error> {
        let expected = Expected::plain(Waited::Unload);
        let answer = self.ask(turn, &Message::Unload, expected, None, self.timeout());
        let pages = self.link.with(|link| {
            link.up = None;
            link.pages.take()
        });
        for slot in self.slots {
            slot.free();
        }
        self.highest_relid.store(0, Ordering::Relaxed);
        self.release_due.store(false, Ordering::Relaxed);
        if let Some(pages) = pages
            && answer.is_ok()
        {
            pages.reclaim();
        }
        answer.map(|_| ())
    }
}

/// What came of offering a version.
enum Contact {
    /// The host speaks it; the connection id for further messages.
    Accepted(u32),
    /// The host does not speak it.
    Refused,
    /// The host has no port for contact of this kind.
    NoPort,
}
