//! x
#![no_std]
/// T
#[derive(Clone, Copy, Debug, zerocopy_derive::FromBytes, zerocopy_derive::IntoBytes, zerocopy_derive::KnownLayout, zerocopy_derive::Immutable)]
#[repr(C)]
pub struct T {
    /// a
    pub a: zerocopy::little_endian::U32,
    /// a
    pub b: u8,
    /// a
    pub c: [u8;3],
}
