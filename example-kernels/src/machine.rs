//! What both kernels have of a PC: the way in, a log on the serial port, pages, and the way out.
//!
//! The loader enters by PVH: 32 bits, no paging. A few lines lead to 64 bits with the first 4 GiB
//! mapped at themselves, so that addresses are physical addresses and everything may be executed.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

global_asm!(
    r#"
.section .note.pvh, "a", @note
    .long 4, 8, 18                  // XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_entry

.section .boot, "awx", @progbits
.global pvh_entry
.code32
pvh_entry:
    cli
    cld
    mov esp, offset boot_stack_top
    mov eax, offset boot_pml4
    mov cr3, eax
    mov eax, 0x20                   // PAE
    mov cr4, eax
    mov ecx, 0xC0000080             // EFER: LME
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, 0x80000011             // PG, ET, PE
    mov cr0, eax
    lgdt [boot_gdt_pointer]
    push 0x08                       // a far return loads the 64-bit segment
    mov eax, offset long_mode
    push eax
    retf
.code64
long_mode:
    mov eax, 0x10
    mov ss, eax
    mov ds, eax
    mov es, eax
    call kernel_main
    .balign 4096
boot_pml4:
    .quad boot_pdpt + 3
    .fill 511, 8, 0
boot_pdpt:
    .quad boot_pd + 0x0003, boot_pd + 0x1003, boot_pd + 0x2003, boot_pd + 0x3003
    .fill 508, 8, 0
boot_pd:
    .set address, 0
    .rept 2048
    .quad address + 0x83            // present, writable, 2 MiB
    .set address, address + 0x200000
    .endr
boot_gdt:
    .quad 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF
boot_gdt_pointer:
    .word 23
    .quad boot_gdt
.section .bss.boot_stack, "aw", @nobits
    .balign 16
    .skip 65536
boot_stack_top:
"#
);

/// Writes a byte to an I/O port.
pub fn out(port: u16, byte: u8) {
    // SAFETY: the ports that are written here belong to devices that touch no memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") byte, options(nomem, nostack)) }
}

/// Writes to the serial port COM1, which needs no set-up on virtual machines.
#[inline(never)]
pub fn log(text: fmt::Arguments<'_>) {
    let _never_fails = fmt::write(&mut Log, text);
}

struct Log;

impl fmt::Write for Log {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| out(0x3F8, byte));
        Ok(())
    }
}

/// Pages to share with the host: 2 MiB. They are zero, and given out once: these kernels give none
/// back before they end.
const PAGES: usize = 512;
static POOL: Pool = Pool(UnsafeCell::new([[0; 4096]; PAGES]));
static TAKEN: AtomicUsize = AtomicUsize::new(0);

#[repr(align(4096))]
struct Pool(UnsafeCell<[[u8; 4096]; PAGES]>);
// SAFETY: only addresses are taken here, and each page is given to one owner.
unsafe impl Sync for Pool {}

/// Takes pages that lie together.
pub fn take_pages(count: usize) -> Option<NonNull<u8>> {
    let first = TAKEN.fetch_add(count, Ordering::Relaxed);
    let page = POOL.0.get().cast::<[u8; 4096]>().wrapping_add(first);
    (first + count <= PAGES).then(|| NonNull::new(page.cast()))?
}

/// Ends the machine where the loader has a port for that: `host-vsp run --exit-port=0xF4`.
pub fn end(code: u8) -> ! {
    out(0xF4, code);
    loop {
        // SAFETY: sleeps, with interrupts off for ever.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}
