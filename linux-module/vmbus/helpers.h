/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What <linux/hyperv.h> has as inline functions only, as functions that Rust can call. Each does
 * nothing but call the function it is named after.
 */
#ifndef _VMBUS_RUST_HELPERS_H
#define _VMBUS_RUST_HELPERS_H

#include <linux/hyperv.h>

u32 vmbus_rust_get_bytes_to_read(struct vmbus_channel *channel);
u32 vmbus_rust_get_bytes_to_write(struct vmbus_channel *channel);
u32 vmbus_rust_get_bytes_not_taken(struct vmbus_channel *channel);
void vmbus_rust_set_pending_send_size(struct vmbus_channel *channel, u32 size);

#endif
