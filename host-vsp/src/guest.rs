//! What the API asks of the guest's operating system, by its integration services: its key-value
//! pairs, and that its file systems stand still.

use std::time::Duration;

use crate::api::Error;
use crate::api::model::{KvpPair, KvpPool};
use crate::freezer::{self, Freezer, Frozen};
use crate::ic::{self, Kvp, Services};

/// How long the guest may take for one call: its daemon has five seconds for each question.
const PATIENCE: Duration = Duration::from_secs(10);

/// The services of one machine, where it has them.
pub(crate) struct Guest {
    kvp: Option<Kvp>,
    freezer: Option<Freezer>,
}

impl Guest {
    pub fn new(services: Option<&Services>) -> Self {
        Self {
            kvp: services.map(|services| services.kvp.clone()),
            freezer: services.map(|services| Freezer::new(services.vss.clone())),
        }
    }

    pub fn is_frozen(&self) -> bool {
        self.freezer.as_ref().is_some_and(Freezer::is_frozen)
    }

    fn kvp(&self) -> Result<&Kvp, Error> {
        self.kvp.as_ref().ok_or_else(no_services)
    }

    fn freezer(&self) -> Result<&Freezer, Error> {
        self.freezer.as_ref().ok_or_else(no_services)
    }

    pub fn kvp_list(&self, pool: KvpPool) -> Result<Vec<KvpPair>, Error> {
        let pairs = self.kvp()?.enumerate(pool.into(), PATIENCE);
        let pair = |(key, value)| KvpPair { key, value };
        Ok(pairs.map_err(of_kvp)?.into_iter().map(pair).collect())
    }

    pub fn kvp_get(&self, pool: KvpPool, key: &str) -> Result<KvpPair, Error> {
        // Not by asking for the key: the pool Auto can be enumerated only, and Linux 6.12 was seen
        // to answer such a question with an empty value.
        let pairs = self.kvp_list(pool)?;
        let found = pairs.into_iter().find(|pair| pair.key == key);
        found.ok_or_else(|| no_key(pool, key))
    }

    pub fn kvp_set(&self, pool: KvpPool, key: &str, value: &str) -> Result<(), Error> {
        writable(pool)?;
        let set = self.kvp()?.set(pool.into(), key, value, PATIENCE);
        set.map_err(of_kvp)
    }

    pub fn kvp_delete(&self, pool: KvpPool, key: &str) -> Result<(), Error> {
        writable(pool)?;
        let deleted = self.kvp()?.delete(pool.into(), key, PATIENCE);
        match deleted.map_err(of_kvp)? {
            true => Ok(()),
            false => Err(no_key(pool, key)),
        }
    }

    pub fn freeze(&self, seconds: u64) -> Result<Frozen, Error> {
        let frozen = self.freezer()?.freeze(Duration::from_secs(seconds));
        frozen.map_err(of_freezer)
    }

    pub fn thaw(&self) -> Result<(), Error> {
        self.freezer()?.thaw().map_err(of_freezer)
    }
}

fn no_services() -> Error {
    Error::Conflict("the machine has no integration services: run it without --no-ic".into())
}

fn no_key(pool: KvpPool, key: &str) -> Error {
    Error::NotFound(format!("the guest has no key {key:?} in the pool {pool:?}"))
}

/// The guest's own words about itself are not the host's to change.
fn writable(pool: KvpPool) -> Result<(), Error> {
    if pool == KvpPool::Auto {
        return Err(Error::BadRequest(
            "the guest makes the pairs of the pool Auto itself: use External".into(),
        ));
    }
    Ok(())
}

fn of_kvp(error: ic::Error) -> Error {
    use ic::Error as Guest;
    match error {
        Guest::Unsuitable => Error::BadRequest(
            "a key has at most 255 characters, a value 1023, and neither has a zero".into(),
        ),
        Guest::NotReady | Guest::Refused(_) => Error::Conflict(format!(
            "the guest does not serve key-value pairs: {error}; on Linux, hv_kvp_daemon has to run"
        )),
        Guest::Busy | Guest::NoAnswer | Guest::Gone | Guest::Malformed => {
            Error::Failed(format!("the guest does not serve key-value pairs: {error}"))
        }
    }
}

fn of_freezer(error: freezer::Error) -> Error {
    use ic::Error as Guest;
    match error {
        freezer::Error::Limit => Error::BadRequest(error.to_string()),
        freezer::Error::Already | freezer::Error::NotFrozen => Error::Conflict(error.to_string()),
        freezer::Error::Guest(guest @ (Guest::NotReady | Guest::Refused(_))) => Error::Conflict(
            format!("the guest does not do it: {guest}; on Linux, hv_vss_daemon has to run"),
        ),
        freezer::Error::Guest(guest) => Error::Failed(format!("the guest does not do it: {guest}")),
        freezer::Error::NoThread => Error::Failed(error.to_string()),
    }
}
