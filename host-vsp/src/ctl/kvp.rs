//! `host-vsp ctl kvp`: the guest's key-value pairs by hand.

use std::path::Path;

use clap::{Args, Subcommand, ValueEnum};
use host_vsp::api::client::{CallError, call};
use host_vsp::api::model::{KvpDelete, KvpGet, KvpList, KvpPair, KvpPool, KvpSet};
use hyper::Method;
use serde::Serialize;
use serde_json::Value;

/// Where pairs are, and whose.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Pool {
    /// Written by the host, for the guest
    External,
    /// Written by the guest's users, for the host
    Guest,
    /// What the guest's system says about itself
    Auto,
    /// Written by the host's system, for the guest
    AutoExternal,
    /// Written by the guest's system, for itself
    AutoInternal,
}

impl From<Pool> for KvpPool {
    fn from(pool: Pool) -> Self {
        match pool {
            Pool::External => Self::External,
            Pool::Guest => Self::Guest,
            Pool::Auto => Self::Auto,
            Pool::AutoExternal => Self::AutoExternal,
            Pool::AutoInternal => Self::AutoInternal,
        }
    }
}

/// The pool to read from.
#[derive(Clone, Copy, Debug, Args)]
pub struct Source {
    /// Which pairs
    #[arg(long, default_value = "auto")]
    pool: Pool,
}

/// The pool to write to.
#[derive(Clone, Copy, Debug, Args)]
pub struct To {
    /// Which pairs
    #[arg(long, default_value = "external")]
    pool: Pool,
}

/// What to do with pairs.
#[derive(Clone, Debug, Subcommand)]
pub enum Action {
    /// List all pairs of a pool
    List {
        /// From where
        #[command(flatten)]
        from: Source,
    },
    /// Print the value of a key
    Get {
        /// From where
        #[command(flatten)]
        from: Source,
        /// The key
        key: String,
    },
    /// Write a value to a key
    Set {
        /// Where to
        #[command(flatten)]
        to: To,
        /// The key
        key: String,
        /// The value
        value: String,
    },
    /// Take a key away
    Delete {
        /// From where
        #[command(flatten)]
        to: To,
        /// The key
        key: String,
    },
}

impl Action {
    /// Asks the machine at `socket`.
    pub fn call(&self, socket: &Path) -> Result<Value, CallError> {
        fn put(socket: &Path, name: &str, body: &impl Serialize) -> Result<Value, CallError> {
            call(socket, Method::PUT, name, Some(body))
        }
        match self.clone() {
            Self::List { from } => {
                let pool = from.pool.into();
                put(socket, "vm.kvp-list", &KvpList { pool })
            }
            Self::Get { from, key } => {
                let pool = from.pool.into();
                put(socket, "vm.kvp-get", &KvpGet { pool, key })
            }
            Self::Set { to, key, value } => {
                let pool = to.pool.into();
                put(socket, "vm.kvp-set", &KvpSet { pool, key, value })
            }
            Self::Delete { to, key } => {
                let pool = to.pool.into();
                put(socket, "vm.kvp-delete", &KvpDelete { pool, key })
            }
        }
    }

    /// What a person wants to see of the answer.
    pub fn describe(&self, answer: Value) -> serde_json::Result<String> {
        let pairs: Vec<KvpPair> = match self {
            Self::List { .. } => serde_json::from_value(answer)?,
            _ => {
                let pair: KvpPair = serde_json::from_value(answer)?;
                return Ok(format!("{}\n", printable(&pair.value)));
            }
        };
        let line = |pair: &KvpPair| {
            let (key, value) = (printable(&pair.key), printable(&pair.value));
            format!("{key:40} {value}\n")
        };
        Ok(pairs.iter().map(line).collect())
    }
}

/// What a guest says, without what a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_s_words_are_printed_and_not_obeyed() {
        let from = Source { pool: Pool::Auto };
        let list = Action::List { from };
        let pairs = serde_json::json!([{"key": "OS\u{1b}[2J", "value": "a\nb"}]);
        assert_eq!(
            list.describe(pairs).unwrap(),
            format!("{:40} ab\n", "OS[2J")
        );
    }
}
