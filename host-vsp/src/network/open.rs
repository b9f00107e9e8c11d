//! An adapter as users ask for it: checked, and its net opened.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;

use crate::api::Error;
use crate::api::model::NetConfig;
use crate::network::backend::{Backend, Forward, Passt, Stream, Tap};
use crate::network::{DEFAULT_MTU, MAX_MTU, MAX_QUEUES, MIN_MTU, Mac};

/// Reads an address as people write it; the error is a sentence.
pub(crate) fn parse_mac(text: &str) -> Result<Mac, String> {
    let mut mac = [0; 6];
    let mut pairs = text.split([':', '-']);
    for byte in &mut mac {
        let is_hex = |pair: &&str| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit());
        let pair = pairs.next().filter(is_hex);
        *byte = pair
            .and_then(|pair| u8::from_str_radix(pair, 16).ok())
            .ok_or_else(|| {
                format!("{text:?} is no address: it has six pairs of hexadecimal digits, such as 02:15:5d:00:00:01")
            })?;
    }
    if pairs.next().is_some() {
        return Err(format!(
            "{text:?} is no address: it has six pairs of hexadecimal digits"
        ));
    }
    if mac[0] & 1 != 0 || mac == [0; 6] {
        return Err(format!(
            "{text:?} is no address of one station: its second digit must be even, and not all may \
             be 0"
        ));
    }
    Ok(mac)
}

/// An address as people write it.
pub(crate) fn format_mac(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

impl NetConfig {
    /// What is wrong with it, as far as that can be seen without opening its net.
    ///
    /// # Errors
    /// A sentence.
    pub fn check(&self) -> Result<(), Error> {
        let bad = |sentence: String| Err(Error::BadRequest(sentence));
        if self.tap.is_some() && self.socket.is_some() {
            return bad("a cable leads to one net: tap or socket".into());
        }
        if !self.forwards.is_empty() && (self.tap.is_some() || self.socket.is_some()) {
            return bad("ports are forwarded only with user".into());
        }
        if self.listen && self.socket.is_none() {
            return bad("listen is only with socket".into());
        }
        if self.queues.is_some() && self.tap.is_none() {
            return bad("queues are only with tap".into());
        }
        if !(1..=MAX_QUEUES).contains(&self.queues()) {
            return bad(format!(
                "a tap has from 1 to {MAX_QUEUES} queues, not {}",
                self.queues()
            ));
        }
        if !(MIN_MTU..=MAX_MTU).contains(&self.mtu()) {
            return bad(format!(
                "an MTU is from {MIN_MTU} to {MAX_MTU}, not {}",
                self.mtu()
            ));
        }
        self.mac()?;
        self.forwards().map(drop)
    }

    fn forwards(&self) -> Result<Vec<Forward>, Error> {
        let forwards = self.forwards.iter().map(|forward| forward.parse());
        forwards
            .collect::<Result<_, String>>()
            .map_err(Error::BadRequest)
    }

    pub(crate) fn queues(&self) -> u16 {
        self.queues.unwrap_or(1)
    }

    pub(crate) fn mtu(&self) -> u32 {
        self.mtu.unwrap_or(DEFAULT_MTU)
    }

    /// The address, or one by chance where none is asked for.
    pub(crate) fn mac(&self) -> Result<Mac, Error> {
        if let Some(mac) = &self.mac {
            return parse_mac(mac).map_err(Error::BadRequest);
        }
        // Administered here; else as Hyper-V's begin.
        let [a, b, c, ..] = RandomState::new().hash_one(0).to_be_bytes();
        Ok([0x02, 0x15, 0x5d, a, b, c])
    }

    /// Opens the net: a backend for each queue.
    ///
    /// # Errors
    /// A sentence: why not.
    pub(crate) fn open(&self) -> Result<Vec<Box<dyn Backend>>, Error> {
        self.check()?;
        let failed = |error: &dyn std::fmt::Display| Error::BadRequest(error.to_string());
        let backend: Box<dyn Backend> = match (&self.tap, &self.socket) {
            (Some(tap), _) => {
                let queues = Tap::open(tap, self.queues()).map_err(|error| failed(&error))?;
                let boxed = |queue| -> Box<dyn Backend> { Box::new(queue) };
                return Ok(queues.into_iter().map(boxed).collect());
            }
            (None, Some(socket)) if self.listen => {
                Box::new(Stream::listen(socket).map_err(|error| failed(&error))?)
            }
            (None, Some(socket)) => {
                Box::new(Stream::connect(socket).map_err(|error| failed(&error))?)
            }
            (None, None) => {
                let forwards = self.forwards()?;
                Box::new(Passt::start(self.mtu(), &forwards).map_err(|error| failed(&error))?)
            }
        };
        Ok(vec![backend])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(
            parse_mac("02:15:5d-00:fF:01"),
            Ok([2, 0x15, 0x5d, 0, 0xff, 1])
        );
        for wrong in [
            "",
            "02:15:5d:00:00",
            "02:15:5d:00:00:01:02",
            "2:15:5d:00:00:01",
            "02:15:5d:00:00:+1",
            "02:15:5d:00:00:é",
            "03:15:5d:00:00:01",
            "00:00:00:00:00:00",
        ] {
            assert!(parse_mac(wrong).is_err(), "{wrong}");
        }
    }
}
