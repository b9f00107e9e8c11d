// SPDX-License-Identifier: GPL-2.0

#include "helpers.h"

/* Bytes that the host has written and nobody here has read yet. */
u32 vmbus_rust_get_bytes_to_read(struct vmbus_channel *channel)
{
	return hv_get_bytes_to_read(&channel->inbound);
}

/* Bytes for which the ring to the host has room; one packet must stay smaller than that. */
u32 vmbus_rust_get_bytes_to_write(struct vmbus_channel *channel)
{
	return hv_get_bytes_to_write(&channel->outbound);
}

/* Bytes in the ring to the host that the host has not taken yet. */
u32 vmbus_rust_get_bytes_not_taken(struct vmbus_channel *channel)
{
	return hv_get_bytes_to_read(&channel->outbound);
}

void vmbus_rust_set_pending_send_size(struct vmbus_channel *channel, u32 size)
{
	set_channel_pending_send_size(channel, size);
	/* Who looks for room after this sees what the host has taken before it could see the wish. */
	virt_mb();
}

/* No callback from now on; one that is under way has ended. */
void vmbus_rust_reset_channel_cb(struct vmbus_channel *channel)
{
	unsigned long flags;

	tasklet_disable(&channel->callback_event);
	spin_lock_irqsave(&channel->sched_lock, flags);
	channel->onchannel_callback = NULL;
	spin_unlock_irqrestore(&channel->sched_lock, flags);
	tasklet_enable(&channel->callback_event);
}
