//! Key-value pairs: small texts that the guest keeps and both sides read and write.

use std::io;
use std::time::{Duration, Instant};

use vmbus_proto::ic::kvp::{self as proto, Exchange, Pair, VALUE_TEXT, pool};
use vmbus_proto::ic::{message_type, status};
use zerocopy::IntoBytes as _;

use super::exchange::{self, Client, Error};
use super::link::Service;
use crate::vsp::Vsp;

/// Most pairs that one enumeration reads: a guest must not fill our memory.
const MAX_PAIRS: u32 = 1024;

static SERVICE: Service = Service {
    name: "key-value pairs",
    class: proto::CLASS,
    instance: proto::INSTANCE,
    message_type: message_type::KVP,
    versions: proto::VERSIONS,
};

/// Where a pair is and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// Written by the host, for the guest.
    External,
    /// Written by the guest's users, for the host.
    Guest,
    /// What the guest's system says about itself: its name, version, addresses. It can be
    /// enumerated only.
    Auto,
    /// Written by the host's system, for the guest.
    AutoExternal,
    /// Written by the guest's system, for itself.
    AutoInternal,
}

impl Pool {
    fn number(self) -> u8 {
        match self {
            Self::External => pool::EXTERNAL,
            Self::Guest => pool::GUEST,
            Self::Auto => pool::AUTO,
            Self::AutoExternal => pool::AUTO_EXTERNAL,
            Self::AutoInternal => pool::AUTO_INTERNAL,
        }
    }
}

/// The embedder's end of the key-value pairs.
///
/// Each call waits at most `patience` for the guest. Linux gives its daemon five seconds for an
/// answer, and takes no request without it: its driver is ready up to a minute after the daemon.
#[derive(Clone)]
pub struct Kvp(Client);

impl Kvp {
    /// The service: its VSP to offer, and this.
    ///
    /// # Errors
    /// The system gives no file descriptor.
    pub fn new() -> io::Result<(Box<dyn Vsp>, Self)> {
        let (vsp, client) = exchange::new(&SERVICE)?;
        Ok((vsp, Self(client)))
    }

    /// Whether the guest has a driver that would listen.
    pub fn is_ready(&self) -> bool {
        self.0.is_ready()
    }

    /// The value of `key`, or `None` where it is not there. Linux 6.12 was seen to answer with an
    /// empty value: [`enumerate`](Self::enumerate) there.
    ///
    /// # Errors
    /// The key is too long, or the guest did not answer well.
    pub fn get(&self, pool: Pool, key: &str, patience: Duration) -> Result<Option<String>, Error> {
        let request = Exchange::get(pool.number(), key).ok_or(Error::Unsuitable)?;
        match self.ask(&request, patience)? {
            Some(answer) => value(&answer.pair()).map(Some),
            None => Ok(None),
        }
    }

    /// Writes `value` to `key`.
    ///
    /// # Errors
    /// The key or the value is too long, or the guest did not answer well.
    pub fn set(&self, pool: Pool, key: &str, value: &str, patience: Duration) -> Result<(), Error> {
        let request = Exchange::set(pool.number(), key, value).ok_or(Error::Unsuitable)?;
        self.ask(&request, patience)?
            .map(drop)
            .ok_or(Error::Refused(status::NO_MORE_ITEMS))
    }

    /// Takes `key` away; false where it was not there.
    ///
    /// # Errors
    /// The key is too long, or the guest did not answer well.
    pub fn delete(&self, pool: Pool, key: &str, patience: Duration) -> Result<bool, Error> {
        let request = Exchange::delete(pool.number(), key).ok_or(Error::Unsuitable)?;
        Ok(self.ask(&request, patience)?.is_some())
    }

    /// All pairs of a pool, within `patience` altogether; 1024 at most.
    ///
    /// # Errors
    /// The guest did not answer well.
    pub fn enumerate(
        &self,
        pool: Pool,
        patience: Duration,
    ) -> Result<Vec<(String, String)>, Error> {
        let begin = Instant::now();
        let mut pairs = Vec::new();
        for index in 0..MAX_PAIRS {
            let request = Exchange::enumerate(pool.number(), index);
            let left = patience.saturating_sub(begin.elapsed());
            let Some(answer) = self.ask(&request, left)? else {
                break;
            };
            let (_, pair) = answer.indexed_pair();
            pairs.push((text(pair.key()), value(&pair)?));
        }
        Ok(pairs)
    }

    /// The answer to a request, or `None` where what it asks for is not there.
    fn ask(&self, request: &Exchange, patience: Duration) -> Result<Option<Exchange>, Error> {
        match self.0.ask(request.as_bytes(), patience) {
            Ok(body) => Exchange::parse(&body)
                .map(Some)
                .map_err(|_| Error::Malformed),
            Err(Error::Refused(status::NO_MORE_ITEMS)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The value of a pair, which has to be a text.
fn value(pair: &Pair) -> Result<String, Error> {
    if pair.value_type.get() != VALUE_TEXT {
        return Err(Error::Malformed);
    }
    Ok(text(pair.value()))
}

/// What a guest may call text, as text.
fn text(units: impl Iterator<Item = u16>) -> String {
    char::decode_utf16(units)
        .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}
