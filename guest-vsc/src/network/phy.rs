//! An adapter as a device of `smoltcp` (feature `smoltcp`).

use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use super::{
    Buffer, ETHERNET_HEADER, Network, PacketInfo, Received, RxChecksum, TxChecksum, count,
};
use crate::hal::Hal;

/// Frames that are passed over in one go because they are not for the stack.
const UNWANTED_AT_ONCE: u32 = 64;

/// A [`Device`] of `smoltcp` over an adapter, and over two buffers of the caller's that each hold one
/// frame: [`Network::max_frame`] bytes.
///
/// Checksums of TCP are left to the adapter where it completes them ([`Network::offloads`]). What has
/// come is checked by the stack in any case.
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

    /// The length of the next frame for the stack.
    fn next(&mut self) -> Option<usize> {
        for _ in 0..UNWANTED_AT_ONCE {
            // The end of the channel is told by `Channel::check`.
            let received = self.network.try_receive(self.receive).ok()??;
            if is_wanted(&received) {
                return Some(received.length);
            }
        }
        None
    }
}

/// Whether a frame is for a stack that knows nothing of VLANs, and not known to be damaged.
fn is_wanted(received: &Received) -> bool {
    let untagged = received.vlan.is_none_or(|tag| tag & 0xfff == 0);
    untagged && received.checksum != RxChecksum::Bad
}

/// Whether the stack leaves checksums of TCP out: it does so for both versions of IP or none.
fn leaves_checksums<H: Hal, B: Buffer>(network: &Network<'_, H, B>) -> bool {
    network.offloads.tcp_ipv4 && network.offloads.tcp_ipv6
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
        let length = self.next()?;
        let frame = self.receive.get(..length)?;
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
            .min(self.receive.len())
            .min(self.transmit.len());
        if leaves_checksums(self.network) {
            capabilities.checksum.tcp = Checksum::Rx;
        }
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
        let checksum = match leaves_checksums(self.network) {
            true => begin_checksum(frame).map(|checksum| checksum.0),
            false => None,
        };
        let info = PacketInfo {
            checksum,
            ..PacketInfo::default()
        };
        // An answer to a frame that was taken while there was no place is lost, as on any wire. To
        // wait for one could be for ever: the host's word that there is one may be behind frames.
        if self.network.try_send_with(frame, &info).is_err() {
            count(&self.network.counters.unsent, 1);
        }
        result
    }
}

/// Puts the sum of the pseudo header into the checksum of a frame of TCP, and says what the adapter
/// has to do; `None` where it is no such frame.
fn begin_checksum(frame: &mut [u8]) -> Option<TxChecksum> {
    const TCP: u8 = 6;
    /// Where TCP's header has its checksum.
    const AT: usize = 16;
    let (ethernet, packet) = frame.split_at_checked(ETHERNET_HEADER)?;
    let (flag, header, addresses) = match (ethernet.get(12..)?, packet.first()?) {
        ([0x08, 0x00], first) if *packet.get(9)? == TCP => {
            (TxChecksum::IPV4, usize::from(first & 0xf) * 4, 12..20)
        }
        ([0x86, 0xdd], _) if *packet.get(6)? == TCP => (TxChecksum::IPV6, 40, 8..40),
        _ => return None,
    };
    // An Ethernet frame may have padding behind the packet.
    let length = match flag {
        TxChecksum::IPV4 => {
            let total = u16::from_be_bytes(*packet.get(2..)?.first_chunk()?);
            usize::from(total).checked_sub(header)?
        }
        _ => usize::from(u16::from_be_bytes(*packet.get(4..)?.first_chunk()?)),
    };
    let (words, _) = packet.get(addresses)?.as_chunks::<2>();
    let words = words
        .iter()
        .map(|word| u32::from(u16::from_be_bytes(*word)));
    let sum = words.fold(u32::from(TCP), u32::saturating_add);
    let mut sum = sum.saturating_add(u32::try_from(length).ok()?);
    while let high @ 1.. = sum >> 16 {
        sum = (sum & 0xffff).saturating_add(high);
    }
    let transport = ETHERNET_HEADER.checked_add(header)?;
    let place = frame.get_mut(transport.checked_add(AT)?..)?;
    *place.first_chunk_mut()? = (sum as u16).to_be_bytes();
    let transport = u16::try_from(transport).ok()?;
    Some(TxChecksum::new(flag | TxChecksum::TCP, transport))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn only_frames_of_tcp_get_the_sum_of_their_pseudo_header() {
        let mut frame = [0; 60];
        assert_eq!(begin_checksum(&mut frame), None);
        frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
        frame[16..18].copy_from_slice(&40u16.to_be_bytes());
        frame[23] = 17;
        assert_eq!(begin_checksum(&mut frame), None, "UDP");
        frame[23] = 6;
        frame[26..34].copy_from_slice(&[0xff, 0xfe, 0, 1, 0xff, 0xff, 0, 2]);
        let checksum = TxChecksum::new(TxChecksum::IPV4 | TxChecksum::TCP, 34);
        assert_eq!(begin_checksum(&mut frame), Some(checksum));
        // 0xfffe + 1 + 0xffff + 2 + 6 + 20, carries added.
        assert_eq!(frame[50..52], 0x1cu16.to_be_bytes());
        // Cut anywhere, it is no frame of TCP any more, and nothing worse.
        for length in 0..52 {
            assert_eq!(begin_checksum(&mut frame[..length]), None);
        }
        frame[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
        frame[18..21].copy_from_slice(&[0, 20, 6]);
        assert_eq!(begin_checksum(&mut frame), None, "too short for IPv6");
        let mut long = std::vec![0; 100];
        long[..60].copy_from_slice(&frame);
        let checksum = TxChecksum::new(TxChecksum::IPV6 | TxChecksum::TCP, 54);
        assert_eq!(begin_checksum(&mut long), Some(checksum));
    }
}
