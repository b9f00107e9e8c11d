//! Segments, which long mode hardly uses, and the task state segment, which names the stack for
//! double faults.
#![expect(unsafe_code, reason = "loads segment registers and the task register")]

use super::{MAX_CPUS, stack};
use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::tss::TaskStateSegment;

/// The entry of the interrupt stack table that double faults use, counted from 0.
pub(crate) const DOUBLE_FAULT_STACK: usize = 0;

struct Selectors {
    code: SegmentSelector,
    data: SegmentSelector,
    task: SegmentSelector,
}

struct Tables {
    task: Once<TaskStateSegment>,
    segments: Once<(GlobalDescriptorTable, Selectors)>,
}

static TABLES: [Tables; MAX_CPUS] = [const {
    Tables {
        task: Once::new(),
        segments: Once::new(),
    }
}; MAX_CPUS];

/// Builds and loads the tables of CPU `cpu`, which is the caller.
pub(super) fn load(cpu: usize) {
    let tables = &TABLES[cpu];
    let task = tables.task.call_once(|| {
        let mut task = TaskStateSegment::new();
        task.interrupt_stack_table[DOUBLE_FAULT_STACK] = VirtAddr::new(stack::fault_top(cpu));
        task
    });
    let (table, selectors) = tables.segments.call_once(|| {
        let mut table = GlobalDescriptorTable::new();
        let selectors = Selectors {
            code: table.append(Descriptor::kernel_code_segment()),
            data: table.append(Descriptor::kernel_data_segment()),
            task: table.append(Descriptor::tss_segment(task)),
        };
        (table, selectors)
    });
    table.load();
    // SAFETY: the selectors index this table, which is loaded and lives in a static.
    unsafe { CS::set_reg(selectors.code) };
    for set in [SS::set_reg, DS::set_reg, ES::set_reg] {
        // SAFETY: as above.
        unsafe { set(selectors.data) };
    }
    // SAFETY: as above; no other CPU has this table, so the segment is not marked busy.
    unsafe { load_tss(selectors.task) };
}
