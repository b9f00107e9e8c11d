//! Frames from the guest to the net.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use vmbus_proto::rndis::packet::{LargeSend, Packet, PacketInfo, TxChecksum};
use vmbus_proto::rndis::{HEADER_SIZE, Header, message_type};
use zerocopy::FromBytes as _;

use super::adapter::QueueCounters;
use super::backend::{Backend, Frame};
use super::gather::Gather;
use super::headers::{self, ETHERNET_HEADER, TAG, Wish};

/// Bytes of a message that are copied to read its headers: RNDIS's, and a list longer than any
/// guest's.
const BEGINNING: usize = 512;

/// The longest frame that the net is to cut, headers included.
const MAX_LARGE_FRAME: usize = 65_550;

/// A message that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused;

/// What frames are sent to, and how.
pub(super) struct Way<'a> {
    pub(super) backend: &'a mut dyn Backend,
    /// What a frame may have beside its Ethernet header and a tag, unless the net cuts it.
    pub(super) mtu: u32,
    /// All are lost where they are not.
    pub(super) plugged: bool,
    pub(super) counters: &'a QueueCounters,
}

/// Sends the frames in `message`, a chain of RNDIS messages. Those before one that cannot be are
/// sent.
///
/// # Errors
/// A message or a frame cannot be.
pub(super) fn send(mut way: Way<'_>, message: &Gather<'_>) -> Result<(), Refused> {
    let mut at = 0_usize;
    // Each step takes a header at least, so that this ends.
    while at < message.len() {
        let mut header = [0; HEADER_SIZE];
        message.copy(at, &mut header).ok_or(Refused)?;
        let header = Header::read_from_bytes(&header).map_err(|_| Refused)?;
        let length = header.length.get() as usize;
        let end = at.checked_add(length).ok_or(Refused)?;
        let body = at.checked_add(HEADER_SIZE).ok_or(Refused)?;
        let body_length = length.checked_sub(HEADER_SIZE).ok_or(Refused)?;
        if header.message_type.get() != message_type::PACKET || end > message.len() {
            return Err(Refused);
        }
        let mut beginning = [0; BEGINNING];
        let beginning = beginning
            .get_mut(..body_length.min(BEGINNING))
            .ok_or(Refused)?;
        message.copy(body, beginning).ok_or(Refused)?;
        let packet = Packet::parse(beginning, body_length).map_err(|_| Refused)?;
        let frame = body.checked_add(packet.data_offset).ok_or(Refused)?;
        let place = (frame, packet.data_length);
        send_frame(&mut way, message, place, &packet.info)?;
        at = end;
    }
    Ok(())
}

/// Sends the frame of `length` bytes at `at`.
fn send_frame(
    way: &mut Way<'_>,
    message: &Gather<'_>,
    (at, length): (usize, usize),
    info: &PacketInfo,
) -> Result<(), Refused> {
    let wish = wish(info);
    let longest = match wish {
        Some(Wish::Segments(_)) => MAX_LARGE_FRAME,
        _ => (way.mtu as usize).saturating_add(ETHERNET_HEADER + TAG),
    };
    if !(ETHERNET_HEADER..=longest).contains(&length) {
        return Err(Refused);
    }
    let copied = match (wish, info.vlan) {
        (Some(wish), _) => wish.header_bytes(),
        (None, Some(_)) => ETHERNET_HEADER,
        (None, None) => 0,
    };
    let mut head = vec![0; copied.min(length)];
    message.copy(at, &mut head).ok_or(Refused)?;
    let mut offload = match wish {
        // A guest asks for what the adapter has not said it does.
        Some(_) if !way.backend.features().offload => return Err(Refused),
        Some(wish) => wish.prepare(&mut head, length).ok_or(Refused)?,
        None => None,
    };
    let rest_at = at.checked_add(head.len()).ok_or(Refused)?;
    let rest_length = length.saturating_sub(head.len());
    if let Some(vlan) = info.vlan {
        headers::insert_tag(&mut head, vlan.tag()).ok_or(Refused)?;
        offload = match offload {
            Some(offload) => Some(headers::shift(offload).ok_or(Refused)?),
            None => None,
        };
    }
    if !way.plugged {
        way.counters.tx_lost.count();
        return Ok(());
    }
    let rest = message.part(rest_at, rest_length).ok_or(Refused)?;
    let frame = Frame {
        head: &head,
        rest: &rest,
        offload,
    };
    match way.backend.send(&frame) {
        Ok(()) => {
            way.counters.tx_frames.count();
            way.counters.tx_bytes.add(length as u64);
        }
        Err(error) => {
            tracing::debug!(%error, length, "a frame is lost");
            way.counters.tx_lost.count();
        }
    }
    Ok(())
}

fn wish(info: &PacketInfo) -> Option<Wish> {
    // A frame of many segments has its checksums completed in each.
    match (info.large_send, info.checksum) {
        (Some(LargeSend(value)), _) if LargeSend(value).mss() != 0 => {
            Some(Wish::Segments(LargeSend(value)))
        }
        (_, Some(checksum)) => {
            let checksum = TxChecksum(checksum);
            let any = TxChecksum::TCP | TxChecksum::UDP | TxChecksum::IP_HEADER;
            checksum.any(any).then_some(Wish::Checksum(checksum))
        }
        _ => None,
    }
}
