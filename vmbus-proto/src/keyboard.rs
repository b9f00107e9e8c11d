//! The synthetic keyboard: keystrokes from the host, as an AT keyboard would send them.
//!
//! A plain channel without pipe framing: each packet is in-band and one message. The guest begins
//! with a [`ProtocolRequest`], the host answers with a [`ProtocolResponse`]; from then on the host
//! sends [`Keystroke`]s. Guests may send what the keyboard's lights shall show
//! ([`LED_INDICATORS`](message_type::LED_INDICATORS)). Sources: Linux
//! `drivers/input/serio/hyperv-keyboard.c`, openvmm `uidevices/src/keyboard`.

use zerocopy::FromBytes as _;
use zerocopy::little_endian::{U16, U32};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::guid::Guid;

/// Class of the keyboard (Linux `HV_KBD_GUID`).
pub const CLASS: Guid = Guid::new(0xf912ad6d, 0x2b17, 0x48ea, 0xbd65, 0xf927a61c7684);

/// The instance that Hyper-V offers.
pub const INSTANCE: Guid = Guid::new(0xd34b2567, 0xb9b6, 0x42b9, 0x8778, 0x0a4ec0b955bf);

/// The one version, 1.0: major number in the upper half.
pub const VERSION: u32 = 0x1_0000;

/// First four bytes of each message.
pub mod message_type {
    /// From the guest: [`ProtocolRequest`](super::ProtocolRequest).
    pub const PROTOCOL_REQUEST: u32 = 1;
    /// From the host: [`ProtocolResponse`](super::ProtocolResponse).
    pub const PROTOCOL_RESPONSE: u32 = 2;
    /// From the host: [`Keystroke`](super::Keystroke).
    pub const KEYSTROKE: u32 = 3;
    /// From the guest: the lights.
    pub const LED_INDICATORS: u32 = 4;
}

/// The guest says which version it speaks.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ProtocolRequest {
    /// [`PROTOCOL_REQUEST`](message_type::PROTOCOL_REQUEST).
    pub message_type: U32,
    /// [`VERSION`].
    pub version: U32,
}
const _: () = assert!(size_of::<ProtocolRequest>() == 8);

impl ProtocolRequest {
    /// The question for `version`.
    pub const fn new(version: u32) -> Self {
        Self {
            message_type: U32::new(message_type::PROTOCOL_REQUEST),
            version: U32::new(version),
        }
    }
}

/// The guest says which lights are on.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct LedIndicators {
    /// [`LED_INDICATORS`](message_type::LED_INDICATORS).
    pub message_type: U32,
    /// Bit 0 scroll lock, bit 1 num lock, bit 2 caps lock.
    pub lights: U16,
    /// Zero.
    pub reserved: U16,
}
const _: () = assert!(size_of::<LedIndicators>() == 8);

impl LedIndicators {
    /// The message for these lights.
    pub const fn new(lights: u16) -> Self {
        Self {
            message_type: U32::new(message_type::LED_INDICATORS),
            lights: U16::new(lights),
            reserved: U16::new(0),
        }
    }
}

/// The host says whether that will do.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ProtocolResponse {
    /// [`PROTOCOL_RESPONSE`](message_type::PROTOCOL_RESPONSE).
    pub message_type: U32,
    /// Bit 0: accepted.
    pub accepted: U32,
}
const _: () = assert!(size_of::<ProtocolResponse>() == 8);

impl ProtocolResponse {
    /// The answer.
    pub const fn new(accepted: bool) -> Self {
        Self {
            message_type: U32::new(message_type::PROTOCOL_RESPONSE),
            accepted: U32::new(accepted as u32),
        }
    }
}

/// [`Keystroke::flags`]: the code is a UTF-16 unit, not a scan code. Linux does not look at it.
pub const FLAG_UNICODE: u32 = 1;
/// [`Keystroke::flags`]: the key was released.
pub const FLAG_BREAK: u32 = 2;
/// [`Keystroke::flags`]: the code is prefixed by E0.
pub const FLAG_E0: u32 = 4;
/// [`Keystroke::flags`]: the code is prefixed by E1.
pub const FLAG_E1: u32 = 8;

/// A key was pressed or released.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Keystroke {
    /// [`KEYSTROKE`](message_type::KEYSTROKE).
    pub message_type: U32,
    /// Scan code of set 1, as when pressed: bit 7 clear.
    pub code: U16,
    /// Zero.
    pub reserved: U16,
    /// A combination of [`FLAG_BREAK`], [`FLAG_E0`] and the others.
    pub flags: U32,
}
const _: () = assert!(size_of::<Keystroke>() == 12);

impl Keystroke {
    /// The key of `code` with `flags`.
    pub const fn new(code: u16, flags: u32) -> Self {
        Self {
            message_type: U32::new(message_type::KEYSTROKE),
            code: U16::new(code),
            reserved: U16::new(0),
            flags: U32::new(flags),
        }
    }
}

/// What a guest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromGuest {
    /// It would speak this version.
    Version(u32),
    /// The lights: bit 0 scroll lock, bit 1 num lock, bit 2 caps lock.
    Lights(u16),
}

/// What a host says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromHost {
    /// Whether it accepts the guest's version.
    Accepted(bool),
    /// A key was pressed or released.
    Keystroke {
        /// [`Keystroke::code`].
        code: u16,
        /// [`Keystroke::flags`].
        flags: u32,
    },
}

impl FromHost {
    /// Reads the payload of a packet from the host.
    ///
    /// # Errors
    /// It is too short, or of no type that hosts send.
    pub fn parse(payload: &[u8]) -> Result<Self, BadMessage> {
        let (kind, _) = U32::read_from_prefix(payload).map_err(|_| BadMessage)?;
        match kind.get() {
            message_type::PROTOCOL_RESPONSE => {
                let (response, _) =
                    ProtocolResponse::read_from_prefix(payload).map_err(|_| BadMessage)?;
                Ok(Self::Accepted(response.accepted.get() & 1 != 0))
            }
            message_type::KEYSTROKE => {
                let (stroke, _) = Keystroke::read_from_prefix(payload).map_err(|_| BadMessage)?;
                Ok(Self::Keystroke {
                    code: stroke.code.get(),
                    flags: stroke.flags.get(),
                })
            }
            _ => Err(BadMessage),
        }
    }
}

/// A message that is none of this side's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadMessage;

impl core::fmt::Display for BadMessage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("a keyboard message is cut short or of an unknown type")
    }
}

impl core::error::Error for BadMessage {}

impl FromGuest {
    /// Reads the payload of a packet from the guest.
    ///
    /// # Errors
    /// It is too short, or of no type that guests send.
    pub fn parse(payload: &[u8]) -> Result<Self, BadMessage> {
        let (kind, rest) = U32::read_from_prefix(payload).map_err(|_| BadMessage)?;
        match kind.get() {
            message_type::PROTOCOL_REQUEST => {
                let (version, _) = U32::read_from_prefix(rest).map_err(|_| BadMessage)?;
                Ok(Self::Version(version.get()))
            }
            message_type::LED_INDICATORS => {
                let (lights, _) = U16::read_from_prefix(rest).map_err(|_| BadMessage)?;
                Ok(Self::Lights(lights.get()))
            }
            _ => Err(BadMessage),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes as _;

    #[test]
    fn in_bytes() {
        let stroke = Keystroke::new(0x1D, FLAG_E0 | FLAG_BREAK);
        assert_eq!(stroke.as_bytes(), [3, 0, 0, 0, 0x1D, 0, 0, 0, 6, 0, 0, 0]);
        let yes = ProtocolResponse::new(true);
        assert_eq!(yes.as_bytes(), [2, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(
            FromGuest::parse(&[1, 0, 0, 0, 0, 0, 1, 0]),
            Ok(FromGuest::Version(VERSION))
        );
        assert_eq!(
            FromGuest::parse(&[4, 0, 0, 0, 4, 0]),
            Ok(FromGuest::Lights(4))
        );
        assert_eq!(
            FromGuest::parse(ProtocolRequest::new(VERSION).as_bytes()),
            Ok(FromGuest::Version(VERSION))
        );
        assert_eq!(
            FromGuest::parse(LedIndicators::new(4).as_bytes()),
            Ok(FromGuest::Lights(4))
        );
        assert_eq!(
            FromHost::parse(yes.as_bytes()),
            Ok(FromHost::Accepted(true))
        );
        let stroked = FromHost::Keystroke {
            code: 0x1D,
            flags: FLAG_E0 | FLAG_BREAK,
        };
        assert_eq!(FromHost::parse(stroke.as_bytes()), Ok(stroked));
        assert_eq!(FromHost::parse(&stroke.as_bytes()[..11]), Err(BadMessage));
        assert_eq!(FromHost::parse(&[1, 0, 0, 0, 0, 0, 1, 0]), Err(BadMessage));
        assert_eq!(FromGuest::parse(stroke.as_bytes()), Err(BadMessage));
        assert_eq!(FromGuest::parse(&[1, 0, 0, 0, 0]), Err(BadMessage));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..32)) {
            let _ = FromGuest::parse(&bytes);
            let _ = FromHost::parse(&bytes);
        }
    }
}
