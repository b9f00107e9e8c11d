//! A whole kernel that reads and writes a disk of Hyper-V without a single interrupt.
#![no_std]
#![no_main]

#[path = "../machine.rs"]
mod machine;

use core::ptr::NonNull;
use guest_vsc::Error;
use guest_vsc::bus::{BusMemory, Options, VmBus};
use guest_vsc::hal::{BufferDirection, Hal, PhysAddr};
use guest_vsc::storage::{self, SECTOR_SIZE, Storage, StorageError, StorageMemory, StorageOptions};
use machine::log;

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
}

/// An interrupt vector that nothing is behind: this kernel keeps interrupts off.
const VECTOR: u8 = 0xF3;

static BUS: BusMemory<Kernel, 1, 8> = BusMemory::new();
static REQUESTS: StorageMemory<Kernel, &'static mut [u8], 4> = StorageMemory::new();

/// Sectors that are written and read back.
const SECTORS: u64 = 64;

/// Each sector is written with its number, and read back.
fn story() -> Result<(), StorageError> {
    let bus = VmBus::new(&BUS, VECTOR)?;
    let version = bus.connect(&Options::default())?;
    let offer = bus.find(storage::CLASS).ok_or(Error::NoOffer)?;
    let disk = Storage::open(&bus, &offer, &REQUESTS, &StorageOptions::default())?;
    log(format_args!(
        "polled: VMBus {version}, {} sectors\n",
        disk.capacity()
    ));
    for sector in 0..SECTORS {
        disk.write_blocks(sector, &[sector as u8; SECTOR_SIZE])?;
    }
    disk.flush()?;
    let mut wrong = 0;
    for sector in 0..SECTORS {
        let mut read = [0xFF; SECTOR_SIZE];
        disk.read_blocks(sector, &mut read)?;
        wrong += u64::from(read != [sector as u8; SECTOR_SIZE]);
    }
    log(format_args!(
        "polled: {SECTORS} sectors written, {wrong} differ\n"
    ));
    drop(disk);
    Ok(bus.unload()?)
}

#[unsafe(no_mangle)]
extern "C" fn kernel_main() -> ! {
    if story().is_err() {
        // What it is in words would be a kilobyte more; see the other kernel.
        log(format_args!("polled: the disk can't be used\n"));
        machine::end(0x11)
    }
    machine::end(0x10)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    log(format_args!("polled: a panic\n"));
    machine::end(0x12)
}
