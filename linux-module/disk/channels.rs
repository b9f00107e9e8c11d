// SPDX-License-Identifier: GPL-2.0

//! The channels of a controller: as many as the host grants, one for each processor at most.

use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::time::msecs_to_jiffies;
use vmbus::{Channel, Options};
use vmbus_proto::storvsp::ChannelProperties;

use crate::blk::Tag;
use crate::commands::Commands;
use crate::port::{ChannelEnd, Port};

/// Most channels of a controller.
pub(crate) const MAX_CHANNELS: usize = 16;

/// How long the host gets to offer sub-channels, in milliseconds.
const PATIENCE: u32 = 5_000;

/// The channels of a controller.
pub(crate) struct Channels {
    first: Channel<ChannelEnd>,
    further: KVec<Channel<ChannelEnd>>,
}

impl Channels {
    /// The first one alone.
    pub(crate) fn first(first: Channel<ChannelEnd>) -> Self {
        Self {
            first,
            further: KVec::new(),
        }
    }

    /// Asks the controller that has said `properties` for further ones, so that there are as many as
    /// `queues`, or fewer where it grants fewer.
    pub(crate) fn open_further(
        first: Channel<ChannelEnd>,
        queues: u16,
        properties: &ChannelProperties,
        commands: &Commands,
        port: &Arc<Port>,
        options: &Options,
    ) -> Result<Self> {
        let count = properties.sub_channels().min(queues - 1);
        let mut ends = KVec::with_capacity(count.into(), GFP_KERNEL)?;
        for _ in 0..count {
            ends.push(ChannelEnd(port.clone()), GFP_KERNEL)?;
        }
        let mut channels = Self::first(first);
        if count > 0 {
            let patience = msecs_to_jiffies(PATIENCE);
            let ask = || commands.create_sub_channels(count);
            channels.further = channels
                .first
                .open_sub_channels(options, ends, patience, ask)?;
        }
        Ok(channels)
    }

    /// The one for a request with this tag: each hardware queue has one, which it may share.
    pub(crate) fn of(&self, tag: Tag) -> &Channel<ChannelEnd> {
        let number = tag.queue() % (1 + self.further.len());
        let further = number.checked_sub(1).and_then(|it| self.further.get(it));
        further.unwrap_or(&self.first)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        1 + self.further.len()
    }
}
