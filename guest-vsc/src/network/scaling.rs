//! Receive scaling: queues beyond the first, and how flows are spread over them.
//!
//! In the order of stock Linux: whether the adapter has several queues, how many channels it gives,
//! then the key and the table by which it picks one for what it receives.

use core::iter;

use vmbus_proto::netvsp::{Message, SUB_CHANNEL_ALLOCATE, Version, status};
use vmbus_proto::rndis::flow::{Flow, toeplitz};
use vmbus_proto::rndis::ndis::{
    RECEIVE_SCALE_SIZE, RSS_KEY_SIZE, RSS_TABLE_ENTRIES, ReceiveScale, ReceiveScaleCapabilities,
    hash,
};
use vmbus_proto::rndis::oid;
use zerocopy::IntoBytes as _;
use zerocopy::little_endian::U32;

use super::{Buffer, Network};
use crate::bus::Offer;
use crate::channel::{Channel, OpenOptions};
use crate::error::Error;
use crate::hal::Hal;
use crate::sub_channels::MAX_SUB_CHANNELS;

/// The key of the hash: two bytes again and again, so that the hash of a flow is that of its answers,
/// too, and both come to the same queue.
const KEY: [u8; RSS_KEY_SIZE] = zerocopy::transmute!([[0x6d_u8, 0x5a]; RSS_KEY_SIZE / 2]);

/// The hash of a flow with [`KEY`]. As that comes again every two bytes, those of the input can be
/// added up before.
pub(super) fn symmetric_hash(flow: &Flow<'_>) -> u32 {
    let ports = flow.ports.unwrap_or_default();
    let (words, _) = flow.addresses.as_chunks::<2>();
    let (ports, _) = ports.as_chunks::<2>();
    let words = words.iter().chain(ports);
    let sum = words.fold(0, |sum, word| sum ^ u16::from_be_bytes(*word));
    toeplitz(&KEY, sum.to_be_bytes())
}

impl<H: Hal, B: Buffer> Network<'_, H, B> {
    /// Opens up to `wanted` queues: as many as there is memory for, as processors have their SynIC
    /// enabled, and as the host gives. Then it is told how to spread what it receives. `sections` are
    /// those of the receive buffer. Waits for the host.
    pub(super) fn open_queues(
        &mut self,
        offer: &Offer,
        wanted: usize,
        sections: usize,
        options: &OpenOptions,
    ) -> Result<(), Error> {
        let most = wanted
            .min(self.queues.states().count())
            .min(self.started_cpus());
        if most < 2 || self.version < Some(Version::V5) {
            return Ok(());
        }
        let about = ReceiveScaleCapabilities::question();
        let answer = self.query(oid::GEN_RECEIVE_SCALE_CAPABILITIES, about.as_bytes());
        let capabilities = match answer {
            Ok(answer) => answer.and_then(|it| ReceiveScaleCapabilities::parse(it.value())),
            Err(Error::Refused(..)) => None,
            Err(error) => return Err(error),
        };
        let queues = capabilities.map_or(0, |it| it.queues.get() as usize);
        let further = most.min(queues).saturating_sub(1) as u32;
        if further == 0 {
            return Ok(());
        }
        let granted = match self.ask(Message::SubChannel(SUB_CHANNEL_ALLOCATE, further))? {
            Message::SubChannelComplete(status::SUCCESS, granted) => granted.min(further),
            // One channel does.
            _ => return Ok(()),
        };
        for state in self.queues.states().skip(1).take(granted as usize) {
            state.make_room_to_owe(sections)?;
        }
        self.sub_channels
            .open(&self.channel, offer, granted as u16, options);
        self.queues.open = self.channels().count();
        if self.queues.open == 1 {
            return Ok(());
        }
        let entries = capabilities.map_or(0, |it| it.table_entries.get().into());
        match entries {
            1..=RSS_TABLE_ENTRIES => self.set_receive_scale(entries),
            // It says nothing that can be, so it is the usual number.
            _ => self.set_receive_scale(RSS_TABLE_ENTRIES),
        }
    }

    /// How many processors have their SynIC enabled, as far as each can have a queue.
    fn started_cpus(&self) -> usize {
        let first = self.channel.cpu();
        let after = |cpu: &usize| Some(self.channel.bus().started_cpu_after(*cpu));
        let others = iter::successors(after(&first), after).take(MAX_SUB_CHANNELS);
        others
            .take_while(|cpu| *cpu != first)
            .count()
            .saturating_add(1)
    }

    /// Has the host spread what it receives over all queues, by a table of `entries` entries.
    fn set_receive_scale(&self, entries: usize) -> Result<(), Error> {
        let mut table = [U32::ZERO; RSS_TABLE_ENTRIES];
        let numbers = self.channels().map(Channel::sub_channel_index).cycle();
        for (entry, number) in table.iter_mut().zip(numbers) {
            *entry = u32::from(number).into();
        }
        let scale = ReceiveScale {
            flags: 0,
            hash: hash::TOEPLITZ | hash::IPV4 | hash::TCP_IPV4 | hash::IPV6 | hash::TCP_IPV6,
            table: table.get(..entries).unwrap_or(&table),
            key: &KEY,
        };
        let mut value = [0; RECEIVE_SCALE_SIZE];
        let value = scale.encode(&mut value).ok_or(Error::TooLong)?;
        match self.set(oid::GEN_RECEIVE_SCALE_PARAMETERS, value) {
            // Then all that comes is in the first queue, which does.
            Err(Error::Refused(..)) => Ok(()),
            result => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use vmbus_proto::netvsp::SEND_TABLE_ENTRIES;

    use super::*;

    #[test]
    fn a_flow_and_its_answers_have_the_hash_that_the_host_has() {
        let mut random = 1_u32;
        for length in [8, 32, 8, 32, 8, 32] {
            let mut all = [0; 36];
            for byte in &mut all {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = (random >> 24) as u8;
            }
            let mut back = all;
            back[..length].rotate_left(length / 2);
            back[32..].rotate_left(2);
            for with_ports in [false, true] {
                let [there, back] = [&all, &back].map(|bytes| Flow {
                    ipv6: length == 32,
                    addresses: &bytes[..length],
                    ports: bytes.last_chunk().copied().filter(|_| with_ports),
                });
                assert_eq!(symmetric_hash(&there), there.hash(&KEY));
                assert_eq!(symmetric_hash(&there), back.hash(&KEY));
            }
        }
    }

    #[test]
    fn ports_that_follow_each_other_spread_evenly() {
        let mut entries = [0; SEND_TABLE_ENTRIES];
        for port in 0..1600u16 {
            let [high, low] = (40_000 + port).to_be_bytes();
            let flow = Flow {
                ipv6: false,
                addresses: &[10, 0, 0, 1, 10, 0, 0, 2],
                ports: Some([high, low, 0, 80]),
            };
            entries[symmetric_hash(&flow) as usize % SEND_TABLE_ENTRIES] += 1;
        }
        assert!(
            entries.iter().all(|count| (60..140).contains(count)),
            "{entries:?}"
        );
    }
}
