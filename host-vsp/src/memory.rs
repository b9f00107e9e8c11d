//! Guest memory as the data plane sees it.

use vm_memory::Bytes as _;
use vm_memory::{GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap, VolatileSlice};

/// The guest's RAM: one method, so that a VSP can run against a real VM, an embedder's own memory
/// or a test's buffer.
///
/// What is behind it can change under our feet at any time: the guest's processors write to it.
/// A [`VolatileSlice`] is never turned into a Rust reference.
pub trait GuestMemory: Send + Sync {
    /// The `len` bytes at guest physical address `gpa`, or `None` where any of them is not RAM
    /// or they do not lie together in this process.
    fn slice(&self, gpa: u64, len: usize) -> Option<VolatileSlice<'_>>;

    /// Copies guest memory at `gpa` into `to`; `None` where it is not RAM.
    fn read(&self, gpa: u64, to: &mut [u8]) -> Option<()> {
        let slice = self.slice(gpa, to.len())?;
        slice.read_slice(to, 0).ok()
    }

    /// Copies `from` to guest memory at `gpa`; `None` where it is not RAM.
    fn write(&self, gpa: u64, from: &[u8]) -> Option<()> {
        let slice = self.slice(gpa, from.len())?;
        slice.write_slice(from, 0).ok()
    }
}

impl GuestMemory for GuestMemoryMmap<()> {
    fn slice(&self, gpa: u64, len: usize) -> Option<VolatileSlice<'_>> {
        self.get_slice(GuestAddress(gpa), len).ok()
    }
}
