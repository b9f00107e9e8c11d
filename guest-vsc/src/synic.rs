//! One processor's synthetic interrupt controller: the message page, the event flags page and the
//! SINT that VMBus uses.
//!
//! The hypervisor raises the SINT's vector for a new message and for a new event flag. The
//! handler takes messages first (few, they carry the control plane), then flags (one per channel,
//! named by relid).
#![expect(unsafe_code, reason = "privileged instructions through `Hal`")]

use core::sync::atomic::{Ordering, fence};

use vmbus_proto::hv::msr;
use vmbus_proto::hv::synic::{
    EVENT_FLAG_COUNT, EVENT_FLAGS_SIZE, MESSAGE_FLAG_PENDING, MESSAGE_PAYLOAD, MESSAGE_SIZE,
    MESSAGE_TYPE_NONE, SLOT_FLAGS, SLOT_PAYLOAD, SLOT_PAYLOAD_SIZE, SLOT_TYPE, Sint, VMBUS_SINT,
};

use crate::hal::Hal;
use crate::hypervisor::{PAGE_BITS, change_msr};
use crate::shared::Dma;

/// Offset of VMBus's slot in the message page, in bytes.
const SLOT: usize = MESSAGE_SIZE * VMBUS_SINT as usize;
/// Offset of VMBus's flags in the event flags page, in bytes.
const FLAGS: usize = EVENT_FLAGS_SIZE * VMBUS_SINT as usize;
/// The SINT register of VMBus.
const SINT_MSR: u32 = msr::SINT0 + VMBUS_SINT as u32;

/// A message, copied out of its slot.
pub(crate) struct SlotMessage {
    /// Its type.
    pub(crate) message_type: u32,
    payload: [u8; MESSAGE_PAYLOAD],
    length: usize,
}

impl SlotMessage {
    /// The payload; as long as its sender said, as far as that can be.
    pub(crate) fn payload(&self) -> &[u8] {
        self.payload.get(..self.length).unwrap_or_default()
    }
}

/// Pages for the SynIC of one processor.
pub(crate) struct SynicPages<H: Hal> {
    messages: Dma<H>,
    events: Dma<H>,
}

impl<H: Hal> SynicPages<H> {
    /// Zeroed pages.
    pub(crate) fn new() -> Option<Self> {
        Some(Self {
            messages: Dma::new(1)?,
            events: Dma::new(1)?,
        })
    }
}

/// The SynIC of one processor.
pub(crate) struct SynicCpu<H: Hal> {
    messages: Dma<H>,
    events: Dma<H>,
    vp_index: u32,
    vector: u8,
}

impl<H: Hal> SynicCpu<H> {
    /// Enables the SynIC of the processor that runs this, with the VMBus SINT raising `vector`.
    /// Interrupts are off, so that it stays the same processor.
    pub(crate) fn enable(pages: SynicPages<H>, vector: u8) -> Self {
        let SynicPages { messages, events } = pages;
        messages.lend();
        events.lend();
        // SAFETY: the privilege for it was checked at detection.
        let vp_index = unsafe { H::rdmsr(msr::VP_INDEX) } as u32;
        for (register, bits, value) in [
            (msr::SIMP, PAGE_BITS, messages.paddr() | msr::PAGE_ENABLE),
            (msr::SIEFP, PAGE_BITS, events.paddr() | msr::PAGE_ENABLE),
            (SINT_MSR, Sint::BITS, Sint::unmasked(vector).0),
            (msr::SCONTROL, 1, 1),
        ] {
            // SAFETY: the privilege was checked; the pages are lent until `disable`.
            unsafe { change_msr::<H>(register, bits, value) };
        }
        Self {
            messages,
            events,
            vp_index,
            vector,
        }
    }

    /// Disables the SynIC. Only on the processor that enabled it.
    pub(crate) fn disable(&self) {
        for (register, bits, value) in [
            (SINT_MSR, Sint::BITS, Sint::masked(self.vector).0),
            (msr::SIEFP, PAGE_BITS, 0),
            (msr::SIMP, PAGE_BITS, 0),
            (msr::SCONTROL, 1, 0),
        ] {
            // SAFETY: the registers take these values; the pages stay ours until dropped.
            unsafe { change_msr::<H>(register, bits, value) };
        }
        self.messages.reclaim();
        self.events.reclaim();
    }

    /// The hypervisor's number of this processor.
    pub(crate) fn vp_index(&self) -> u32 {
        self.vp_index
    }

    /// Whether the processor's own handler would find something.
    pub(crate) fn has_message(&self) -> bool {
        self.messages
            .u32_at(SLOT + SLOT_TYPE)
            .is_some_and(|t| t.load(Ordering::Relaxed) != MESSAGE_TYPE_NONE)
    }

    /// Takes the message out of the slot, and lets the hypervisor put in the next.
    /// Only on the processor whose SynIC this is.
    pub(crate) fn take_message(&self) -> Option<SlotMessage> {
        let slot_type = self.messages.u32_at(SLOT + SLOT_TYPE)?;
        // Acquire: the sender wrote the type last.
        let message_type = slot_type.load(Ordering::Acquire);
        if message_type == MESSAGE_TYPE_NONE {
            return None;
        }
        let size = self.messages.u8_at(SLOT + SLOT_PAYLOAD_SIZE)?;
        let mut message = SlotMessage {
            message_type,
            payload: [0; MESSAGE_PAYLOAD],
            length: usize::from(size.load(Ordering::Relaxed)).min(MESSAGE_PAYLOAD),
        };
        self.messages
            .read(SLOT + SLOT_PAYLOAD, &mut message.payload);
        slot_type.store(MESSAGE_TYPE_NONE, Ordering::Release);
        // Partner: the sender, who sets the pending flag and then looks at the type again. One of
        // the two sees the other's store, so no message is left waiting for an EOM.
        fence(Ordering::SeqCst);
        let flags = self.messages.u8_at(SLOT + SLOT_FLAGS)?;
        if flags.load(Ordering::Relaxed) & MESSAGE_FLAG_PENDING != 0 {
            // SAFETY: any value may be written; it tells the hypervisor that the slot is free.
            unsafe { H::wrmsr(msr::EOM, 0) };
        }
        Some(message)
    }

    /// Takes the event flags up to relid `highest` and passes each one that was set to `event`.
    pub(crate) fn take_events(&self, highest: u32, mut event: impl FnMut(u32)) {
        for word in 0..=(highest.min(EVENT_FLAG_COUNT - 1) / u64::BITS) {
            let offset = FLAGS.saturating_add((word as usize).saturating_mul(size_of::<u64>()));
            let Some(flags) = self.events.u64_at(offset) else {
                return;
            };
            if flags.load(Ordering::Relaxed) == 0 {
                continue;
            }
            // Acquire: the ring was written before the flag was set.
            let mut set = flags.swap(0, Ordering::AcqRel);
            while set != 0 {
                event(
                    word.saturating_mul(u64::BITS)
                        .saturating_add(set.trailing_zeros()),
                );
                set &= set.wrapping_sub(1);
            }
        }
    }
}
