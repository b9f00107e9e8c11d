//! The guest's view of the hypervisor: `guest_vsc`'s [`Hal`], for the thread's own processor.
#![expect(unsafe_code, reason = "Hal is an unsafe trait")]

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use guest_vsc::hal::{BufferDirection, Cpuid, Hal, PhysAddr};
use vm_memory::{GuestAddress, GuestMemoryBackend as _};
use vmbus_proto::PAGE_SIZE;

use crate::hypervisor::{FakeHypervisor, Vm};

thread_local! {
    /// The processor that this thread is.
    static PROCESSOR: RefCell<Option<(Arc<Vm>, u32)>> = const { RefCell::new(None) };
    /// Whether it takes interrupts.
    static INTERRUPTS_ON: Cell<bool> = const { Cell::new(true) };
    /// Where the scheduler moves this thread as soon as it can.
    static NEXT: Cell<Option<u32>> = const { Cell::new(None) };
}

/// The longest sleep of a processor that waits for an interrupt: there is always a timer.
const TICK: Duration = Duration::from_millis(2);

/// While it exists, its thread is a virtual processor.
pub struct Entered {
    before: Option<(Arc<Vm>, u32)>,
    hypervisor: FakeHypervisor,
    vp: u32,
}

impl Entered {
    pub(crate) fn new(hypervisor: FakeHypervisor, vp: u32) -> Self {
        assert!((vp as usize) < hypervisor.vm.vps.len(), "no such processor");
        let now = Some((hypervisor.vm.clone(), vp));
        let before = PROCESSOR.with(|processor| processor.replace(now));
        Self {
            before,
            hypervisor,
            vp,
        }
    }

    /// Waits for an interrupt of this processor, but not longer than a tick of its timer; says
    /// whether one came. For threads that play an interrupt handler.
    pub fn wait_for_interrupt(&self) -> bool {
        self.hypervisor.vm.vps[self.vp as usize].wait(TICK)
    }

    /// Has the scheduler move this thread to processor `vp` the next time that it has asked which
    /// one it is with interrupts on, where a kernel's scheduler could.
    pub fn migrate(&self, vp: u32) {
        NEXT.set(Some(vp));
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        PROCESSOR.with(|processor| processor.replace(self.before.take()));
    }
}

/// Whether the thread is somewhere that a kernel's allocator and scheduler may be called from.
fn assert_interrupts_on(what: &str) {
    let fine = INTERRUPTS_ON.get() || std::thread::panicking();
    assert!(fine, "{what} with interrupts off");
}

fn processor() -> (Arc<Vm>, u32) {
    let processor = PROCESSOR.with(|processor| processor.borrow().clone());
    processor.expect("this thread is no processor: call FakeHypervisor::enter")
}

/// The kernel of the fake hypervisor's guest.
pub struct FakeHal;

/// Where the guest's RAM is in this process.
fn ram(vm: &Vm, gpa: u64) -> NonNull<u8> {
    let host = vm.memory.get_host_address(GuestAddress(gpa));
    NonNull::new(host.expect("an address in RAM")).expect("RAM is not at 0")
}

/// The guest physical address of a pointer, where it points into RAM.
fn gpa_of(vm: &Vm, pointer: NonNull<u8>) -> Option<u64> {
    let last = vm.memory.last_addr().0;
    let offset = pointer.addr().get().checked_sub(ram(vm, 0).addr().get())? as u64;
    (offset <= last).then_some(offset)
}

// SAFETY: pages come from an allocator that gives each out once, zeroed, from a mapping that lives
// as long as a handle to the hypervisor, which every thread that runs drivers has. Processors are
// numbered by their VP index.
unsafe impl Hal for FakeHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> Option<(PhysAddr, NonNull<u8>)> {
        assert_interrupts_on("allocates pages");
        let (vm, _) = processor();
        let gpa = vm.pages.take(&vm.memory, pages)?;
        Some((gpa, ram(&vm, gpa)))
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, vaddr: NonNull<u8>, pages: usize) {
        assert_interrupts_on("gives pages back");
        let (vm, _) = processor();
        assert_eq!(gpa_of(&vm, vaddr), Some(paddr), "not what was allocated");
        vm.pages.give(paddr, pages);
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        let (vm, _) = processor();
        let start = buffer.cast::<u8>();
        let offset = start.addr().get() % PAGE_SIZE;
        assert!(!buffer.is_empty(), "an empty piece");
        assert!(offset + buffer.len() <= PAGE_SIZE, "a piece crosses a page");
        if let Some(gpa) = gpa_of(&vm, start) {
            return gpa;
        }
        // The test's own memory is not the guest's: lend a page instead.
        vm.bounced.fetch_add(1, Ordering::Relaxed);
        let page = vm.pages.take(&vm.memory, 1).expect("guest RAM is used up");
        let copy = ram(&vm, page + offset as u64);
        // SAFETY: the buffer is valid by the caller's promise, the page is ours and long enough.
        unsafe { copy.copy_from_nonoverlapping(start, buffer.len()) };
        page + offset as u64
    }

    unsafe fn unshare(paddr: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        let (vm, _) = processor();
        let start = buffer.cast::<u8>();
        if gpa_of(&vm, start).is_some() {
            return;
        }
        if direction != BufferDirection::DriverToDevice {
            // SAFETY: as in `share`, the other way.
            unsafe { start.copy_from_nonoverlapping(ram(&vm, paddr), buffer.len()) };
        }
        vm.pages.give(paddr - paddr % PAGE_SIZE as u64, 1);
    }

    fn code_to_phys(_page: NonNull<u8>) -> PhysAddr {
        // Nobody will call into it.
        0x1000
    }

    fn current_cpu() -> usize {
        let (vm, vp) = processor();
        if INTERRUPTS_ON.get()
            && let Some(next) = NEXT.take()
        {
            PROCESSOR.with(|processor| processor.replace(Some((vm, next))));
        }
        vp as usize
    }

    fn pause() {
        assert_interrupts_on("pauses");
        std::thread::yield_now();
    }

    fn disable_interrupts() -> bool {
        // Interrupts are other threads here, which the drivers' locks hold off by themselves.
        INTERRUPTS_ON.replace(false)
    }

    fn enable_interrupts() {
        INTERRUPTS_ON.set(true);
    }

    fn wait_for_interrupt() {
        INTERRUPTS_ON.set(true);
        let (vm, vp) = processor();
        vm.vps[vp as usize].wait(TICK);
    }

    fn cpuid(leaf: u32) -> Cpuid {
        processor().0.cpuid(leaf)
    }

    unsafe fn rdmsr(register: u32) -> u64 {
        let (vm, vp) = processor();
        vm.rdmsr(vp, register)
    }

    unsafe fn wrmsr(register: u32, value: u64) {
        let (vm, vp) = processor();
        vm.wrmsr(vp, register, value);
    }

    unsafe fn hypercall(control: u64, input: u64, _output: u64) -> u64 {
        let (vm, vp) = processor();
        vm.hypercall(vp, control, input)
    }
}
