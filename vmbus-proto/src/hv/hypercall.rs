//! Hypercall words, the two calls VMBus needs, and status codes (TLFS 3).

use core::fmt;

use zerocopy::little_endian::{U16, U32};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::synic::MESSAGE_PAYLOAD;

/// Call code of HvPostMessage: sends a message of up to 240 bytes to a message port.
pub const POST_MESSAGE: u16 = 0x005C;
/// Call code of HvSignalEvent: sets an event flag at an event port.
pub const SIGNAL_EVENT: u16 = 0x005D;

/// Bit 16 of the hypercall input value: parameters are in registers ("fast").
pub const FAST: u64 = 1 << 16;

/// The hypercall input value of a simple (not rep) call.
pub const fn control(code: u16, fast: bool) -> u64 {
    code as u64 | if fast { FAST } else { 0 }
}

/// The register operand of a fast HvSignalEvent: connection id in bits 0-31, flag number in
/// bits 32-47.
pub const fn signal_event_operand(connection_id: u32, flag: u16) -> u64 {
    connection_id as u64 | (flag as u64) << 32
}

/// Input of HvPostMessage (TLFS 11.11.4), 8-byte aligned in guest memory, within one page.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct PostMessageInput {
    /// Port to post to.
    pub connection_id: U32,
    /// Must be zero.
    pub reserved: U32,
    /// Type of the message; VMBus uses 1.
    pub message_type: U32,
    /// Bytes of `payload` in use, at most 240.
    pub payload_size: U32,
    /// The message.
    pub payload: [u8; MESSAGE_PAYLOAD],
}
const _: () = assert!(size_of::<PostMessageInput>() == 256);

/// Input of HvSignalEvent (TLFS 11.11.5) when it is passed in memory.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SignalEventInput {
    /// Port to signal.
    pub connection_id: U32,
    /// Number of the flag, relative to the port's base.
    pub flag_number: U16,
    /// Must be zero.
    pub reserved: U16,
}
const _: () = assert!(size_of::<SignalEventInput>() == 8);

/// Outcome of a hypercall: the low 16 bits of its result value.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(pub u16);

impl Status {
    /// Done.
    pub const SUCCESS: Self = Self(0);
    /// The hypervisor does not know the call code.
    pub const INVALID_HYPERCALL_CODE: Self = Self(2);
    /// The input value or the input's encoding is wrong.
    pub const INVALID_HYPERCALL_INPUT: Self = Self(3);
    /// The input page is misaligned or crosses a page.
    pub const INVALID_ALIGNMENT: Self = Self(4);
    /// A parameter is wrong.
    pub const INVALID_PARAMETER: Self = Self(5);
    /// The partition lacks the privilege.
    pub const ACCESS_DENIED: Self = Self(6);
    /// The hypervisor has no memory for it now; try again.
    pub const INSUFFICIENT_MEMORY: Self = Self(0xB);
    /// There is no such port.
    pub const INVALID_PORT_ID: Self = Self(0x11);
    /// There is no such connection.
    pub const INVALID_CONNECTION_ID: Self = Self(0x12);
    /// The port's queue is full; try again.
    pub const INSUFFICIENT_BUFFERS: Self = Self(0x13);

    /// The status in a hypercall's result value (RAX).
    pub const fn from_result(result: u64) -> Self {
        Self(result as u16)
    }

    /// Whether the caller should try the same call again later.
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::INSUFFICIENT_MEMORY | Self::INSUFFICIENT_BUFFERS)
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status({:#x})", self.0)
    }
}
