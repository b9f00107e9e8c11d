//! Boots `guest-kernel` from UEFI firmware, as Hyper-V's generation 2 and Azure have it.
//!
//! The kernel is part of this image. It is put to its link address and entered by the 64-bit Linux
//! boot protocol, with the firmware's memory map as E820 entries and the address of the ACPI tables.
//! The image's load options are its command line.
//!
//! Firmware maps memory at its physical addresses, runs in 64-bit mode on the first processor, and
//! is gone after `ExitBootServices`: what it leaves is what the kernel's entry wants.
#![no_main]
#![no_std]
#![expect(
    unsafe_code,
    reason = "puts a kernel into memory, takes the machine from the firmware and jumps"
)]

mod boot_params;

use boot_params::BootParams;
use core::arch::asm;
use core::ptr::NonNull;
use elf::ElfBytes;
use elf::abi::PT_LOAD;
use elf::endian::LittleEndian;
use uefi::boot::{self, AllocateType, MemoryType, PAGE_SIZE};
use uefi::prelude::*;
use uefi::proto::loaded_image::LoadedImage;
use uefi::table::cfg::ConfigTableEntry;
use uefi::{println, system};

/// The kernel's ELF file; the build says where it is.
static KERNEL: &[u8] = include_bytes!(env!("GUEST_KERNEL"));

/// The kernel reads nothing above.
const REACHABLE: u64 = 4 << 30;

#[entry]
fn main() -> Status {
    match prepare() {
        Ok((entry, params)) => start(entry, params),
        Err(reason) => {
            println!("guest-kernel does not boot: {reason}");
            Status::LOAD_ERROR
        }
    }
}

/// Everything that needs the firmware: the kernel's entry, and room for what it is told.
fn prepare() -> Result<(u64, &'static mut BootParams), &'static str> {
    let entry = load()?;
    let rsdp = system::with_config_table(|tables| {
        let of = |guid| tables.iter().find(|table| table.guid == guid);
        of(ConfigTableEntry::ACPI2_GUID)
            .or_else(|| of(ConfigTableEntry::ACPI_GUID))
            .map(|table| table.address as u64)
    });
    let page = pages(
        AllocateType::MaxAddress(REACHABLE - 1),
        size_of::<BootParams>(),
    )
    .ok_or("no memory for the boot parameters")?;
    // SAFETY: the pages are this long and zeroed, which is a value, and nobody else has them.
    let params = unsafe { page.cast::<BootParams>().as_mut() };
    params.begin(rsdp.unwrap_or(0));
    if let Ok(image) = boot::open_protocol_exclusive::<LoadedImage>(boot::image_handle())
        && let Ok(options) = image.load_options_as_cstr16()
    {
        params.set_command_line(options.iter().map(|&unit| char::from(unit)));
    }
    Ok((entry, params))
}

/// Puts the kernel where it is linked to; its entry.
fn load() -> Result<u64, &'static str> {
    let broken = "the kernel in this image is no ELF file";
    let file = ElfBytes::<LittleEndian>::minimal_parse(KERNEL).map_err(|_| broken)?;
    let segments = file.segments().ok_or(broken)?;
    let loaded = || segments.iter().filter(|segment| segment.p_type == PT_LOAD);
    let start = loaded().map(|it| it.p_paddr).min().ok_or(broken)?;
    let end = loaded().map(|it| it.p_paddr + it.p_memsz).max();
    let bytes = (end.ok_or(broken)? - start) as usize;
    let image = pages(AllocateType::Address(start), bytes)
        .ok_or("the firmware itself is where the kernel has to be")?;
    for segment in loaded() {
        let data = file.segment_data(&segment).map_err(|_| broken)?;
        let offset = (segment.p_paddr - start) as usize;
        if data.len() > bytes - offset {
            return Err(broken);
        }
        // SAFETY: within the pages, which are ours.
        unsafe {
            image
                .add(offset)
                .copy_from_nonoverlapping(NonNull::from(data).cast(), data.len());
        }
    }
    Ok(file.ehdr.e_entry)
}

/// Takes zeroed pages.
fn pages(place: AllocateType, bytes: usize) -> Option<NonNull<u8>> {
    let count = bytes.div_ceil(PAGE_SIZE);
    let start = boot::allocate_pages(place, MemoryType::LOADER_DATA, count).ok()?;
    // SAFETY: the firmware gave them to us.
    unsafe { start.write_bytes(0, count * PAGE_SIZE) };
    Some(start)
}

/// Takes the machine from the firmware and gives it to the kernel.
fn start(entry: u64, params: &'static mut BootParams) -> ! {
    println!("guest-kernel: leaving the firmware");
    // SAFETY: nothing of the firmware's is used after this.
    let map = unsafe { boot::exit_boot_services(None) };
    params.set_memory_map(&map);
    let params: *const BootParams = params;
    // SAFETY: this is the 64-bit entry of the Linux boot protocol, which expects what firmware has
    // set up, with interrupts off and RSI so; it never returns.
    unsafe { asm!("cli", "cld", "jmp {}", in(reg) entry, in("rsi") params, options(noreturn)) }
}
