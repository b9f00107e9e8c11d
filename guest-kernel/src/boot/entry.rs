//! The first instructions: two entries, one state to leave them in.
//!
//! | entry | found by the loader in | CPU state on arrival | machine described by |
//! |---|---|---|---|
//! | `pvh_entry` | the ELF note of type `XEN_ELFNOTE_PHYS32_ENTRY` | 32-bit protected mode, no paging | EBX: `hvm_start_info` |
//! | `linux64_entry` | the ELF header's `e_entry` | 64-bit mode, identity mapped | RSI: `boot_params` |
//!
//! Both end in `long_entry`: 64-bit mode, our own descriptor table and page tables, `.bss`
//! zeroed, interrupts off, on CPU 0's stack. From there [`crate::kernel_main`] takes over. The
//! page tables are ready-made data rather than code: the identity map of the first 4 GiB in
//! 2 MiB pages, everything writable and executable. [`crate::memory::paging`] replaces it with
//! one that has permissions.
#![expect(
    unsafe_code,
    reason = "the entry points are assembly and are found by their symbols"
)]

use core::arch::global_asm;

/// The value `kernel_main` gets as `protocol` after entry by PVH.
pub(super) const PROTOCOL_PVH: u64 = 1;
/// The value `kernel_main` gets as `protocol` after entry by the 64-bit Linux boot protocol.
pub(super) const PROTOCOL_LINUX: u64 = 2;

global_asm!(
    r#"
// ELF note: name "Xen", type 18 (XEN_ELFNOTE_PHYS32_ENTRY), value the 32-bit entry's physical
// address. Eight bytes wide, because QEMU reads it that wide from a 64-bit ELF.
.section .note.pvh, "a", @note
    .balign 4
    .long 4
    .long 8
    .long 18
    .asciz "Xen"
    .quad pvh_entry

.section .boot.text, "ax", @progbits
.global pvh_entry
.code32
pvh_entry:
    cli
    cld
    mov edi, {pvh}
    mov esi, ebx
    mov esp, offset boot_scratch_stack
    mov eax, offset boot_pml4
    mov cr3, eax
    mov eax, cr4
    or eax, 0x20                    // PAE, which long mode requires
    mov cr4, eax
    mov ecx, 0xC0000080             // EFER
    rdmsr
    or eax, 0x100                   // LME
    wrmsr
    mov eax, cr0
    or eax, 0x80010000              // PG | WP: long mode is active now, in a 32-bit segment
    mov cr0, eax
    lgdt [boot_gdt_pointer]
    push 0x08                       // a far return loads CS with the 64-bit segment
    mov eax, offset long_entry
    push eax
    retf

.global linux64_entry
.code64
linux64_entry:
    cli
    cld
    mov edi, {linux}
    mov eax, offset boot_pml4       // the loader's page tables may lie in memory we will reuse
    mov cr3, rax
    mov rsp, offset boot_scratch_stack
    lgdt [boot_gdt_pointer]
    push 0x08
    mov eax, offset long_entry
    push rax
    retfq

long_entry:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    // A loader zeroes .bss on a fresh boot; after a warm reset only we do.
    mov r8, rdi
    mov rdi, offset __bss_start
    mov rcx, offset __bss_end
    sub rcx, rdi
    xor eax, eax
    rep stosb
    mov rdi, r8
    mov rsp, offset {stacks} + {stack_top}
    xor ebp, ebp                    // the end of every frame-pointer chain
    call {kernel_main}
    ud2                             // kernel_main never returns

.section .boot.data, "aw", @progbits
    .balign 4096
boot_pml4:
    .quad boot_pdpt + 3             // present, writable
    .fill 511, 8, 0
boot_pdpt:
    .quad boot_pd + 0x0003
    .quad boot_pd + 0x1003
    .quad boot_pd + 0x2003
    .quad boot_pd + 0x3003
    .fill 508, 8, 0
boot_pd:
    .set address, 0
    .rept 2048
    .quad address + 0x83            // present, writable, 2 MiB
    .set address, address + 0x200000
    .endr

    .balign 8
boot_gdt:
    .quad 0
    .quad 0x00AF9B000000FFFF        // 0x08: 64-bit code
    .quad 0x00CF93000000FFFF        // 0x10: data
boot_gdt_pointer:
    .word 23
    .quad boot_gdt

    .balign 16
    .fill 64, 1, 0                  // for the two far returns only
boot_scratch_stack:
"#,
    pvh = const PROTOCOL_PVH,
    linux = const PROTOCOL_LINUX,
    kernel_main = sym crate::kernel_main,
    stacks = sym crate::cpu::stack::STACKS,
    stack_top = const crate::cpu::stack::STACK_TOP,
);
