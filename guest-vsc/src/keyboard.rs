//! The keyboard: keys that are pressed and released on the host.
//!
//! The protocol ([`vmbus_proto::keyboard`]) carries what an AT keyboard would send: scan codes of
//! set 1. [`KeyEvent::scan_code`] gives those bytes, so that whatever a kernel has for such a
//! keyboard, or a crate such as `pc-keyboard`, turns them into characters. Opening agrees on the
//! version; [`Keyboard::try_read`] takes what has come.

use vmbus_proto::keyboard::{
    FLAG_BREAK, FLAG_E0, FLAG_E1, FLAG_UNICODE, FromHost, LedIndicators, ProtocolRequest, VERSION,
};
use vmbus_proto::packet::{Outgoing, PacketKind};
use zerocopy::IntoBytes as _;

use crate::bus::{Offer, VmBus, count};
use crate::channel::{Channel, OpenOptions};
use crate::error::{Error, Waited};
use crate::hal::Hal;

/// Class of the keyboard, for [`VmBus::find`].
pub use vmbus_proto::keyboard::CLASS;

/// Longest packet the host sends, descriptor not counted, in bytes; far more than any message.
const MAX_PACKET: usize = 256;

/// Packets without a key skipped in one go.
const PACKETS_AT_ONCE: u32 = 64;

/// A key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// By its scan code of set 1, as when pressed.
    ScanCode {
        /// The code, 1 to 0x7F.
        code: u8,
        /// What comes before it.
        prefix: Prefix,
    },
    /// A UTF-16 unit, as hosts send for characters that no key types.
    Utf16(u16),
}

/// What comes before a scan code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefix {
    /// Nothing.
    None,
    /// E0.
    E0,
    /// E1.
    E1,
}

/// A key was pressed or released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyEvent {
    /// Which.
    pub key: Key,
    /// Whether it was pressed; else released.
    pub pressed: bool,
}

impl KeyEvent {
    /// Of a keystroke message; `None` where the code cannot be.
    fn new(code: u16, flags: u32) -> Option<Self> {
        let key = if flags & FLAG_UNICODE != 0 {
            Key::Utf16(code)
        } else {
            let prefix = match (flags & FLAG_E0 != 0, flags & FLAG_E1 != 0) {
                (false, false) => Prefix::None,
                (true, false) => Prefix::E0,
                (_, true) => Prefix::E1,
            };
            let code = u8::try_from(code).ok().filter(|c| (1..0x80).contains(c))?;
            Key::ScanCode { code, prefix }
        };
        let pressed = flags & FLAG_BREAK == 0;
        Some(Self { key, pressed })
    }

    /// The bytes that an AT keyboard would send in scan code set 1; none for [`Key::Utf16`].
    pub fn scan_code(&self) -> impl Iterator<Item = u8> + use<> {
        let (prefix, code) = match self.key {
            Key::ScanCode { code, prefix } => {
                let released = if self.pressed { 0 } else { 0x80 };
                (prefix, Some(code | released))
            }
            Key::Utf16(_) => (Prefix::None, None),
        };
        let prefix = match prefix {
            Prefix::None => None,
            Prefix::E0 => Some(0xE0),
            Prefix::E1 => Some(0xE1),
        };
        prefix.into_iter().chain(code)
    }
}

/// The lights of a keyboard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lights {
    /// Scroll lock is on.
    pub scroll_lock: bool,
    /// Num lock is on.
    pub num_lock: bool,
    /// Caps lock is on.
    pub caps_lock: bool,
}

/// A keyboard. Dropped, it is closed, which waits for the host.
pub struct Keyboard<'b, H: Hal> {
    channel: Channel<'b, H>,
}

impl<'b, H: Hal> Keyboard<'b, H> {
    /// Opens the keyboard that `offer` names. Waits for the host.
    ///
    /// # Errors
    /// The channel cannot be opened, or the host does not speak our version of the protocol.
    pub fn open(
        bus: &'b VmBus<'b, H>,
        offer: &Offer,
        options: &OpenOptions,
    ) -> Result<Self, Error> {
        let keyboard = Self {
            channel: Channel::open(bus, offer, options)?,
        };
        let request = ProtocolRequest::new(VERSION);
        let request = Outgoing::in_band(1, request.as_bytes(), true);
        keyboard.channel.send(&request)?;
        let what = Waited::ProtocolVersion;
        let accepted = keyboard.channel.wait(what, bus.deadline(), || {
            Ok(match keyboard.take()? {
                Some(FromHost::Accepted(accepted)) => Some(accepted),
                // Keys cannot come before the keyboard is agreed on.
                Some(FromHost::Keystroke { .. }) => {
                    count(&bus.counters.bad_packets);
                    None
                }
                None => None,
            })
        })?;
        if !accepted {
            return Err(Error::Refused(what, 0));
        }
        Ok(keyboard)
    }

    /// The channel.
    pub fn channel(&self) -> &Channel<'b, H> {
        &self.channel
    }

    /// Takes the next key that has come; `None` where none has. Never waits; may be called in
    /// interrupt context.
    ///
    /// # Errors
    /// The channel has come to an end and all that came was read.
    pub fn try_read(&self) -> Result<Option<KeyEvent>, Error> {
        for _ in 0..PACKETS_AT_ONCE {
            let event = match self.take()? {
                None => return Ok(None),
                Some(FromHost::Keystroke { code, flags }) => KeyEvent::new(code, flags),
                // The question was answered when the keyboard was opened.
                Some(FromHost::Accepted(_)) => None,
            };
            if event.is_some() {
                return Ok(event);
            }
            count(&self.channel.bus().counters.bad_packets);
        }
        Ok(None)
    }

    /// Waits for the next key.
    ///
    /// # Errors
    /// The channel has come to an end; [`Error::Timeout`] where no key came in time.
    pub fn read(&self) -> Result<KeyEvent, Error> {
        let deadline = self.channel.bus().deadline();
        self.channel
            .wait(Waited::Packet, deadline, || self.try_read())
    }

    /// Says which lights are on; hosts may show them. Never waits.
    ///
    /// # Errors
    /// [`Error::Full`] where there is no room now; the channel has come to an end.
    pub fn set_lights(&self, lights: Lights) -> Result<(), Error> {
        let bits = u16::from(lights.scroll_lock)
            | u16::from(lights.num_lock) << 1
            | u16::from(lights.caps_lock) << 2;
        let message = LedIndicators::new(bits);
        self.channel
            .send(&Outgoing::in_band(0, message.as_bytes(), false))
    }

    /// Takes the next message; what is none is counted. An error only when there is nothing more.
    fn take(&self) -> Result<Option<FromHost>, Error> {
        let mut buffer = [0; MAX_PACKET];
        for _ in 0..PACKETS_AT_ONCE {
            let Some(packet) = self.channel.receive(&mut buffer)? else {
                return self.channel.check().map(|()| None);
            };
            match (packet.kind, FromHost::parse(packet.payload)) {
                // That the question was taken; its answer is a message.
                (PacketKind::Completion, _) => {}
                (PacketKind::InBand, Ok(message)) => return Ok(Some(message)),
                _ => count(&self.channel.bus().counters.bad_packets),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    #[test]
    fn scan_codes_of_set_1() {
        let bytes = |code, flags| -> Option<Vec<u8>> {
            KeyEvent::new(code, flags).map(|event| event.scan_code().collect())
        };
        assert_eq!(bytes(0x1E, 0), Some(Vec::from([0x1E])));
        assert_eq!(bytes(0x1E, FLAG_BREAK), Some(Vec::from([0x9E])));
        assert_eq!(bytes(0x53, FLAG_E0), Some(Vec::from([0xE0, 0x53])));
        let pause = FLAG_E1 | FLAG_BREAK;
        assert_eq!(bytes(0x1D, pause), Some(Vec::from([0xE1, 0x9D])));
        assert_eq!(bytes(0xE9, FLAG_UNICODE), Some(Vec::new()));
        for code in [0, 0x80, 0x11E] {
            assert_eq!(bytes(code, 0), None);
        }
    }
}
