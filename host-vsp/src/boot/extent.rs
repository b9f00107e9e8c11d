//! What a kernel file says of its own size: how much of it there must be, and how much memory it
//! needs. Nobody else asks: a loader takes what is there, and the guest then fails in the dark.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use linux_loader::loader::bootparam::setup_header;

use super::Format;
use crate::layout;

/// Bytes at the beginning of a bzImage that hold its header.
const HEADER: usize = 0x264;
/// Offsets in a bzImage: sectors of setup code, and the rest in units of 16 bytes.
const SETUP_SECTORS: usize = 0x1F1;
const SYSTEM_SIZE: usize = 0x1F4;
/// Sectors of setup code where the header says 0.
const SETUP_SECTORS_BEFORE_2_00: u64 = 4;

/// Offsets in an ELF header: of the program headers, and their size and number.
const PROGRAM_HEADERS: usize = 0x20;
const PROGRAM_HEADER_SIZE: usize = 0x36;
const PROGRAM_HEADER_COUNT: usize = 0x38;
/// Size of a program header.
const PROGRAM_HEADER: usize = 56;
/// Types of segments: to load, and with notes, of which one tells the PVH entry.
const LOAD: u32 = 1;
const NOTE: u32 = 4;

/// The ends of a kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extent {
    /// Where the file must not end before, in bytes.
    pub(super) file: u64,
    /// Where memory must not end before, an address; 0 where only its header tells.
    pub(super) memory: u64,
}

impl Extent {
    /// Reads it from the kernel's headers; `None` where these themselves are cut short.
    pub(super) fn read(file: &File, format: Format) -> io::Result<Option<Self>> {
        let extent = match format {
            Format::BzImage => Self::of_bzimage(file),
            Format::Elf => Self::of_elf(file),
        };
        match extent {
            Ok(extent) => Ok(Some(extent)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn of_bzimage(file: &File) -> io::Result<Self> {
        let header: [u8; HEADER] = bytes(file, 0)?;
        let setup = match u64::from(header[SETUP_SECTORS]) {
            0 => SETUP_SECTORS_BEFORE_2_00,
            sectors => sectors,
        };
        let system = u64::from(u32::from_le_bytes(take(&header, SYSTEM_SIZE)));
        Ok(Self {
            // The boot sector comes first.
            file: (1 + setup) * 512 + system * 16,
            memory: 0,
        })
    }

    fn of_elf(file: &File) -> io::Result<Self> {
        let header: [u8; 64] = bytes(file, 0)?;
        let headers = u64::from_le_bytes(take(&header, PROGRAM_HEADERS));
        let size = u64::from(u16::from_le_bytes(take(&header, PROGRAM_HEADER_SIZE)));
        let count = u64::from(u16::from_le_bytes(take(&header, PROGRAM_HEADER_COUNT)));
        let mut extent = Self::default();
        for index in 0..count {
            let at = headers.saturating_add(index * size);
            let segment: [u8; PROGRAM_HEADER] = bytes(file, at)?;
            let [_, offset, _, address, in_file, in_memory, _]: [u64; 7] =
                std::array::from_fn(|field| u64::from_le_bytes(take(&segment, field * 8)));
            let kind = u32::from_le_bytes(take(&segment, 0));
            if matches!(kind, LOAD | NOTE) {
                extent.file = extent.file.max(offset.saturating_add(in_file));
            }
            if kind == LOAD {
                extent.memory = extent.memory.max(address.saturating_add(in_memory));
            }
        }
        Ok(extent)
    }
}

/// Where memory must not end before for a bzImage with this header: it unpacks itself to its
/// preferred address, or to where it was loaded if that is higher.
pub(super) fn bzimage_memory(header: &setup_header) -> u64 {
    let address = header.pref_address.max(layout::HIGH_MEMORY);
    address.saturating_add(header.init_size.into())
}

fn bytes<const N: usize>(file: &File, at: u64) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

/// The `N` bytes at `at`, which is a constant within the array.
fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes[at + index])
}
