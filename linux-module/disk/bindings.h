/* SPDX-License-Identifier: GPL-2.0 */
/* What bindgen makes Rust declarations of. */

#include "blk_helpers.h"
