//! What the drivers weigh: the code of a kernel that polls one disk.
//!
//! Link-time optimization merges functions, so what counts as the drivers' is everything in the
//! kernel's text but what is plainly not: the language's own libraries, and the kernel's machine part.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use bed::cargo;
use elf::ElfBytes;
use elf::abi::{SHF_EXECINSTR, STT_FUNC};
use elf::endian::AnyEndian;

/// Most bytes of code that the drivers may take for a polled disk.
const LIMIT: u64 = 32 << 10;

/// Bytes of the page that the hypervisor lays its own code over: no code of ours.
const HYPERCALL_PAGE: u64 = 4096;

/// What the names of functions have that are not the drivers'.
const OTHERS: [&str; 7] = [
    "4core",
    "compiler_builtins",
    "memcpy",
    "memmove",
    "memset",
    "memcmp",
    "7machine",
];

/// The kernels, and what their README promises: less than so many lines each.
const KERNELS: [&str; 2] = ["polled", "interrupts"];
const LINES: usize = 200;

/// Builds the kernels, counts their lines and weighs the polled one.
pub(super) fn run() -> anyhow::Result<()> {
    for name in KERNELS {
        let source = cargo::workspace().join(format!("example-kernels/src/bin/{name}.rs"));
        let text = fs::read_to_string(&source).with_context(|| source.display().to_string())?;
        let lines = text.lines().count();
        ensure!(
            lines < LINES,
            "{name} has {lines} lines, not less than {LINES}"
        );
    }
    let kernel = cargo::example_kernel("polled")?;
    let weight = Weight::of(&kernel)?;
    println!(
        "a polled disk's drivers: {} bytes of code of at most {LIMIT}; with the language's libraries {}",
        weight.drivers, weight.text
    );
    ensure!(
        weight.drivers <= LIMIT,
        "the drivers of a polled disk take {} bytes of code, more than {LIMIT}",
        weight.drivers
    );
    Ok(())
}

/// Bytes of code.
#[derive(Debug)]
struct Weight {
    /// All of the kernel.
    text: u64,
    /// The drivers, and what was merged with them.
    drivers: u64,
}

impl Weight {
    fn of(kernel: &Path) -> anyhow::Result<Self> {
        let shown = || kernel.display().to_string();
        let bytes = fs::read(kernel).with_context(shown)?;
        let file = ElfBytes::<AnyEndian>::minimal_parse(&bytes).with_context(shown)?;
        let section = file.section_header_by_name(".text").with_context(shown)?;
        let section = section.context("the kernel has no .text")?;
        ensure!(
            section.sh_flags & u64::from(SHF_EXECINSTR) != 0,
            "the kernel's .text is no code"
        );
        let text = section.sh_size - HYPERCALL_PAGE;
        let (symbols, names) = file
            .symbol_table()
            .with_context(shown)?
            .context("the kernel has no symbols")?;
        let inside = section.sh_addr..section.sh_addr + section.sh_size;
        let (mut others, mut own) = (0, 0);
        for symbol in symbols.iter() {
            if symbol.st_symtype() != STT_FUNC || !inside.contains(&symbol.st_value) {
                continue;
            }
            let name = names.get(symbol.st_name as usize).with_context(shown)?;
            if name.contains("guest_vsc") || name.contains("vmbus_proto") {
                own += symbol.st_size;
            } else if OTHERS.iter().any(|other| name.contains(other)) {
                others += symbol.st_size;
            }
        }
        ensure!(own > 0, "no function of the drivers is in the kernel");
        Ok(Self {
            text,
            drivers: text - others,
        })
    }
}
