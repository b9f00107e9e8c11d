//! From kernel files to a processor's first instruction.
//!
//! A [`Payload`] is the kernel, its initial RAM disk and its command line: opened and looked at
//! once, before anything else is made, and loaded at each (re)boot. Three ways lead in:
//!
//! | file | protocol | entered in |
//! |---|---|---|
//! | bzImage | Linux 64-bit ([`linux`]) | long mode, RSI = zero page |
//! | ELF with a PVH note | PVH ([`pvh`]) | 32-bit protected mode, EBX = start info |
//! | other ELF | Linux 64-bit | long mode at the ELF entry, RSI = zero page |

mod extent;
pub mod linux;
pub mod pvh;
pub mod registers;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{self, KernelLoader as _};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};

use crate::layout;
use extent::Extent;

/// Which entry of a kernel to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// PVH where an ELF file has the note, the Linux 64-bit protocol otherwise.
    #[default]
    Auto,
    /// The Linux 64-bit protocol.
    Linux64,
    /// PVH.
    Pvh,
}

/// Why a payload cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error(
        "cannot read the {what} {path:?} ({error}); give --{what} the path of a file that can be \
         read",
        path = path.display()
    )]
    Read {
        /// "kernel" or "initrd".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What went wrong.
        error: io::Error,
    },
    /// The path is not that of a file.
    #[error("the {what} {path:?} is not a regular file; give the path of one", path = path.display())]
    NotAFile {
        /// "kernel" or "initrd".
        what: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// There is nothing in the file.
    #[error(
        "the {what} {path:?} is empty; give --{what} the path of another one",
        path = path.display()
    )]
    Empty {
        /// "kernel" or "initrd".
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The file is something else.
    #[error(
        "{path:?} is no kernel this machine can boot ({reason}); give a 64-bit x86 Linux bzImage \
         or an ELF kernel",
        path = path.display()
    )]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The file ends too early.
    #[error(
        "the kernel {path:?} is cut short: its headers tell of more than its {size} bytes; copy it \
         again",
        path = path.display()
    )]
    CutShort {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        size: u64,
    },
    /// The kernel has no such entry.
    #[error("{path:?} cannot be booted by {protocol}; leave out --boot to take its own", path = path.display())]
    NoSuchEntry {
        /// The file.
        path: PathBuf,
        /// The protocol.
        protocol: &'static str,
    },
    /// The command line is too long or holds a zero byte.
    #[error("the kernel command line is unusable: {0}")]
    CommandLine(String),
    /// Not enough memory for all of it.
    #[error("{what} does not fit into the machine's memory; give it more with --memory")]
    DoesNotFit {
        /// What does not fit.
        what: &'static str,
    },
}

/// What a kernel file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    BzImage,
    Elf,
}

/// A file that is loaded at every boot.
#[derive(Debug)]
struct Source {
    what: &'static str,
    path: PathBuf,
    file: File,
    size: u64,
}

impl Source {
    fn open(what: &'static str, path: &Path) -> Result<Self, Error> {
        let read = |error| Error::Read {
            what,
            path: path.to_owned(),
            error,
        };
        // Looked at before it is opened: opening a FIFO would wait for its writer.
        if !std::fs::metadata(path).map_err(read)?.is_file() {
            return Err(Error::NotAFile {
                what,
                path: path.to_owned(),
            });
        }
        let file = File::open(path).map_err(read)?;
        let size = file.metadata().map_err(read)?.len();
        if size == 0 {
            return Err(Error::Empty {
                what,
                path: path.to_owned(),
            });
        }
        Ok(Self {
            what,
            path: path.to_owned(),
            file,
            size,
        })
    }

    fn error(&self, error: io::Error) -> Error {
        Error::Read {
            what: self.what,
            path: self.path.clone(),
            error,
        }
    }

    /// The first bytes, as many as there are.
    fn head<const N: usize>(&self) -> Result<[u8; N], Error> {
        let mut head = [0; N];
        let length = usize::try_from(self.size).unwrap_or(N).min(N);
        self.file
            .read_exact_at(&mut head[..length], 0)
            .map_err(|error| self.error(error))?;
        Ok(head)
    }
}

/// How the boot processor enters the loaded kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// In long mode with identity page tables; RSI holds the address of the zero page.
    Linux64 {
        /// Address of the first instruction.
        address: u64,
    },
    /// In 32-bit protected mode without paging; EBX holds the address of the start info.
    Pvh {
        /// Address of the first instruction.
        address: u32,
    },
}

/// Where the initial RAM disk was put.
#[derive(Clone, Copy, Debug)]
pub struct Initrd {
    /// Its address, page aligned.
    pub address: u64,
    /// Its size in bytes.
    pub size: u64,
}

/// A kernel with what belongs to it.
#[derive(Debug)]
pub struct Payload {
    kernel: Source,
    format: Format,
    extent: Extent,
    protocol: Protocol,
    initrd: Option<Source>,
    command_line: String,
}

impl Payload {
    /// Opens and checks the files; nothing is loaded yet.
    pub fn open(
        kernel: &Path,
        protocol: Protocol,
        initrd: Option<&Path>,
        command_line: &str,
    ) -> Result<Self, Error> {
        let kernel = Source::open("kernel", kernel)?;
        let format = format(&kernel)?;
        let extent = Extent::read(&kernel.file, format).map_err(|error| kernel.error(error))?;
        let Some(extent) = extent.filter(|extent| extent.file <= kernel.size) else {
            return Err(Error::CutShort {
                path: kernel.path,
                size: kernel.size,
            });
        };
        if format == Format::BzImage && protocol == Protocol::Pvh {
            return Err(Error::NoSuchEntry {
                path: kernel.path,
                protocol: "PVH",
            });
        }
        let initrd = initrd
            .map(|path| Source::open("initrd", path))
            .transpose()?;
        if command_line.len() >= layout::COMMAND_LINE_MAX {
            let reason = format!("it is longer than {} bytes", layout::COMMAND_LINE_MAX - 1);
            return Err(Error::CommandLine(reason));
        }
        if command_line.contains('\0') {
            return Err(Error::CommandLine("it contains a zero byte".into()));
        }
        Ok(Self {
            kernel,
            format,
            extent,
            protocol,
            initrd,
            command_line: command_line.to_owned(),
        })
    }

    /// Loads everything into `memory`, which is all zeroes but for the ACPI tables.
    pub fn load(
        &self,
        memory: &GuestMemoryMmap<()>,
        ram_size: u64,
        rsdp: u64,
    ) -> Result<Entry, Error> {
        let mut file = self
            .kernel
            .file
            .try_clone()
            .map_err(|error| self.kernel.error(error))?;
        let kernel_does_not_fit = Error::DoesNotFit { what: "the kernel" };
        if self.extent.memory > low_end(memory) {
            return Err(kernel_does_not_fit);
        }
        let start = GuestAddress(layout::HIGH_MEMORY);
        let loaded = match self.format {
            Format::BzImage => BzImage::load(memory, Some(start), &mut file, Some(start)),
            Format::Elf => Elf::load(memory, None, &mut file, Some(start)),
        }
        .map_err(|error| self.load_error(&error))?;

        let mut line = self.command_line.as_bytes().to_vec();
        line.push(0);
        memory
            .write_slice(&line, GuestAddress(layout::COMMAND_LINE))
            .map_err(|_| Error::DoesNotFit {
                what: "the command line",
            })?;

        let header = loaded.setup_header;
        let needs = header.as_ref().map_or(0, extent::bzimage_memory);
        if needs > low_end(memory) {
            return Err(kernel_does_not_fit);
        }
        let entry = match (self.format, self.protocol, loaded.pvh_boot_cap) {
            (Format::BzImage, ..) => Entry::Linux64 {
                address: loaded.kernel_load.0 + linux::BZIMAGE_64_BIT_ENTRY,
            },
            (
                Format::Elf,
                Protocol::Auto | Protocol::Pvh,
                PvhBootCapability::PvhEntryPresent(at),
            ) => Entry::Pvh {
                address: at.0 as u32,
            },
            (Format::Elf, Protocol::Pvh, _) => {
                let path = self.kernel.path.clone();
                return Err(Error::NoSuchEntry {
                    path,
                    protocol: "PVH",
                });
            }
            (Format::Elf, ..) => Entry::Linux64 {
                address: loaded.kernel_load.0,
            },
        };
        let bounds = linux::initrd_bounds(header.as_ref(), loaded.kernel_end);
        let initrd = self.load_initrd(memory, bounds)?;
        match entry {
            Entry::Linux64 { .. } => {
                let params =
                    linux::boot_params(header, ram_size, rsdp, &self.command_line, initrd)?;
                linux::write(memory, &params)?;
            }
            Entry::Pvh { .. } => pvh::write(memory, ram_size, rsdp, initrd)?,
        }
        Ok(entry)
    }

    /// Puts the initial RAM disk as high as `bounds` and memory below 4 GiB allow.
    fn load_initrd(
        &self,
        memory: &GuestMemoryMmap<()>,
        bounds: std::ops::Range<u64>,
    ) -> Result<Option<Initrd>, Error> {
        let Some(source) = &self.initrd else {
            return Ok(None);
        };
        let does_not_fit = Error::DoesNotFit {
            what: "the initrd, above the kernel,",
        };
        let address = low_end(memory)
            .min(bounds.end)
            .checked_sub(source.size)
            .map(|address| address & !0xFFF)
            .filter(|address| *address >= bounds.start);
        let Some(address) = address else {
            return Err(does_not_fit);
        };
        // From the file's start, whatever was read of it before.
        let mut at = 0;
        let mut chunk = vec![0; 1 << 20];
        while at < source.size {
            let length = chunk.len().min((source.size - at) as usize);
            source
                .file
                .read_exact_at(&mut chunk[..length], at)
                .map_err(|error| source.error(error))?;
            memory
                .write_slice(&chunk[..length], GuestAddress(address + at))
                .map_err(|_| Error::DoesNotFit { what: "the initrd" })?;
            at += length as u64;
        }
        Ok(Some(Initrd {
            address,
            size: source.size,
        }))
    }

    fn load_error(&self, error: &loader::Error) -> Error {
        use linux_loader::loader::{bzimage, elf};
        match error {
            loader::Error::MemoryOverflow
            | loader::Error::Elf(elf::Error::ReadKernelImage)
            | loader::Error::Bzimage(bzimage::Error::ReadBzImageCompressedKernel) => {
                Error::DoesNotFit {
                    what: "the kernel, unless its file is cut short,",
                }
            }
            other => Error::NotAKernel {
                path: self.kernel.path.clone(),
                reason: other.to_string(),
            },
        }
    }
}

/// Where RAM from address 0 on ends.
fn low_end(memory: &GuestMemoryMmap<()>) -> u64 {
    memory
        .find_region(GuestAddress(0))
        .map_or(0, vm_memory::GuestMemoryRegion::len)
}

/// What the kernel file is, by its first bytes.
fn format(kernel: &Source) -> Result<Format, Error> {
    const ELF_64_LITTLE: [u8; 6] = *b"\x7FELF\x02\x01";
    const ELF_MACHINE: usize = 0x12;
    const MACHINE_X86_64: [u8; 2] = [62, 0];
    let head: [u8; 0x264] = kernel.head()?;
    let refuse = |reason: &str| {
        Err(Error::NotAKernel {
            path: kernel.path.clone(),
            reason: reason.to_owned(),
        })
    };
    if head.starts_with(&ELF_64_LITTLE) {
        if head[ELF_MACHINE..ELF_MACHINE + 2] != MACHINE_X86_64 {
            return refuse("an ELF file for another processor");
        }
        return Ok(Format::Elf);
    }
    if head.starts_with(b"\x7FELF") {
        return refuse("an ELF file, but not a 64-bit one");
    }
    if head[0x202..0x206] == *b"HdrS" {
        let flags = u16::from_le_bytes([head[0x236], head[0x237]]);
        let version = u16::from_le_bytes([head[0x206], head[0x207]]);
        if version < linux::VERSION_WITH_64_BIT_ENTRY || flags & linux::HAS_64_BIT_ENTRY == 0 {
            return refuse("a bzImage without a 64-bit entry");
        }
        return Ok(Format::BzImage);
    }
    refuse("neither a bzImage nor an ELF file")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        file
    }

    fn refusal(path: &Path) -> String {
        Payload::open(path, Protocol::Auto, None, "")
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn what_is_no_kernel_is_refused_in_one_sentence() {
        assert!(refusal(Path::new("/does/not/exist")).contains("No such file"));
        assert!(refusal(&std::env::temp_dir()).contains("not a regular file"));
        assert!(refusal(file(b"").path()).contains("is empty"));
        assert!(refusal(file(b"just text\n").path()).contains("neither a bzImage nor an ELF"));
        assert!(refusal(file(b"\x7FELF\x01\x01").path()).contains("not a 64-bit one"));
        assert!(refusal(file(&elf()[..123]).path()).contains("cut short"));
        assert!(refusal(file(&elf()[..100]).path()).contains("cut short"));
        let mut bzimage = vec![0; 0x264];
        bzimage[0x1F1] = 1;
        bzimage[0x1F4] = 2;
        bzimage[0x202..0x206].copy_from_slice(b"HdrS");
        bzimage[0x206..0x208].copy_from_slice(&linux::VERSION_WITH_64_BIT_ENTRY.to_le_bytes());
        bzimage[0x236] = linux::HAS_64_BIT_ENTRY as u8;
        bzimage.resize(2 * 512 + 2 * 16 - 1, 0);
        assert!(refusal(file(&bzimage).path()).contains("cut short"));
        bzimage.push(0);
        Payload::open(file(&bzimage).path(), Protocol::Auto, None, "").unwrap();
        let mut arm = elf();
        arm[0x12] = 183;
        assert!(refusal(file(&arm).path()).contains("another processor"));
        for sentence in [refusal(file(b"x").path()), refusal(file(b"").path())] {
            assert!(!sentence.contains('\n'));
        }
    }

    /// An ELF kernel of one segment of four bytes at 1 MiB, without a PVH note.
    fn elf() -> Vec<u8> {
        let mut elf = vec![0; 124];
        elf[..6].copy_from_slice(b"\x7FELF\x02\x01");
        elf[0x10] = 2;
        elf[0x12] = 62;
        elf[0x18..0x20].copy_from_slice(&0x10_0000u64.to_le_bytes());
        elf[0x20..0x28].copy_from_slice(&64u64.to_le_bytes());
        elf[0x36] = 56;
        elf[0x38] = 1;
        let segment = &mut elf[64..120];
        segment[0] = 1;
        segment[8..16].copy_from_slice(&120u64.to_le_bytes());
        segment[24..32].copy_from_slice(&0x10_0000u64.to_le_bytes());
        segment[32] = 4;
        segment[40..48].copy_from_slice(&0x1000u64.to_le_bytes());
        elf[120..].copy_from_slice(&[0xF4; 4]);
        elf
    }

    #[test]
    fn an_elf_without_note_is_entered_the_linux_way_with_its_initrd() {
        let kernel = file(&elf());
        let initrd = file(b"cpio");
        let payload =
            Payload::open(kernel.path(), Protocol::Auto, Some(initrd.path()), "a=b").unwrap();
        let size = 16 * layout::MIB;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size as usize)]).unwrap();
        // Twice: a machine boots again after a reset.
        for _ in 0..2 {
            let entry = payload.load(&memory, size, 0xE_0000).unwrap();
            assert_eq!(entry, Entry::Linux64 { address: 0x10_0000 });
            let code: u32 = memory.read_obj(GuestAddress(0x10_0000)).unwrap();
            assert_eq!(code, 0xF4F4_F4F4);
            let line: [u8; 4] = memory.read_obj(GuestAddress(layout::COMMAND_LINE)).unwrap();
            assert_eq!(&line, b"a=b\0");
            let initrd: [u8; 4] = memory.read_obj(GuestAddress(size - 4096)).unwrap();
            assert_eq!(&initrd, b"cpio");
        }
    }

    #[test]
    fn pvh_is_refused_where_there_is_no_note() {
        let kernel = file(&elf());
        let payload = Payload::open(kernel.path(), Protocol::Pvh, None, "").unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
        let error = payload.load(&memory, 4 << 20, 0xE_0000).unwrap_err();
        assert!(matches!(error, Error::NoSuchEntry { .. }));
    }

    #[test]
    fn too_little_memory_is_said() {
        let kernel = file(&elf());
        let initrd = file(&vec![1; 1 << 20]);
        let payload =
            Payload::open(kernel.path(), Protocol::Auto, Some(initrd.path()), "").unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        let error = payload.load(&memory, 2 << 20, 0xE_0000).unwrap_err();
        assert!(error.to_string().contains("--memory"), "{error}");

        // Nothing in the file, and a page too much in memory.
        let mut large = elf();
        large[64 + 40..64 + 48].copy_from_slice(&0x10_1000u64.to_le_bytes());
        let kernel = file(&large);
        let payload = Payload::open(kernel.path(), Protocol::Auto, None, "").unwrap();
        let error = payload.load(&memory, 2 << 20, 0xE_0000).unwrap_err();
        assert!(
            error.to_string().contains("the kernel does not fit"),
            "{error}"
        );
    }
}
