//! An adapter as a device of `smoltcp` (feature `smoltcp`).

use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use super::{Buffer, Network, count};
use crate::hal::Hal;

/// A [`Device`] of `smoltcp` over an adapter, and over two buffers of the caller's that each hold one
/// frame: [`Network::max_frame`] bytes.
pub struct Phy<'n, 'b, H: Hal, B: Buffer = &'static mut [u8]> {
    network: &'n Network<'b, H, B>,
    receive: &'n mut [u8],
    transmit: &'n mut [u8],
}

impl<'n, 'b, H: Hal, B: Buffer> Phy<'n, 'b, H, B> {
    /// A device. With buffers that are shorter than frames, longer ones are lost when they come, and
    /// the stack makes none to send.
    pub fn new(
        network: &'n Network<'b, H, B>,
        receive: &'n mut [u8],
        transmit: &'n mut [u8],
    ) -> Self {
        Self {
            network,
            receive,
            transmit,
        }
    }

    /// The adapter.
    pub fn network(&self) -> &'n Network<'b, H, B> {
        self.network
    }
}

impl<'b, H: Hal, B: Buffer> Device for Phy<'_, 'b, H, B> {
    type RxToken<'a>
        = Frame<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Room<'a, 'b, H, B>
    where
        Self: 'a;

    fn receive(&mut self, _now: Instant) -> Option<(Frame<'_>, Room<'_, 'b, H, B>)> {
        // The end of the channel is told by `Channel::check`.
        let received = self.network.try_receive(self.receive).ok()??;
        let frame = self.receive.get(..received.length)?;
        let (network, buffer) = (self.network, &mut *self.transmit);
        Some((Frame(frame), Room { network, buffer }))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Room<'_, 'b, H, B>> {
        let (network, buffer) = (self.network, &mut *self.transmit);
        network.can_send().then_some(Room { network, buffer })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self
            .network
            .max_frame()
            .min(self.network.max_copied())
            .min(self.receive.len())
            .min(self.transmit.len());
        capabilities
    }
}

/// A frame that was received.
pub struct Frame<'a>(&'a [u8]);

impl RxToken for Frame<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// Room for a frame to send.
pub struct Room<'a, 'b, H: Hal, B: Buffer> {
    network: &'a Network<'b, H, B>,
    buffer: &'a mut [u8],
}

impl<H: Hal, B: Buffer> TxToken for Room<'_, '_, H, B> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        // The stack keeps to what `capabilities` say; a longer one is written nowhere.
        let length = length.min(self.buffer.len());
        let frame = self.buffer.get_mut(..length).unwrap_or_default();
        let result = f(frame);
        // An answer to a frame that was taken while there was no place is lost, as on any wire. To
        // wait for one could be for ever: the host's word that there is one may be behind frames.
        if self.network.try_send(frame).is_err() {
            count(&self.network.counters.unsent, 1);
        }
        result
    }
}
