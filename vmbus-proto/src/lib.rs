//! Hyper-V's VMBus on the wire, for both ends.
//!
//! VMBus has no public specification. This crate is a tested description of it in types: the
//! hypervisor interface that carries it ([`hv`]), the channel messages that set it up
//! ([`message`]), the shared-memory rings that move packets ([`ring`]), and the protocols that
//! devices speak inside those packets ([`storvsp`] with [`scsi`], [`netvsp`] with [`rndis`],
//! [`console`], [`keyboard`], the integration services in [`ic`], dynamic memory in [`balloon`]).
//!
//! Nothing here does I/O, allocates, or needs `unsafe`. Wire structs are `repr(C)` with
//! little-endian, byte-aligned fields, so that a struct can be read from any offset of a buffer;
//! their sizes are asserted beside them. What a peer wrote is parsed once, at the door, into an
//! owned value or a checked view; parsers never panic.
//!
//! Sources of the facts are named at each item: *TLFS* is Microsoft's Hypervisor Top Level
//! Functional Specification, *observed* means seen on the wire of a stock Linux guest.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    warn(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

pub mod balloon;
pub mod console;
pub mod gpa;
pub mod guid;
pub mod hv;
pub mod ic;
pub mod keyboard;
pub mod message;
pub mod netvsp;
pub mod packet;
pub mod pipe;
pub mod ring;
pub mod rndis;
pub mod scsi;
pub mod storvsp;
pub mod version;

/// Size of the pages that GPADLs, rings and the SynIC count in, in bytes.
///
/// Always 4096, whatever page size the guest's processor uses.
pub const PAGE_SIZE: usize = 4096;
