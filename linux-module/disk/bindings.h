/* SPDX-License-Identifier: GPL-2.0 */
/* What the crate `disk_bindings` is made of. */

#include "blk_helpers.h"
