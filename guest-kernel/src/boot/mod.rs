//! What the loader told us, in one form for both boot protocols.
//!
//! Everything is copied out before the allocators start, because the loader may have put its
//! structures anywhere in RAM.

mod entry;
mod linux;
mod pvh;

use crate::memory::map::MemoryMap;
use crate::memory::phys;
use core::fmt;

/// The longest command line kept, in bytes; the rest is cut off.
const COMMAND_LINE_BYTES: usize = 2048;

/// The way the kernel was entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Xen's PVH entry, 32-bit, described by `hvm_start_info`.
    Pvh,
    /// Linux's 64-bit entry, described by `boot_params`.
    Linux64,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pvh => "PVH, 32-bit entry",
            Self::Linux64 => "Linux boot protocol, 64-bit entry",
        })
    }
}

/// The command line, as UTF-8: bytes that are not are replaced by `?`.
pub(crate) type CommandLine = heapless::String<COMMAND_LINE_BYTES>;

/// The machine as the loader described it.
pub(crate) struct BootInfo {
    /// The entry that was used.
    pub(crate) protocol: Protocol,
    /// The kernel's command line.
    pub(crate) command_line: CommandLine,
    /// RAM and everything that is not RAM, by physical address.
    pub(crate) memory_map: MemoryMap,
    /// The physical address of the ACPI root pointer, where the loader knows it.
    pub(crate) rsdp: Option<u64>,
}

impl BootInfo {
    /// Reads the structure that the entry code was handed. An error is a sentence to print.
    pub(crate) fn read(protocol: u64, address: u64) -> Result<Self, &'static str> {
        match protocol {
            entry::PROTOCOL_PVH => pvh::read(address),
            entry::PROTOCOL_LINUX => linux::read(address),
            _ => Err("the entry code passed no known boot protocol"),
        }
    }
}

/// Copies the zero-terminated string at `address`; address 0 means "none".
fn read_command_line(address: u64) -> CommandLine {
    let mut line = CommandLine::new();
    if address == 0 {
        return line;
    }
    for offset in 0..COMMAND_LINE_BYTES as u64 {
        match phys::read::<u8>(address + offset) {
            None | Some(0) => break,
            Some(byte) if byte.is_ascii() => {
                if line.push(char::from(byte)).is_err() {
                    break;
                }
            }
            Some(_) => {
                if line.push('?').is_err() {
                    break;
                }
            }
        }
    }
    line
}
