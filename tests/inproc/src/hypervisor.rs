//! The hypervisor: guest RAM, virtual processors, hypercalls and doorbells.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard};
use std::time::Instant;

use guest_vsc::hal::Cpuid;
use host_vsp::hv::{Doorbells, Hypercalls, Interrupts, Messages, Partition};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};
use vmbus_proto::PAGE_SIZE;
use vmbus_proto::hv::cpuid::{self, privilege};
use vmbus_proto::hv::hypercall::{FAST, POST_MESSAGE, PostMessageInput, SIGNAL_EVENT, Status};
use vmbus_proto::hv::msr;
use vmm_sys_util::eventfd::EventFd;

use crate::hal::Entered;
use crate::pages::Pages;
use crate::synic::{CHANNEL_MESSAGE, Synic};

/// Bytes of guest RAM.
const RAM: usize = 64 << 20;

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// HvPostMessage calls.
    pub posts: u32,
    /// HvSignalEvent calls.
    pub signals: u32,
    /// Interrupts raised, over all processors.
    pub interrupts: u32,
    /// End-of-message writes, over all processors.
    pub eoms: u32,
    /// Guest pages in use by the drivers.
    pub pages: usize,
    /// Pieces of buffers outside guest RAM that had to be copied.
    pub bounced: u32,
}

/// A hypervisor with one guest. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct FakeHypervisor {
    pub(crate) vm: Arc<Vm>,
}

pub(crate) struct Vm {
    pub(crate) memory: Arc<GuestMemoryMmap>,
    pub(crate) pages: Pages,
    pub(crate) vps: Vec<Synic>,
    cpuid: RwLock<HashMap<u32, Cpuid>>,
    guest_os_id: AtomicU64,
    hypercall_page: AtomicU64,
    reference_tsc: AtomicU64,
    host: RwLock<Option<Arc<dyn Hypercalls>>>,
    doorbells: RwLock<HashMap<u32, EventFd>>,
    /// Held by each hypercall, and by a freeze alone.
    gate: RwLock<()>,
    /// Statuses that the next posts fail with.
    failures: Mutex<Vec<Status>>,
    /// Statuses that the next signals fail with.
    signal_failures: Mutex<Vec<Status>>,
    locked_hypercall_page: AtomicBool,
    /// The crash parameters, and the reports: what they were then.
    crash: Mutex<([u64; 5], Vec<[u64; 5]>)>,
    start: Instant,
    posts: AtomicU32,
    signals: AtomicU32,
    pub(crate) bounced: AtomicU32,
}

impl FakeHypervisor {
    /// A guest with `vps` virtual processors and 64 MiB of RAM.
    pub fn new(vps: u32) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).expect("64 MiB");
        let vm = Vm {
            memory: Arc::new(memory),
            pages: Pages::new(RAM / PAGE_SIZE),
            vps: (0..vps).map(|_| Synic::new()).collect(),
            cpuid: RwLock::new(identity()),
            guest_os_id: AtomicU64::new(0),
            hypercall_page: AtomicU64::new(0),
            reference_tsc: AtomicU64::new(0),
            host: RwLock::new(None),
            doorbells: RwLock::default(),
            gate: RwLock::default(),
            failures: Mutex::default(),
            signal_failures: Mutex::default(),
            locked_hypercall_page: AtomicBool::new(false),
            crash: Mutex::default(),
            start: Instant::now(),
            posts: AtomicU32::new(0),
            signals: AtomicU32::new(0),
            bounced: AtomicU32::new(0),
        };
        Self { vm: Arc::new(vm) }
    }

    /// What the host's end needs of the hypervisor.
    pub fn partition(&self) -> Partition {
        Partition {
            memory: self.vm.memory.clone(),
            messages: self.vm.clone(),
            interrupts: self.vm.clone(),
            doorbells: self.vm.clone(),
            vp_count: self.vm.vps.len() as u32,
        }
    }

    /// Hands the guest's hypercalls to `host` from now on.
    pub fn serve(&self, host: impl Hypercalls + 'static) -> Arc<dyn Hypercalls> {
        let host: Arc<dyn Hypercalls> = Arc::new(host);
        self.serve_shared(host.clone());
        host
    }

    /// As [`serve`](Self::serve), for a host that others hold too.
    pub fn serve_shared(&self, host: Arc<dyn Hypercalls>) {
        *self.vm.host.write().unwrap() = Some(host);
    }

    /// Has no host any more; its devices end when nobody else holds it.
    pub fn unserve(&self) {
        *self.vm.host.write().unwrap() = None;
    }

    /// Holds every processor at its next hypercall until the result is dropped.
    pub fn freeze(&self) -> RwLockWriteGuard<'_, ()> {
        self.vm.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread that calls this is virtual processor `vp` until the result is dropped.
    pub fn enter(&self, vp: u32) -> Entered {
        Entered::new(self.clone(), vp)
    }

    /// Guest RAM.
    pub fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.vm.memory
    }

    /// Interrupts that processor `vp` was given.
    pub fn interrupts(&self, vp: u32) -> u32 {
        let vp = &self.vm.vps[vp as usize];
        vp.interrupts.load(Ordering::Relaxed)
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        let sum = |f: fn(&Synic) -> &AtomicU32| {
            let all = self.vm.vps.iter();
            all.map(|vp| f(vp).load(Ordering::Relaxed)).sum()
        };
        Counts {
            posts: self.vm.posts.load(Ordering::Relaxed),
            signals: self.vm.signals.load(Ordering::Relaxed),
            interrupts: sum(|vp| &vp.interrupts),
            eoms: sum(|vp| &vp.eoms),
            pages: self.vm.pages.in_use(),
            bounced: self.vm.bounced.load(Ordering::Relaxed),
        }
    }

    /// Changes what CPUID says for `leaf`.
    pub fn set_cpuid(&self, leaf: u32, change: impl FnOnce(&mut Cpuid)) {
        change(self.vm.cpuid.write().unwrap().entry(leaf).or_default());
    }

    /// Keeps the hypercall page where it is, as a hypervisor may.
    pub fn lock_hypercall_page(&self) {
        self.vm.locked_hypercall_page.store(true, Ordering::Relaxed);
    }

    /// Fails the next posts with these statuses, the last one first.
    pub fn fail_posts(&self, statuses: impl IntoIterator<Item = Status>) {
        self.vm.failures.lock().unwrap().extend(statuses);
    }

    /// Fails the next signals with these statuses, the last one first.
    pub fn fail_signals(&self, statuses: impl IntoIterator<Item = Status>) {
        self.vm.signal_failures.lock().unwrap().extend(statuses);
    }

    /// Raises the VMBus interrupt of `vp` for nothing.
    pub fn spurious_interrupt(&self, vp: u32) {
        self.vm.vps[vp as usize].raise();
    }

    /// Sends a message of any type to `vp`, not necessarily a channel message.
    pub fn send_raw(&self, vp: u32, message_type: u32, payload: &[u8]) {
        self.vm.vps[vp as usize].post(&self.vm.memory, message_type, payload);
    }

    /// The crashes that the guest has reported, as parameters.
    pub fn crashes(&self) -> Vec<[u64; 5]> {
        self.vm.crash.lock().unwrap().1.clone()
    }

    /// What the guest reads in its reference counter.
    pub fn reference_time(&self) -> u64 {
        self.vm.rdmsr(0, msr::TIME_REF_COUNT)
    }

    /// Where the guest has put its reference TSC page, if it has.
    pub fn reference_tsc_page(&self) -> Option<u64> {
        let value = self.vm.reference_tsc.load(Ordering::Relaxed);
        (value & msr::PAGE_ENABLE != 0).then_some(value & msr::PAGE_ADDRESS)
    }
}

/// A complete Hyper-V identity.
fn identity() -> HashMap<u32, Cpuid> {
    let [ebx, ecx, edx] = cpuid::VENDOR_SIGNATURE;
    let vendor = Cpuid {
        eax: cpuid::LEAF_STACK_PROPERTIES,
        ebx,
        ecx,
        edx,
    };
    let privileges = privilege::HYPERCALL
        | privilege::VP_INDEX
        | privilege::SYNIC
        | privilege::TIME_REF_COUNT
        | privilege::REFERENCE_TSC;
    let eax = |eax| Cpuid {
        eax,
        ..Cpuid::default()
    };
    let features = Cpuid {
        eax: privileges,
        edx: cpuid::feature::CRASH_MSRS,
        ..Cpuid::default()
    };
    let present = Cpuid {
        ecx: cpuid::HYPERVISOR_PRESENT,
        ..Cpuid::default()
    };
    HashMap::from([
        (1, present),
        (cpuid::LEAF_VENDOR, vendor),
        (cpuid::LEAF_INTERFACE, eax(cpuid::INTERFACE_SIGNATURE)),
        (cpuid::LEAF_FEATURES, features),
        (
            cpuid::LEAF_HINTS,
            eax(cpuid::hint::DEPRECATE_AUTO_EOI | cpuid::hint::RELAXED_TIMING),
        ),
    ])
}

impl Vm {
    pub(crate) fn cpuid(&self, leaf: u32) -> Cpuid {
        let leaves = self.cpuid.read().unwrap();
        leaves.get(&leaf).copied().unwrap_or_default()
    }

    pub(crate) fn rdmsr(&self, vp: u32, register: u32) -> u64 {
        match register {
            msr::GUEST_OS_ID => self.guest_os_id.load(Ordering::Relaxed),
            msr::HYPERCALL => self.hypercall_page.load(Ordering::Relaxed),
            msr::REFERENCE_TSC => self.reference_tsc.load(Ordering::Relaxed),
            msr::VP_INDEX => u64::from(vp),
            msr::CRASH_CTL => msr::CRASH_NOTIFY | msr::CRASH_MESSAGE,
            msr::TIME_REF_COUNT => (self.start.elapsed().as_nanos() / 100) as u64,
            _ => self.vps[vp as usize]
                .rdmsr(register)
                .unwrap_or_else(|| panic!("no MSR {register:#x}")),
        }
    }

    pub(crate) fn wrmsr(&self, vp: u32, register: u32, value: u64) {
        match register {
            msr::GUEST_OS_ID => {
                self.guest_os_id.store(value, Ordering::Relaxed);
                if value == 0 {
                    self.hypercall_page.store(0, Ordering::Relaxed);
                }
            }
            msr::HYPERCALL => {
                let allowed = self.guest_os_id.load(Ordering::Relaxed) != 0
                    && !self.locked_hypercall_page.load(Ordering::Relaxed);
                if allowed {
                    self.hypercall_page.store(value, Ordering::Relaxed);
                }
            }
            msr::REFERENCE_TSC => self.reference_tsc.store(value, Ordering::Relaxed),
            msr::CRASH_P0..msr::CRASH_CTL => {
                let place = (register - msr::CRASH_P0) as usize;
                self.crash.lock().unwrap().0[place] = value;
            }
            msr::CRASH_CTL => {
                assert!(value & msr::CRASH_NOTIFY != 0, "a crash that is none");
                let (now, reports) = &mut *self.crash.lock().unwrap();
                reports.push(*now);
            }
            _ => self.vps[vp as usize]
                .wrmsr(&self.memory, register, value)
                .unwrap_or_else(|| panic!("no MSR {register:#x}")),
        }
    }

    pub(crate) fn hypercall(&self, vp: u32, control: u64, input: u64) -> u64 {
        let _not_frozen = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let page = self.hypercall_page.load(Ordering::Relaxed);
        assert!(page & msr::PAGE_ENABLE != 0, "no hypercall page");
        let fast = control & FAST != 0;
        let status = match ((control & 0xFFFF) as u16, fast) {
            (POST_MESSAGE, false) => self.post_message(vp, input),
            (SIGNAL_EVENT, true) => self.signal_event(vp, input),
            _ => Status::INVALID_HYPERCALL_CODE,
        };
        u64::from(status.0)
    }

    fn post_message(&self, vp: u32, input: u64) -> Status {
        self.posts.fetch_add(1, Ordering::Relaxed);
        if let Some(status) = self.failures.lock().unwrap().pop() {
            return status;
        }
        let size = size_of::<PostMessageInput>();
        if !input.is_multiple_of(8) || input as usize % PAGE_SIZE + size > PAGE_SIZE {
            return Status::INVALID_ALIGNMENT;
        }
        let mut bytes = [0; size_of::<PostMessageInput>()];
        if self
            .memory
            .read_slice(&mut bytes, GuestAddress(input))
            .is_err()
        {
            return Status::INVALID_PARAMETER;
        }
        let message: PostMessageInput = zerocopy::transmute!(bytes);
        let Some(payload) = message.payload.get(..message.payload_size.get() as usize) else {
            return Status::INVALID_PARAMETER;
        };
        let host = self.host.read().unwrap().clone();
        host.map_or(Status::INVALID_CONNECTION_ID, |host| {
            host.post_message(
                vp,
                message.connection_id.get(),
                message.message_type.get(),
                payload,
            )
        })
    }

    fn signal_event(&self, vp: u32, operand: u64) -> Status {
        self.signals.fetch_add(1, Ordering::Relaxed);
        if let Some(status) = self.signal_failures.lock().unwrap().pop() {
            return status;
        }
        let (connection_id, flag) = (operand as u32, (operand >> 32) as u16);
        if flag == 0
            && let Some(event) = self.doorbells.read().unwrap().get(&connection_id)
        {
            event.write(1).expect("a doorbell");
            return Status::SUCCESS;
        }
        let host = self.host.read().unwrap().clone();
        host.map_or(Status::INVALID_CONNECTION_ID, |host| {
            host.signal_event(vp, connection_id, flag)
        })
    }
}

impl Messages for Vm {
    fn post(&self, vp: u32, payload: &[u8]) {
        self.vps[vp as usize].post(&self.memory, CHANNEL_MESSAGE, payload);
    }

    fn backlog(&self) -> usize {
        self.vps.iter().map(Synic::backlog).sum()
    }

    fn clear(&self) {
        self.vps.iter().for_each(Synic::clear_queue);
    }
}

impl Interrupts for Vm {
    fn signal(&self, vp: u32, flag: u32) {
        self.vps[vp as usize].signal(&self.memory, flag, false);
    }

    fn signal_always(&self, vp: u32, flag: u32) {
        self.vps[vp as usize].signal(&self.memory, flag, true);
    }

    fn clear(&self, vp: u32, flag: u32) {
        self.vps[vp as usize].clear(&self.memory, flag);
    }
}

impl Doorbells for Vm {
    fn register(&self, connection_id: u32, event: &EventFd) -> io::Result<()> {
        let event = event.try_clone()?;
        let mut doorbells = self.doorbells.write().unwrap();
        if doorbells.insert(connection_id, event).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        Ok(())
    }

    fn unregister(&self, connection_id: u32) -> io::Result<()> {
        let removed = self.doorbells.write().unwrap().remove(&connection_id);
        removed.map(drop).ok_or(io::ErrorKind::NotFound.into())
    }
}
