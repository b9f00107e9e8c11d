//! x86 I/O ports.
//!
//! Safe functions: an access to a port by itself neither reads nor writes memory. A device told
//! to do DMA would, but the addresses it is told come from the `Hal` implementations, and keeping
//! those right is their contract.
#![expect(unsafe_code, reason = "the IN and OUT instructions")]

use x86_64::instructions::port::Port;

/// Reads a byte; a port that nobody decodes reads as 0xFF.
pub(crate) fn read8(port: u16) -> u8 {
    // SAFETY: see the module's explanation.
    unsafe { Port::new(port).read() }
}

/// Writes a byte.
pub(crate) fn write8(port: u16, value: u8) {
    // SAFETY: see the module's explanation.
    unsafe { Port::new(port).write(value) }
}

/// Writes two bytes.
pub(crate) fn write16(port: u16, value: u16) {
    // SAFETY: see the module's explanation.
    unsafe { Port::new(port).write(value) }
}

/// Reads four bytes.
pub(crate) fn read32(port: u16) -> u32 {
    // SAFETY: see the module's explanation.
    unsafe { Port::new(port).read() }
}

/// Writes four bytes.
pub(crate) fn write32(port: u16, value: u32) {
    // SAFETY: see the module's explanation.
    unsafe { Port::new(port).write(value) }
}
