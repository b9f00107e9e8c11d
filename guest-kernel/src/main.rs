//! A bare-metal kernel for 64-bit PCs that exercises the guest drivers.
//!
//! It boots as one ELF by two protocols ([`boot`]), takes the machine over ([`memory`], [`cpu`],
//! [`clock`], [`acpi`]), finds the devices of the machine it is on ([`devices`]: VMBus on Hyper-V, else
//! virtio), runs the scenarios that its command line names ([`scenario`]), and ends with a verdict
//! ([`power`]). Its only output is the serial port ([`serial`]).
//!
//! Files with `unsafe` say so at their top and why.
#![no_std]
#![no_main]

extern crate alloc;

mod acpi;
mod boot;
mod clock;
mod cpu;
mod devices;
mod hal;
mod hyperv;
mod memory;
mod options;
mod power;
mod scenario;
mod serial;
mod virtio;

use acpi::Acpi;
use boot::BootInfo;
use core::panic::PanicInfo;
use options::Options;
use power::Verdict;
use x86_64::instructions::interrupts;

/// The entry code calls this on the first CPU, with the boot protocol's number and the address of
/// the structure that describes the machine.
extern "C" fn kernel_main(protocol: u64, info: u64) -> ! {
    serial::init();
    println!("guest-kernel {}", env!("CARGO_PKG_VERSION"));
    let verdict = match BootInfo::read(protocol, info) {
        Ok(boot) => run(&boot),
        Err(reason) => {
            println!("cannot boot: {reason}");
            Verdict::Fail
        }
    };
    power::exit(verdict)
}

/// Takes the machine over and runs the scenarios.
fn run(boot: &BootInfo) -> Verdict {
    println!("entered by: {}", boot.protocol);
    println!("command line: {}", boot.command_line);
    println!("memory: {} KiB of RAM", boot.memory_map.ram_bytes() >> 10);
    cpu::init(0);
    if let Err(reason) = memory::init(&boot.memory_map) {
        println!("cannot boot: {reason}");
        return Verdict::Fail;
    }
    let (rate, source) = clock::init();
    println!("clock: TSC at {} kHz ({source:?})", rate / 1000);
    cpu::apic::calibrate_timer();
    interrupts::enable();
    match Acpi::read(boot.rsdp) {
        Some(acpi) => {
            power::init(&acpi);
            let missing = cpu::smp::start(&acpi.cpus);
            if missing > 0 {
                println!("{missing} CPUs did not start");
            }
        }
        None => println!("no ACPI tables: one CPU, no power-off"),
    }
    println!(
        "CPUs: {} running, {}",
        cpu::smp::online(),
        cpu::apic::mode()
    );
    match cpu::hypervisor::Signature::read() {
        Some(signature) => println!("hypervisor: {signature}"),
        None => println!("hypervisor: none"),
    }
    scenario::run(&Options::new(&boot.command_line))
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    serial::print_unlocked(format_args!("\nPANIC on CPU {}: {info}\n", cpu::index()));
    power::exit(Verdict::Fail)
}
