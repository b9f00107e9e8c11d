//! The machine: composition root, boot, reset and end.
//!
//! A [`Machine`] is made whole but empty: memory, processors, a [`VmBus`] without devices and a
//! loaded kernel. Devices are offered on [`Machine::bus`]; [`Machine::run`] then runs the guest on
//! one thread per processor until something ends it. A [`Handle`] stops, resets or watches it from
//! elsewhere. Nothing here reads a command line or the environment.
//!
//! A reset puts everything back within the same process: channels are closed, interrupt
//! controllers and processors get the state they were made with, memory becomes zero, and the
//! kernel is loaded again.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

use kvm_ioctls::Kvm;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::acpi;
use crate::boot::{self, Payload, registers};
use crate::control::Control;
use crate::counters::Counters;
use crate::hv::Partition;
use crate::ic::Clock;
use crate::kvm::clocks::StoppedClocks;
use crate::kvm::run::Runner;
use crate::kvm::vm::Vm;
use crate::kvm::{self, capabilities};
use crate::layout;
use crate::platform::{Crash, Options, Platform};
use crate::serial::Serial;
use crate::vmbus::VmBus;

/// Most processors of a machine: their APIC ids are one byte, and the last is the broadcast.
pub const MAX_CPUS: u32 = 255;
/// Least memory of a machine, in bytes: boot structures, tables and a small kernel.
pub const MIN_MEMORY: u64 = 16 * layout::MIB;

/// Why a machine cannot be made or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The hypervisor.
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    /// The kernel or what belongs to it.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// The ACPI tables.
    #[error(transparent)]
    Acpi(#[from] acpi::DoesNotFit),
    /// The size of memory or the number of processors.
    #[error("{0}")]
    Shape(String),
    /// Something of this process: threads, events.
    #[error("{what}: {error}")]
    Process {
        /// What could not be had.
        what: &'static str,
        /// The system's answer.
        error: std::io::Error,
    },
    /// The guest can run no further.
    #[error("{0}")]
    Stuck(String),
}

/// Why a machine was not paused or resumed. The text is a sentence for the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotNow {
    /// It is paused.
    #[error("the machine is already paused")]
    AlreadyPaused,
    /// It runs.
    #[error("the machine is not paused")]
    NotPaused,
    /// It has ended.
    #[error("the machine has ended")]
    Ended,
}

/// What a machine does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// It runs.
    Running,
    /// It is paused.
    Paused,
    /// It has ended.
    Ended,
}

/// Why a machine starts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetCause {
    /// The guest wrote ACPI's reset register.
    ResetRegister,
    /// The guest pulsed the reset line of the keyboard controller.
    KeyboardController,
    /// The guest wrote Hyper-V's reset MSR.
    HypervMsr,
    /// The guest faulted with no way to handle it, nor the fault that followed.
    TripleFault {
        /// The processor it happened on.
        vp: u32,
    },
    /// The host asked.
    Host,
}

impl fmt::Display for ResetCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ResetRegister => f.write_str("the guest reset the machine by its reset register"),
            Self::KeyboardController => {
                f.write_str("the guest reset the machine by the keyboard controller")
            }
            Self::HypervMsr => f.write_str("the guest reset the machine by Hyper-V's reset MSR"),
            Self::TripleFault { vp } => {
                write!(f, "the guest took a triple fault on processor {vp}")
            }
            Self::Host => f.write_str("the host reset the machine"),
        }
    }
}

/// Something that stops the processors until it is decided what comes next.
#[derive(Debug)]
pub enum Event {
    /// The guest powered off.
    PowerOff,
    /// The machine shall start again.
    Reset(ResetCause),
    /// The guest wrote this to the exit port.
    Exit(u8),
    /// The host stops the machine.
    Stop,
    /// The host pauses the machine.
    Pause(Sender<Result<(), NotNow>>),
    /// The host lets a paused machine go on.
    Resume(Sender<Result<(), NotNow>>),
    /// It cannot go on; the sentence says why.
    Failed(String),
}

impl Event {
    /// The machine cannot go on, because of `reason`.
    pub(crate) fn failed(reason: impl fmt::Display) -> Self {
        Self::Failed(reason.to_string())
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest, or the host by [`Handle::power_off`], powered off.
    PowerOff,
    /// The guest was reset, and [`OnReset::End`] says that this ends the run.
    Reset(ResetCause),
    /// The guest wrote this byte to the exit port.
    Exit(u8),
    /// [`Handle::stop`].
    Stopped,
}

/// What a reset does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnReset {
    /// The machine starts again.
    #[default]
    Restart,
    /// The run ends.
    End,
}

/// What a machine is like.
#[derive(Clone)]
pub struct Config {
    /// Memory in bytes, a multiple of 1 MiB.
    pub memory: u64,
    /// Processors.
    pub cpus: u32,
    /// What a reset does.
    pub on_reset: OnReset,
    /// Ports for tests.
    pub platform: Options,
}

impl Config {
    /// Checks the shape against this host, before anything is made.
    ///
    /// # Errors
    /// What is wrong, and which option to change.
    pub fn check(&self) -> Result<(), Error> {
        let shape = |sentence| Err(Error::Shape(sentence));
        let mib = |bytes: u64| format!("{}M", bytes / layout::MIB);
        if self.memory < MIN_MEMORY {
            return shape(format!(
                "a machine needs at least {} of memory, e.g. --memory 512M",
                mib(MIN_MEMORY)
            ));
        }
        if !self.memory.is_multiple_of(layout::MIB) {
            return shape("the size of memory must be a whole number of MiB".into());
        }
        let host = host_memory();
        if self.memory > host {
            return shape(format!(
                "this host has {} of memory and swap, not the {} asked for; lower --memory",
                mib(host),
                mib(self.memory)
            ));
        }
        self.check_cpus(MAX_CPUS)
    }

    fn check_cpus(&self, most: u32) -> Result<(), Error> {
        if (1..=most).contains(&self.cpus) {
            return Ok(());
        }
        Err(Error::Shape(format!(
            "a machine has 1 to {most} processors on this host, not {}; change --cpus",
            self.cpus
        )))
    }
}

/// Memory and swap of this host, in bytes.
fn host_memory() -> u64 {
    let info = rustix::system::sysinfo();
    u64::from(info.mem_unit).saturating_mul(info.totalram.saturating_add(info.totalswap))
}

/// A virtual machine.
pub struct Machine {
    config: Config,
    payload: Payload,
    // Dropped before the VM: its end closes the channels.
    bus: VmBus,
    platform: Platform,
    serial: [Arc<Serial>; 2],
    counters: Arc<Counters>,
    control: Arc<Control>,
    vm: Arc<Vm>,
    /// Whether the kernel has been loaded and not yet run.
    fresh: AtomicBool,
    paused: Arc<AtomicBool>,
}

/// A way to influence a machine while it runs.
#[derive(Clone)]
pub struct Handle {
    control: Arc<Control>,
    counters: Arc<Counters>,
    paused: Arc<AtomicBool>,
}

impl Handle {
    /// Stops the guest where it is; [`Machine::run`] closes the devices and returns.
    pub fn stop(&self) {
        self.control.raise(Event::Stop);
    }

    /// Ends the run as if the guest had powered off.
    pub fn power_off(&self) {
        self.control.raise(Event::PowerOff);
    }

    /// Resets the machine. A paused one stays paused, before its first instruction.
    pub fn reset(&self) {
        self.control.raise(Event::Reset(ResetCause::Host));
    }

    /// Stops the guest where it is, its clocks and its devices with it. When this returns, nothing
    /// of it runs, and no transfer touches its memory.
    ///
    /// # Errors
    /// It is paused already, or has ended.
    pub fn pause(&self) -> Result<(), NotNow> {
        self.control.ask(Event::Pause).unwrap_or(Err(NotNow::Ended))
    }

    /// Goes on after [`pause`](Self::pause).
    ///
    /// # Errors
    /// It is not paused, or has ended.
    pub fn resume(&self) -> Result<(), NotNow> {
        self.control
            .ask(Event::Resume)
            .unwrap_or(Err(NotNow::Ended))
    }

    /// What the machine does now; one that has not been started counts as running.
    pub fn state(&self) -> RunState {
        if self.control.has_ended() {
            RunState::Ended
        } else if self.paused.load(Ordering::SeqCst) {
            RunState::Paused
        } else {
            RunState::Running
        }
    }

    /// The machine's counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

impl Machine {
    /// Makes a machine with `payload` loaded, and no devices but COM1 and COM2.
    pub fn new(kvm: &Kvm, config: Config, payload: Payload) -> Result<Self, Error> {
        config.check()?;
        let most = u32::try_from(kvm.get_max_vcpus()).unwrap_or(MAX_CPUS);
        config.check_cpus(most.min(MAX_CPUS))?;
        let ranges: Vec<_> = layout::ram(config.memory)
            .into_iter()
            .map(|Range { start, end }| (GuestAddress(start), (end - start) as usize))
            .collect();
        let memory = GuestMemoryMmap::from_ranges(&ranges).map_err(|error| {
            Error::Shape(format!(
                "the host gives no memory for the guest ({error}); lower --memory"
            ))
        })?;
        let memory = Arc::new(memory);
        let counters = Arc::new(Counters::new(config.cpus));
        let vm = Arc::new(Vm::new(kvm, Arc::clone(&memory), config.cpus, &counters)?);
        let process = |what| move |error| Error::Process { what, error };
        let serial = || Serial::new().map(Arc::new);
        let no_event = process("no event for a serial port");
        let serial = [serial().map_err(no_event)?, serial().map_err(no_event)?];
        for (serial, gsi) in serial.iter().zip(layout::SERIAL_GSIS) {
            vm.connect(serial.line(), gsi)?;
        }
        let platform = Platform::new(
            memory.clone(),
            Arc::clone(&counters),
            serial.clone(),
            config.platform.clone(),
        );
        let bus = VmBus::new(Partition {
            memory,
            messages: vm.synic().clone(),
            interrupts: vm.synic().clone(),
            doorbells: vm.clone(),
            vp_count: config.cpus,
        })
        .map_err(process("no thread for VMBus"))?;
        let control = Arc::new(Control::new(Arc::clone(&vm)));
        let fresh = AtomicBool::new(true);
        let machine = Self {
            config,
            payload,
            bus,
            platform,
            serial,
            counters,
            control,
            vm,
            fresh,
            paused: Arc::default(),
        };
        machine.load()?;
        Ok(machine)
    }

    /// What it is like.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The VMBus, to offer devices on.
    pub fn bus(&self) -> &VmBus {
        &self.bus
    }

    /// COM1.
    pub fn serial(&self) -> &Arc<Serial> {
        &self.serial[0]
    }

    /// COM2.
    pub fn com2(&self) -> &Arc<Serial> {
        &self.serial[1]
    }

    /// The counters.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// The last crash that the guest reported, and how many there were.
    pub fn crash(&self) -> (Option<Crash>, u64) {
        self.platform.crash()
    }

    /// The guest's reference counter and the host's clock.
    pub fn clock(&self) -> Arc<dyn Clock> {
        self.vm.clone()
    }

    /// A way to influence the machine while it runs.
    pub fn handle(&self) -> Handle {
        Handle {
            control: Arc::clone(&self.control),
            counters: Arc::clone(&self.counters),
            paused: Arc::clone(&self.paused),
        }
    }

    /// Puts everything into the state of power-on, with the kernel in place. Nothing may run.
    fn load(&self) -> Result<(), Error> {
        self.bus.reset();
        self.platform.reset();
        let discard = |error| Error::Process {
            what: "guest memory cannot be cleared",
            error,
        };
        self.vm.memory().discard().map_err(discard)?;
        self.vm.reset()?;
        let memory = self.vm.memory().memory();
        let rsdp = acpi::write(&**memory, self.config.memory, self.config.cpus)?;
        let entry = self.payload.load(memory, self.config.memory, rsdp)?;
        if let Some(boot_processor) = self.vm.vcpus().first() {
            boot_processor
                .start(|sregs| registers::enter(memory, entry, sregs).map_err(Error::from))?;
        }
        Ok(())
    }

    /// Runs the guest until something ends it; all channels are closed then. Another call begins
    /// anew, as after a reset.
    pub fn run(&self) -> Result<Outcome, Error> {
        if !self.fresh.swap(false, Ordering::SeqCst) {
            self.load()?;
        }
        self.control.open();
        let outcome = std::thread::scope(|scope| {
            for vp in 0..self.config.cpus {
                let presence = self.control.enter();
                let spawned = std::thread::Builder::new()
                    .name(format!("vcpu{vp}"))
                    .spawn_scoped(scope, move || {
                        let _presence = presence;
                        self.processor(vp);
                    });
                if let Err(error) = spawned {
                    self.control.end();
                    return Err(Error::Process {
                        what: "no thread for a processor",
                        error,
                    });
                }
            }
            let outcome = self.supervise();
            self.control.end();
            outcome
        });
        self.bus.reset();
        outcome
    }

    /// Decides what each event leads to, until one ends the run.
    fn supervise(&self) -> Result<Outcome, Error> {
        // Where the machine is paused, its clocks.
        let mut stopped: Option<StoppedClocks> = None;
        loop {
            self.paused.store(stopped.is_some(), Ordering::SeqCst);
            if stopped.is_none() {
                self.control.resume();
            }
            match self.control.next_event() {
                Event::PowerOff => return Ok(Outcome::PowerOff),
                Event::Stop => return Ok(Outcome::Stopped),
                Event::Exit(status) => return Ok(Outcome::Exit(status)),
                Event::Failed(reason) => return Err(Error::Stuck(reason)),
                Event::Reset(cause) if self.config.on_reset == OnReset::End => {
                    return Ok(Outcome::Reset(cause));
                }
                Event::Reset(cause) => {
                    tracing::warn!("{cause}; the machine starts again");
                    self.control.pause();
                    self.control.forget_resets();
                    self.load()?;
                }
                Event::Pause(reply) => {
                    let answer = if stopped.is_some() {
                        Err(NotNow::AlreadyPaused)
                    } else {
                        stopped = Some(self.pause()?);
                        self.paused.store(true, Ordering::SeqCst);
                        Ok(())
                    };
                    // Whoever asked may have gone.
                    let _ = reply.send(answer);
                }
                Event::Resume(reply) => {
                    let answer = match stopped.take() {
                        Some(clocks) => {
                            self.vm.start_clocks(&clocks)?;
                            self.bus.resume();
                            self.paused.store(false, Ordering::SeqCst);
                            Ok(())
                        }
                        None => Err(NotNow::NotPaused),
                    };
                    let _ = reply.send(answer);
                }
            }
        }
    }

    /// Stops processors, clocks and channels.
    fn pause(&self) -> Result<StoppedClocks, Error> {
        self.control.pause();
        let clocks = self.vm.stop_clocks()?;
        // Each channel keeps its state as long as its device is there.
        drop(self.bus.pause());
        Ok(clocks)
    }

    /// The life of processor `vp`'s thread.
    fn processor(&self, vp: u32) {
        let index = vp as usize;
        let (Some(vcpu), Some(kicker)) = (self.vm.vcpus().get(index), self.vm.kickers().get(index))
        else {
            return;
        };
        let runner = Runner {
            vm: &self.vm,
            platform: &self.platform,
            bus: &self.bus,
            counters: &self.counters,
            vp,
        };
        kicker.attach();
        while self.control.wait() {
            // Held while it runs: between runs, a reset may change it.
            let mut fd = vcpu.lock();
            loop {
                kicker.begin();
                let stopping = !self.control.is_running();
                let event = if stopping {
                    runner.settle(&mut fd)
                } else {
                    runner.step(&mut fd)
                };
                if let Some(event) = event {
                    self.control.raise(event);
                }
                if stopping {
                    break;
                }
            }
        }
    }
}

/// Opens KVM and makes sure that a machine can run on it; the error says what to do.
pub fn open_kvm() -> Result<Kvm, Error> {
    Ok(capabilities::open_checked()?)
}
