//! Packets that no honest host sends, or not then.

use rand::rngs::StdRng;
use rand::{Rng, RngExt};
use vmbus_proto::console::{MAX_DATA, PipeHeader};
use vmbus_proto::packet::Outgoing;
use vmbus_proto::storvsp::Operation;

/// A lie: an answer to something, or out of the blue.
pub(crate) enum Lie {
    InBand(u64, Vec<u8>),
    Completion(u64, Vec<u8>),
    /// With ranges of memory that mean nothing.
    GpaDirect(u64, Vec<u8>, Vec<u8>),
    TransferPages(u64, Vec<u8>, Vec<u8>),
}

impl Lie {
    pub(crate) fn packet(&self) -> Outgoing<'_> {
        match self {
            Self::InBand(id, payload) => Outgoing::in_band(*id, payload, id & 1 == 0),
            Self::Completion(id, payload) => Outgoing::completion(*id, payload),
            Self::GpaDirect(id, ranges, payload) => Outgoing::gpa_direct(*id, ranges, payload),
            Self::TransferPages(id, ranges, payload) => {
                Outgoing::transfer_pages(*id, ranges, payload)
            }
        }
    }
}

/// What the console may say: lengths that are not so, packets that are too short, too long or of the
/// wrong kind.
pub(crate) fn of_a_console(random: &mut StdRng) -> Lie {
    match random.random_range(0..3) {
        0 => {
            let length = random.random_range(0..2 * MAX_DATA);
            let mut packet = PipeHeader::data(random.random()).bytes().to_vec();
            packet.extend(bytes(random, length));
            Lie::InBand(random.random(), packet)
        }
        1 => {
            // As long as it says, and longer than anybody may send.
            let length = random.random_range(MAX_DATA..2 * MAX_DATA);
            let mut packet = PipeHeader::data(length as u32).bytes().to_vec();
            packet.extend(bytes(random, length));
            Lie::InBand(random.random(), packet)
        }
        _ => nonsense(random, 0),
    }
}

/// What the disk may say: answers to requests that the guest may have in flight or not, news of units
/// that have none.
pub(crate) fn of_a_disk(random: &mut StdRng) -> Lie {
    let id = request(random);
    match random.random_range(0..100) {
        0 => Lie::InBand(0, vstor(random, Operation::EnumerateBus)),
        1 => Lie::InBand(0, vstor(random, Operation::RemoveDevice)),
        2..80 => Lie::Completion(id, vstor(random, Operation::CompleteIo)),
        80..90 => Lie::Completion(id, bytes_up_to(random, 100)),
        _ => nonsense(random, id),
    }
}

/// An id that a request of `vmbus_disk` may have: how often its tag was used, the hardware queue, the
/// tag.
fn request(random: &mut StdRng) -> u64 {
    let [generation, queue, tag] = [1..60, 0..2, 0..130].map(|it| random.random_range(it));
    generation << 32 | queue << 16 | tag
}

/// A packet of storvsp with this operation, often with a status of success, else with anything in it.
fn vstor(random: &mut StdRng, operation: Operation) -> Vec<u8> {
    let length = if random.random() { 64 } else { 52 };
    let mut packet = bytes(random, length);
    let success = random.random_range(0..4) > 0;
    for (at, value) in packet.iter_mut().zip((operation as u32).to_le_bytes()) {
        *at = value;
    }
    if success {
        packet.iter_mut().skip(8).take(4).for_each(|it| *it = 0);
    }
    packet
}

/// Bytes without a meaning, in any kind of packet.
fn nonsense(random: &mut StdRng, id: u64) -> Lie {
    let payload = bytes_up_to(random, 200);
    let ranges = 8 * random.random_range(0..8);
    match random.random_range(0..4) {
        0 => Lie::InBand(id, payload),
        1 => Lie::Completion(id, payload),
        2 => Lie::GpaDirect(id, bytes(random, ranges), payload),
        _ => Lie::TransferPages(id, bytes(random, ranges), payload),
    }
}

fn bytes_up_to(random: &mut StdRng, most: usize) -> Vec<u8> {
    let length = random.random_range(0..=most);
    bytes(random, length)
}

fn bytes(random: &mut StdRng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    random.fill_bytes(&mut bytes);
    bytes
}
