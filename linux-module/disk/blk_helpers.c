// SPDX-License-Identifier: GPL-2.0
/*
 * What blk-mq has as inline functions and macros only, as functions that Rust can call.
 */
#include <linux/bio.h>
#include <linux/blk-mq.h>
#include <linux/blkdev.h>
#include <linux/cpumask.h>
#include <linux/idr.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/workqueue.h>

#include "blk_helpers.h"

/* An open disk keeps the module in the kernel. */
static const struct block_device_operations operations = {
	.owner = THIS_MODULE,
};

static struct queue_limits queue_limits(const struct blk_helper_limits *limits)
{
	struct queue_limits queue = {
		.logical_block_size = limits->logical_block_size,
		.physical_block_size = limits->physical_block_size,
		.max_hw_sectors = limits->max_sectors,
		.max_segments = limits->max_segments,
		.max_segment_size = UINT_MAX,
		.virt_boundary_mask = limits->virt_boundary_mask,
		.max_hw_discard_sectors = limits->max_discard_sectors,
		.discard_granularity = limits->discard_granularity,
		.max_discard_segments = 1,
	};

	if (limits->write_cache)
		queue.features |= BLK_FEAT_WRITE_CACHE;
	if (limits->fua)
		queue.features |= BLK_FEAT_FUA;
	if (limits->rotational)
		queue.features |= BLK_FEAT_ROTATIONAL;
	return queue;
}

struct gendisk *blk_helper_alloc_disk(struct blk_mq_tag_set *set,
				      const struct blk_helper_limits *limits, void *queue_data)
{
	struct queue_limits queue = queue_limits(limits);
	struct gendisk *disk = blk_mq_alloc_disk(set, &queue, queue_data);

	if (!IS_ERR(disk))
		disk->fops = &operations;
	return disk;
}

struct request_queue *blk_helper_alloc_queue(struct blk_mq_tag_set *set,
					     const struct blk_helper_limits *limits,
					     void *queue_data)
{
	struct queue_limits queue = queue_limits(limits);

	return blk_mq_alloc_queue(set, &queue, queue_data);
}

/* Numbers of disks, each for one disk at a time. */
static DEFINE_IDA(indices);

int blk_helper_index_alloc(unsigned int max)
{
	return ida_alloc_max(&indices, max, GFP_KERNEL);
}

void blk_helper_index_free(unsigned int index)
{
	ida_free(&indices, index);
}

/* The next piece of physically contiguous memory of a request; false at the end. */
bool blk_helper_next_segment(struct bio **bio, struct bvec_iter *iter, u64 *address, u32 *length)
{
	struct bio_vec vec;

	while (*bio && !iter->bi_size) {
		*bio = (*bio)->bi_next;
		if (*bio)
			*iter = (*bio)->bi_iter;
	}
	if (!*bio)
		return false;
	vec = mp_bvec_iter_bvec((*bio)->bi_io_vec, *iter);
	*address = page_to_phys(vec.bv_page) + vec.bv_offset;
	*length = vec.bv_len;
	bio_advance_iter_single(*bio, iter, vec.bv_len);
	return true;
}

unsigned int blk_helper_online_cpus(void)
{
	return num_online_cpus();
}

u64 blk_helper_address(const void *pointer)
{
	return virt_to_phys((void *)pointer);
}

struct workqueue_struct *blk_helper_alloc_workqueue(const char *name)
{
	return alloc_ordered_workqueue("%s", WQ_MEM_RECLAIM, name);
}
