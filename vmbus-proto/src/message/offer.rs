//! The offer of a channel.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::guid::Guid;

/// Body of OFFERCHANNEL; 196 bytes with the header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct OfferChannel {
    /// What kind of device it is.
    pub class: Guid,
    /// Which device it is: the same for each offer of one device.
    pub instance: Guid,
    /// Zero.
    pub reserved: [U64; 2],
    /// A combination of [`offer_flags`].
    pub flags: U16,
    /// Megabytes of MMIO space the device wants.
    pub mmio_megabytes: U16,
    /// By the device's own protocol; for pipes, the first four bytes are a [`pipe_mode`].
    pub user_defined: [u8; 120],
    /// 0 for a primary channel, else the number of the sub-channel.
    pub sub_channel_index: U16,
    /// Zero.
    pub reserved2: U16,
    /// Number by which messages and event flags name the channel: 1 to 2047.
    pub relid: U32,
    /// Number of the monitor, where one is allocated.
    pub monitor_id: u8,
    /// Bit 0: a monitor is allocated.
    pub monitor_allocated: u8,
    /// Bit 0: the channel has an event port of its own, [`connection_id`](Self::connection_id),
    /// and no bit in the legacy interrupt page.
    pub dedicated_interrupt: U16,
    /// Connection id by which the guest signals the channel.
    pub connection_id: U32,
}
const _: () = assert!(size_of::<OfferChannel>() + size_of::<super::Header>() == 196);

impl Default for OfferChannel {
    /// An offer of zeros.
    fn default() -> Self {
        zerocopy::FromZeros::new_zeroed()
    }
}

impl OfferChannel {
    /// Whether packets of this channel are framed by a pipe header.
    pub fn is_pipe(&self) -> bool {
        self.flags.get() & offer_flags::NAMED_PIPE_MODE != 0
    }

    /// Makes it the offer of a pipe of `mode`, one of [`pipe_mode`].
    #[must_use]
    pub fn with_pipe(mut self, mode: u32) -> Self {
        self.flags = (self.flags.get() | offer_flags::NAMED_PIPE_MODE).into();
        for (to, from) in self.user_defined.iter_mut().zip(mode.to_le_bytes()) {
            *to = from;
        }
        self
    }

    /// The pipe's mode, one of [`pipe_mode`]; `None` where it is no pipe.
    pub fn pipe_mode(&self) -> Option<u32> {
        let [a, b, c, d, ..] = self.user_defined;
        self.is_pipe().then_some(u32::from_le_bytes([a, b, c, d]))
    }
}

/// Flags of an offer (Linux `VMBUS_CHANNEL_*`).
pub mod offer_flags {
    /// The host enumerates the device's interface.
    pub const ENUMERATE_DEVICE_INTERFACE: u16 = 0x1;
    /// Packets are framed by a pipe header.
    pub const NAMED_PIPE_MODE: u16 = 0x10;
    /// The channel loops back.
    pub const LOOPBACK_OFFER: u16 = 0x100;
    /// The channel carries a hypervisor socket.
    pub const TLNPI_PROVIDER: u16 = 0x2000;
}

/// Modes of a pipe (Linux `VMBUS_PIPE_TYPE_*`).
pub mod pipe_mode {
    /// A stream of bytes.
    pub const BYTE: u32 = 0;
    /// Messages whose borders are kept.
    pub const MESSAGE: u32 = 4;
}
