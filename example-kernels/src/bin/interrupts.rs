//! A whole kernel that has many requests of a disk of Hyper-V in flight, and sleeps until the host
//! interrupts it.
#![no_std]
#![no_main]

#[path = "../machine.rs"]
mod machine;

use core::arch::{asm, naked_asm};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use guest_vsc::Error;
use guest_vsc::bus::{BusMemory, Options, VmBus};
use guest_vsc::hal::{BufferDirection, Hal, PhysAddr};
use guest_vsc::storage::{self, SECTOR_SIZE, Storage, StorageError, StorageMemory, StorageOptions};
use machine::log;
use spin::Once;

/// This kernel, for the drivers.
struct Kernel;

// SAFETY: memory is mapped at its physical address, pages are given out once, and there is one
// processor.
unsafe impl Hal for Kernel {
    fn dma_alloc(pages: usize, _: BufferDirection) -> Option<(PhysAddr, NonNull<u8>)> {
        machine::take_pages(pages).map(|page| (page.addr().get() as PhysAddr, page))
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) {}

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().addr().get() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}

    fn code_to_phys(page: NonNull<u8>) -> PhysAddr {
        page.addr().get() as PhysAddr
    }

    fn current_cpu() -> usize {
        0
    }

    fn wait_for_interrupt() {
        // SAFETY: both vectors have handlers. No interrupt can come between the two instructions,
        // and the timer ends the sleep in any case.
        unsafe { asm!("sti", "hlt", options(nostack)) }
    }
}

const TIMER: u8 = 0x20;
const VMBUS: u8 = 0xF3;

static MEMORY: BusMemory<Kernel, 1, 8> = BusMemory::new();
static BUS: Once<VmBus<'static, Kernel>> = Once::new();
static REQUESTS: StorageMemory<Kernel, &'static mut [u8], DEPTH> = StorageMemory::new();
static INTERRUPTS: AtomicU32 = AtomicU32::new(0);

/// The interrupt descriptor table, two words a gate.
static GATES: [AtomicU64; 512] = [const { AtomicU64::new(0) }; 512];

/// The handler of both vectors: takes what there is, then ends the interrupt, whatever was found.
extern "C" fn interrupted() {
    INTERRUPTS.fetch_add(1, Relaxed);
    if let Some(bus) = BUS.get() {
        bus.handle_interrupt();
    }
    write_msr(0x80B, 0); // the x2APIC's end of interrupt
}

/// Saves what a handler may change, and calls it.
#[unsafe(naked)]
extern "C" fn entry() {
    naked_asm!(
        "push rax; push rcx; push rdx; push rsi; push rdi; push r8; push r9; push r10; push r11; cld",
        "call {}",
        "pop r11; pop r10; pop r9; pop r8; pop rdi; pop rsi; pop rdx; pop rcx; pop rax; iretq",
        sym interrupted
    )
}

fn write_msr(register: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: only the local APIC's registers are written here.
    unsafe { asm!("wrmsr", in("ecx") register, in("eax") low, in("edx") high, options(nostack)) }
}

/// Gates for both vectors, and a local APIC whose timer interrupts now and then.
fn set_up_interrupts() {
    let at = entry as *const () as u64;
    for vector in [VMBUS, TIMER].map(usize::from) {
        let low = at & 0xFFFF | 0x08 << 16 | 0x8E00 << 32 | (at >> 16 & 0xFFFF) << 48;
        GATES[vector * 2].store(low, Relaxed);
        GATES[vector * 2 + 1].store(at >> 32, Relaxed);
    }
    let table = GATES.as_ptr() as u64;
    let pointer = [(size_of_val(&GATES) as u64 - 1) << 48, table]; // the limit ends at byte 8
    let pointer = pointer.as_ptr().cast::<u8>().wrapping_add(6);
    // SAFETY: the table lives in a static, and its gates lead to a handler.
    unsafe { asm!("lidt [{}]", in(reg) pointer, options(nostack)) }
    machine::out(0x21, 0xFF); // the two 8259s are masked
    machine::out(0xA1, 0xFF);
    write_msr(0x1B, 0xFEE0_0D00); // x2APIC on, first processor
    write_msr(0x80F, 0x1FF); // enabled
    write_msr(0x83E, 0b1011); // the timer counts each clock,
    write_msr(0x832, 1 << 17 | u64::from(TIMER)); // again and again,
    write_msr(0x838, 100_000_000); // this far
}

/// Requests in flight, of this many bytes each.
const DEPTH: usize = 8;
const BYTES: usize = 4096;
const SECTORS: u64 = (BYTES / SECTOR_SIZE) as u64;

/// Writes the disk's beginning, many requests at a time, and reads it back.
fn story() -> Result<(), StorageError> {
    set_up_interrupts();
    let bus = BUS.try_call_once(|| VmBus::new(&MEMORY, VMBUS))?;
    // SAFETY: from here on handlers may run.
    unsafe { asm!("sti", options(nomem, nostack)) }
    let version = bus.connect(&Options::default())?;
    let offer = bus.find(storage::CLASS).ok_or(Error::NoOffer)?;
    let disk = Storage::open(bus, &offer, &REQUESTS, &StorageOptions::default())?;
    log(format_args!(
        "interrupts: VMBus {version}, {} sectors\n",
        disk.capacity()
    ));
    for number in 0..DEPTH {
        // SAFETY: a page of our own, zeroed, for as long as the kernel lives.
        let buffer: &'static mut [u8; BYTES] = unsafe {
            machine::take_pages(1)
                .ok_or(Error::OutOfMemory)?
                .cast()
                .as_mut()
        };
        buffer.fill(number as u8);
        let place = number as u64 * SECTORS;
        disk.submit_write(place, buffer)
            .map_err(|(error, _buffer)| error)?;
    }
    let mut read = [0; BYTES];
    for _ in 0..DEPTH {
        disk.wait()?.result?;
    }
    disk.flush()?;
    let mut wrong = 0;
    for number in 0..DEPTH {
        disk.read_blocks(number as u64 * SECTORS, &mut read)?;
        wrong += u64::from(read != [number as u8; BYTES]);
    }
    let taken = INTERRUPTS.load(Relaxed);
    log(format_args!(
        "interrupts: {DEPTH} requests at once, {wrong} differ, {taken} interrupts\n"
    ));
    drop(disk);
    Ok(bus.unload()?)
}

#[unsafe(no_mangle)]
extern "C" fn kernel_main() -> ! {
    let end = story();
    if let Err(error) = &end {
        log(format_args!("interrupts: {error}\n"));
    }
    machine::end(if end.is_ok() { 0x10 } else { 0x11 })
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    log(format_args!("interrupts: {info}\n"));
    machine::end(0x12)
}
