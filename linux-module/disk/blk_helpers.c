// SPDX-License-Identifier: GPL-2.0

#include "blk_helpers.h"

u64 disk_helper_rq_pos(struct request *rq)
{
	return blk_rq_pos(rq);
}
