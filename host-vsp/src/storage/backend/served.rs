//! A disk in a VHD or VHDX image, which qemu-storage-daemon keeps for us.
//!
//! Nobody else writes these formats and is kept up. Neither has a way to give blocks back while it
//! is in use, so such a disk does not offer UNMAP; nor does it grow.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use vm_memory::VolatileSlice;

use super::daemon::{Daemon, EXPORT, StartError};
use super::image::{Format, ImageFile, OpenError};
use super::nbd::Client;
use super::{Backend, bounce};
use crate::storage::BLOCK_SIZE;

/// The program, where the environment names no other one.
const PROGRAM: &str = "qemu-storage-daemon";

/// Names another program.
const PROGRAM_VARIABLE: &str = "HOST_VSP_STORAGE_DAEMON";

/// How long a request may take, a flush of everything included.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a VHD's footer, and the copy of it before a dynamic one, begins with.
const VHD_MAGIC: &[u8; 8] = b"conectix";
/// Where its footer says which kind it is.
const VHD_KIND: u64 = 60;
/// The kind that stands on another image.
const VHD_DIFFERENCING: u32 = 4;

/// What a VHDX begins with.
const VHDX_MAGIC: &[u8; 8] = b"vhdxfile";

/// A disk in a VHD or VHDX image.
#[derive(Debug)]
pub struct ServedFile {
    /// Let go before the daemon is asked to end.
    client: Client,
    _daemon: Daemon,
    format: Format,
    size: u64,
    read_only: bool,
}

impl ServedFile {
    /// Opens the image at `path`, locks it, and starts the daemon for it. `format` is VHD or VHDX.
    ///
    /// # Errors
    /// Why not.
    pub fn open(
        path: impl AsRef<Path>,
        format: Format,
        read_only: bool,
    ) -> Result<Self, OpenError> {
        let program = env::var_os(PROGRAM_VARIABLE).filter(|program| !program.is_empty());
        let program = program.unwrap_or_else(|| OsString::from(PROGRAM));
        Self::open_by(&program, path.as_ref(), format, read_only)
    }

    fn open_by(
        program: &OsStr,
        path: &Path,
        format: Format,
        read_only: bool,
    ) -> Result<Self, OpenError> {
        let ImageFile { file, size, .. } = ImageFile::open(path, read_only)?;
        let driver = driver(&file, size, path, format)?;
        let (daemon, stream) =
            Daemon::start(program, file, driver, read_only).map_err(|error| match error {
                StartError::Missing => OpenError::NoDaemon {
                    path: path.into(),
                    format,
                },
                StartError::Refused(why) => unusable(path, format, why),
            })?;
        let client = Client::new(stream, EXPORT, PATIENCE)
            .map_err(|error| unusable(path, format, error.to_string()))?;
        let rest = client.size() % BLOCK_SIZE;
        let size = client.size().saturating_sub(rest);
        if size == 0 {
            return Err(unusable(
                path,
                format,
                "it has less than one 512-byte sector",
            ));
        }
        Ok(Self {
            read_only: read_only || client.read_only(),
            client,
            _daemon: daemon,
            format,
            size,
        })
    }
}

fn unusable(path: &Path, format: Format, reason: impl Into<String>) -> OpenError {
    OpenError::Unusable {
        path: path.into(),
        format,
        reason: reason.into(),
    }
}

/// QEMU's name for the format, where the image has it.
fn driver(file: &File, size: u64, path: &Path, format: Format) -> Result<&'static str, OpenError> {
    let begins = |magic: &[u8; 8], at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).is_ok() && bytes == *magic
    };
    let footer = size.saturating_sub(BLOCK_SIZE);
    let is_it = match format {
        Format::Vhd => begins(VHD_MAGIC, 0) || begins(VHD_MAGIC, footer),
        Format::Vhdx => begins(VHDX_MAGIC, 0),
        Format::Raw | Format::Qcow2 => false,
    };
    if !is_it {
        return Err(OpenError::OtherFormat {
            path: path.into(),
            format,
        });
    }
    if format == Format::Vhdx {
        return Ok("vhdx");
    }
    let at = if begins(VHD_MAGIC, 0) { 0 } else { footer };
    let mut kind = [0; 4];
    let read = file.read_exact_at(&mut kind, at.saturating_add(VHD_KIND));
    // The daemon would serve it without what it stands on.
    if read.is_err() || u32::from_be_bytes(kind) == VHD_DIFFERENCING {
        return Err(unusable(
            path,
            format,
            "it only has the differences from another image; merge them first",
        ));
    }
    Ok("vpc")
}

impl Backend for ServedFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        super::check_size(size, self.size, self.read_only)?;
        if size == self.size {
            return Ok(());
        }
        let format = self.format;
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("a {format} image keeps its size while a machine uses it"),
        ))
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn can_unmap(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, to: &[VolatileSlice<'_>]) -> io::Result<()> {
        let bytes = self.client.read(offset, bounce::length(to))?;
        bounce::scatter(&bytes, to)
    }

    fn write(&self, offset: u64, from: &[VolatileSlice<'_>], durable: bool) -> io::Result<()> {
        self.client.write(offset, &bounce::gather(from)?, durable)
    }

    fn flush(&self) -> io::Result<()> {
        self.client.flush()
    }

    fn unmap(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
