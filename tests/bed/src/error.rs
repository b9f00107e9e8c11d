//! What can go wrong, told apart by whose fault it is.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Result with the bed's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the bed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The L1 itself died or stopped answering: a fault of the bed, worth a second try.
    #[error("the bed's L1 died: {reason}\n--- end of L1's console ---\n{console}")]
    BedDied {
        /// How it showed.
        reason: String,
        /// The last lines of L1's own console.
        console: String,
    },
    /// Something in a healthy L1 did not happen in time.
    #[error("{what} did not happen within {after:?}\n{seen}")]
    Deadline {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
        /// The end of what the process printed until then.
        seen: String,
    },
    /// A process ended while something else was expected of it.
    #[error("the process ended ({status}) before {what}\n{seen}")]
    Ended {
        /// What was waited for.
        what: String,
        /// How the process ended.
        status: String,
        /// The end of what the process printed.
        seen: String,
    },
    /// The agent in L1 could not do as asked (no such file, no such program).
    #[error("in L1: {0}")]
    InL1(String),
    /// Something that the user can put right; the text says how.
    #[error("{0}")]
    Setup(String),
    /// A file operation on this machine failed.
    #[error("{path}: {why}", path = path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        why: io::Error,
    },
    /// A helper program on this machine failed.
    #[error("`{command}` failed: {why}")]
    Command {
        /// The command line.
        command: String,
        /// Exit status and the end of its error output.
        why: String,
    },
}

/// Names the file in an I/O error.
pub(crate) trait AtPath<T> {
    /// The error with `path` in it.
    fn at(self, path: impl AsRef<Path>) -> Result<T>;
}

impl<T> AtPath<T> for io::Result<T> {
    fn at(self, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|why| Error::File {
            path: path.as_ref().to_owned(),
            why,
        })
    }
}
