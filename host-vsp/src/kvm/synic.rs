//! The SynIC's pages, as the host writes them: event flags here, messages in a
//! module of their own.
//!
//! KVM keeps the SynIC's registers and raises its interrupts; the two pages that the guest names
//! in SIMP and SIEFP are ours to write. Their addresses arrive by exits, on the processor's own
//! thread, and are used from any thread.
//!
//! **Event flags.** To interrupt a channel: OR its flag into SIEFP, and raise the SINT where the
//! flag was clear, by an irqfd, without a system call into KVM's run loop. The guest clears flags
//! before it looks at rings, so a flag that is set already has an interrupt on its way. Two things
//! can break that: an interrupt for a masked SINT is dropped by KVM, and a page can be disabled
//! while a flag is meant for it. So the flags meant for a disabled page are remembered, and every
//! re-enabling of SIEFP, SCONTROL or the SINT raises the SINT once, whatever the flags say.
//!
//! **Lines.** Each processor has an irqfd for the VMBus SINT, with a resample event that KVM
//! rings at every end of interrupt and end of message. It is a mere hint that a message slot may
//! be free, and nobody polls it but while a message waits.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

use vm_memory::{VolatileMemory as _, VolatileSlice};
use vmbus_proto::PAGE_SIZE;
use vmbus_proto::hv::msr::{PAGE_ADDRESS, PAGE_ENABLE};
use vmbus_proto::hv::synic::{EVENT_FLAG_COUNT, EVENT_FLAGS_SIZE, Sint, VMBUS_SINT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::messages::{self, Queue};
use crate::hv;
use crate::memory::GuestMemory;

/// SCONTROL's enable bit.
const CONTROL_ENABLE: u64 = 1;
/// 32-bit words of one SINT's event flags.
const FLAG_WORDS: usize = EVENT_FLAGS_SIZE / 4;

/// A SINT register as the machine starts with it: masked.
const SINT_AT_RESET: u64 = Sint::MASKED;

/// Brings processor `.0`'s thread out of the guest, so that it delivers messages.
pub type Kick = Arc<dyn Fn(u32) + Send + Sync>;

/// The SynICs of all processors of one machine.
pub struct Synic {
    memory: Arc<dyn GuestMemory>,
    processors: Vec<Processor>,
    kick: Kick,
    pump: messages::Pump,
}

/// One processor's SynIC.
pub(super) struct Processor {
    /// Raises the VMBus SINT.
    pub(super) line: EventFd,
    /// Rung by KVM at each end of interrupt and end of message.
    pub(super) acknowledge: EventFd,
    /// Messages that are not in the slot yet.
    pub(super) queue: Queue,
    enabled: AtomicBool,
    event_page: AtomicU64,
    message_page: AtomicU64,
    sint: AtomicU64,
    /// Flags that were signalled while the page was disabled.
    missed: [AtomicU32; FLAG_WORDS],
}

impl Processor {
    fn new() -> io::Result<Self> {
        Ok(Self {
            line: EventFd::new(EFD_NONBLOCK)?,
            acknowledge: EventFd::new(EFD_NONBLOCK)?,
            queue: Queue::default(),
            enabled: AtomicBool::new(true),
            event_page: AtomicU64::new(0),
            message_page: AtomicU64::new(0),
            sint: AtomicU64::new(SINT_AT_RESET),
            missed: std::array::from_fn(|_| AtomicU32::new(0)),
        })
    }

    /// Raises the SINT.
    pub(super) fn raise(&self) {
        // Fails only where the eventfd's counter is at its end, and then it is raised.
        let _ = self.line.write(1);
    }

    /// Address of the VMBus SINT's message slot, `None` while the SynIC or the page is disabled.
    pub(super) fn slot_address(&self) -> Option<u64> {
        self.address(&self.message_page, messages::SLOT_SIZE)
    }

    fn flags_address(&self) -> Option<u64> {
        self.address(&self.event_page, EVENT_FLAGS_SIZE)
    }

    fn address(&self, page: &AtomicU64, stride: usize) -> Option<u64> {
        let page = page.load(Ordering::SeqCst);
        let enabled = self.enabled.load(Ordering::SeqCst) && page & PAGE_ENABLE != 0;
        enabled.then_some((page & PAGE_ADDRESS).wrapping_add(u64::from(VMBUS_SINT) * stride as u64))
    }
}

/// The word and the bit in it of event flag `flag`.
fn place(flag: u32) -> Option<(usize, u32)> {
    (flag < EVENT_FLAG_COUNT).then(|| ((flag / 32) as usize, 1 << (flag % 32)))
}

/// The word of flags at `flags` (an address) that holds word `word`.
fn with_word<T>(
    memory: &dyn GuestMemory,
    flags: u64,
    word: usize,
    f: impl FnOnce(&AtomicU32) -> T,
) -> Option<T> {
    let slice: VolatileSlice<'_> = memory.slice(flags.checked_add(word as u64 * 4)?, 4)?;
    slice.get_atomic_ref::<AtomicU32>(0).ok().map(f)
}

impl Synic {
    /// SynICs in their reset state. `kick` is called from any thread.
    pub fn new(memory: Arc<dyn GuestMemory>, vp_count: u32, kick: Kick) -> io::Result<Arc<Self>> {
        let processors = (0..vp_count)
            .map(|_| Processor::new())
            .collect::<io::Result<Vec<_>>>()?;
        let pump = messages::Pump::new(&processors, Arc::clone(&kick))?;
        Ok(Arc::new(Self {
            memory,
            processors,
            kick,
            pump,
        }))
    }

    /// For processor `vp`: the event that raises its VMBus SINT, and the event that KVM rings when
    /// an interrupt or a message has been acknowledged.
    pub fn lines(&self, vp: u32) -> Option<(&EventFd, &EventFd)> {
        self.processor(vp)
            .map(|processor| (&processor.line, &processor.acknowledge))
    }

    fn processor(&self, vp: u32) -> Option<&Processor> {
        self.processors.get(vp as usize)
    }

    /// The guest wrote one of the registers of `vp`; called on the processor's own thread.
    pub fn set_registers(&self, vp: u32, control: u64, event_page: u64, message_page: u64) {
        let Some(processor) = self.processor(vp) else {
            return;
        };
        let enabled = control & CONTROL_ENABLE != 0;
        let was_enabled = processor.enabled.load(Ordering::SeqCst);
        for (register, value) in [
            (&processor.event_page, event_page),
            (&processor.message_page, message_page),
        ] {
            let old = register.load(Ordering::SeqCst);
            if old != value && value & PAGE_ENABLE != 0 {
                // The page is the hypervisor's from now on, and starts empty.
                self.memory.write(value & PAGE_ADDRESS, &[0; PAGE_SIZE]);
            }
            register.store(value, Ordering::SeqCst);
        }
        processor.enabled.store(enabled, Ordering::SeqCst);
        tracing::debug!(
            vp,
            control,
            event_page,
            message_page,
            was_enabled,
            "SynIC registers"
        );
        self.revive(processor);
    }

    /// The guest wrote the VMBus SINT's register of `vp`, and KVM has taken the value.
    pub fn set_sint(&self, vp: u32, value: u64) {
        let Some(processor) = self.processor(vp) else {
            return;
        };
        processor.sint.store(value, Ordering::SeqCst);
        self.revive(processor);
    }

    /// An interrupt may have been lost while something was disabled: hands over missed flags and
    /// raises the SINT.
    fn revive(&self, processor: &Processor) {
        // Partner of the fence in `set_flag`: either it sees the page, or we see its flag.
        fence(Ordering::SeqCst);
        if let Some(flags) = processor.flags_address() {
            for (word, missed) in processor.missed.iter().enumerate() {
                let bits = missed.swap(0, Ordering::SeqCst);
                if bits != 0 {
                    with_word(&*self.memory, flags, word, |all| {
                        all.fetch_or(bits, Ordering::SeqCst)
                    });
                }
            }
        }
        let masked = Sint(processor.sint.load(Ordering::SeqCst)).is_masked();
        let enabled = processor
            .flags_address()
            .or(processor.slot_address())
            .is_some();
        if enabled && !masked {
            processor.raise();
        }
    }

    /// Puts waiting messages of `vp` into its slot; called on the processor's own thread, outside
    /// of the guest.
    pub fn deliver(&self, vp: u32) {
        if let Some(processor) = self.processor(vp) {
            messages::deliver(
                processor,
                &*self.memory,
                || self.pump.forget(vp, &self.processors),
                || self.pump.watch(vp, &self.processors),
            );
        }
    }

    /// Everything as after power-on. The processors must not be running.
    pub fn reset(&self) {
        for processor in &self.processors {
            processor.enabled.store(true, Ordering::SeqCst);
            processor.event_page.store(0, Ordering::SeqCst);
            processor.message_page.store(0, Ordering::SeqCst);
            processor.sint.store(SINT_AT_RESET, Ordering::SeqCst);
            for word in &processor.missed {
                word.store(0, Ordering::SeqCst);
            }
            processor.queue.clear();
        }
    }

    /// Sets `flag`, returns whether it was clear before; `None` where there is no page for it.
    fn set_flag(&self, processor: &Processor, flag: u32) -> Option<bool> {
        let (word, bit) = place(flag)?;
        let set = |address| {
            with_word(&*self.memory, address, word, |all| {
                all.fetch_or(bit, Ordering::SeqCst) & bit == 0
            })
        };
        if let Some(address) = processor.flags_address() {
            return set(address);
        }
        processor.missed[word].fetch_or(bit, Ordering::SeqCst);
        // Partner of the fence in `revive`, for a page that is enabled just now.
        fence(Ordering::SeqCst);
        let address = processor.flags_address()?;
        let bits = processor.missed[word].swap(0, Ordering::SeqCst);
        with_word(&*self.memory, address, word, |all| {
            all.fetch_or(bits, Ordering::SeqCst)
        })?;
        Some(true)
    }
}

impl hv::Messages for Synic {
    fn post(&self, vp: u32, payload: &[u8]) {
        let Some(processor) = self.processor(vp) else {
            tracing::warn!(
                vp,
                "a message for a processor that does not exist is dropped"
            );
            return;
        };
        if processor.queue.push(payload) {
            (self.kick)(vp);
        }
    }

    fn backlog(&self) -> usize {
        self.processors
            .iter()
            .map(|processor| processor.queue.len())
            .sum()
    }

    fn clear(&self) {
        for processor in &self.processors {
            processor.queue.clear();
        }
    }
}

impl hv::Interrupts for Synic {
    fn signal(&self, vp: u32, flag: u32) {
        let Some(processor) = self.processor(vp) else {
            return;
        };
        if self.set_flag(processor, flag) == Some(true) {
            processor.raise();
        }
    }

    fn signal_always(&self, vp: u32, flag: u32) {
        let Some(processor) = self.processor(vp) else {
            return;
        };
        if self.set_flag(processor, flag).is_some() {
            processor.raise();
        }
    }

    fn clear(&self, vp: u32, flag: u32) {
        let Some(processor) = self.processor(vp) else {
            return;
        };
        let Some((word, bit)) = place(flag) else {
            return;
        };
        processor.missed[word].fetch_and(!bit, Ordering::SeqCst);
        if let Some(address) = processor.flags_address() {
            with_word(&*self.memory, address, word, |all| {
                all.fetch_and(!bit, Ordering::SeqCst)
            });
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Mutex;

    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::hv::{Interrupts as _, Messages as _};

    pub(in crate::kvm) const EVENT_PAGE: u64 = 0x1000;
    pub(in crate::kvm) const MESSAGE_PAGE: u64 = 0x2000;

    pub(in crate::kvm) struct Bench {
        pub(in crate::kvm) memory: Arc<GuestMemoryMmap<()>>,
        pub(in crate::kvm) synic: Arc<Synic>,
        pub(in crate::kvm) kicked: Arc<Mutex<Vec<u32>>>,
    }

    impl Bench {
        pub(in crate::kvm) fn new() -> Self {
            let memory =
                Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap());
            let kicked = Arc::new(Mutex::new(Vec::new()));
            let log = Arc::clone(&kicked);
            let kick: Kick = Arc::new(move |vp| log.lock().unwrap().push(vp));
            let synic = Synic::new(memory.clone(), 2, kick).unwrap();
            Self {
                memory,
                synic,
                kicked,
            }
        }

        pub(in crate::kvm) fn enable(&self, vp: u32) {
            self.synic
                .set_registers(vp, 1, EVENT_PAGE | 1, MESSAGE_PAGE | 1);
            self.synic.set_sint(vp, 0xF3);
            self.raised(vp);
        }

        /// How often the SINT was raised since the last call.
        pub(in crate::kvm) fn raised(&self, vp: u32) -> u64 {
            self.synic.lines(vp).unwrap().0.read().unwrap_or(0)
        }

        fn flags(&self, word: usize) -> u32 {
            let address = EVENT_PAGE + 2 * EVENT_FLAGS_SIZE as u64;
            with_word(&*self.memory, address, word, |all| {
                all.load(Ordering::SeqCst)
            })
            .unwrap()
        }
    }

    #[test]
    fn only_the_first_signal_of_a_flag_raises_the_sint() {
        let bench = Bench::new();
        bench.enable(0);
        bench.synic.signal(0, 5);
        bench.synic.signal(0, 5);
        assert_eq!(bench.raised(0), 1);
        bench.synic.signal(0, 37);
        assert_eq!(bench.raised(0), 1);
        assert_eq!((bench.flags(0), bench.flags(1)), (1 << 5, 1 << 5));
        bench.synic.signal_always(0, 5);
        assert_eq!(bench.raised(0), 1);
        hv::Interrupts::clear(&*bench.synic, 0, 5);
        assert_eq!(bench.flags(0), 0);
    }

    #[test]
    fn a_flag_for_a_disabled_page_arrives_when_it_is_enabled() {
        let bench = Bench::new();
        bench.synic.signal(0, 7);
        assert_eq!(bench.raised(0), 0);
        bench.synic.set_sint(0, 0xF3);
        bench
            .synic
            .set_registers(0, 1, EVENT_PAGE | 1, MESSAGE_PAGE | 1);
        assert_eq!(bench.flags(0), 1 << 7);
        assert_ne!(bench.raised(0), 0);
        // Disabled by SCONTROL, with the pages left as they are.
        bench
            .synic
            .set_registers(0, 0, EVENT_PAGE | 1, MESSAGE_PAGE | 1);
        bench.synic.signal(0, 8);
        assert_eq!((bench.raised(0), bench.flags(0)), (0, 1 << 7));
        bench
            .synic
            .set_registers(0, 1, EVENT_PAGE | 1, MESSAGE_PAGE | 1);
        assert_eq!(bench.flags(0), 1 << 7 | 1 << 8);
        assert_ne!(bench.raised(0), 0);
    }

    #[test]
    fn unmasking_the_sint_raises_it() {
        let bench = Bench::new();
        bench.enable(0);
        bench.synic.set_sint(0, 0xF3 | Sint::MASKED);
        // KVM drops what is raised meanwhile.
        bench.synic.signal(0, 9);
        bench.raised(0);
        bench.synic.set_sint(0, 0xF3);
        assert_eq!(bench.raised(0), 1);
    }

    #[test]
    fn pages_start_empty_and_survive_the_same_address_written_twice() {
        let bench = Bench::new();
        bench.memory.write(EVENT_PAGE, &[0xFF; PAGE_SIZE]).unwrap();
        bench.enable(0);
        assert_eq!(bench.flags(0), 0);
        bench.synic.signal(0, 3);
        bench
            .synic
            .set_registers(0, 1, EVENT_PAGE | 1, MESSAGE_PAGE | 1);
        assert_eq!(bench.flags(0), 1 << 3);
    }

    #[test]
    fn what_the_guest_names_wrongly_is_ignored() {
        let bench = Bench::new();
        let outside = 0x7FFF_FFFF_F000;
        bench.synic.set_registers(1, 1, outside | 1, outside | 1);
        bench.synic.set_sint(1, 0xF3);
        bench.synic.signal(1, 3);
        bench.synic.signal(1, u32::MAX);
        bench.synic.signal(99, 3);
        bench.synic.post(99, b"nobody");
        bench.synic.post(1, b"nowhere");
        bench.synic.deliver(1);
        bench.synic.set_registers(1, 1, u64::MAX, u64::MAX);
        bench.synic.signal(1, 3);
        bench.synic.deliver(1);
    }

    #[test]
    fn a_reset_forgets_pages_flags_and_messages() {
        let bench = Bench::new();
        bench.synic.signal(0, 1);
        bench.synic.post(0, b"old");
        bench.synic.reset();
        bench.enable(0);
        bench.synic.deliver(0);
        assert_eq!(bench.flags(0), 0);
        let mut kind = [0; 4];
        bench.memory.read(MESSAGE_PAGE + 512, &mut kind).unwrap();
        assert_eq!(kind, [0; 4]);
    }
}
