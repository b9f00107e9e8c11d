//! A processor at work: into the guest, out again, and what to do about it.
//!
//! Steady I/O never comes here: doorbells and interrupts are eventfds. What does come is counted
//! by its reason, and is either a port, an MSR, a hypercall of VMBus's control plane, a SynIC
//! page, or the end.

use kvm_ioctls::{VcpuExit, VcpuFd};
use vmbus_proto::PAGE_SIZE;
use vmbus_proto::hv::hypercall::{FAST, POST_MESSAGE, PostMessageInput, SIGNAL_EVENT, Status};
use vmbus_proto::hv::synic::{MESSAGE_PAYLOAD, Sint};
use zerocopy::FromZeros as _;
use zerocopy::IntoBytes as _;

use super::ioctls::{HypervExit, hyperv_exit, internal_error};
use super::vcpu::write_msr;
use super::vm::{MSR_VMBUS_SINT, Vm};
use crate::counters::{Counters, Return};
use crate::hv::Hypercalls;
use crate::machine::{Event, ResetCause};
use crate::memory::GuestMemory;
use crate::platform::Platform;

/// Most significant bit of a message's type: such messages are the hypervisor's own.
const HYPERVISOR_MESSAGE: u32 = 1 << 31;
/// Vectors below this one are the processor's exceptions.
const FIRST_VECTOR: u8 = 16;

/// Exits in a row that one instruction may take to finish.
const MOST_PARTS: usize = 64;

/// What a processor needs to run.
pub struct Runner<'a> {
    /// Its VM.
    pub vm: &'a Vm,
    /// Ports and MSRs.
    pub platform: &'a Platform,
    /// Who takes VMBus's hypercalls.
    pub bus: &'a dyn Hypercalls,
    /// Where returns are counted.
    pub counters: &'a Counters,
    /// Which processor.
    pub vp: u32,
}

/// What an exit needs after its payload is dealt with.
enum Then {
    Nothing,
    Event(Event),
    Hyperv,
    Sint(u64),
    InternalError,
}

impl Runner<'_> {
    /// Runs the guest until it comes out, once. The caller has called
    /// [`Kicker::begin`](super::ioctls::Kicker::begin) and looked at whether to stop since.
    pub fn step(&self, fd: &mut VcpuFd) -> Option<Event> {
        self.vm.synic().deliver(self.vp);
        self.visit(fd)?.1
    }

    /// Lets KVM finish what the last exit left half done, without running the guest.
    ///
    /// A hypercall's result, a read's value and the step over the instruction take effect only at
    /// the next `KVM_RUN`. Whoever looks at the registers of a stopped processor would miss them,
    /// and whoever writes them, as a reset does, would have them written over.
    pub fn settle(&self, fd: &mut VcpuFd) -> Option<Event> {
        let mut event = None;
        // A string instruction comes out once for each page; nothing comes out more often.
        for _ in 0..MOST_PARTS {
            self.vm.kickers().get(self.vp as usize)?.kick();
            let (reason, new) = self.visit(fd)?;
            event = event.or(new);
            if reason == Return::Interrupted {
                break;
            }
        }
        event
    }

    /// One `KVM_RUN`, and what to do about its exit.
    fn visit(&self, fd: &mut VcpuFd) -> Option<(Return, Option<Event>)> {
        let kicker = self.vm.kickers().get(self.vp as usize)?;
        kicker.enter();
        let exit = fd.run();
        kicker.leave();
        let (reason, then) = self.classify(exit);
        let (reason, event) = match then {
            Then::Nothing => (reason, None),
            Then::Event(event) => (reason, Some(event)),
            Then::Hyperv => (self.hyperv(fd), None),
            Then::Sint(value) => {
                // On the guest's behalf, and before anybody raises it.
                let event = write_msr(fd, MSR_VMBUS_SINT, value)
                    .err()
                    .map(Event::failed);
                self.vm.synic().set_sint(self.vp, value);
                (reason, event)
            }
            Then::InternalError => {
                let code = internal_error(fd.get_kvm_run());
                let event = Event::failed(format!(
                    "KVM cannot go on with processor {} (internal error {code}): the guest uses \
                     something that KVM does not emulate here",
                    self.vp
                ));
                (reason, Some(event))
            }
        };
        self.counters.returned(self.vp, reason);
        Some((reason, event))
    }

    fn classify(&self, exit: Result<VcpuExit<'_>, kvm_ioctls::Error>) -> (Return, Then) {
        let event = |event: Option<Event>| event.map_or(Then::Nothing, Then::Event);
        match exit {
            Ok(VcpuExit::IoOut(port, data)) => {
                (Return::PortOut, event(self.platform.port_out(port, data)))
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                self.platform.port_in(port, data);
                (Return::PortIn, Then::Nothing)
            }
            Ok(VcpuExit::MmioRead(_, data)) => {
                // Nobody there: the bus floats high.
                data.fill(0xFF);
                (Return::Mmio, Then::Nothing)
            }
            Ok(VcpuExit::MmioWrite(..)) => (Return::Mmio, Then::Nothing),
            Ok(VcpuExit::Hyperv) => (Return::Synic, Then::Hyperv),
            Ok(VcpuExit::X86Rdmsr(exit)) => {
                match self.platform.read_msr(exit.index) {
                    Some(value) => *exit.data = value,
                    None => *exit.error = 1,
                }
                (Return::Msr, Then::Nothing)
            }
            Ok(VcpuExit::X86Wrmsr(exit)) if exit.index == MSR_VMBUS_SINT => {
                let sint = Sint(exit.data);
                if sint.vector() < FIRST_VECTOR && !sint.is_masked() {
                    *exit.error = 1;
                    return (Return::Msr, Then::Nothing);
                }
                (Return::Msr, Then::Sint(exit.data))
            }
            Ok(VcpuExit::X86Wrmsr(exit)) => {
                if !self.platform.write_msr(exit.index, exit.data) {
                    *exit.error = 1;
                }
                (Return::Msr, Then::Nothing)
            }
            Ok(VcpuExit::SystemEvent(kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN, _)) => {
                (Return::SystemEvent, Then::Event(Event::PowerOff))
            }
            Ok(VcpuExit::SystemEvent(kvm_bindings::KVM_SYSTEM_EVENT_RESET, _)) => (
                Return::SystemEvent,
                Then::Event(Event::Reset(ResetCause::HypervMsr)),
            ),
            Ok(VcpuExit::SystemEvent(..)) => (Return::SystemEvent, Then::Nothing),
            Ok(VcpuExit::Shutdown) => {
                let cause = ResetCause::TripleFault { vp: self.vp };
                (Return::Shutdown, Then::Event(Event::Reset(cause)))
            }
            Ok(VcpuExit::Intr) => (Return::Interrupted, Then::Nothing),
            Ok(VcpuExit::InternalError) => (Return::Other, Then::InternalError),
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                let sentence = format!(
                    "the processor refuses to enter the guest (reason {reason:#x} on CPU {cpu}): \
                     the kernel's first state is not one it takes"
                );
                (Return::Other, Then::Event(Event::failed(sentence)))
            }
            Ok(other) => {
                let sentence = format!("KVM returned something unknown: {other:?}");
                (Return::Other, Then::Event(Event::failed(sentence)))
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                (Return::Interrupted, Then::Nothing)
            }
            Err(error) => {
                let sentence = format!("running processor {} failed: {error}", self.vp);
                (Return::Other, Then::Event(Event::failed(sentence)))
            }
        }
    }

    fn hyperv(&self, fd: &mut VcpuFd) -> Return {
        match hyperv_exit(fd.get_kvm_run()) {
            HypervExit::Synic {
                control,
                event_page,
                message_page,
            } => {
                self.vm
                    .synic()
                    .set_registers(self.vp, control, event_page, message_page);
                Return::Synic
            }
            HypervExit::Hypercall {
                input,
                parameters,
                result,
            } => {
                let (reason, status) = self.hypercall(input, parameters);
                *result = status.0.into();
                reason
            }
            HypervExit::Other(kind) => {
                tracing::debug!(kind, "a Hyper-V exit nobody asked for");
                Return::Other
            }
        }
    }

    fn hypercall(&self, input: u64, parameters: [u64; 2]) -> (Return, Status) {
        match input as u16 {
            POST_MESSAGE if input & FAST == 0 => {
                (Return::PostMessage, self.post_message(parameters[0]))
            }
            POST_MESSAGE => (Return::PostMessage, Status::INVALID_HYPERCALL_INPUT),
            // The operand is in the register in the slow form too: KVM has loaded it.
            SIGNAL_EVENT => {
                let operand = parameters[0];
                let status = if operand >> 48 != 0 {
                    Status::INVALID_HYPERCALL_INPUT
                } else {
                    self.bus
                        .signal_event(self.vp, operand as u32, (operand >> 32) as u16)
                };
                (Return::SignalEvent, status)
            }
            code => {
                tracing::debug!(code, "a hypercall nobody serves");
                (Return::Hypercall, Status::INVALID_HYPERCALL_CODE)
            }
        }
    }

    fn post_message(&self, address: u64) -> Status {
        match read_message(&**self.vm.memory().memory(), address) {
            Ok(message) => {
                let size = message.payload_size.get() as usize;
                let payload = message.payload.get(..size).unwrap_or_default();
                self.bus.post_message(
                    self.vp,
                    message.connection_id.get(),
                    message.message_type.get(),
                    payload,
                )
            }
            Err(status) => status,
        }
    }
}

/// A private copy of the input of HvPostMessage at `address`, checked.
fn read_message(memory: &dyn GuestMemory, address: u64) -> Result<PostMessageInput, Status> {
    let offset = address as usize % PAGE_SIZE;
    if !address.is_multiple_of(8) || offset > PAGE_SIZE - size_of::<PostMessageInput>() {
        return Err(Status::INVALID_ALIGNMENT);
    }
    let mut message = PostMessageInput::new_zeroed();
    memory
        .read(address, message.as_mut_bytes())
        .ok_or(Status::INVALID_PARAMETER)?;
    let bad = message.reserved.get() != 0
        || message.message_type.get() & HYPERVISOR_MESSAGE != 0
        || message.payload_size.get() as usize > MESSAGE_PAYLOAD;
    if bad {
        Err(Status::INVALID_PARAMETER)
    } else {
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;

    fn with(change: impl FnOnce(&mut PostMessageInput)) -> GuestMemoryMmap<()> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x3000)]).unwrap();
        let mut message = PostMessageInput::new_zeroed();
        message.connection_id.set(4);
        message.message_type.set(1);
        message.payload_size.set(240);
        change(&mut message);
        memory.write(0x1F00, message.as_bytes()).unwrap();
        memory
    }

    fn status(memory: &GuestMemoryMmap<()>, address: u64) -> Status {
        match read_message(memory, address) {
            Ok(_) => Status::SUCCESS,
            Err(status) => status,
        }
    }

    #[test]
    fn a_message_is_copied_and_checked() {
        let message = with(|message| message.payload[239] = 7);
        let read = read_message(&message, 0x1F00).unwrap();
        assert_eq!((read.connection_id.get(), read.payload[239]), (4, 7));
        assert_eq!(
            status(&with(|m| m.payload_size.set(241)), 0x1F00),
            Status::INVALID_PARAMETER
        );
        assert_eq!(
            status(&with(|m| m.message_type.set(1 << 31)), 0x1F00),
            Status::INVALID_PARAMETER
        );
        assert_eq!(
            status(&with(|m| m.reserved.set(1)), 0x1F00),
            Status::INVALID_PARAMETER
        );
    }

    #[test]
    fn an_input_that_is_misplaced_is_refused() {
        let memory = with(|_| {});
        assert_eq!(status(&memory, 0x1F04), Status::INVALID_ALIGNMENT);
        assert_eq!(
            status(&memory, 0x1F08),
            Status::INVALID_ALIGNMENT,
            "crosses a page"
        );
        assert_eq!(status(&memory, 0x3000), Status::INVALID_PARAMETER, "no RAM");
        assert_eq!(status(&memory, !0xFFF), Status::INVALID_PARAMETER);
    }
}
