//! One virtual processor's SynIC, as a hypervisor keeps it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use vm_memory::{
    Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap, VolatileMemory as _,
};
use vmbus_proto::hv::msr;
use vmbus_proto::hv::synic::{
    EVENT_FLAGS_SIZE, MESSAGE_FLAG_PENDING, MESSAGE_PAYLOAD, MESSAGE_SIZE, MESSAGE_TYPE_CHANNEL,
    MESSAGE_TYPE_NONE, SINT_COUNT, SLOT_FLAGS, SLOT_PAYLOAD, SLOT_PAYLOAD_SIZE, SLOT_TYPE, Sint,
    VMBUS_SINT,
};

const SINT: usize = VMBUS_SINT as usize;

/// Some of the bits that are reserved in the registers of a SynIC. A guest has to preserve them.
const RESERVED: u64 = 0xA00;

/// Registers and the messages that wait for the slot.
struct Registers {
    control: u64,
    simp: u64,
    siefp: u64,
    sints: [Sint; SINT_COUNT],
    queue: VecDeque<(u32, Vec<u8>)>,
}

/// The SynIC of one virtual processor.
pub(crate) struct Synic {
    registers: Mutex<Registers>,
    /// Whether the processor has an interrupt to take.
    raised: Mutex<bool>,
    raising: Condvar,
    pub(crate) interrupts: AtomicU32,
    pub(crate) eoms: AtomicU32,
}

/// The page that an MSR names, where it is enabled.
fn page(register: u64) -> Option<u64> {
    (register & msr::PAGE_ENABLE != 0).then_some(register & msr::PAGE_ADDRESS)
}

/// A word of guest memory.
fn word(memory: &GuestMemoryMmap, gpa: u64, f: impl FnOnce(&AtomicU32)) {
    let slice = memory.get_slice(GuestAddress(gpa), 4).expect("SynIC page");
    f(slice.get_atomic_ref(0).expect("aligned"));
}

impl Synic {
    pub(crate) fn new() -> Self {
        Self {
            registers: Mutex::new(Registers {
                control: RESERVED,
                simp: RESERVED,
                siefp: RESERVED,
                sints: [Sint(Sint::MASKED | RESERVED); SINT_COUNT],
                queue: VecDeque::new(),
            }),
            raised: Mutex::new(false),
            raising: Condvar::new(),
            interrupts: AtomicU32::new(0),
            eoms: AtomicU32::new(0),
        }
    }

    pub(crate) fn rdmsr(&self, register: u32) -> Option<u64> {
        let registers = self.registers.lock().unwrap();
        Some(match register {
            msr::SCONTROL => registers.control,
            msr::SVERSION => 1,
            msr::SIMP => registers.simp,
            msr::SIEFP => registers.siefp,
            _ => registers.sints.get(sint_index(register)?)?.0,
        })
    }

    pub(crate) fn wrmsr(&self, memory: &GuestMemoryMmap, register: u32, value: u64) -> Option<()> {
        let mut registers = self.registers.lock().unwrap();
        let preserved = register == msr::EOM || value & RESERVED == RESERVED;
        assert!(preserved, "reserved bits of {register:#x} were cleared");
        match register {
            msr::SCONTROL => registers.control = value,
            msr::SIMP => registers.simp = value,
            msr::SIEFP => registers.siefp = value,
            msr::EOM => {
                self.eoms.fetch_add(1, Ordering::Relaxed);
            }
            _ => *registers.sints.get_mut(sint_index(register)?)? = Sint(value),
        }
        self.deliver(memory, &mut registers);
        Some(())
    }

    /// Queues a message for the slot.
    pub(crate) fn post(&self, memory: &GuestMemoryMmap, message_type: u32, payload: &[u8]) {
        let mut registers = self.registers.lock().unwrap();
        registers.queue.push_back((message_type, payload.to_vec()));
        self.deliver(memory, &mut registers);
    }

    pub(crate) fn backlog(&self) -> usize {
        self.registers.lock().unwrap().queue.len()
    }

    pub(crate) fn clear_queue(&self) {
        self.registers.lock().unwrap().queue.clear();
    }

    /// Puts the next message into the slot, if that is empty.
    fn deliver(&self, memory: &GuestMemoryMmap, registers: &mut Registers) {
        let (Some(simp), 1) = (page(registers.simp), registers.control & 1) else {
            return;
        };
        let slot = simp + (SINT * MESSAGE_SIZE) as u64;
        let at = |offset: usize| GuestAddress(slot + offset as u64);
        let empty = || {
            let mut now = 0;
            word(memory, slot + SLOT_TYPE as u64, |t| {
                now = t.load(Ordering::SeqCst)
            });
            now == MESSAGE_TYPE_NONE
        };
        let flags = |flags: u8| memory.write_obj(flags, at(SLOT_FLAGS)).unwrap();
        if registers.queue.is_empty() {
            return;
        }
        if !empty() {
            flags(MESSAGE_FLAG_PENDING);
            fence(Ordering::SeqCst);
            // Emptied just now? Then the guest may have missed the flag.
            if !empty() {
                return;
            }
        }
        let (message_type, payload) = registers.queue.pop_front().expect("not empty");
        let mut padded = [0; MESSAGE_PAYLOAD];
        let length = payload.len().min(MESSAGE_PAYLOAD);
        padded[..length].copy_from_slice(&payload[..length]);
        memory.write_slice(&padded, at(SLOT_PAYLOAD)).unwrap();
        // The size goes in as the sender said it, so that a lie can be told.
        memory
            .write_obj(payload.len() as u8, at(SLOT_PAYLOAD_SIZE))
            .unwrap();
        flags(if registers.queue.is_empty() {
            0
        } else {
            MESSAGE_FLAG_PENDING
        });
        word(memory, slot + SLOT_TYPE as u64, |t| {
            t.store(message_type, Ordering::SeqCst)
        });
        if !registers.sints[SINT].is_masked() {
            self.raise();
        }
    }

    /// Sets an event flag and raises the SINT; `always` even where it was set.
    pub(crate) fn signal(&self, memory: &GuestMemoryMmap, flag: u32, always: bool) {
        let registers = self.registers.lock().unwrap();
        let Some(siefp) = page(registers.siefp) else {
            return;
        };
        let was = flag_word(memory, siefp, flag, |word, bit| {
            word.fetch_or(bit, Ordering::SeqCst) & bit != 0
        });
        if (!was || always) && !registers.sints[SINT].is_masked() {
            self.raise();
        }
    }

    /// Clears an event flag.
    pub(crate) fn clear(&self, memory: &GuestMemoryMmap, flag: u32) {
        let registers = self.registers.lock().unwrap();
        if let Some(siefp) = page(registers.siefp) {
            flag_word(memory, siefp, flag, |word, bit| {
                word.fetch_and(!bit, Ordering::SeqCst);
            });
        }
    }

    /// Raises the VMBus interrupt.
    pub(crate) fn raise(&self) {
        self.interrupts.fetch_add(1, Ordering::Relaxed);
        *self.raised.lock().unwrap() = true;
        self.raising.notify_all();
    }

    /// Waits for an interrupt, but not long; says whether one came.
    pub(crate) fn wait(&self, at_most: Duration) -> bool {
        let raised = self.raised.lock().unwrap();
        let (mut raised, _) = self
            .raising
            .wait_timeout_while(raised, at_most, |raised| !*raised)
            .unwrap();
        std::mem::take(&mut *raised)
    }
}

fn sint_index(register: u32) -> Option<usize> {
    register.checked_sub(msr::SINT0).map(|index| index as usize)
}

fn flag_word<R>(
    memory: &GuestMemoryMmap,
    siefp: u64,
    flag: u32,
    f: impl FnOnce(&AtomicU64, u64) -> R,
) -> R {
    let gpa = siefp + (SINT * EVENT_FLAGS_SIZE) as u64 + u64::from(flag / 64) * 8;
    let slice = memory.get_slice(GuestAddress(gpa), 8).expect("SynIC page");
    f(slice.get_atomic_ref(0).expect("aligned"), 1 << (flag % 64))
}

/// The type of messages between host and guest.
pub(crate) const CHANNEL_MESSAGE: u32 = MESSAGE_TYPE_CHANNEL;
