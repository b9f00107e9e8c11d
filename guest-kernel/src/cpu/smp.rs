//! The other CPUs: waking them up, and giving them work.
//!
//! A CPU that gets INIT and a start-up IPI begins in real mode at a page of the first MiB. The
//! trampoline copied there takes it to 64-bit mode in one go, onto its own stack and into
//! [`started`]. From then on it sleeps until [`run_on`] has a job for it; its interrupts are
//! enabled all the time.
#![expect(
    unsafe_code,
    reason = "the trampoline is assembly, copied to a fixed address"
)]

use super::{MAX_CPUS, apic, index, stack, traps};
use crate::clock::Deadline;
use crate::memory::{TRAMPOLINE, paging};
use core::arch::global_asm;
use core::sync::atomic::{
    AtomicBool, AtomicU32, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use core::time::Duration;
use spin::Mutex;
use x86_64::instructions::interrupts;

global_asm!(
    r#"
.section .rodata.trampoline, "a", @progbits
.code16
.global ap_trampoline
.global ap_trampoline_end
ap_trampoline:
    jmp ap_real_mode
    .balign 16
    .fill 32, 1, 0                  // Mailbox
ap_gdt_pointer:                     // offset 48
    .word 23
    .long {base} + (ap_gdt - ap_trampoline)
    .balign 16
ap_gdt:
    .quad 0
    .quad 0x00AF9B000000FFFF        // 0x08: 64-bit code
    .quad 0x00CF93000000FFFF        // 0x10: data

ap_real_mode:
    cli
    cld
    xor ax, ax
    mov ds, ax
    lgdt [{base} + 48]
    mov eax, 0x20                   // PAE
    mov cr4, eax
    mov eax, [{base} + {cr3}]
    mov cr3, eax
    mov ecx, 0xC0000080             // EFER
    rdmsr
    or eax, 0x900                   // LME | NXE
    wrmsr
    mov eax, 0x80010033             // PG | WP | NE | ET | MP | PE; caches on
    mov cr0, eax
    .byte 0x66, 0xEA                // far jump with a 32-bit offset, into the 64-bit segment
    .long {base} + (ap_long_mode - ap_trampoline)
    .word 0x08

.code64
ap_long_mode:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov rsp, [{base} + {stack}]
    mov rdi, [{base} + {cpu}]
    mov rax, [{base} + {entry}]
    xor ebp, ebp
    call rax
    ud2                             // started never returns
ap_trampoline_end:
"#,
    base = const TRAMPOLINE,
    cr3 = const MAILBOX + core::mem::offset_of!(Mailbox, cr3),
    stack = const MAILBOX + core::mem::offset_of!(Mailbox, stack),
    entry = const MAILBOX + core::mem::offset_of!(Mailbox, entry),
    cpu = const MAILBOX + core::mem::offset_of!(Mailbox, cpu),
);

unsafe extern "C" {
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
}

/// Byte offset of the mailbox in the trampoline.
const MAILBOX: usize = 16;

/// What the starting CPU needs to know.
#[repr(C)]
struct Mailbox {
    cr3: u64,
    stack: u64,
    entry: u64,
    cpu: u64,
}

const _: () = assert!(size_of::<Mailbox>() == 32);

type Job = fn();

/// What the CPUs know of each other.
struct Shared {
    apic_id: AtomicU32,
    online: AtomicBool,
    job: Mutex<Option<Job>>,
    job_done: AtomicBool,
}

static CPUS: [Shared; MAX_CPUS] = [const {
    Shared {
        apic_id: AtomicU32::new(0),
        online: AtomicBool::new(false),
        job: Mutex::new(None),
        job_done: AtomicBool::new(false),
    }
}; MAX_CPUS];

static ONLINE: AtomicUsize = AtomicUsize::new(1);

/// The number of CPUs that run; their indices are 0 up to this.
pub(crate) fn online() -> usize {
    ONLINE.load(Acquire)
}

/// Starts every CPU of `apic_ids` except the caller. Returns how many did not start.
pub(crate) fn start(apic_ids: &[u32]) -> usize {
    let own = apic::id();
    CPUS[0].apic_id.store(own, Relaxed);
    CPUS[0].online.store(true, Release);
    let others = apic_ids.iter().filter(|&&id| id != own);
    others.filter(|&&id| !start_one(id)).count()
}

fn start_one(apic_id: u32) -> bool {
    let cpu = online();
    if cpu == MAX_CPUS {
        return false;
    }
    CPUS[cpu].apic_id.store(apic_id, Relaxed);
    place_trampoline(&Mailbox {
        cr3: paging::cr3(),
        stack: stack::top(cpu),
        entry: started as *const () as u64,
        cpu: cpu as u64,
    });
    apic::send_init(apic_id);
    pause(Duration::from_millis(10));
    for _ in 0..2 {
        apic::send_start_up(apic_id, (TRAMPOLINE >> 12) as u8);
        let deadline = Deadline::after(Duration::from_secs(2));
        while !deadline.passed() {
            if CPUS[cpu].online.load(Acquire) {
                ONLINE.store(cpu + 1, Release);
                return true;
            }
            core::hint::spin_loop();
        }
    }
    false
}

fn place_trampoline(mailbox: &Mailbox) {
    let start = &raw const ap_trampoline;
    let bytes = (&raw const ap_trampoline_end) as usize - start as usize;
    let target = TRAMPOLINE as *mut u8;
    // SAFETY: the page is mapped writable, no allocator owns the first MiB, the code is far shorter
    // than a page, and no CPU is running it: CPUs start one after the other.
    unsafe { core::ptr::copy_nonoverlapping(start, target, bytes) };
    // SAFETY: the copy has room for the mailbox at this offset, aligned to 16.
    unsafe {
        core::ptr::copy_nonoverlapping(mailbox, (TRAMPOLINE as usize + MAILBOX) as *mut Mailbox, 1);
    }
}

fn pause(time: Duration) {
    let deadline = Deadline::after(time);
    while !deadline.passed() {
        core::hint::spin_loop();
    }
}

/// Where the trampoline ends: the life of CPU `cpu`.
extern "C" fn started(cpu: usize) -> ! {
    super::init(cpu);
    CPUS[cpu].online.store(true, Release);
    loop {
        interrupts::disable();
        let job = CPUS[cpu].job.lock().take();
        if let Some(job) = job {
            interrupts::enable();
            job();
            CPUS[cpu].job_done.store(true, Release);
        } else {
            interrupts::enable_and_hlt();
        }
    }
}

/// Interrupts CPU `cpu`, which does nothing but end its sleep.
pub(crate) fn wake(cpu: usize) {
    apic::send(CPUS[cpu].apic_id.load(Relaxed), traps::WAKE);
}

/// Runs `job` on CPU `cpu` and waits for it. `false`: it was not done at the deadline.
///
/// Only the first CPU gives out work, one job at a time to each other one.
pub(crate) fn run_on(cpu: usize, job: Job, deadline: Deadline) -> bool {
    if cpu == index() {
        job();
        return true;
    }
    start_on(cpu, job);
    wait_for(cpu, deadline)
}

/// Has another CPU, `cpu`, run `job`, and does not wait for it.
pub(crate) fn start_on(cpu: usize, job: Job) {
    let target = &CPUS[cpu];
    target.job_done.store(false, Relaxed);
    *target.job.lock() = Some(job);
    wake(cpu);
}

/// Waits for the job of CPU `cpu`. `false`: it was not done at the deadline.
pub(crate) fn wait_for(cpu: usize, deadline: Deadline) -> bool {
    let target = &CPUS[cpu];
    while !deadline.passed() {
        if target.job_done.load(Acquire) {
            return true;
        }
        core::hint::spin_loop();
    }
    false
}
