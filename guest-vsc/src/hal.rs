//! What the drivers ask of the kernel that uses them: [`Hal`].
//!
//! The trait has the shape of the one in the `virtio-drivers` crate: static functions, each with
//! what an implementation has to guarantee. VMBus needs a little more than virtio, because a guest
//! talks to the hypervisor itself: which processor this is, whether interrupts are on, and four
//! privileged instructions. Those have defaults for x86, so that a kernel writes six short
//! functions; tests replace the instructions and run the drivers in one process with a host.
#![expect(unsafe_code, reason = "the contract between kernel and drivers")]

use core::ptr::NonNull;

use crate::arch;

/// A guest physical address, in bytes.
pub type PhysAddr = u64;

/// Which side writes to shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferDirection {
    /// The driver writes, the host reads.
    DriverToDevice,
    /// The host writes, the driver reads.
    DeviceToDriver,
    /// Both write.
    Both,
}

/// The result of CPUID for one leaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpuid {
    /// Register EAX.
    pub eax: u32,
    /// Register EBX.
    pub ebx: u32,
    /// Register ECX.
    pub ecx: u32,
    /// Register EDX.
    pub edx: u32,
}

/// The kernel under the drivers.
///
/// # Safety
/// An implementation keeps what "Implementation safety" says at each method. Callers keep what
/// "Safety" says at the unsafe ones.
pub unsafe trait Hal: 'static {
    /// Allocates `pages` zeroed pages of 4096 bytes that lie together in guest physical memory
    /// and may be shared with the host; `None` when there is no memory. Called in task context,
    /// with no lock of the drivers' held.
    ///
    /// # Implementation safety
    /// The pointer is valid for reads and writes of all pages, aligned to 4096 bytes, and
    /// nothing else in the program refers to the memory until [`dma_dealloc`](Self::dma_dealloc).
    /// The address is where the host finds it, a multiple of 4096.
    fn dma_alloc(pages: usize, direction: BufferDirection) -> Option<(PhysAddr, NonNull<u8>)>;

    /// Takes pages back.
    ///
    /// # Safety
    /// All three values are those of one [`dma_alloc`](Self::dma_alloc) whose memory is neither
    /// used any more nor given back yet.
    unsafe fn dma_dealloc(paddr: PhysAddr, vaddr: NonNull<u8>, pages: usize);

    /// Makes `buffer` accessible to the host until [`unshare`](Self::unshare) and returns where
    /// the host finds it. The drivers never pass a buffer that crosses a 4096-byte page.
    ///
    /// Most kernels just translate the address. Where the host cannot reach the memory, this
    /// copies it to a page the host can reach. Called with interrupts off, and
    /// [`unshare`](Self::unshare) also in interrupt handlers, where a completion is taken there.
    ///
    /// # Implementation safety
    /// The host may access exactly this buffer (or its copy) at the returned address, which has
    /// the same offset in its page as `buffer` has. After `unshare` the drivers treat the memory
    /// as private again: a hypervisor that is not trusted with all memory must not reach it then.
    ///
    /// # Safety
    /// `buffer` is valid, not empty, within one page, and nobody accesses it during the call.
    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr;

    /// Ends what [`share`](Self::share) began; copies back what the host wrote, where `share`
    /// made a copy.
    ///
    /// # Safety
    /// As for `share`; `paddr` is what it returned for this `buffer` and `direction`.
    unsafe fn unshare(paddr: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection);

    /// The guest physical address of `page`, a page in this crate's own code segment: there the
    /// hypervisor puts its hypercall instruction.
    ///
    /// # Implementation safety
    /// The address is that of the page which is mapped, executable, at `page`.
    fn code_to_phys(page: NonNull<u8>) -> PhysAddr;

    /// A number for the processor that runs this: its own, constant, and small, as it indexes
    /// the processors' places in [`BusMemory`](crate::bus::BusMemory).
    ///
    /// # Implementation safety
    /// Two processors never get the same number.
    fn current_cpu() -> usize;

    /// Called at each turn of a wait that may not sleep, in task context and with no lock of the
    /// drivers' held. A thread's yield fits here.
    fn pause() {
        core::hint::spin_loop();
    }

    /// Turns interrupts off on this processor and says whether they were on.
    fn disable_interrupts() -> bool {
        arch::disable_interrupts()
    }

    /// Turns interrupts on, on this processor, where
    /// [`disable_interrupts`](Self::disable_interrupts) said that they were.
    fn enable_interrupts() {
        arch::enable_interrupts();
    }

    /// Called with interrupts disabled, in a wait for the host, after a last look for news:
    /// enables interrupts and may sleep until one comes.
    ///
    /// On x86 `sti; hlt` does that without a gap, but only where a timer or another interrupt is
    /// sure to come: the waits have deadlines, and look at them only when this returns. The
    /// default does not sleep.
    fn wait_for_interrupt() {
        Self::enable_interrupts();
        Self::pause();
    }

    /// CPUID for `leaf`, subleaf 0.
    fn cpuid(leaf: u32) -> Cpuid {
        arch::cpuid(leaf)
    }

    /// Reads a model-specific register of this processor.
    ///
    /// # Safety
    /// The register exists; reading it has no effect on memory safety.
    unsafe fn rdmsr(msr: u32) -> u64 {
        // SAFETY: the caller's promise is the one needed.
        unsafe { arch::rdmsr(msr) }
    }

    /// Writes a model-specific register of this processor.
    ///
    /// # Safety
    /// The register exists and takes the value; pages whose address it carries belong to the
    /// hypervisor from then on.
    unsafe fn wrmsr(msr: u32, value: u64) {
        // SAFETY: the caller's promise is the one needed.
        unsafe { arch::wrmsr(msr, value) }
    }

    /// Makes a hypercall through the page that [`code_to_phys`](Self::code_to_phys) was asked
    /// about; returns its result value.
    ///
    /// # Safety
    /// The hypercall page is enabled. Where `input` and `output` are addresses, the hypervisor
    /// may read and write the pages they name.
    unsafe fn hypercall(control: u64, input: u64, output: u64) -> u64 {
        // SAFETY: the caller's promise is the one needed.
        unsafe { arch::hypercall(control, input, output) }
    }
}
