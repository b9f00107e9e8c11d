//! The system calls for which `kvm-ioctls` has no safe wrapper.
//!
//! Each is wrapped once, here, so that everything above is safe code: the Hyper-V doorbell
//! (`KVM_HYPERV_EVENTFD`), the payload of a Hyper-V exit, KVM's list of Hyper-V CPUID leaves, its
//! statistics, guest memory, and the way to bring a thread out of `KVM_RUN`.
#![expect(
    unsafe_code,
    reason = "system calls and the kvm_run page have no safe wrapper"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering, fence};

use kvm_bindings::{
    CpuId, KVM_EXIT_HYPERV_HCALL, KVM_EXIT_HYPERV_SYNIC, KVM_HYPERV_EVENTFD_DEASSIGN,
    KVM_MAX_CPUID_ENTRIES, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_cpuid2,
    kvm_device_attr, kvm_hyperv_eventfd, kvm_run, kvm_userspace_memory_region, kvm_xsave,
};
use kvm_ioctls::{VcpuFd, VmFd};
use libc::c_ulong;
use vm_memory::{
    GuestMemoryBackend as _, GuestMemoryMmap, GuestMemoryRegion as _, MemoryRegionAddress,
};
use vmm_sys_util::ioctl::{
    _IOC_NONE, _IOC_READ, _IOC_WRITE, ioctl, ioctl_expr, ioctl_with_mut_ptr, ioctl_with_ref,
};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// Takes a `kvm_hyperv_eventfd`.
const KVM_HYPERV_EVENTFD: c_ulong = ioctl_expr(
    _IOC_WRITE,
    KVMIO,
    0xBD,
    size_of::<kvm_hyperv_eventfd>() as u32,
);
/// Takes and fills a `kvm_cpuid2`.
const KVM_GET_SUPPORTED_HV_CPUID: c_ulong = ioctl_expr(
    _IOC_READ | _IOC_WRITE,
    KVMIO,
    0xC1,
    size_of::<kvm_cpuid2>() as u32,
);
/// Takes a `kvm_device_attr` with the address of a value to read.
const KVM_SET_DEVICE_ATTR: c_ulong =
    ioctl_expr(_IOC_WRITE, KVMIO, 0xE1, size_of::<kvm_device_attr>() as u32);
/// Takes a `kvm_device_attr` with the address of a value to fill.
const KVM_GET_DEVICE_ATTR: c_ulong =
    ioctl_expr(_IOC_WRITE, KVMIO, 0xE2, size_of::<kvm_device_attr>() as u32);
/// Gives a file descriptor.
const KVM_GET_STATS_FD: c_ulong = ioctl_expr(_IOC_NONE, KVMIO, 0xCE, 0);

/// A VM and the memory it runs in.
///
/// The memory stays mapped as long as the VM can run: whoever runs a processor of it holds an
/// `Arc` of this.
#[derive(Debug)]
pub struct VmMemory {
    /// The VM.
    pub fd: VmFd,
    memory: Arc<GuestMemoryMmap<()>>,
}

impl VmMemory {
    /// Gives `memory` to the VM, one memory slot per region.
    pub fn new(fd: VmFd, memory: Arc<GuestMemoryMmap<()>>) -> Result<Self, kvm_ioctls::Error> {
        for (slot, region) in memory.iter().enumerate() {
            let host = region
                .get_host_address(MemoryRegionAddress(0))
                .map_err(|_| kvm_ioctls::Error::new(libc::EFAULT))?;
            let slot = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: host as u64,
            };
            // SAFETY: the region is mapped for `memory_size` bytes, nothing else in this process
            // holds references into it, and it lives as long as the VM can run (see the type).
            unsafe { fd.set_user_memory_region(slot)? };
        }
        Ok(Self { fd, memory })
    }

    /// The memory.
    pub fn memory(&self) -> &Arc<GuestMemoryMmap<()>> {
        &self.memory
    }

    /// Makes all memory zero again and gives it back to the host.
    pub fn discard(&self) -> io::Result<()> {
        for region in self.memory.iter() {
            let host = region
                .get_host_address(MemoryRegionAddress(0))
                .map_err(io::Error::other)?;
            // SAFETY: the region is a private anonymous mapping of `len` bytes at `host`, only
            // ever accessed by volatile or atomic accesses; its pages merely become zero.
            let result =
                unsafe { libc::madvise(host.cast(), region.len() as usize, libc::MADV_DONTNEED) };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    /// Registers (or, with `event` `None`, removes) an eventfd as the receiver of HvSignalEvent
    /// for `connection_id`.
    pub fn hyperv_eventfd(&self, connection_id: u32, event: Option<RawFd>) -> io::Result<()> {
        let arguments = kvm_hyperv_eventfd {
            conn_id: connection_id,
            fd: event.unwrap_or(-1),
            flags: if event.is_some() {
                0
            } else {
                KVM_HYPERV_EVENTFD_DEASSIGN
            },
            padding: [0; 3],
        };
        // SAFETY: the argument is the struct that this ioctl reads; the kernel takes its own
        // reference to the eventfd.
        let result = unsafe { ioctl_with_ref(&self.fd, KVM_HYPERV_EVENTFD, &arguments) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

/// The Hyper-V leaves that KVM can serve to this processor.
pub fn supported_hyperv_cpuid(vcpu: &VcpuFd) -> Result<CpuId, kvm_ioctls::Error> {
    let mut cpuid =
        CpuId::new(KVM_MAX_CPUID_ENTRIES).map_err(|_| kvm_ioctls::Error::new(libc::ENOMEM))?;
    // SAFETY: the struct has room for the number of entries it states, and the kernel writes no
    // more than that.
    let result = unsafe {
        ioctl_with_mut_ptr(
            vcpu,
            KVM_GET_SUPPORTED_HV_CPUID,
            cpuid.as_mut_fam_struct_ptr(),
        )
    };
    if result < 0 {
        Err(kvm_ioctls::Error::last())
    } else {
        Ok(cpuid)
    }
}

/// A file with KVM's statistics of this processor.
pub fn statistics_file(vcpu: &VcpuFd) -> io::Result<File> {
    // SAFETY: the ioctl takes no argument.
    let fd = unsafe { ioctl(vcpu, KVM_GET_STATS_FD) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel made this file descriptor for us; nobody else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Sets the processor's floating-point and vector state.
pub fn set_xsave(vcpu: &VcpuFd, state: &kvm_xsave) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: the kernel reads the 4096 bytes of the struct. It reads more only for processors
    // with features that the process has to ask for first, which this one never does.
    unsafe { vcpu.set_xsave(state) }
}

/// What the processor's TSC is ahead of the host's, modulo 2^64 (Linux 5.16 and later).
pub fn tsc_offset(vcpu: &VcpuFd) -> io::Result<u64> {
    let mut offset = 0_u64;
    let attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: (&raw mut offset) as u64,
        flags: 0,
    };
    // SAFETY: the argument is the struct that this ioctl reads; the kernel writes the eight bytes
    // of this attribute to `offset`, which outlives the call.
    let result = unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR, &attribute) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(offset)
}

/// Sets what [`tsc_offset`] reads.
pub fn set_tsc_offset(vcpu: &VcpuFd, offset: u64) -> io::Result<()> {
    let attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: (&raw const offset) as u64,
        flags: 0,
    };
    // SAFETY: the argument is the struct that this ioctl reads; the kernel reads the eight bytes
    // of this attribute from `offset`, which outlives the call.
    let result = unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR, &attribute) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Why a processor left the guest with `KVM_EXIT_HYPERV`.
#[derive(Debug)]
pub enum HypervExit<'a> {
    /// A SynIC register was written; these are its registers now.
    Synic {
        /// SCONTROL.
        control: u64,
        /// SIEFP.
        event_page: u64,
        /// SIMP.
        message_page: u64,
    },
    /// A hypercall.
    Hypercall {
        /// The input value.
        input: u64,
        /// The operands; of a *slow* HvSignalEvent the first is the loaded operand, of every
        /// other slow call the address of the input page.
        parameters: [u64; 2],
        /// Where the result value goes.
        result: &'a mut u64,
    },
    /// Something that was not asked for.
    Other(u32),
}

/// The payload of `KVM_EXIT_HYPERV`, the exit that `run` holds.
pub fn hyperv_exit(run: &mut kvm_run) -> HypervExit<'_> {
    // SAFETY: every bit pattern is a valid value of this struct of integers.
    let exit = unsafe { &mut run.__bindgen_anon_1.hyperv };
    match exit.type_ {
        KVM_EXIT_HYPERV_SYNIC => {
            // SAFETY: integers only, and the type says that this is the member in use.
            let synic = unsafe { exit.u.synic };
            HypervExit::Synic {
                control: synic.control,
                event_page: synic.evt_page,
                message_page: synic.msg_page,
            }
        }
        KVM_EXIT_HYPERV_HCALL => {
            // SAFETY: integers only, and the type says that this is the member in use.
            let call = unsafe { &mut exit.u.hcall };
            HypervExit::Hypercall {
                input: call.input,
                parameters: call.params,
                result: &mut call.result,
            }
        }
        other => HypervExit::Other(other),
    }
}

/// What failed, for `KVM_EXIT_INTERNAL_ERROR`, the exit that `run` holds.
pub fn internal_error(run: &mut kvm_run) -> u32 {
    // SAFETY: every bit pattern is a valid value of this struct of integers.
    unsafe { run.__bindgen_anon_1.internal.suberror }
}

/// Brings a processor's thread out of `KVM_RUN`, without losing a call.
///
/// The race: a signal that arrives just before the ioctl is lost. So [`kick`](Self::kick) first
/// sets `immediate_exit` in the shared page, which makes the next `KVM_RUN` return at once, and
/// sends the signal only to a thread that may be inside already. The thread's side is
/// [`begin`](Self::begin) (forget earlier kicks), then look for work, then
/// [`enter`](Self::enter), `KVM_RUN`, [`leave`](Self::leave): work that is published before a kick
/// is either seen by the look or ends the run.
#[derive(Debug)]
pub struct Kicker {
    page: NonNull<kvm_run>,
    length: usize,
    /// Whether the thread may be inside `KVM_RUN`.
    running: AtomicBool,
    /// The thread, 0 before there is one.
    thread: AtomicI32,
}

// SAFETY: the page is only accessed through an atomic byte.
unsafe impl Send for Kicker {}
// SAFETY: as above.
unsafe impl Sync for Kicker {}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

impl Kicker {
    /// Makes the kicker of one processor, with a mapping of its `kvm_run` page of its own.
    pub fn new(vcpu: &VcpuFd) -> io::Result<Self> {
        register_signal_handler(SIGRTMIN(), on_kick).map_err(io::Error::from)?;
        let length = size_of::<kvm_run>();
        // SAFETY: a new shared mapping of a file, at an address of the kernel's choice.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let page = NonNull::new(page.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Self {
            page,
            length,
            running: AtomicBool::new(false),
            thread: AtomicI32::new(0),
        })
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the page is mapped as long as `self` lives, so the field's address is valid.
        let byte = unsafe { &raw mut (*self.page.as_ptr()).immediate_exit };
        // SAFETY: the address is valid and a byte is always aligned. In this process the byte is
        // only accessed here; the kernel reads it once per KVM_RUN.
        unsafe { AtomicU8::from_ptr(byte) }
    }

    /// Says that the calling thread is the processor's.
    pub fn attach(&self) {
        // SAFETY: the call has no arguments and cannot fail.
        let id = unsafe { libc::gettid() };
        self.thread.store(id, Ordering::SeqCst);
    }

    /// Forgets earlier kicks. Look for work after this.
    pub fn begin(&self) {
        self.immediate_exit().store(0, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// The thread is about to call `KVM_RUN`.
    pub fn enter(&self) {
        self.running.store(true, Ordering::SeqCst);
    }

    /// The thread has returned from `KVM_RUN`.
    pub fn leave(&self) {
        self.running.store(false, Ordering::SeqCst);
    }

    /// Makes the thread look for work: work published before this call is seen.
    pub fn kick(&self) {
        self.immediate_exit().store(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        // Not running: `enter` comes after this store, and KVM_RUN sees it.
        if !self.running.load(Ordering::SeqCst) {
            return;
        }
        let thread = self.thread.load(Ordering::SeqCst);
        if thread != 0 {
            let process = std::process::id();
            // SAFETY: sends a signal that has a handler; a thread that has ended is an error
            // that needs no answer.
            unsafe { libc::syscall(libc::SYS_tgkill, process, thread, SIGRTMIN()) };
        }
    }
}

impl Drop for Kicker {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.page.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ioctl_numbers_are_the_kernel_s() {
        assert_eq!(KVM_HYPERV_EVENTFD, 0x4018_AEBD);
        assert_eq!(KVM_GET_SUPPORTED_HV_CPUID, 0xC008_AEC1);
        assert_eq!(KVM_GET_STATS_FD, 0xAECE);
        assert_eq!(KVM_SET_DEVICE_ATTR, 0x4018_AEE1);
        assert_eq!(KVM_GET_DEVICE_ATTR, 0x4018_AEE2);
    }
}
