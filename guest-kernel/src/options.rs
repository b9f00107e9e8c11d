//! The command line: words of the form `key=value`, separated by spaces. Unknown keys are left to
//! whoever knows them; a word without `=` is ignored.

use alloc::format;
use alloc::string::String;
use core::time::Duration;

/// The command line's options.
pub(crate) struct Options<'a> {
    line: &'a str,
}

impl<'a> Options<'a> {
    /// Options of a command line.
    pub(crate) const fn new(line: &'a str) -> Self {
        Self { line }
    }

    /// The value of `key`; the last one counts.
    pub(crate) fn text(&self, key: &str) -> Option<&'a str> {
        self.line
            .split_ascii_whitespace()
            .filter_map(|word| word.split_once('='))
            .filter(|&(name, _)| name == key)
            .map(|(_, value)| value)
            .next_back()
    }

    /// The number that `key` is set to, in decimal or as 0x…, or `default` where it is not set.
    pub(crate) fn number(&self, key: &str, default: u64) -> Result<u64, String> {
        let Some(text) = self.text(key) else {
            return Ok(default);
        };
        match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => text.parse(),
        }
        .map_err(|_| format!("{key}={text} is not a number: write it as 4096 or as 0x1000"))
    }

    /// The time that `key` is set to, in whole seconds, or `default`.
    pub(crate) fn seconds(&self, key: &str, default: u64) -> Result<Duration, String> {
        self.number(key, default).map(Duration::from_secs)
    }
}
