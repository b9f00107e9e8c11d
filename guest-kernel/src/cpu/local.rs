//! Which CPU am I? The GS base of each CPU points at its own record.
#![expect(unsafe_code, reason = "reads through the GS segment")]

use super::MAX_CPUS;
use core::arch::asm;
use x86_64::VirtAddr;
use x86_64::registers::model_specific::GsBase;

/// What GS points at.
#[repr(C)]
struct Local {
    /// At offset 0: `index` reads it as `gs:[0]`.
    index: usize,
}

static LOCALS: [Local; MAX_CPUS] = {
    let mut locals = [const { Local { index: 0 } }; MAX_CPUS];
    let mut index = 0;
    while index < MAX_CPUS {
        locals[index].index = index;
        index += 1;
    }
    locals
};

/// Makes the calling CPU number `index`.
pub(super) fn set_index(index: usize) {
    GsBase::write(VirtAddr::from_ptr(&raw const LOCALS[index]));
}

/// The number of the calling CPU, below [`MAX_CPUS`]; the first CPU is 0.
pub(crate) fn index() -> usize {
    let index;
    // SAFETY: set_index ran on this CPU as the first thing after its descriptor tables, and GS
    // points at a Local in a static ever since.
    unsafe {
        asm!("mov {}, gs:[0]", out(reg) index, options(nostack, preserves_flags, pure, readonly));
    };
    index
}
