/* SPDX-License-Identifier: GPL-2.0 */
/* What the block layer has as inline functions or macros, for Rust. */

#ifndef VMBUS_DISK_HELPERS_H
#define VMBUS_DISK_HELPERS_H

#include <linux/blk-mq.h>

u64 disk_helper_rq_pos(struct request *rq);

#endif
