/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What <linux/hyperv.h> has as inline functions only, or not for modules, as functions that Rust can
 * call. Each does what the function does that it is named after.
 */
#ifndef _VMBUS_RUST_HELPERS_H
#define _VMBUS_RUST_HELPERS_H

#include <linux/hyperv.h>

u32 vmbus_rust_get_bytes_to_read(struct vmbus_channel *channel);
u32 vmbus_rust_get_bytes_to_write(struct vmbus_channel *channel);
u32 vmbus_rust_get_bytes_not_taken(struct vmbus_channel *channel);
void vmbus_rust_set_pending_send_size(struct vmbus_channel *channel, u32 size);
void vmbus_rust_reset_channel_cb(struct vmbus_channel *channel);

#endif
