/* SPDX-License-Identifier: GPL-2.0 */
/* What bindgen makes Rust declarations of. */

#include <linux/hyperv.h>

#include "helpers.h"
