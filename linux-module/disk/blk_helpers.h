/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What blk-mq has as inline functions and macros only, as functions that Rust can call.
 */
#ifndef _VMBUS_DISK_BLK_HELPERS_H
#define _VMBUS_DISK_BLK_HELPERS_H

#include <linux/blk-mq.h>

/* What a driver says of its disk; `Limits` in blk/disk.rs says what each is. */
struct blk_helper_limits {
	u32 logical_block_size;
	u32 physical_block_size;
	u32 max_sectors;
	u32 max_segments;
	u32 max_discard_sectors;
	u32 discard_granularity;
	u64 virt_boundary_mask;
	bool write_cache;
	bool fua;
	bool rotational;
};

struct gendisk *blk_helper_alloc_disk(struct blk_mq_tag_set *set,
				      const struct blk_helper_limits *limits, void *queue_data);
struct request_queue *blk_helper_alloc_queue(struct blk_mq_tag_set *set,
					     const struct blk_helper_limits *limits,
					     void *queue_data);
int blk_helper_index_alloc(unsigned int max);
void blk_helper_index_free(unsigned int index);
bool blk_helper_next_segment(struct bio **bio, struct bvec_iter *iter, u64 *address, u32 *length);
unsigned int blk_helper_online_cpus(void);
u64 blk_helper_address(const void *pointer);
struct workqueue_struct *blk_helper_alloc_workqueue(const char *name);

#endif
